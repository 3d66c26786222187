"""One server: commands, a subscription, and the proof that what goes in comes out."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from crossband.broker.bus import HEARTBEAT, SILENCE
from crossband.broker.redis.address import Address, Place
from crossband.broker.redis.commands import Call, Commands
from crossband.broker.redis.dialing import Unfit
from crossband.broker.redis.replies import ServerError
from crossband.broker.redis.subscription import Subscription
from crossband.errors import BrokerUnavailable

# Seconds for which a connection may be away without being reported.
BRIEF: Final = 1.0


class Others(Protocol):
    """The servers of a cluster."""

    def moved(self, call: Call, error: ServerError) -> None:
        """Send a command elsewhere, as the error says."""

    def refresh_soon(self) -> None:
        """Look at who has which slots."""


class Server:
    """A server as this node uses it.

    A subscription can be deaf with a connection that is well: at a primary that was replaced and
    does not know it. So this node sends itself a heartbeat, by the way that publications take,
    and connects anew when it does not hear it.
    """

    def __init__(
        self,
        address: Address,
        place: Place | None,
        node: str,
        beat: str,
        others: Others | None = None,
        tag: str = "",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # The tag of a slot that it has, in a cluster.
        self.tag: str = tag
        self._others = others
        name = f"crossband:{node}"
        moved = None if others is None else others.moved
        self.commands: Final = Commands(address, place, name, self._logged_in, moved)
        self.subscription: Final = Subscription(
            address, lambda: self.commands.at, name, None if others is None else others.refresh_soon
        )
        self.verb: str = "SPUBLISH" if address.kind == "cluster" else "PUBLISH"
        # The channel of the heartbeat; in a cluster, one of this server's.
        self._beat = beat.encode()
        self._beating: asyncio.TimerHandle | None = None
        # When the last one came, in the loop's time.
        self._heard = 0.0
        self._at: Place | None = None

    @property
    def problem(self) -> str | None:
        """Why this node is out of touch with it, or None."""
        # A connection that is back at once is no news.
        before = self._loop.time() - BRIEF
        if self.commands.problem is not None and self.commands.since < before:
            return self.commands.problem
        if self.subscription.problem is not None and self.subscription.since < before:
            return self.subscription.problem
        if self._beating is not None and self._loop.time() - self._heard > SILENCE:
            return f"nothing that is published at {self.commands.at} is heard"
        return None

    async def start(self, patience: float) -> None:
        """Connect. Raises BrokerUnavailable."""
        await self.commands.start(patience)
        try:
            await self.subscription.start()
        except Unfit as error:
            await self.commands.stop()
            raise BrokerUnavailable(str(error)) from None
        self._heard = self._loop.time()
        self.subscription.add(self._beat, self)
        self._send_beat()

    async def stop(self) -> None:
        """Disconnect."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        await self.subscription.stop()
        await self.commands.stop()

    def listen_to(self, tag: str, beat: str) -> None:
        """Send the heartbeat by another channel: that slot is another server's by now."""
        self.subscription.remove(self._beat)
        self.tag, self._beat = tag, beat.encode()
        self._heard = self._loop.time()
        self.subscription.add(self._beat, self)

    def _logged_in(self) -> None:
        if self._at is not None and self._at != self.commands.at:
            self.subscription.reconnect()
        self._at = self.commands.at

    def _send_beat(self) -> None:
        self._beating = self._loop.call_later(HEARTBEAT, self._send_beat)
        if self._loop.time() - self._heard > SILENCE and self.commands.connected:
            self.subscription.reconnect()
        self.commands.call(self.verb, self._beat, b"", again=False)

    # The ear of the heartbeat.

    def confirmed(self) -> None:
        """Hear the heartbeats from here on."""
        self._heard = self._loop.time()

    def heard(self, data: bytes) -> None:
        """Note a heartbeat."""
        self._heard = self._loop.time()

    def refused(self, reason: str) -> None:
        """Leave it to `problem`."""
