"""The hub as an ASGI application: routes to the doors, and its start and stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Unpack

from crossband.addresses import TrustedProxies
from crossband.auth import redaction
from crossband.broker import Broker
from crossband.broker.memory import MemoryBroker
from crossband.errors import CloseCode, EventError
from crossband.hub.access import Authenticate, Authorize
from crossband.hub.core import Core
from crossband.hub.public import PublicHub
from crossband.lifespan import Lifespan
from crossband.settings import DOORS, HubSettings, Settings, changed
from crossband.signals import StopSignals
from crossband.transports.api import Api
from crossband.transports.asgi import CLOSE_TIME
from crossband.transports.engineio.door import EngineDoor
from crossband.transports.exchanges import Exchanges
from crossband.transports.forwarding import Forwarding
from crossband.transports.http import Request, host_of
from crossband.transports.sse import StreamDoor
from crossband.transports.websocket import WebSocketDoor
from crossband.workers import warn_of_workers

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Routes:
    """The doors of a hub, and their paths."""

    # Set by `start`, as they belong to an event loop.
    _core: Core
    _exchanges: Exchanges
    _forwarding: Forwarding
    _engine: EngineDoor
    _websockets: WebSocketDoor
    _streams: StreamDoor
    _api: Api

    def __init__(self) -> None:
        # Path (without a trailing slash) and setting of each door that is switched on.
        self._doors: list[tuple[str, str]] = []

    def start(self, core: Core) -> None:
        """Open the doors on the running event loop."""
        self._core = core
        settings = core.settings
        # The longest path first: one door may lie below another.
        paths = [(path.rstrip("/"), name) for name in DOORS if (path := getattr(settings, name))]
        self._doors = sorted(paths, key=lambda door: len(door[0]), reverse=True)
        self._exchanges = Exchanges(core)
        self._forwarding = Forwarding(core, self._exchanges)
        self._engine = EngineDoor(core, self._exchanges, self._forwarding)
        self._websockets = WebSocketDoor(core)
        self._streams = StreamDoor(core, self._exchanges, self._forwarding)
        self._api = Api(core)

    async def stop(self) -> None:
        """End all connections."""
        # The forwarded requests come last: they end with the sessions they belong to.
        doors = (self._engine, self._websockets, self._streams, self._forwarding)
        for door in doors:
            door.close(CloseCode.GOING_AWAY, "Server shutting down")
        # Wait until each door's last connection has gone, but no longer than CLOSE_TIME for
        # close frames; the server itself goes on writing slow streams.
        patience = min(CLOSE_TIME, self._core.settings.shutdown_timeout / 2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for door in doors:
                    await door.emptied.wait()
        self._exchanges.close()

    async def serve_websocket(self, request: Request) -> None:
        if not self._core.started:
            await request.deny(EventError(code="shutting_down"))
            return
        door, rest = self._door_at(request.path)
        if door == "socketio_path":
            await self._engine.serve_websocket(request)
        elif door == "websocket_path":
            await self._websockets.serve(request, rest or "/")
        else:
            await request.deny(self._lost(request))

    async def serve_http(self, request: Request) -> None:
        path = request.path
        door, rest = self._door_at(path)
        if path in ("/healthz", "/readyz"):
            await self._serve_health(request)
        elif door == "events_path" and (self._core.started or request.method == "GET"):
            # Clients of a stopped hub must be told to come back, not to stay away.
            await self._streams.serve(request, rest)
        elif not self._core.started:
            await request.refuse(EventError(code="shutting_down"))
        elif door == "socketio_path":
            await self._engine.serve_http(request)
        elif door == "api_path":
            await self._api.serve(request, rest)
        elif door == "websocket_path" and (not rest or self._core.settings.websocket_path != "/"):
            headers = [(b"upgrade", b"websocket")]
            if request.scope.get("http_version", "1.1").startswith("1"):
                # RFC 9110 §7.8.
                headers.append((b"connection", b"upgrade"))
            await request.refuse(
                EventError("This is a WebSocket: connect with ws://", code="invalid_request"),
                headers,
            )
        else:
            await request.refuse(self._lost(request))

    async def _serve_health(self, request: Request) -> None:
        if request.path == "/healthz":
            await request.respond_json(200, {"status": "ok"})
            return
        answer = {"status": "ready"}
        if not self._core.started or self._core.stopping:
            answer = {"status": "stopping"}
        elif (problem := self._core.node.broker.problem) is not None:
            answer = {"status": "unavailable", "reason": problem}
        await request.respond_json(200 if answer["status"] == "ready" else 503, answer)

    def _door_at(self, path: str) -> tuple[str | None, str]:
        """Return the setting of the door at a path, and the rest of the path.

        The rest is "" for the door itself. Without a door, returns None and the whole path.
        """
        for prefix, name in self._doors:
            if not path.startswith(prefix):
                continue
            rest = path[len(prefix) :]
            if rest and not rest.startswith("/"):
                continue
            rest = rest.rstrip("/")
            # Nothing lies below Socket.IO's path: its namespaces are in its packets.
            if not rest or name != "socketio_path":
                return name, rest
        return None, path

    def _lost(self, request: Request) -> EventError:
        mount = request.scope.get("root_path", "")
        settings = self._core.settings
        found = [
            f"{mount}{path.rstrip('/')}{end}"
            for path, end in (
                (settings.socketio_path, "/"),
                (settings.websocket_path, "/" if settings.websocket_path == "/" else ""),
                (settings.events_path, "/" if settings.events_path == "/" else ""),
                (settings.api_path, "/status" if settings.status != "off" else "/broadcast"),
            )
            if path
        ]
        doors = f"there is {', '.join(found)}" if found else "every door is switched off"
        return EventError(f"Nothing at {request.path[:128]}: {doors}", code="not_found")


class Hub(PublicHub):
    """A realtime hub: an ASGI application with three doors, and the namespace `/`.

    `broker` orders and keeps publications: a Broker, or None for the embedded memory broker.
    `authenticate(handshake)` returns the client's Identity, or None for an anonymous client, or
    raises Unauthorized. `authorize(identity, action, room)` decides whether it may "subscribe"
    or "publish" to a room, or to the whole namespace if `room` is None: return True to allow;
    anything else denies. Either may be async. The other arguments are those of Settings.

    Serve it alone, or mount it: `app.mount("/realtime", hub)`. It starts with the server's
    lifespan or, where mounting does not forward that, with the first request.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        **settings: Unpack[HubSettings],
    ) -> None:
        self._routes = Routes()
        super().__init__(
            Core(broker, authenticate, authorize, changed(Settings(), settings), self._routes)
        )
        # Taken from the settings when the hub starts.
        self._proxies = TrustedProxies(())
        self._lifespan = Lifespan(
            self.start,
            self.stop,
            runs_on=lambda loop: self._core.node.loop is loop,
            stop_after_listeners=self._stop_after_listeners,
        )
        self._signals = StopSignals(
            self.stop, stopping=lambda: self.stopping, drain=self._drain_patience
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan.serve(receive, send)
            return
        loop = asyncio.get_running_loop()
        if self._lifespan.loop is not loop:
            await self._lifespan.begin(loop)
        if self._proxies:
            self._proxies.apply(scope)
        request = Request(
            scope,
            receive,
            send,
            _path_below_mount(scope),
            traffic=self._core.traffic,
            max_rooms=self.settings.limits.subscriptions,
        )
        if not self.serves(scope):
            error = EventError(
                f"Host not allowed: {host_of(scope)[:128]}. It is not among the server's "
                "allowed_hosts",
                code="host_not_allowed",
            )
            self._core.traffic.refused_request(error.code)
            await (request.deny(error) if kind == "websocket" else request.refuse(error))
        elif kind == "websocket":
            await self._routes.serve_websocket(request)
        else:
            await self._routes.serve_http(request)

    def serves(self, scope: Scope) -> bool:
        """Return whether a request is for one of `allowed_hosts`, or there are none."""
        allowed = self.settings.allowed_hosts
        return not allowed or host_of(scope) in allowed

    def status(self) -> dict[str, Any]:
        """Count clients by transport, namespaces and rooms, of this node.

        Returns what `GET /api/status` answers. Looks at every client.
        """
        return self._core.status.here()

    async def status_of_all(self) -> dict[str, Any]:
        """Count what all nodes have: `total`, `nodes` by id, and `missing`.

        Returns what `GET /api/status?nodes=all` answers. A node that does not answer within 5 s
        is among the `missing`.
        """
        return await self._core.status.everywhere()

    # Life.

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Run the hub while the body runs: `FastAPI(lifespan=hub.lifespan)`."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start on the running event loop. Does nothing if it already runs there."""
        # Other servers log addresses with their queries.
        redaction.install()
        begins = not self.started
        self._proxies = TrustedProxies(self.settings.trusted_proxies)
        await self._core.start()
        if begins and type(self.broker) is MemoryBroker:
            warn_of_workers()
        self._signals.chain()

    async def stop(self) -> None:
        """Tell all clients, end their connections, finish what is being handled.

        At once `/readyz` answers 503 and new clients are refused. The others are closed one
        after another over `drain_time`, and served until then. Returns within
        `shutdown_timeout` seconds; handlers that still run then are cancelled. A second call
        waits for the first. A stopped hub answers 503 until it is started again.
        """
        if self.started:
            self._lifespan.end()
        try:
            await self._core.stop()
        finally:
            self._signals.unchain()

    async def _stop_after_listeners(self) -> None:
        # Clients cannot poll again after the polls that wait now.
        self._core.last_polls = True
        await self.stop()

    def _drain_patience(self) -> float:
        clients = sum(len(namespace.sockets) for namespace in self.namespaces.values())
        return self._core.drain.seconds(clients)


def names_broker(hub: Hub) -> bool:
    """Return whether the application named the hub's broker; if not, the environment may."""
    return hub._core.node.names_broker


def _path_below_mount(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    # Servers and frameworks differ on whether `path` includes the mount point.
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"
