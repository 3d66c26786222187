"""The bus over Redis: one channel for all nodes and one for each, members by heartbeat."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any, Final

from crossband.broker.bus import HEARTBEAT, SILENCE, Bus
from crossband.broker.redis.base import Base
from crossband.broker.redis.commands import PATIENCE, Done
from crossband.broker.redis.keys import BUS
from crossband.broker.redis.link import Arg
from crossband.errors import BrokerUnavailable

# What nodes say of themselves, in the channel of all: a byte that starts no frame, and the id.
HELLO, HERE, BYE = b"+", b".", b"-"
# Seconds to wait for the answers of the others at the start: those that are dead give none.
GREETING: Final = 1.0
# Seconds between two looks at whether a node listens that a message did not reach, and how often
# it must not be found to count as gone.
PROBE: Final = 0.3
PROBES: Final = 2


class RedisBus(Bus):
    """One node's end of it."""

    def __init__(self, node: str, base: Base) -> None:
        super().__init__(node)
        self._base = base
        # The other members, and when each was last heard, in the loop's time.
        self._heard: dict[str, float] = {}
        self._others: frozenset[str] = frozenset()
        self._beating: asyncio.TimerHandle | None = None
        # Members that a message did not reach, while the server is asked about them.
        self._probing: set[str] = set()
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
        if to is None:
            self._publish(self._base.keys.hall, frame, self._note_all)
        else:
            heard = functools.partial(self._note_reach, to)
            self._publish(self._base.keys.node(to), frame, heard)

    def _publish(self, channel: str, data: bytes, done: Done | None = None) -> None:
        self._call(self._base.servers.verb, channel, data, again=False, done=done)

    def _call(self, *args: Arg, again: bool = True, done: Done | None = None) -> None:
        try:
            self._base.home.commands.call(*args, again=again, done=done)
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

    def _note_all(self, reply: Any) -> None:
        """Note how many heard a message to all: this node, and the members that live."""
        if type(reply) is int and reply <= len(self._others):
            for node in self._others:
                self._note_reach(node, 0)

    def _note_reach(self, node: str, reply: Any) -> None:
        """Note how many heard a message to one node: none if it is dead, or just reconnects."""
        if reply == 0 and node in self._heard and node not in self._probing:
            self._probing.add(node)
            self._loop.call_later(PROBE, self._probe, node, PROBES)

    def _probe(self, node: str, tries: int) -> None:
        """Ask the server whether a node listens: it knows at once that a process was killed."""
        how = "SHARDNUMSUB" if self._base.servers.verb == "SPUBLISH" else "NUMSUB"

        def done(reply: Any) -> None:
            if not isinstance(reply, list) or reply[1] or self._beating is None:
                self._probing.discard(node)
            elif tries > 1:
                self._loop.call_later(PROBE, self._probe, node, tries - 1)
            else:
                self._probing.discard(node)
                self._miss(node)

        self._call("PUBSUB", how, self._base.keys.node(node), done=done)

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
