"""The server: runs an ASGI app, usually a hub, on uvicorn with uvloop and httptools."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from types import NoneType, TracebackType
from typing import Any, Final, Literal, Protocol, Self, get_args

import uvicorn
from starlette.types import ASGIApp

from crossband.auth import redaction
from crossband.errors import StartError
from crossband.handlers.callables import check_runs
from crossband.lane import HTTPProtocol, WebSocketProtocol
from crossband.limits import Limits
from crossband.mounts import hubs_in
from crossband.server import process
from crossband.server.listeners import UDS_MODE, bind_tcp, bind_unix, notice_half_open, unlink
from crossband.server.orderly import OrderlyServer
from crossband.server.process import Stop, StopRequest
from crossband.settings import KEEP_ALIVE, Settings

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

# Connections accepted in one iteration of the event loop. libuv accepts one per listener: while
# fan-out makes iterations long, clients that all come back at once would wait for seconds
# (measured: 10 s for 200 clients, and none with this). asyncio accepts the whole backlog.
_ACCEPTS: Final = 8


# Types of the arguments of `Server`, and how errors name them.
_PATH: Final = ((str, os.PathLike, NoneType), "a path or None")
_SWITCH: Final = ((bool,), "True or False")
_ARGUMENTS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "host": ((str,), "an address or a name, as a string"),
    "port": ((int,), "a whole number"),
    "uds": _PATH,
    "uds_mode": ((int,), "a whole number, such as 0o660"),
    "log_level": ((str,), "the name of a level"),
    "ssl_certfile": _PATH,
    "ssl_keyfile": _PATH,
    "root_path": ((str,), "a string"),
    "keep_alive": ((int, float), "a number of seconds"),
    "forwarded_allow_ips": ((str, NoneType), "a string of addresses, separated by commas, or None"),
    "access_log": _SWITCH,
    "lane": _SWITCH,
}


class _Hub(Protocol):
    """What the server needs from a hub: `crossband.Hub` has it."""

    settings: Settings

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Server:
    """Run an ASGI app, in the current event loop or blocking.

    `async with Server(hub) as server` binds and starts a server that answers at `server.url`.
    Leaving the block stops it: first `hub.stop()` (clients are told and closed with 1001, new
    ones refused), then no new connections, then what is left has `shutdown_timeout` seconds.
    `server.run()` does the same in a process of its own, with signals. Instead of host and port
    it takes `uds`, the path of a unix socket, with the permissions `uds_mode`.

    A `Hub`, or a Starlette or FastAPI app that mounts one, sets the WebSocket pings, the
    largest message and the shutdown timeout. `keep_alive` is how many seconds a connection may
    be idle between two HTTP requests: make it longer than that of the load balancer in front,
    which would otherwise now and then send a request on a closed connection (502). Without the
    `lane`, hub and server exchange ASGI messages, as on any other server: slower, but the same
    to clients. Raises `StartError` if the address cannot be bound, a certificate cannot be read
    or the app fails to start.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        uds: str | os.PathLike[str] | None = None,
        uds_mode: int = UDS_MODE,
        log_level: LogLevel = "warning",
        ssl_certfile: str | os.PathLike[str] | None = None,
        ssl_keyfile: str | os.PathLike[str] | None = None,
        root_path: str = "",
        forwarded_allow_ips: str | None = None,
        keep_alive: float = KEEP_ALIVE,
        access_log: bool = False,
        lane: bool = True,
    ) -> None:
        check_runs(app, "Server takes an ASGI application, such as a Hub()")
        _check_types(
            host=host,
            port=port,
            uds=uds,
            uds_mode=uds_mode,
            log_level=log_level,
            ssl_certfile=ssl_certfile,
            ssl_keyfile=ssl_keyfile,
            root_path=root_path,
            forwarded_allow_ips=forwarded_allow_ips,
            keep_alive=keep_alive,
            access_log=access_log,
            lane=lane,
        )
        if not 0 < keep_alive < math.inf:
            raise ValueError(f"keep_alive must be a number of seconds above 0, not {keep_alive!r}")
        if log_level not in get_args(LogLevel):
            levels = ", ".join(get_args(LogLevel))
            raise ValueError(f"log_level must be one of {levels}, not {log_level!r}")
        if not 0 <= uds_mode <= 0o777:
            raise ValueError(f"uds_mode must be 0o000 to 0o777, not {uds_mode}: it is octal")
        if forwarded_allow_ips is not None:
            _check_proxies(forwarded_allow_ips)
        self.app = app
        self.host: Final = host.removeprefix("[").removesuffix("]")
        # The requested port until the server is bound, then the real one.
        self.port: int = port
        self.uds: Final = None if uds is None else os.fspath(uds)
        self._uds_mode = uds_mode
        self._log_level = log_level
        self._ssl_certfile = ssl_certfile
        self._ssl_keyfile = ssl_keyfile
        self._root_path = root_path
        self._forwarded_allow_ips = forwarded_allow_ips
        self._keep_alive = keep_alive
        self._access_log = access_log
        self._lane = lane
        self._hubs: list[_Hub] = [mounted.hub for mounted in hubs_in(app)]
        # Both None while the server is not running.
        self._uvicorn: OrderlyServer | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The address for clients on this machine, such as `http://127.0.0.1:8000`."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "http" if self._ssl_certfile is None else "https"
        # A wildcard is an address to listen on, not to connect to.
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Bind and start; return once requests are answered."""
        if self._task is not None:
            raise RuntimeError("the server is already running")
        config = self._config()
        sockets = await self._bind()
        notice_half_open(sockets, max(limits.send_time for limits in self._limits()))
        try:
            # Here rather than in the lifespan, where uvicorn would read a failure as an app
            # without a lifespan. Starting twice is harmless.
            for hub in self._hubs:
                await hub.start()
            self._uvicorn = OrderlyServer(config, self._hubs, self._before_accepting)
            if type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
                sockets += [sock.dup() for sock in sockets for _ in range(_ACCEPTS - 1)]
            self._task = asyncio.create_task(self._uvicorn.serve(sockets))
            started = asyncio.create_task(self._uvicorn.ready.wait())
            try:
                await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                started.cancel()
            if self._task.done():
                self._task.result()
        except BaseException:
            for sock in sockets:
                sock.close()
            await self.stop()
            for hub in self._hubs:
                await hub.stop()
            self._unbind()
            raise

    async def stop(self) -> None:
        """Stop gracefully; do nothing if the server is not running."""
        task, runner = self._task, self._uvicorn
        if task is None:
            return
        if runner is None:
            # Another caller is already stopping it.
            await asyncio.wait({task})
            return
        self._uvicorn = None
        try:
            if not task.done():
                runner.stop()
                await task
        finally:
            self._task = None
            self._unbind()

    def run(self, on_start: Callable[[Server], None] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, for a process of its own.

        `on_start` is called once requests are answered. Returns after a graceful stop, or ends
        the process with status 0 if a handler's thread does not end, or a task ignores its
        cancellation. A second signal ends the process at once, with status 128 plus the
        signal's number: 143 for SIGTERM.
        """

        async def serve(stop: Stop) -> None:
            async with self:
                # Again, because the started hub put its own handlers in front of ours, for
                # servers that do not stop hubs first.
                stop.listen()
                if on_start is not None:
                    on_start(self)
                assert self._task is not None
                stopping = asyncio.create_task(stop.made.wait())
                await asyncio.wait({stopping, self._task}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()

        process.run(serve, self._make_stop)

    # For a worker, whose parent binds the sockets and decides when it serves and stops.

    async def _bind(self) -> list[socket.socket]:
        if self.uds is not None:
            return [bind_unix(self.uds, self._uds_mode)]
        sockets = await bind_tcp(self.host, self.port)
        self.port = sockets[0].getsockname()[1]
        return sockets

    def _unbind(self) -> None:
        if self.uds is not None:
            unlink(self.uds)

    async def _before_accepting(self) -> None:
        """Wait, when the application has started, until connections may be accepted."""

    def _make_stop(self) -> Stop:
        return StopRequest()

    def _config(self) -> uvicorn.Config:
        options: dict[str, Any] = {}
        bounds = self._limits()
        if self._hubs:
            settings = [hub.settings for hub in self._hubs]
            options["ws_ping_interval"] = min(each.ping_interval for each in settings)
            options["ws_ping_timeout"] = max(each.ping_timeout for each in settings)
            # Twice the largest message: larger ones still reach the hub, which answers with an
            # error; beyond this the connection is just closed with 1009.
            options["ws_max_size"] = 2 * max(
                max(each.limits.message_size, each.limits.max_http_buffer_size) for each in settings
            )
        # uvicorn creates its protocols itself, so settings reach them through classes.
        times = {
            "head_time": max(limits.head_time for limits in bounds),
            "send_time": max(limits.send_time for limits in bounds),
        }
        fragments = {"fragments": max(limits.fragments for limits in bounds)}
        http = type("HTTPProtocol", (HTTPProtocol,), {**times, **fragments, "offers": self._lane})
        websocket = type("WebSocketProtocol", (WebSocketProtocol,), fragments)
        config = uvicorn.Config(
            self.app,
            loop="none",
            http=http,
            ws=websocket,
            interface="asgi3",
            # Logging belongs to the program: the CLI, or the application around the server.
            log_config=None,
            log_level=self._log_level,
            access_log=self._access_log,
            ssl_certfile=self._ssl_certfile,
            ssl_keyfile=self._ssl_keyfile,
            root_path=self._root_path,
            # Trust no proxy by default: uvicorn would trust every process on this machine.
            proxy_headers=self._forwarded_allow_ips is not None,
            forwarded_allow_ips=self._forwarded_allow_ips,
            server_header=False,
            # It also accepts floats.
            timeout_keep_alive=self._keep_alive,  # type: ignore[arg-type]
            timeout_graceful_shutdown=self._stop_time,  # type: ignore[arg-type]
            **options,
        )
        if self._access_log:
            # Access is logged at "info", whatever the level of the rest.
            logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        for name in ("uvicorn.access", "uvicorn.error"):
            logging.getLogger(name).addFilter(redaction.without_credentials)
        if self._ssl_keyfile is not None and self._ssl_certfile is None:
            raise StartError("a TLS key was given without its certificate (ssl_certfile)")
        try:
            config.load()
        except (OSError, ssl.SSLError) as exc:
            files = " and ".join(str(f) for f in (self._ssl_certfile, self._ssl_keyfile) if f)
            raise StartError(f"cannot read the TLS certificate from {files}: {exc}") from exc
        return config

    @property
    def _stop_time(self) -> float:
        """How many seconds a graceful stop may take."""
        times = (hub.settings.shutdown_timeout for hub in self._hubs)
        return max(times, default=Settings().shutdown_timeout)

    def _limits(self) -> list[Limits]:
        return [hub.settings.limits for hub in self._hubs] or [Limits()]


def _check_types(**arguments: object) -> None:
    for name, value in arguments.items():
        kinds, what = _ARGUMENTS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{name} must be {what}, not {value!r}")


def _check_proxies(text: str) -> None:
    """Raise ValueError if a proxy in the list is one that uvicorn could never match."""
    if text.strip() == "*":
        return
    for name in filter(None, (part.strip() for part in text.split(","))):
        try:
            ip_network(name)
        except ValueError as error:
            raise ValueError(
                "forwarded_allow_ips takes addresses and networks such as '10.0.0.0/8', separated "
                f"by commas, or '*' alone: {error}"
            ) from None


__all__ = ["ASGIApp", "LogLevel", "Server", "StartError"]
