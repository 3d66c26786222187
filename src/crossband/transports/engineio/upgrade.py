"""A WebSocket that asks to take a session over from polling.

It listens only for the probe and the upgrade packet: knowing a session's id must not be enough to
join it.
"""

from __future__ import annotations

import asyncio
from typing import Final, Generic, TypeVar

from crossband.errors import CloseCode
from crossband.hub.messages import Moved
from crossband.protocol import engineio
from crossband.transports.engineio.relay import RelayLane
from crossband.transports.engineio.session import EngineConnection
from crossband.transports.lane import FrameLane

L = TypeVar("L", bound=FrameLane)

# Seconds a WebSocket may take from its probe to the upgrade packet, as in Node.
UPGRADE_TIME: Final = 10.0


class Upgrade(Generic[L]):
    """The lane's peer until the session becomes it."""

    __slots__ = ("_connection", "_lane", "_probed", "_timer")

    def __init__(self, connection: EngineConnection) -> None:
        self._connection = connection
        # None before it is attached, and after the decision.
        self._lane: L | None = None
        self._probed = False
        self._timer = asyncio.get_running_loop().call_later(UPGRADE_TIME, self._refuse)

    def attach(self, lane: L) -> None:
        """Start listening on a lane."""
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
                self._lane.send(engineio.PROBE_ANSWER)
                return
        elif frame == engineio.UPGRADE and not connection.closed:
            lane = self._decide()
            assert lane is not None
            self._complete(connection, lane)
            return
        self._refuse()

    def _complete(self, connection: EngineConnection, lane: L) -> None:
        lane.peer = connection
        connection.carry_on(lane)

    def _refuse(self) -> None:
        lane = self._decide()
        self._connection.stay()
        if lane is not None:
            lane.close(CloseCode.PROTOCOL_ERROR, "probe")

    def _decide(self) -> L | None:
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


class DistantUpgrade(Upgrade[RelayLane]):
    """The same for a WebSocket at another node, to which a session moves that has not begun."""

    __slots__ = ()

    def _complete(self, connection: EngineConnection, lane: RelayLane) -> None:
        if connection.early is None:
            lane.stay()
            super()._complete(connection, lane)
            return
        early, handshake = connection.hand_over(), connection.handshake
        lane.move(
            Moved(
                connection.sid,
                connection.text_only,
                early,
                dict(handshake.headers),
                dict(handshake.query),
                handshake.address,
                handshake.time,
                handshake.path,
                handshake.secure,
            )
        )
