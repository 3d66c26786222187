"""A WebSocket that wants to carry a polling session on: its probe, on a lane."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from crossband.errors import CloseCode
from crossband.protocol.websocket import encode_text
from crossband.transports.lane import Lane

if TYPE_CHECKING:
    from crossband.transports.engine import EngineConnection

# Seconds a WebSocket may take from its probe to the upgrade packet; as Node.
UPGRADE_TIME: Final = 10.0
_PROBED: Final = encode_text(b"3probe")


class Upgrade:
    """The lane's peer until the session is.

    Nothing but the probe and the upgrade packet is heard: whoever knows a session's id is not
    let in yet.
    """

    __slots__ = ("_connection", "_lane", "_probed", "_timer")

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        # None before it is attached, and once it is decided.
        self._lane: Lane | None = None
        self._probed = False
        self._timer = asyncio.get_running_loop().call_later(UPGRADE_TIME, self._refuse)

    def attach(self, lane: Lane) -> None:
        """Listen on a lane from here on."""
        self._lane = lane

    def close(self, code: CloseCode, reason: str) -> None:
        """End it: its session has ended."""
        lane = self._decide()
        if lane is not None:
            lane.close(code, reason)

    def frame_received(self, frame: str | bytes) -> None:
        connection = self._connection
        if self._lane is None:
            return
        if not self._probed:
            self._probed = frame == "2probe" and connection.probe()
            if self._probed:
                self._lane.write(_PROBED)
                return
        elif frame == "5" and not connection.closed:
            lane = self._decide()
            assert lane is not None
            lane.peer = connection
            connection.carry_on(lane)
            return
        self._refuse()

    def _refuse(self) -> None:
        lane = self._decide()
        self._connection.stay()
        if lane is not None:
            lane.close(CloseCode.PROTOCOL_ERROR, "probe")

    def _decide(self) -> Lane | None:
        self._timer.cancel()
        self._connection.upgrade = None
        lane, self._lane = self._lane, None
        return lane

    def too_large(self) -> None:
        self._refuse()

    def ping_received(self) -> bool:
        """Take note of nothing: it has little time."""
        return True

    def pong_received(self) -> None:
        """Take note of nothing: see `ping_received`."""

    def resume_writing(self) -> None:
        """Write nothing: all there is to write is short."""

    def connection_lost(self) -> None:
        if self._lane is not None:
            self._decide()
            self._connection.stay()
