"""The hub as an ASGI application: routes to the doors, and its start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

from crossband.broker import Broker
from crossband.errors import CloseCode, EventError
from crossband.hub.base import BaseHub
from crossband.transports.api import Api
from crossband.transports.engine import EngineDoor
from crossband.transports.http import Receive, Request, Scope, Send
from crossband.transports.sse import StreamDoor
from crossband.transports.websocket import WebSocketDoor

logger = logging.getLogger("crossband")

try:
    __version__ = version("crossband")
except PackageNotFoundError:
    __version__ = "0"


class Hub(BaseHub):
    """A realtime hub: an ASGI application with three doors, and the namespace `/`.

    `broker` is where publications are ordered and kept: a Broker, or None for the embedded
    memory broker. Other arguments are those of Settings. Serve it alone, or mount it:
    `app.mount("/realtime", hub)`; it starts with the server's lifespan or, where mounting
    does not forward that, with the first request.
    """

    def __init__(self, broker: Broker | str | None = None, **settings: Any) -> None:
        super().__init__(broker, **settings)
        # None until started: they belong to an event loop.
        self._engine: EngineDoor | None = None
        self._websockets: WebSocketDoor | None = None
        self._streams: StreamDoor | None = None
        self._api = Api(self, __version__)
        # Guards against two first requests starting the hub.
        self._starting: asyncio.Task[None] | None = None
        self._signals: dict[int, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        if not self.started:
            await self._start_late()
        request = Request(scope, receive, send, _path_below_mount(scope))
        if kind == "websocket":
            await self._serve_websocket(request)
        else:
            await self._serve_http(request)

    async def _serve_websocket(self, request: Request) -> None:
        assert self._engine is not None
        assert self._websockets is not None
        settings = self.settings
        path = request.path
        if path.rstrip("/") == settings.socketio_path:
            await self._engine.serve_websocket(request)
            return
        rest = _below(path, settings.websocket_path)
        if rest is not None:
            await self._websockets.serve(request, rest or "/")
            return
        await request.receive()
        await request.deny(self._lost(request))

    async def _serve_http(self, request: Request) -> None:
        assert self._engine is not None
        assert self._streams is not None
        settings = self.settings
        path = request.path
        if path.rstrip("/") == settings.socketio_path:
            await self._engine.serve_http(request)
            return
        rest = _below(path, settings.events_path)
        if rest is not None:
            await self._streams.serve(request, rest)
            return
        rest = _below(path, settings.api_path)
        if rest is not None:
            await self._api.serve(request, rest)
        elif path == "/healthz":
            await request.respond_json(200, {"status": "ok"})
        elif path == "/readyz":
            ready = self.started and not self.stopping
            status = "ready" if ready else "stopping"
            await request.respond_json(200 if ready else 503, {"status": status})
        elif _below(path, settings.websocket_path) is not None:
            await request.refuse(
                EventError("This is a WebSocket: connect with ws://", code="invalid_request"),
                [(b"upgrade", b"websocket")],
            )
        else:
            await request.refuse(self._lost(request))

    def _lost(self, request: Request) -> EventError:
        settings = self.settings
        mount = request.scope.get("root_path", "")
        doors = ", ".join(
            f"{mount}{path}"
            for path in (
                settings.socketio_path + "/",
                settings.websocket_path,
                settings.events_path,
                settings.api_path + "/status",
            )
        )
        return EventError(f"Nothing at {request.path[:128]}: there is {doors}", code="not_found")

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
        await super().start()
        self._chain_signals()

    async def stop(self) -> None:
        """Tell all clients, end their connections, finish what is being handled.

        Returns within `shutdown_timeout` seconds; what still runs then is cancelled.
        """
        await super().stop()
        self._unchain_signals()

    def _start_doors(self, loop: asyncio.AbstractEventLoop) -> None:
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
        # Until all are closed: each door tells when its last connection has gone.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.shutdown_timeout / 2):
                for door in doors:
                    await door.emptied.wait()

    async def _start_late(self) -> None:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.get_running_loop().create_task(self.start())
        await asyncio.shield(self._starting)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _chain_signals(self) -> None:
        # Servers wait for open streams before they tell an application to shut down, and
        # event streams do not end by themselves: so the hub hears the signal too. The
        # server's own handling follows, unchanged.
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            # SIG_DFL: nobody serves here who wants to stop gently.
            if callable(previous) and number not in self._signals:
                self._signals[number] = previous
                signal.signal(number, self._on_signal)

    def _unchain_signals(self) -> None:
        for number, previous in self._signals.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, previous)
        self._signals.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        loop = self._loop
        previous = self._signals.get(number)
        if loop is not None and not loop.is_closed() and not self.stopping:
            loop.call_soon_threadsafe(lambda: loop.create_task(self.stop()))
        if callable(previous):
            previous(number, frame)


def _path_below_mount(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    # Servers and frameworks differ on whether `path` includes the mount point.
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path or "/"


def _below(path: str, prefix: str) -> str | None:
    """Return what follows a door's path: "" for the door itself, None for another path."""
    if path == prefix:
        return ""
    if path.startswith(prefix + "/"):
        return path[len(prefix) :].rstrip("/")
    return None
