"""The hand-over from recorded events to live ones, for a client that came back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Final

from crossband.broker import Publication
from crossband.codecs import Codec, Wire, tag_of
from crossband.connection import Connection
from crossband.policies import Tag, shed

# Publications examined for one client in one turn: about 5 ms if all of them are for it. The
# loop does other things before the next turn.
TURN = 1_000


class Turns:
    """Lets clients with much to catch up take turns, one in each tick."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, go_on: Callable[[], None]) -> None:
        """Call back in a later tick, after callbacks that were added before."""
        if not self._waiting:
            self._loop.call_soon(self._run)
        self._waiting.append(go_on)

    def _run(self) -> None:
        go_on = self._waiting.popleft()
        if self._waiting:
            self._loop.call_soon(self._run)
        go_on()


class ReplayBuffer(deque["Publication | Wire"]):
    """All that a namespace has recorded since before a client's history was read.

    Also what it does not record but queues for clients that are behind, and what is sent to
    this client alone, such as answers. It has nothing that is for other clients alone, so that
    they cannot fill it.
    """

    def __init__(self, connection: Connection, codec: Codec, *, count: int, size: int) -> None:
        super().__init__()
        self.connection = connection
        # The codec of its client.
        self.codec = codec
        # The client's own socket id, once it is known, and the ids that are among its rooms.
        self.ids: frozenset[str] = frozenset()
        # Most messages, and bytes of their data; a client further behind is disconnected.
        self._most = count
        self._largest = size
        self.size: int = 0

    def take(self, publication: Publication) -> None:
        """Keep a publication until the client has all that comes before it."""
        if publication.private and self.ids.isdisjoint(publication.rooms):
            return
        self.keep(publication)

    def keep(self, item: Publication | Wire) -> None:
        """Keep a message, in order."""
        if self.connection.closed:
            return
        self.append(item)
        self.size += item.size
        if len(self) > self._most:
            self._shed(_one, len(self) - self._most // 2)
            if len(self) > self._most * 3 // 4:
                self.connection.overflow()
        elif self.size > self._largest:
            self._shed(_size, self.size - self._largest // 2)
            # As in an outbox, a single message may be larger than the bound.
            if self.size > self._largest * 3 // 4 and len(self) > 1:
                self.connection.overflow()

    def next(self) -> Publication | Wire | None:
        """Remove and return the oldest."""
        if not self:
            return None
        item = self.popleft()
        self.size -= item.size
        return item

    def _shed(self, measure: Callable[[Publication | Wire], int], excess: int) -> None:
        kept, freed = shed(self, _tag, measure, excess)
        if freed:
            self.clear()
            self.extend(kept)
            self.size = sum(map(_size, kept))


_size: Final[Callable[[Publication | Wire], int]] = attrgetter("size")


def _one(_: Publication | Wire) -> int:
    return 1


def _tag(item: Publication | Wire) -> Tag | None:
    return item.tag if isinstance(item, Wire) else tag_of(item)


class CatchUp:
    """What one client must still get before it is live, in order, once.

    Events in the buffer that the history already had are skipped. The client is live as soon as
    both are empty.
    """

    __slots__ = ("_ended", "_missed", "_read", "begun", "buffer", "cursor", "pausing")

    def __init__(
        self, missed: Iterable[Publication], buffer: ReplayBuffer, cursor: str, read: int
    ) -> None:
        self._missed = deque(missed)
        # The position up to which the history was read: all up to it was in the history, or not
        # for this client.
        self._read = read
        self.buffer: Final = buffer
        # Where the client is: it has all that comes before.
        self.cursor: str = cursor
        # Some of it was sent, or may have been.
        self.begun: bool = False
        # Its outbox is full, or it is the others' turn: it will go on by itself.
        self.pausing: bool = False
        # None unless a caller waits for the end.
        self._ended: asyncio.Future[None] | None = None

    async def ended(self) -> None:
        """Wait until the client is live or has left."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._ended)

    def end(self) -> None:
        """Wake whoever waits for the end."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def next(self) -> Publication | Wire | None:
        """Return the next publication or message; None once live."""
        if self._missed:
            publication = self._missed.popleft()
            self.cursor = publication.cursor or self.cursor
            return publication
        while (held := self.buffer.next()) is not None:
            if isinstance(held, Wire) or held.cursor is None:
                return held
            if held.position > self._read:
                self.cursor = held.cursor
                return held
        return None


def concerns(publication: Publication, rooms: frozenset[str]) -> bool:
    """Return whether a publication was for a socket in these rooms."""
    if publication.rooms and rooms.isdisjoint(publication.rooms):
        return False
    return rooms.isdisjoint(publication.except_)
