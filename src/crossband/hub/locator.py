"""Where a client is in its namespace's order, and what it missed since."""

from __future__ import annotations

import sys
import time

from crossband.broker import HISTORY_PAGE, Page, Publication, Session
from crossband.errors import Gap
from crossband.hub.messages import Locate, Located
from crossband.hub.namespace import Namespace
from crossband.hub.node import Node
from crossband.hub.others import ask_one
from crossband.hub.places import Place


class Locator:
    """Finds what clients missed, also those whose offset is not a cursor."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def place_of(
        self, namespace: Namespace, session: Session, offset: str
    ) -> tuple[str, Page]:
        """Find a client's place, by asking the node that served it: only that node knows."""
        if session.owner == self._node.id:
            return await self._find_place(namespace, session, offset)
        cursor = None
        if session.owner in self._node.bus.members:
            question = Locate(namespace.name, session.key, offset)
            located = await ask_one(self._node.bus, question, Located, session.owner)
            cursor = None if located is None else located.cursor
        if cursor is None:
            raise Gap("unknown")
        # If it receives nothing, it will send the same offset again, here or to another node.
        namespace.fanout.places.keep(session.sid, offset, cursor)
        return cursor, await self.missed(namespace.name, cursor, session.sid)

    async def locate(self, namespace: Namespace, key: str, offset: str) -> Located:
        """Return the place of a client that this node served, for the node that it is at now."""
        session = await self._node.sessions.find(namespace.name, key)
        if session is None or session.owner != self._node.id:
            return Located(None)
        try:
            cursor, _ = await self._find_place(namespace, session, offset)
        except Gap:
            return Located(None)
        return Located(cursor)

    async def _find_place(
        self, namespace: Namespace, session: Session, offset: str
    ) -> tuple[str, Page]:
        """Return the place of a known client whose offset is not one of our cursors.

        The offset is the end of an unrecorded event: the client has all that came before that.
        If several events end like this, the first counts: an event may come twice, but none is
        lost. Raises Gap, also if the first may be forgotten while later ones are not.
        """
        name, sid = namespace.name, session.sid
        if (kept := namespace.fanout.places.kept(sid, offset)) is not None:
            return kept, await self.missed(name, kept, sid)
        places = namespace.fanout.places.of(offset, frozenset((sid, *session.rooms)))
        oldest = namespace.fanout.places.first
        try:
            # Or it is a cursor from before its pid: nothing came since it started.
            missed = await self.missed(name, session.cursor, sid)
        except Gap:
            if not places:
                raise
        else:
            # Only places of the client that had the session, not of an earlier one.
            first = 0
            beyond = len(places)
            while first < beyond:
                middle = (first + beyond) // 2
                if await self._precedes(places[middle], session, missed):
                    first = middle + 1
                else:
                    beyond = middle
            del places[:first]
            if oldest is not None and await self._precedes(oldest, session, missed):
                # The forgotten places were before it, too.
                oldest = None
            if not places and oldest is None:
                return session.cursor, missed
        if oldest is not None:
            # A client has received all that it answered. Since its last answer it has been
            # connected or away for no longer than this. After a place older than that, no place
            # has been forgotten.
            settings = self._node.settings
            longest = settings.history_age + settings.ping_interval + settings.ping_timeout
            if not places or places[0].time > time.monotonic() - longest:
                raise Gap("expired")
        cursor = places[0].cursor
        return cursor, await self.missed(name, cursor, sid)

    async def _precedes(self, place: Place, session: Session, missed: Page) -> bool:
        """Return whether a place is before a session's cursor; `missed` follows that."""
        try:
            later = await self.missed(session.namespace, place.cursor, session.sid)
        except Gap:
            return True
        # Without what has come since that was read.
        count = sum(each.position <= missed.position for each in later.publications)
        return count > len(missed.publications)

    async def missed(self, namespace: str, after: str, sid: str | None) -> Page:
        """Return all that was recorded after a cursor, as one page. Raises Gap."""
        broker = self._node.broker
        # A broker that answers at once is read in one go.
        limit = sys.maxsize if broker.publishes_at_once else HISTORY_PAGE
        missed: list[Publication] = []
        while True:
            page = await broker.history(namespace, after, sid, limit=limit)
            missed += page.publications
            if page.last:
                return Page(missed, page.position, page.cursor)
            after = page.cursor
