"""Sessions that one node has, and whose requests or WebSockets reach another.

An Engine.IO id begins with its node's id, so only that node is asked. Clients see an opaque text.
"""

from __future__ import annotations

import secrets

from crossband.errors import CloseCode, EventError
from crossband.handshake import Handshake
from crossband.hub import messages
from crossband.hub.core import Core
from crossband.hub.messages import Down, Knock, Knocked, Moved, Up
from crossband.hub.others import ask
from crossband.names import SID_LENGTH
from crossband.slots import TooManyConnections
from crossband.transports.asgi import take_frames
from crossband.transports.engineio.packets import UPGRADE_HOLD_TIME, SocketIOConnection
from crossband.transports.engineio.registry import Registry
from crossband.transports.engineio.relay import Relay, RelayLane
from crossband.transports.engineio.responses import deny_problem, refuse_upgrade, respond_problem
from crossband.transports.engineio.upgrade import DistantUpgrade
from crossband.transports.exchanges import Exchanges
from crossband.transports.forwarding import Forwarding
from crossband.transports.http import ClientGone, HeaderList, Request
from crossband.transports.lane import FrameLane


def new_sid(hub: Core) -> str:
    """Return a fresh Engine.IO id that names this node; 120 bits are random."""
    return hub.node.id + secrets.token_urlsafe(15)


def owner_of(sid: str, hub: Core) -> str | None:
    """Return the other node that an Engine.IO id names, if it is alive."""
    node = sid[:SID_LENGTH]
    return node if node in hub.node.bus.members else None


class Elsewhere:
    """The door's part in sessions over two nodes."""

    def __init__(
        self, hub: Core, registry: Registry, exchanges: Exchanges, forwarding: Forwarding
    ) -> None:
        self._hub = hub
        self._registry = registry
        self._exchanges = exchanges
        self._forwarding = forwarding
        self._relays: set[Relay] = set()
        exchanges.on(Knock, self._knock)
        exchanges.on(Up, self._hear_up)
        exchanges.on(Down, self._hear_down)

    def close(self, code: CloseCode, reason: str) -> None:
        """Close the WebSockets of sessions that others have."""
        for relay in list(self._relays):
            relay.close(code, reason)

    # For this node's clients.

    async def serve_http(self, request: Request, sid: str, cors: HeaderList) -> None:
        """Have the session's node answer a request."""
        self._registry.note_spread()
        served = None
        if (owner := owner_of(sid, self._hub)) is not None:
            try:
                served = await self._forwarding.forward(request, "socketio", owner)
            except ClientGone:
                return
        if served is not None:
            return
        if owner_of(sid, self._hub) is None:
            await respond_problem(request, "sid", cors)
        else:
            await request.refuse(EventError(code="unavailable"), cors)

    async def serve_websocket(self, request: Request, sid: str) -> None:
        """Let a WebSocket ask for a session of another node."""
        self._registry.note_spread()
        owner = owner_of(sid, self._hub)
        if owner is None:
            await deny_problem(request, "sid")
            return
        relay = Relay(self._hub, self._exchanges, owner, self._adopt, self._ended)
        self._exchanges.begin(relay)
        outcome = None
        try:
            knock = Knock(relay.number, sid, bool(request.first("b64")))
            given, _ = await ask(self._exchanges.bus, knock, Knocked, to=[owner])
            outcome = given[0][1].outcome if given else None
        finally:
            if outcome != "free":
                relay.connection_lost()
        if outcome == "free":
            self._relays.add(relay)
            self._registry.websocket_opened(relay)
            limit = self._hub.settings.limits.max_http_buffer_size
            lane = take_frames(request, relay, limit=limit)
            relay.attach(lane)
            await lane.start()
            await lane.run()
        elif outcome == "taken":
            await refuse_upgrade(request)
        elif outcome == "stopping":
            await request.deny(EventError(code="shutting_down"))
        elif outcome == "unknown" or owner_of(sid, self._hub) is None:
            await deny_problem(request, "sid")
        else:
            await request.deny(EventError(code="unavailable"))

    def _ended(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._registry.websocket_closed(relay)

    def _adopt(self, moved: Moved, lane: FrameLane) -> SocketIOConnection:
        """Go on with a session that moves here, over its WebSocket."""
        hub = self._hub
        handshake = Handshake(
            transport="polling",
            headers=moved.headers,
            query=moved.query,
            address=moved.address,
            time=moved.time,
            path=moved.path,
            secure=moved.secure,
        )
        connection = SocketIOConnection(hub, self._registry, handshake, moved.sid)
        lane.peer = connection
        refusal: TooManyConnections | None = None
        try:
            hub.take_slot(connection, moved.address)
        except TooManyConnections as error:
            refusal = error
        connection.text_only = moved.text_only
        self._registry.add(connection)
        connection.carry_on(lane)
        if refusal is not None:
            connection.close(refusal.close_code, refusal.message)
        elif self._registry.emptying:
            connection.close(CloseCode.GOING_AWAY, "Server shutting down")
        connection.take_early(moved.early)
        return connection

    def _hear_down(self, sender: str, down: Down) -> None:
        relay = self._exchanges.begun(sender, down.number)
        if isinstance(relay, Relay):
            relay.heard(down)

    # For the clients of others.

    def _knock(self, sender: str, knock: Knock) -> bytes:
        """Let a WebSocket at another node ask for a session."""
        self._registry.note_spread()
        connection = self._registry.find(knock.sid)
        if connection is None:
            return messages.encode(Knocked("unknown"))
        if self._hub.stopping:
            return messages.encode(Knocked("stopping"))
        if not connection.upgradable:
            return messages.encode(Knocked("taken"))
        connection.text_only |= knock.text_only
        lane = RelayLane(self._exchanges, sender, knock.number)
        connection.upgrade = lane.peer = upgrade = DistantUpgrade(connection)
        upgrade.attach(lane)
        if connection.early is not None:
            connection.early.wait(UPGRADE_HOLD_TIME, connection.begin)
        return messages.encode(Knocked("free"))

    def _hear_up(self, sender: str, up: Up) -> None:
        lane = self._exchanges.taken(sender, up.number)
        if isinstance(lane, RelayLane):
            lane.heard(up)
