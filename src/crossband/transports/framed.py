"""A connection of WebSocket frames, which slows reading down to its client's rates."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from time import monotonic

from crossband.errors import ERRORS, CloseCode
from crossband.hub.core import Core
from crossband.hub.namespace import Socket
from crossband.transports.carried import CarriedConnection
from crossband.transports.lane import FrameLane


class FramedConnection(CarriedConnection[FrameLane]):
    """A connection of WebSocket frames."""

    __slots__ = ("_hub", "_waking")

    def __init__(self, hub: Core, *, limit: int) -> None:
        super().__init__(hub, limit=limit)
        self._hub = hub
        # None unless reading is paused because the client is too fast.
        self._waking: asyncio.TimerHandle | None = None

    @property
    @abstractmethod
    def crowded(self) -> Socket | None:
        """A socket whose inbox is full."""

    @property
    def held(self) -> bool:
        """Whether it must not be read just now."""
        return self.resting_until > monotonic() or self.crowded is not None

    def held_within(self, seconds: float) -> bool:
        """Whether reading was paused at some time in the last `seconds`."""
        return self.crowded is not None or self.resting_until > monotonic() - seconds

    def rest(self, seconds: float) -> None:
        super().rest(seconds)
        if self._lane is not None:
            self._lane.pause_reading()
            if self._waking is None:
                self._wake_later()

    def _wake_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._waking = loop.call_later(self.resting_until - monotonic(), self._wake)

    def _wake(self) -> None:
        if self.resting_until > monotonic():
            self._wake_later()
            return
        self._waking = None
        if self._lane is None:
            return
        if self.crowded is None:
            self._lane.resume_reading()
        else:
            self.pause_reading()

    def pause_reading(self) -> None:
        """Read nothing more until its inboxes have room."""
        if self._lane is not None:
            self._lane.pause_reading()
            self._hub.run_to_end(self._read_on(self._lane))

    async def _read_on(self, lane: FrameLane) -> None:
        await self.wait_for_space()
        # Otherwise it goes on after its rest.
        if self._waking is None:
            lane.resume_reading()

    async def wait_for_space(self) -> None:
        """Wait until its inboxes have room."""
        while (crowded := self.crowded) is not None:
            await crowded.inbox.wait_for_space(crowded)
            if crowded is self.crowded:
                # It has left, with its inbox full.
                return

    # As the lane's peer.

    def ping_received(self) -> bool:
        return self.count_control()

    def count_control(self, size: int = 0) -> bool:
        """Count what is not a message; return whether the rate allows it."""
        if self.closed:
            return False
        allowed = self._hub.count_control(self, size)
        if not allowed:
            self.end_flood()
        return allowed

    def end_flood(self) -> None:
        """Close the connection if its client keeps sending too fast."""
        if self._hub.floods(self):
            self.evict("rate_limited", CloseCode.POLICY_VIOLATION, ERRORS["rate_limited"][0])

    def lost(self) -> None:
        """Clean up after the lane."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
