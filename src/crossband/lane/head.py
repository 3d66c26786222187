"""The first write of a lane, which includes the response's head."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Write(Protocol):
    """The transport's own `write`, or a replacement."""

    def __call__(self, data: bytes, /) -> None: ...


class Writable(Protocol):
    """What Head needs from a lane."""

    transport: asyncio.Transport
    write: Write


class Head:
    """The `write` of a lane whose response has not started: adds the head.

    What the hub writes first, in the same tick, is sent in one segment with the head: system
    calls are two thirds of a connect's cost.
    """

    __slots__ = ("_head", "_lane")

    def __init__(self, lane: Writable, head: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._lane = lane
        self._head = head
        # The client must not wait if the hub writes nothing. call_soon twice, because the hub
        # schedules its own write later in this tick.
        loop.call_soon(loop.call_soon, self.flush)

    def __call__(self, data: bytes) -> None:
        self._lane.write = self._lane.transport.write
        self._lane.transport.write(self._head + data)

    def flush(self) -> None:
        """Write the head alone, if nothing has been written."""
        if self._lane.write is self:
            self(b"")
