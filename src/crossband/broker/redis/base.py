"""What the parts of a Redis broker share: the servers, the names of keys, the bounds, the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crossband.broker import Receiver
from crossband.broker.redis.keys import Keys
from crossband.broker.redis.server import Server


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much history is kept in each namespace."""

    # Publications; bytes of their data; and bytes of what was sent to one socket alone.
    size: int
    limit: int
    own: int
    # Seconds.
    age: float

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
        # Seconds that the clock is ahead of the servers' clocks. 0, except in tests of age.
        self._skew = skew
        # None until started.
        self.receiver: Receiver | None = None
        self._server: Server | None = None

    @property
    def skew(self) -> int:
        """Milliseconds to add to a server's clock."""
        return int(self._skew() * 1_000)

    def now(self) -> float:
        """Seconds, from any start."""
        return time.monotonic() + self._skew()

    def use(self, server: Server | None) -> None:
        """Use this server for everything."""
        self._server = server

    @property
    def home(self) -> Server:
        """The server of what belongs to no namespace."""
        assert self._server is not None, "the broker is not started"
        return self._server

    def server(self, namespace: str) -> Server:
        """Return the server that has a namespace."""
        return self.home
