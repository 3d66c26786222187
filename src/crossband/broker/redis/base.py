"""What the parts of a Redis broker share: the servers, the names of keys, the bounds, the clock."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from crossband.broker import Receiver
from crossband.broker.redis.commands import Done
from crossband.broker.redis.keys import Keys, tag_of
from crossband.broker.redis.link import Arg
from crossband.broker.redis.scripts import Script
from crossband.broker.redis.server import Server
from crossband.broker.redis.servers import Servers
from crossband.errors import BrokerUnavailable

# The history of one socket alone, as a part of the history's bytes.
OWN_PART: Final = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much history is kept in each namespace."""

    # Publications; bytes of their data; and bytes of what was sent to one socket alone.
    size: int
    limit: int
    own: int
    # Seconds.
    age: float

    @classmethod
    def of(cls, size: int, limit: int, age: float) -> Bounds:
        """Return the bounds of a hub's settings."""
        return cls(size, limit, max(1, limit // OWN_PART), age)

    @property
    def age_ms(self) -> int:
        return int(self.age * 1_000)


class Base:
    """What the parts of a node's broker share."""

    def __init__(self, node: str, keys: Keys, bounds: Bounds, skew: Callable[[], float]) -> None:
        # This node's id.
        self.node: Final = node
        self.keys: Final = keys
        self.bounds: Final = bounds
        # Of this node's batches. A log remembers the last one, also if the node starts again.
        self.numbers: Final[Iterator[int]] = itertools.count(1)
        # Seconds that the clock is ahead of the servers' clocks. 0, except in tests of age.
        self._skew = skew
        # None until started.
        self.receiver: Receiver | None = None
        self._servers: Servers | None = None

    @property
    def skew(self) -> int:
        """Milliseconds to add to a server's clock."""
        return int(self._skew() * 1_000)

    def now(self) -> float:
        """Seconds, from any start."""
        return time.monotonic() + self._skew()

    def use(self, servers: Servers | None) -> None:
        """Use these servers."""
        self._servers = servers

    @property
    def servers(self) -> Servers:
        """The servers that hold it all. Raises BrokerUnavailable if the broker is not started."""
        if self._servers is None:
            raise BrokerUnavailable("the broker is not started")
        return self._servers

    @property
    def home(self) -> Server:
        """The server of what belongs to no namespace. Raises BrokerUnavailable."""
        return self.servers.home

    def server(self, namespace: str) -> Server:
        """Return the server that has a namespace. Raises BrokerUnavailable."""
        return self.servers.server(tag_of(namespace))

    def run(
        self,
        namespace: str,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[Arg],
        done: Done | None = None,
    ) -> None:
        """Run a script on a namespace's keys. Its reply goes to `done`, or BrokerUnavailable."""
        try:
            commands = self.server(namespace).commands
        except BrokerUnavailable as error:
            if done is not None:
                done(error)
            return
        commands.run(script, keys, args, done)

    async def result(
        self,
        namespace: str,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[Arg],
    ) -> Any:
        """Run a script on a namespace's keys, and return its reply. Raises BrokerUnavailable."""
        return await self.server(namespace).commands.result(script, keys, args)
