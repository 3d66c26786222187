"""The hand-over from recorded events to live ones, for a client that came back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from crossband.broker import Publication
from crossband.codecs import tag_of
from crossband.policies import shed

if TYPE_CHECKING:
    from crossband.hub.socket import Socket
    from crossband.session import Connection


class Hold(deque[Publication]):
    """All that a namespace records from before a client's history was read.

    Also what it does not record but queues for clients that are behind.
    """

    def __init__(self, connection: Connection, limit: int) -> None:
        super().__init__()
        self.connection = connection
        # Publications; a client that is further behind than this is disconnected.
        self.limit = limit

    def take(self, publication: Publication) -> None:
        """Keep a publication until the client has what is before it."""
        if self.connection.closed:
            return
        self.append(publication)
        if len(self) > self.limit:
            kept, freed = shed(self, tag_of, lambda _: 1, len(self) - self.limit // 2)
            if freed:
                self.clear()
                self.extend(kept)
            if len(self) > self.limit * 3 // 4:
                self.connection.overflow()


class CatchUp:
    """What one client still has coming before it is live, in order, once.

    What the history and `hold` both have is skipped in the hold. The client is live at the
    moment both are empty.
    """

    __slots__ = ("_missed", "_seen", "begun", "cursor", "hold", "pausing", "socket")

    def __init__(self, missed: Iterable[Publication], hold: Hold, cursor: str) -> None:
        self._missed = deque(missed)
        self._seen = {publication.cursor for publication in self._missed}
        self.hold = hold
        # Where the client is: nothing before it is still to come.
        self.cursor = cursor
        # None until opened.
        self.socket: Socket | None = None
        # Some of it was sent, or could have been.
        self.begun = False
        # Its outbox is full: somebody waits to go on.
        self.pausing = False

    def next(self) -> Publication | None:
        """Return the next publication of the namespace; None when live."""
        if self._missed:
            publication = self._missed.popleft()
            self.cursor = publication.cursor or self.cursor
            return publication
        while self.hold:
            publication = self.hold.popleft()
            if publication.cursor not in self._seen:
                self.cursor = publication.cursor or self.cursor
                return publication
        return None


def concerns(publication: Publication, rooms: frozenset[str]) -> bool:
    """Tell whether a publication was for a socket in these rooms."""
    if publication.rooms and rooms.isdisjoint(publication.rooms):
        return False
    return rooms.isdisjoint(publication.except_)
