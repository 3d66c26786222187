"""The bus within one process: nodes get the same bytes as over a wire, in the next tick."""

from __future__ import annotations

import asyncio

from crossband.broker.bus import Bus


class MemoryBus(Bus):
    """One node's end of a bus that all nodes of a process share."""

    def __init__(self, node: str, hall: dict[str, MemoryBus]) -> None:
        super().__init__(node)
        # Members by node, shared by all.
        self._hall = hall
        # The other members. Kept, because every broadcast asks for them.
        self._others: frozenset[str] = frozenset()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def join(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._hall[self.node] = self
        self._count()

    async def part(self) -> None:
        self._hall.pop(self.node, None)
        self._others = frozenset()
        self._count()
        for other in self._hall.values():
            if other._loop is not None:
                # After what this node sent last.
                other._loop.call_soon(other.gone, self.node)

    def _count(self) -> None:
        """Tell all members who the others are now."""
        for node, bus in self._hall.items():
            bus._others = frozenset(self._hall).difference((node,))

    @property
    def members(self) -> frozenset[str]:
        return self._others

    def send(self, frame: bytes, to: str | None) -> None:
        if to is None:
            others = [bus for node, bus in self._hall.items() if node != self.node]
        else:
            bus = self._hall.get(to)
            others = [] if bus is None else [bus]
        for other in others:
            if other._loop is not None:
                other._loop.call_soon(other.received, frame)
