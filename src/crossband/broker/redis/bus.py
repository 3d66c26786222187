"""The bus over Redis: one channel for all nodes and one for each, members by heartbeat."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from crossband.broker.bus import HEARTBEAT, SILENCE, Bus
from crossband.broker.redis.base import Base
from crossband.broker.redis.commands import PATIENCE
from crossband.broker.redis.keys import BUS
from crossband.broker.redis.link import Arg
from crossband.errors import BrokerUnavailable

# What nodes say of themselves, in the channel of all: a byte that starts no frame, and the id.
HELLO, HERE, BYE = b"+", b".", b"-"
# Seconds to wait for the answers of the others at the start: those that are dead give none.
GREETING: Final = 1.0


class RedisBus(Bus):
    """One node's end of it."""

    def __init__(self, node: str, base: Base) -> None:
        super().__init__(node)
        self._base = base
        # The other members, and when each was last heard, in the loop's time.
        self._heard: dict[str, float] = {}
        self._others: frozenset[str] = frozenset()
        self._beating: asyncio.TimerHandle | None = None
        self._confirmed: asyncio.Event = asyncio.Event()
        # Members whose answer is awaited at the start.
        self._greeting: set[str] = set()
        self._greeted: asyncio.Event = asyncio.Event()

    async def join(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._confirmed, self._greeted = asyncio.Event(), asyncio.Event()
        servers, keys = self._base.servers, self._base.keys
        servers.add(keys.node(self.node).encode(), BUS, _Own(self))
        servers.add(keys.hall.encode(), BUS, self)
        try:
            async with asyncio.timeout(PATIENCE):
                await self._confirmed.wait()
        except TimeoutError:
            raise BrokerUnavailable(servers.problem or "Redis does not answer") from None
        known = await servers.home.commands.ask("ZRANGEBYSCORE", keys.nodes, self._score(), "+inf")
        for node in known:
            self._hear_of(node.decode())
        self._greeting = set(self._heard)
        self._beat(HELLO)
        if self._greeting:
            try:
                async with asyncio.timeout(GREETING):
                    await self._greeted.wait()
            except TimeoutError:
                # They were killed, and will be missed.
                pass

    async def part(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        keys = self._base.keys
        self._call("ZREM", keys.nodes, self.node)
        self._publish(keys.hall, BYE + self.node.encode())
        for channel in (keys.hall, keys.node(self.node)):
            self._base.servers.remove(channel.encode(), BUS)
        for node in list(self._heard):
            self.gone(node)
        self._heard.clear()
        self._others = frozenset()

    @property
    def members(self) -> frozenset[str]:
        return self._others

    def send(self, frame: bytes, to: str | None) -> None:
        keys = self._base.keys
        self._publish(keys.hall if to is None else keys.node(to), frame)

    def _publish(self, channel: str, data: bytes) -> None:
        self._call(self._base.servers.verb, channel, data, again=False)

    def _call(self, *args: Arg, again: bool = True) -> None:
        try:
            self._base.home.commands.call(*args, again=again)
        except BrokerUnavailable:
            # Nobody was promised anything.
            pass

    # Members.

    def _score(self, more: float = 0.0) -> int:
        """Return a time for the list of members: by the clocks of nodes, which may differ."""
        return int(time.time() + more)

    def _beat(self, kind: bytes = HERE) -> None:
        self._beating = self._loop.call_later(HEARTBEAT, self._beat)
        keys = self._base.keys
        self._call("ZADD", keys.nodes, self._score(SILENCE), self.node)
        if kind == HELLO:
            self._call("ZREMRANGEBYSCORE", keys.nodes, "-inf", self._score(-60))
        self._publish(keys.hall, kind + self.node.encode())
        if self._base.servers.problem is not None:
            # It is this node that hears nobody.
            return
        now = self._loop.time()
        for node, heard in list(self._heard.items()):
            if now - heard > SILENCE:
                self._miss(node)

    def _hear_of(self, node: str) -> None:
        if node == self.node:
            return
        if node not in self._heard:
            self._others |= {node}
        self._heard[node] = self._loop.time()

    def _miss(self, node: str) -> None:
        if self._heard.pop(node, None) is not None:
            self._others -= {node}
            self.gone(node)
        self._greet(node)

    def _greet(self, node: str) -> None:
        self._greeting.discard(node)
        if not self._greeting:
            self._greeted.set()

    # The channel of all.

    def confirmed(self) -> None:
        """Count silence from here on."""
        self._confirmed.set()
        for node in self._heard:
            self._heard[node] = self._loop.time()

    def heard(self, data: bytes) -> None:
        """Take a message to all, or a sign of life."""
        kind = data[:1]
        if kind in (HELLO, HERE, BYE):
            node = data[1:].decode("ascii", "replace")
            if kind == BYE:
                self._miss(node)
                return
            self._hear_of(node)
            self._greet(node)
            if kind == HELLO and node != self.node:
                self._publish(self._base.keys.node(node), HERE + self.node.encode())
        else:
            self.received(data)

    def refused(self, reason: str) -> None:
        """Leave it to the server's `problem`."""


class _Own:
    """The ear of what is sent to this node alone."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus

    def confirmed(self) -> None:
        """Nothing to do: what was missed was never promised."""

    def heard(self, data: bytes) -> None:
        self._bus.heard(data)

    def refused(self, reason: str) -> None:
        """Leave it to the server's `problem`."""
