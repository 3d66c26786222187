"""The HTTP requests and WebSockets of `/socket.io/`, and the session each belongs to."""

from __future__ import annotations

from typing import Final

from crossband.codecs import Wire
from crossband.errors import CloseCode, EventError
from crossband.hub.core import Core
from crossband.protocol import engineio
from crossband.slots import TooManyConnections
from crossband.transports.engineio.elsewhere import Elsewhere, new_sid, owner_of
from crossband.transports.engineio.packets import SocketIOConnection
from crossband.transports.engineio.polling import Polling
from crossband.transports.engineio.registry import Registry
from crossband.transports.engineio.responses import (
    deny_problem,
    refuse_upgrade,
    respond_packets,
    respond_problem,
)
from crossband.transports.engineio.session import Early, EngineConnection
from crossband.transports.engineio.upgrade import Upgrade
from crossband.transports.exchanges import Exchanges
from crossband.transports.forwarding import Forwarding
from crossband.transports.http import HeaderList, Request
from crossband.transports.lane import FrameLane


class EngineDoor:
    """Starts sessions, and passes each request to its session's transport."""

    def __init__(self, hub: Core, exchanges: Exchanges, forwarding: Forwarding) -> None:
        self.hub = hub
        self.registry: Final = Registry(hub)
        self.emptied: Final = self.registry.emptied
        self._elsewhere = Elsewhere(hub, self.registry, exchanges, forwarding)
        forwarding.doors["socketio"] = self._serve_for_other

    def close(self, code: CloseCode, reason: str) -> None:
        """End all sessions."""
        self.registry.close(code, reason)
        self._elsewhere.close(code, reason)

    async def _serve_for_other(self, request: Request) -> None:
        """Serve a request that reached another node."""
        self.registry.note_spread()
        await self.serve_http(request)

    async def serve_http(self, request: Request) -> None:
        """Serve one request of a polling session, or start one."""
        try:
            cors = request.cors(self.hub.settings.cors_origins)
        except EventError:
            await respond_problem(request, "forbidden", [], status=403)
            return
        if request.method == "OPTIONS":
            await request.preflight(cors, "GET, POST, OPTIONS")
            return
        problem = self._problem(request, "polling")
        if problem is not None:
            await respond_problem(request, problem, cors)
            return
        sid = request.first("sid")
        if sid is None:
            await self._start_polling(request, cors)
            return
        connection = self.registry.find(sid, lingering=True)
        if connection is None:
            await self._elsewhere.serve_http(request, sid, cors)
            return
        polling = connection.polling
        if not isinstance(polling, Polling):
            reason = "a WebSocket carries the session"
            await respond_problem(request, "request", cors, reason=reason)
        elif request.method == "GET":
            await polling.poll(connection, request, cors)
        else:
            await polling.post(connection, request, cors)

    async def _start_polling(self, request: Request, cors: HeaderList) -> None:
        if request.method != "GET":
            await respond_problem(request, "method", cors)
            return
        if self.hub.stopping:
            await request.refuse(EventError(code="shutting_down"), cors)
            return
        try:
            connection = self._open(request, "polling")
        except TooManyConnections as error:
            await request.refuse(error, cors)
            return
        connection.polling = Polling()
        if self.hub.node.bus.members:
            connection.early = Early()
        await respond_packets(request, self._open_packet(connection, ["websocket"]), cors)

    async def serve_websocket(self, request: Request) -> None:
        """Serve a WebSocket: a session of its own, or the upgrade of a polling one."""
        try:
            request.cors(self.hub.settings.cors_origins)
        except EventError as error:
            await request.deny(error)
            return
        if self.hub.stopping:
            await request.deny(EventError(code="shutting_down"))
            return
        problem = self._problem(request, "websocket")
        if problem is not None:
            await deny_problem(request, problem)
            return
        sid = request.first("sid")
        if sid is None:
            try:
                connection = self._open(request, "websocket")
            except TooManyConnections as error:
                await request.turn_away(error, error.close_code, tell=False)
                return
            # Before anything else may be queued.
            connection.push(Wire(self._open_packet(connection, [])))
            if self.registry.emptying:
                connection.close(CloseCode.GOING_AWAY, "Server shutting down")
            self.registry.websocket_opened(connection)
            lane = connection.lane_of(request, connection)
            connection.attach(lane)
            await lane.start()
            await lane.run()
            return
        await self._upgrade(request, sid)

    async def _upgrade(self, request: Request, sid: str) -> None:
        connection = self.registry.find(sid)
        if connection is None:
            await self._elsewhere.serve_websocket(request, sid)
            return
        if not connection.upgradable:
            await refuse_upgrade(request)
            return
        connection.begin()
        connection.text_only |= bool(request.first("b64"))
        connection.upgrade = upgrade = Upgrade[FrameLane](connection)
        lane = connection.lane_of(request, upgrade)
        upgrade.attach(lane)
        await lane.start()
        await lane.run()

    def _problem(self, request: Request, transport: str) -> str | None:
        try:
            named = request.first("transport")
            version = request.first("EIO")
            sid = request.first("sid")
        except EventError:
            return "request"
        if named not in ("polling", "websocket"):
            return "transport"
        if named != transport:
            return "request"
        if version != engineio.VERSION:
            return "version"
        if transport == "polling" and request.method not in ("GET", "POST"):
            return "method"
        if sid is not None:
            polls = transport == "polling" and request.method == "GET"
            if self.registry.find(sid, lingering=polls) is None and owner_of(sid, self.hub) is None:
                return "sid"
        return None

    def _open(self, request: Request, transport: str) -> EngineConnection:
        connection = SocketIOConnection(
            self.hub, self.registry, request.handshake(transport), new_sid(self.hub)
        )
        self.hub.take_slot(connection, request.address)
        connection.text_only = bool(request.first("b64"))
        self.registry.add(connection)
        return connection

    def _open_packet(self, connection: EngineConnection, upgrades: list[str]) -> str:
        settings = self.hub.settings
        return engineio.encode_open(
            connection.sid,
            upgrades,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            max_payload=settings.limits.max_http_buffer_size,
        )
