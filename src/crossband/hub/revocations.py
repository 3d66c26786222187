"""Revocations of users, on all nodes: told at once, and read again by a node that was away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from crossband.broker.bus import SILENCE
from crossband.broker.sessions import MAX_REVOKED, Revocation
from crossband.hub.access import Access
from crossband.hub.expiry import Expiry
from crossband.hub.messages import Revoked
from crossband.hub.node import Node
from crossband.hub.others import ask
from crossband.names import check_user

logger: Final = logging.getLogger("crossband")


# Revocations that are given back at once: one after another, 10,000 would take longer than a
# heartbeat.
AT_ONCE: Final = 200


class Revocations:
    """Keeps this node's knowledge of revoked users the same as the store's."""

    def __init__(
        self, node: Node, access: Access, expiry: Expiry, expel: Callable[[str], None]
    ) -> None:
        self._node = node
        self._access = access
        self._expiry = expiry
        # Ends the presence of a user's clients that were cut.
        self._expel = expel
        # The number of the last revocation that was read from the store.
        self._last = 0
        # The user of the newest revocation that the store is known to have had.
        self._newest: str | None = None
        # When the store was last read. -inf before that.
        self._read_at = float("-inf")
        # None unless the store is being read.
        self._reading: asyncio.Task[None] | None = None
        access.check_current = self.check_current

    async def start(self) -> None:
        """Learn of all earlier revocations. Raises BrokerUnavailable."""
        self._last, self._newest = 0, None
        await self.catch_up()

    async def revoke(self, user: str) -> int:
        """End all connections of a user on all nodes; return how many there were.

        Raises BrokerUnavailable if only this node knows of it.
        """
        check_user(user)
        now = time.time()
        # At once on this node, whatever happens to the others.
        ended = self._expiry.revoke(user, now)
        await self._node.sessions.revoke(user, now)
        self._expel(user)
        self._newest = user
        if self._node.bus.members:
            given, _ = await ask(self._node.bus, Revoked(user, now), int)
            ended += sum(number for _, number in given)
        return ended

    def heard(self, message: Revoked) -> int:
        """Apply a revocation that another node tells of; return how many connections it ended."""
        self._newest = message.user
        self._expel(message.user)
        return self._expiry.revoke(message.user, message.time)

    async def check_current(self) -> None:
        """Make sure that no revocation was missed. Raises BrokerUnavailable if it cannot.

        Called before a token is accepted. The heartbeat reads the store, so nothing is awaited
        here unless that has failed for so long that this node counts as gone.
        """
        if time.monotonic() - self._read_at <= SILENCE:
            return
        if self._reading is None:
            self._reading = asyncio.ensure_future(self.catch_up())
            self._reading.add_done_callback(self._done_reading)
        await asyncio.shield(self._reading)

    def _done_reading(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            # Retrieved, in case that everybody has stopped waiting.
            reading.exception()

    async def catch_up(self) -> None:
        """Apply the revocations that this node missed, and give back those the store lost."""
        began, newest = time.monotonic(), self._newest
        # With the last one known, which is either there, or followed by a later one of its user,
        # or displaced by as many as are kept.
        found = await self._node.sessions.revocations(max(0, self._last - 1))
        lost = newest is not None and all(each.user != newest for each in found)
        if lost and len(found) < MAX_REVOKED:
            found = await self._give_back()
        for revocation in found:
            self._last, self._newest = revocation.number, revocation.user
            if not self._access.is_revoked(revocation.user, revocation.time):
                self._expiry.revoke(revocation.user, revocation.time, late=True)
        self._read_at = began

    async def _give_back(self) -> list[Revocation]:
        """Tell the store what it has lost; return what it has then.

        It was emptied, or a replica that was behind has taken over. Otherwise the tokens would
        be accepted by every node that starts from now on.
        """
        store = self._node.sessions
        kept = {each.user: each.time for each in await store.revocations()}
        lost = [
            (user, when)
            for user, when in self._access.revoked_users()
            if kept.get(user, float("-inf")) < when
        ]
        if lost:
            logger.warning("the store has lost %d revocations: they are given back", len(lost))
        for first in range(0, len(lost), AT_ONCE):
            some = lost[first : first + AT_ONCE]
            await asyncio.gather(*(store.revoke(user, when) for user, when in some))
        return await store.revocations()
