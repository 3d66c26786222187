"""A WebSocket that asks to take a session over from polling, on a lane or over ASGI.

Only the probe and the upgrade packet are heard: to know a session's id is not enough to be let
in.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from crossband.errors import CloseCode
from crossband.protocol import engineio
from crossband.protocol.websocket import encode_text
from crossband.transports.engineio.session import EngineConnection
from crossband.transports.http import Request
from crossband.transports.lane import Lane

# Seconds a WebSocket may take from its probe to the upgrade packet; as Node.
UPGRADE_TIME: Final = 10.0
_PROBE_ANSWER: Final = encode_text(engineio.PROBE_ANSWER.encode())


def upgrade_on_lane(connection: EngineConnection, request: Request) -> bool:
    """Let a WebSocket on a lane ask to take over; False where there is no lane."""
    upgrade = LaneUpgrade(connection)
    lane = connection.lane_of(request, upgrade)
    if lane is None:
        upgrade.close(CloseCode.NORMAL, "")
        return False
    upgrade.attach(lane)
    connection.upgrade = upgrade
    return True


class LaneUpgrade:
    """The lane's peer until the session becomes it."""

    __slots__ = ("_connection", "_lane", "_probed", "_timer")

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        # None before it is attached, and after the decision.
        self._lane: Lane | None = None
        self._probed = False
        self._timer = asyncio.get_running_loop().call_later(UPGRADE_TIME, self._refuse)

    def attach(self, lane: Lane) -> None:
        """Start to listen on a lane."""
        self._lane = lane

    def close(self, code: CloseCode, reason: str) -> None:
        """Close it: its session has ended."""
        lane = self._decide()
        if lane is not None:
            lane.close(code, reason)

    def frame_received(self, frame: str | bytes) -> None:
        connection = self._connection
        if self._lane is None:
            return
        if not self._probed:
            self._probed = frame == engineio.PROBE and connection.probe()
            if self._probed:
                self._lane.write(_PROBE_ANSWER)
                return
        elif frame == engineio.UPGRADE and not connection.closed:
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
        """Return True: a peer for 10 s need not count pings."""
        return True

    def pong_received(self) -> None:
        """Do nothing, as for pings."""

    def resume_writing(self) -> None:
        """Do nothing: all there is to write is short."""

    def connection_lost(self) -> None:
        if self._lane is not None:
            self._decide()
            self._connection.stay()


class _ASGIUpgrade:
    """An upgrade that is awaited over ASGI."""

    __slots__ = ("_timeout",)

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self._timeout = timeout

    def close(self, code: CloseCode, reason: str) -> None:
        """Stop waiting, soon: its session has ended."""
        # Raised when the timeout is expiring already.
        with contextlib.suppress(RuntimeError):
            self._timeout.reschedule(asyncio.get_running_loop().time() + 0.1)


async def upgrade_over_asgi(connection: EngineConnection, request: Request) -> bool:
    """Await a WebSocket's probe and upgrade packet; False when they do not come."""
    carried = False
    try:
        async with asyncio.timeout(UPGRADE_TIME) as timeout:
            connection.upgrade = _ASGIUpgrade(timeout)
            await request.accept()
            if carried := await _probe(connection, request):
                connection.carry_on(None)
    except TimeoutError:
        pass
    finally:
        if not carried:
            connection.stay()
    return carried


async def _probe(connection: EngineConnection, request: Request) -> bool:
    message = await request.receive()
    if message.get("text") != engineio.PROBE or not connection.probe():
        await _abandon(request, message)
        return False
    await request.send({"type": "websocket.send", "text": engineio.PROBE_ANSWER})
    message = await request.receive()
    if message.get("text") != engineio.UPGRADE or connection.closed:
        await _abandon(request, message)
        return False
    return True


async def _abandon(request: Request, message: Any) -> None:
    if message["type"] != "websocket.disconnect":
        await request.send(
            {"type": "websocket.close", "code": CloseCode.PROTOCOL_ERROR, "reason": "probe"}
        )
