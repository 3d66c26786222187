"""The hub as an ASGI application: routes to the doors, and its start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any, Final, Unpack

from crossband.addresses import TrustedProxies
from crossband.auth import redaction
from crossband.broker import Broker
from crossband.broker.memory import MemoryBroker
from crossband.errors import CloseCode, EventError, StartError
from crossband.hub.base import BaseHub
from crossband.hub.guard import Authenticate, Authorize
from crossband.settings import DOORS, HubSettings
from crossband.transports.api import Api
from crossband.transports.engine import EngineDoor
from crossband.transports.http import Receive, Request, Scope, Send, host_of
from crossband.transports.sse import StreamDoor
from crossband.transports.websocket import CLOSE_TIME, WebSocketDoor
from crossband.workers import worker_processes

logger = logging.getLogger("crossband")

try:
    __version__ = version("crossband")
except PackageNotFoundError:
    __version__ = "0"

# Seconds a signal waits beyond the drain, before the server hears it too.
FAREWELL_TIME: Final = 1.0
SignalHandler = Callable[[int, FrameType | None], Any]


class Hub(BaseHub):
    """A realtime hub: an ASGI application with three doors, and the namespace `/`.

    `broker` is where publications are ordered and kept: a Broker, or None for the embedded
    memory broker. `authenticate(handshake)` says who a client is, as an Identity, or None for
    an anonymous one, or raises Unauthorized; `authorize(identity, action, room)` whether it
    may "subscribe" or "publish" to a room, None being the whole namespace: True, or it may
    not. Either may be async. Other arguments are those of Settings. Serve it alone, or mount it:
    `app.mount("/realtime", hub)`; it starts with the server's lifespan or, where mounting
    does not forward that, with the first request.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        **settings: Unpack[HubSettings],
    ) -> None:
        super().__init__(broker, authenticate=authenticate, authorize=authorize, **settings)
        # None until started: they belong to an event loop.
        self._engine: EngineDoor | None = None
        self._websockets: WebSocketDoor | None = None
        self._streams: StreamDoor | None = None
        self._api = Api(self, __version__)
        # Of the settings, from the start on.
        self._proxies = TrustedProxies(())
        # Path, without a slash at its end, and setting of each door that is not switched off;
        # of the settings, too.
        self._doors: list[tuple[str, str]] = []
        # The event loop of the requests so far; None before the first.
        self._serving: asyncio.AbstractEventLoop | None = None
        # Shared by first requests that come together.
        self._starting: asyncio.Task[None] | None = None
        # By signal: our handler and the one before it.
        self._signals: dict[int, tuple[SignalHandler, SignalHandler]] = {}
        # Passes on the signal that waits for the farewell; None when none does.
        self._pass_on: Callable[[], None] | None = None
        # What nobody awaits: held, or the event loop may forget it.
        self._background: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        loop = asyncio.get_running_loop()
        if self._serving is not loop:
            await self._begin_serving(loop)
        if self._proxies:
            self._proxies.apply(scope)
        request = Request(
            scope,
            receive,
            send,
            _path_below_mount(scope),
            traffic=self.traffic,
            max_rooms=self.settings.limits.subscriptions,
        )
        if not self.serves(scope):
            error = EventError(
                f"Host not allowed: {host_of(scope)[:128]}. It is not among the server's "
                "allowed_hosts",
                code="host_not_allowed",
            )
            self.traffic.refused_request(error.code)
            await (request.deny(error) if kind == "websocket" else request.refuse(error))
        elif kind == "websocket":
            await self._serve_websocket(request)
        else:
            await self._serve_http(request)

    def serves(self, scope: Scope) -> bool:
        """Tell whether a request is for one of `allowed_hosts`; without any, each is."""
        allowed = self.settings.allowed_hosts
        return not allowed or host_of(scope) in allowed

    async def _serve_websocket(self, request: Request) -> None:
        assert self._engine is not None
        assert self._websockets is not None
        if not self.started:
            await request.deny(EventError(code="shutting_down"))
            return
        door, rest = self._door_at(request.path)
        if door == "socketio_path":
            await self._engine.serve_websocket(request)
        elif door == "websocket_path":
            await self._websockets.serve(request, rest or "/")
        else:
            await request.deny(self._lost(request))

    async def _serve_http(self, request: Request) -> None:
        assert self._engine is not None
        assert self._streams is not None
        path = request.path
        door, rest = self._door_at(path)
        if path in ("/healthz", "/readyz"):
            await self._serve_health(request)
        elif door == "events_path" and (self.started or request.method == "GET"):
            # Those of a stopped hub are told to come back, not that they must not.
            await self._streams.serve(request, rest)
        elif not self.started:
            await request.refuse(EventError(code="shutting_down"))
        elif door == "socketio_path":
            await self._engine.serve_http(request)
        elif door == "api_path":
            await self._api.serve(request, rest)
        elif door == "websocket_path" and (not rest or self.settings.websocket_path != "/"):
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
        ready = self.started and not self.stopping
        status = "ready" if ready else "stopping"
        await request.respond_json(200 if ready else 503, {"status": status})

    def _door_at(self, path: str) -> tuple[str | None, str]:
        """Return the setting whose door a path is of, and what follows the door's path.

        That is "" for the door itself. None and the whole path where no door is.
        """
        for prefix, name in self._doors:
            if not path.startswith(prefix):
                continue
            rest = path[len(prefix) :]
            if rest and not rest.startswith("/"):
                continue
            rest = rest.rstrip("/")
            # Socket.IO has nothing below its path: its namespaces are in its packets.
            if not rest or name != "socketio_path":
                return name, rest
        return None, path

    def _lost(self, request: Request) -> EventError:
        mount = request.scope.get("root_path", "")
        settings = self.settings
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

    def status(self) -> dict[str, Any]:
        """Count clients by transport, namespaces and rooms.

        Returns what `GET /api/status` answers. Looks at every client.
        """
        return self._api.status()

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
        """Start on the running event loop. Does nothing when started there."""
        # Other servers print addresses with their queries.
        redaction.install()
        begins = not self.started
        await super().start()
        if begins and type(self.broker) is MemoryBroker:
            self._warn_of_workers()
        self._chain_signals()

    def _warn_of_workers(self) -> None:
        workers = worker_processes()
        if workers > 1:
            logger.warning(
                "this is one of %d worker processes, AND THEY DO NOT HEAR EACH OTHER: each has "
                "clients, rooms and a history of its own, and an event reaches the clients of one "
                "process only. Run one worker: more need a broker that joins them, which this "
                "version does not have",
                workers,
            )

    async def stop(self) -> None:
        """Tell all clients, end their connections, finish what is being handled.

        `/readyz` turns 503 and newcomers are refused at once; the clients go one after another
        over `drain_time`, each served until its turn. Returns within `shutdown_timeout`
        seconds; what still runs then is cancelled. A second call waits for the first. A
        stopped hub answers 503 until it is started again.
        """
        if self.started:
            # Not even a first request, that was on its way, starts it again here.
            self._serving = asyncio.get_running_loop()
        try:
            await super().stop()
        finally:
            self._unchain_signals()

    def _start_doors(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self.settings
        self._proxies = TrustedProxies(settings.trusted_proxies)
        # The longest first: one door may lie below another.
        paths = [(path.rstrip("/"), name) for name in DOORS if (path := getattr(settings, name))]
        self._doors = sorted(paths, key=lambda door: len(door[0]), reverse=True)
        self._engine = EngineDoor(self)
        self._websockets = WebSocketDoor(self)
        self._streams = StreamDoor(self)

    async def _stop_doors(self) -> None:
        assert self._engine is not None
        assert self._websockets is not None
        assert self._streams is not None
        doors = (self._engine, self._websockets, self._streams)
        for door in doors:
            door.close(CloseCode.GOING_AWAY, "Server shutting down")
        # Until each door's last connection has gone. After CLOSE_TIME no close frame is
        # waited for any more; slow streams the server goes on writing by itself.
        patience = min(CLOSE_TIME, self.settings.shutdown_timeout / 2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for door in doors:
                    await door.emptied.wait()

    async def _begin_serving(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start with the first request where there was no lifespan."""
        if self._loop is not loop or self._starting is not None:
            if self._starting is None or self._starting.get_loop() is not loop:
                self._starting = loop.create_task(self.start())
            starting = self._starting
            try:
                await asyncio.shield(starting)
            finally:
                # A start that failed is tried again by the next request.
                if self._starting is starting and starting.done():
                    self._starting = None
        if self._serving is not loop:
            self._serving = loop
            self._watch_hypercorn(loop)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            if not isinstance(error, StartError):
                logger.exception("the hub could not start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    # Servers wait for open streams before they tell an application to shut down, and event
    # streams do not end by themselves: so the hub listens for the server's end too.

    def _chain_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            # SIG_DFL: nobody serves here who wants to stop gently.
            if callable(previous) and number not in self._signals:
                handler = functools.partial(self._on_signal, previous)
                self._signals[number] = handler, previous
                signal.signal(number, handler)

    def _unchain_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, (handler, previous) in self._signals.items():
            # Another one may have been put over ours: then ours only passes on.
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)
        self._signals.clear()

    def _on_signal(self, previous: SignalHandler, number: int, frame: FrameType | None) -> None:
        loop = self._loop
        if loop is None or loop.is_closed() or (self.stopping and self._pass_on is None):
            previous(number, frame)
            return
        if self._pass_on is not None:
            # The second signal: no more patience.
            pass_on, self._pass_on = self._pass_on, None
            pass_on()
            previous(number, frame)
            return
        # uvicorn would close WebSockets before we could say why: it hears the signal after us.
        self._pass_on = functools.partial(previous, number, None)
        loop.call_soon_threadsafe(lambda: self._spawn(self._stop_then_pass_on()))

    async def _stop_then_pass_on(self) -> None:
        stopping = self._spawn(self.stop())
        clients = sum(len(namespace.sockets) for namespace in self.namespaces.values())
        patience = FAREWELL_TIME + self.drain_seconds(clients)
        await asyncio.wait({stopping}, timeout=patience)
        pass_on, self._pass_on = self._pass_on, None
        if pass_on is not None:
            asyncio.get_running_loop().call_soon(pass_on)

    def _watch_hypercorn(self, loop: asyncio.AbstractEventLoop) -> None:
        # Its worker processes get no signal, and cut streams after `graceful_timeout` without
        # a word. What ends there first is its `raise_shutdown` task, whatever the trigger.
        utils = sys.modules.get("hypercorn.utils")
        code = getattr(getattr(utils, "raise_shutdown", None), "__code__", None)
        if code is None:
            return
        for task in asyncio.all_tasks(loop):
            if getattr(task.get_coro(), "cr_code", None) is code:
                task.add_done_callback(self._on_hypercorn_stopping)

    def _on_hypercorn_stopping(self, _: object) -> None:
        # It closes its listeners and idle connections now: no poll will follow.
        self.last_polls = True
        self._spawn(self.stop())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Not one of those that stop() waits for, or cancels: they wait for stop().
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _path_below_mount(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    # Servers and frameworks differ on whether `path` includes the mount point.
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"
