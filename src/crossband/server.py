"""The server: an ASGI app, a hub as a rule, on uvicorn with uvloop and httptools.

It binds its own socket, so that port 0 works and a busy port is told plainly, and it stops
in an order uvicorn alone cannot know: hubs (which end their streams), then listeners, then
whatever is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import os
import signal
import socket
import ssl
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Final, Literal, Protocol, Self, get_args

import uvicorn

from crossband.errors import StartError
from crossband.handlers.callables import check_runs
from crossband.hub.runner import places
from crossband.lane import HTTPProtocol, WebSocketProtocol
from crossband.limits import Limits
from crossband.mounts import hubs_in
from crossband.settings import KEEP_ALIVE, Settings

ASGIApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]
LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

# How long a client may take to answer our WebSocket close frame before it is cut.
_CLOSE_REPLY_TIME: Final = 1.0
# How often a stopping server looks whether its connections are gone; uvicorn: 0.1 s.
_DRAIN_TICK: Final = 0.005
_BACKLOG: Final = 2048
# Of a unix socket. As uvicorn: a proxy that runs as another user must be able to connect.
UDS_MODE: Final = 0o666
# Seconds for what is left when all is closed: a handler in a thread cannot be cancelled, and
# Python would wait for it, for ever.
_REST_TIME: Final = 1.0
# Seconds of a stop after which it is told how to end it at once: nobody wonders before.
_QUICK_STOP: Final = 1.0
# Connections accepted in one iteration of the event loop. libuv accepts one per listener:
# while fan-out keeps an iteration long, clients that all come back at once would wait for
# seconds (measured: 10 s for 200 clients, none with this). asyncio accepts the backlog.
_ACCEPTS: Final = 8


# What the arguments of `Server` may be, and how that is said.
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

logger = logging.getLogger("crossband")


class _Hub(Protocol):
    """What the server needs of a hub: `crossband.Hub` has it."""

    settings: Settings

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


# Connections are objects that stay: Python's own threshold of 700 has the youngest of them
# walked at every tenth connect, a tenth of what connects cost.
GC_THRESHOLDS: Final = (20_000, 20, 20)


class Server:
    """Run an ASGI app, in the current event loop or blocking.

    `async with Server(hub) as server` binds, starts and leaves a server that answers at
    `server.url`; leaving the block stops it: `hub.stop()` (clients are told and closed
    with 1001, newcomers refused), no new connections, then what is left is given
    `shutdown_timeout` seconds.
    `server.run()` is the same for a process of its own, with signals. Instead of host and port
    it takes the path of a unix socket, `uds`, with permissions `uds_mode`.

    A `Hub`, or a Starlette or FastAPI app that mounts one, sets the WebSocket pings, the
    largest message and the shutdown timeout. `keep_alive` is how many seconds a connection may
    be idle between two HTTP requests: longer than the load balancer in front keeps it, or that
    sends a request into a closed one now and then (502). Without the `lane` they exchange ASGI
    messages with it, as on any other server: slower, and the same to clients. Raises `StartError`
    when the address cannot be bound, a certificate cannot be read or the app fails to start.
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
        self.host = host.removeprefix("[").removesuffix("]")
        # The port asked for until the server is bound, then the real one.
        self.port = port
        self.uds = None if uds is None else os.fspath(uds)
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
        self._uvicorn: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Return the address a client on this machine uses, such as `http://127.0.0.1:8000`."""
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
        """Bind and start; returns when requests are answered."""
        if self._task is not None:
            raise RuntimeError("the server is already running")
        config = self._config()
        sockets = await self._bind()
        try:
            # Here rather than in the lifespan, where uvicorn takes a failure for an app
            # that has no lifespan. Starting twice is harmless.
            for hub in self._hubs:
                await hub.start()
            self._uvicorn = _Uvicorn(config, self._hubs)
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
            if self.uds is not None:
                _unlink(self.uds)
            raise

    async def stop(self) -> None:
        """Stop gracefully; does nothing when the server is not running."""
        task, runner = self._task, self._uvicorn
        if task is None:
            return
        if runner is None:
            # Somebody else has begun to.
            await asyncio.wait({task})
            return
        self._uvicorn = None
        try:
            if not task.done():
                runner.stop()
                await task
        finally:
            self._task = None
            if self.uds is not None:
                _unlink(self.uds)

    def run(self, on_start: Callable[[Server], None] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, for a process of its own.

        `on_start` is called once requests are answered. Returns after a graceful stop, or
        ends the process with 0 where a handler's thread does not end by itself, or a task goes
        on although it is cancelled. A second signal ends the process at once, with 128 and
        the signal's number: 143 for SIGTERM.
        """
        last_resort: threading.Timer | None = None
        handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                last_resort = _later(_REST_TIME, _leave_rest, runner.get_loop())
                runner.run(self._run(on_start))
                last_resort.start()
        finally:
            if last_resort is not None:
                last_resort.cancel()
            for number, handler in handlers.items():
                # None is one that is not Python's, which cannot be put back.
                if handler is not None:
                    signal.signal(number, handler)
            gc.set_threshold(*thresholds)
            gc.unfreeze()

    async def _run(self, on_start: Callable[[Server], None] | None) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        # By a thread, as the event loop may be blocked.
        told = _later(_QUICK_STOP, logger.info, "stopping; Ctrl-C or SIGTERM again ends it at once")

        def on_signal(*_: object) -> None:
            # From now on not even a blocked event loop keeps the process.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: os._exit(128 + number))
            if told.ident is None:
                told.start()
            loop.call_soon_threadsafe(stop.set)

        def listen_for_signals() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, on_signal)

        listen_for_signals()
        try:
            async with self:
                # Again: a hub that started has put its own handling over ours, for servers
                # that do not stop hubs first.
                listen_for_signals()
                if on_start is not None:
                    on_start(self)
                assert self._task is not None
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait({stopping, self._task}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
        finally:
            told.cancel()

    def _config(self) -> uvicorn.Config:
        options: dict[str, Any] = {}
        bounds = self._limits()
        if self._hubs:
            settings = [hub.settings for hub in self._hubs]
            options["ws_ping_interval"] = min(each.ping_interval for each in settings)
            options["ws_ping_timeout"] = max(each.ping_timeout for each in settings)
            # Twice the largest message: what is too large still reaches the hub, which
            # answers it with an error; past this the connection is closed with 1009 only.
            options["ws_max_size"] = 2 * max(
                max(each.limits.message_size, each.limits.max_http_buffer_size) for each in settings
            )
            options["timeout_graceful_shutdown"] = max(each.shutdown_timeout for each in settings)
        # uvicorn makes its protocols itself: settings reach them by class.
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
            # Nobody is believed unasked: uvicorn would trust every process of this machine.
            proxy_headers=self._forwarded_allow_ips is not None,
            forwarded_allow_ips=self._forwarded_allow_ips,
            server_header=False,
            # Of floats, too, it makes a timer.
            timeout_keep_alive=self._keep_alive,  # type: ignore[arg-type]
            **{"timeout_graceful_shutdown": Settings().shutdown_timeout, **options},
        )
        if self._access_log:
            # It is logged at "info", whatever the level of the rest.
            logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        for name in ("uvicorn.access", "uvicorn.error"):
            logging.getLogger(name).addFilter(_without_secrets)
        if self._ssl_keyfile is not None and self._ssl_certfile is None:
            raise StartError("a TLS key was given without its certificate (ssl_certfile)")
        try:
            config.load()
        except (OSError, ssl.SSLError) as exc:
            files = " and ".join(str(f) for f in (self._ssl_certfile, self._ssl_keyfile) if f)
            raise StartError(f"cannot read the TLS certificate from {files}: {exc}") from exc
        return config

    def _limits(self) -> list[Limits]:
        return [hub.settings.limits for hub in self._hubs] or [Limits()]

    async def _bind(self) -> list[socket.socket]:
        if self.uds is not None:
            return [_bind_unix(self.uds, self._uds_mode)]
        unacknowledged = max(limits.send_time for limits in self._limits())
        if not 0 <= self.port <= 65_535:
            raise StartError(f"port {self.port} does not exist; ports are 0 to 65535")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, OverflowError, UnicodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise StartError(f"cannot listen on {self.host!r}: {reason}") from exc
        # "localhost" is two addresses. Port 0 means one free port, so the first only.
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        sockets: list[socket.socket] = []
        failure: OSError | None = None
        for family, address in addresses:
            try:
                sock = _bind_tcp(family, address, alone=len(addresses) == 1)
                sockets.append(sock)
                _notice_half_open(sock, unacknowledged)
            except OSError as exc:
                failure = exc
                # A name may have an IPv6 address on a machine without IPv6.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    break
            else:
                failure = None
                if self.port == 0:
                    break
        if failure is not None and (not sockets or failure.errno == errno.EADDRINUSE):
            for sock in sockets:
                sock.close()
            raise _bind_error(failure, self.host, self.port) from failure
        self.port = sockets[0].getsockname()[1]
        return sockets


class _Uvicorn(uvicorn.Server):
    """uvicorn's server without its signals, woken to stop, and stopped in our order."""

    def __init__(self, config: uvicorn.Config, hubs: Sequence[_Hub]) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._hubs = hubs
        self._wake = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._wake.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn's way to say that the app's lifespan failed; the reason was logged.
            raise StartError("the application failed to start (see the log above)") from None
        self.ready.set()

    async def main_loop(self) -> None:
        # Once a second for the Date header; uvicorn polls for its exit at 10 Hz.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                # Before the listeners close: a client between two polls opens a connection
                # to hear of it. Newcomers are refused with 503 meanwhile.
                await asyncio.gather(*(hub.stop() for hub in self._hubs))
                await self._stop_accepting()
                self._close_listeners(sockets)
                await self._drain()
        except TimeoutError:
            # Those that nobody has come to ask, since the hub took all the time, end now.
            self._ask(self.server_state.connections)
            await asyncio.sleep(_DRAIN_TICK)
            if left := len(self.server_state.connections):
                logger.warning("connections that did not end in time and are cut: %d", left)
        finally:
            # Also where whoever stops it has lost patience.
            self._close_listeners(sockets)
            for task in list(self.server_state.tasks):
                task.cancel()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await self.lifespan.shutdown()

    async def _stop_accepting(self) -> None:
        # asyncio makes a connection in the ticks after it accepted, and forgets the client
        # if its server was closed by then (python/cpython#109564).
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for sock in server.sockets:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_reader(sock.fileno())
        await asyncio.sleep(_DRAIN_TICK)

    def _close_listeners(self, sockets: list[socket.socket] | None) -> None:
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()

    def _ask(self, connections: set[Any]) -> set[Any]:
        """Ask connections to end; return the WebSockets that a hub closes itself."""
        websocket = self.config.ws_protocol_class
        closing = set()
        for connection in list(connections):
            if self._hubs and websocket is not None and isinstance(connection, websocket):
                closing.add(connection)
            else:
                connection.shutdown()
        return closing

    async def _drain(self) -> None:
        """Wait until every connection has ended, having asked it to."""
        state = self.server_state
        loop = asyncio.get_running_loop()
        # Hubs close their WebSockets themselves. Cut before the client has answered, it
        # could lose the close frame to a reset.
        closing: set[Any] = set()
        asked: set[Any] = set()
        give_up = loop.time() + _CLOSE_REPLY_TIME
        while state.connections or state.tasks:
            closing |= self._ask(state.connections - asked)
            asked |= state.connections
            if closing and loop.time() >= give_up:
                for connection in closing & state.connections:
                    connection.shutdown()
                closing.clear()
            await asyncio.sleep(_DRAIN_TICK)


def _later(seconds: float, call: Callable[..., None], *args: Any) -> threading.Timer:
    """Return a timer, not started, that does not keep the process."""
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    return timer


def _leave_rest(loop: asyncio.AbstractEventLoop) -> None:
    # asyncio cancels what is left, and waits for it; then for the threads.
    tasks = [task for task in asyncio.all_tasks(loop) if task.cancelling()]
    if tasks:
        logger.warning(
            "tasks went on although they were cancelled, and are cut: %s",
            places(tasks) or len(tasks),
        )
    else:
        logger.warning("threads of handlers did not end in time and are cut")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


def _check_types(**arguments: object) -> None:
    for name, value in arguments.items():
        kinds, what = _ARGUMENTS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{name} must be {what}, not {value!r}")


def _check_proxies(text: str) -> None:
    """Raise ValueError for a list of proxies with one in it that uvicorn could never match."""
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


def _bind_tcp(family: int, address: tuple[Any, ...], *, alone: bool) -> socket.socket:
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: without, the
    # two writes of a response wait 40 ms for the client's delayed acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A restart need not wait for the old connections' TIME_WAIT. On Windows the
        # option would let two servers share the port.
        if sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" also serves IPv4, as most servers do, unless 0.0.0.0 is bound beside it; the
            # same port may be bound for 127.0.0.1 beside any other address.
            dual = alone and address[0] == "::"
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual))
        sock.bind(address)
        # Listening is what fails when another process listens on the same address.
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _notice_half_open(sock: socket.socket, seconds: float) -> None:
    """Have the kernel cut accepted connections of which it has no sign for so long.

    A client that vanished without a word acknowledges nothing of what is written. Without
    this it counts as connected for a quarter of an hour, and longer where little is written:
    WebSockets have their pings, an event stream has comments, which nobody answers. Linux
    only (RFC 5482); a connection inherits it from the listener.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        milliseconds = min(max(round(seconds * 1_000), 1), 2**31 - 1)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)


def _bind_unix(path: str, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # Before it listens: nobody whom the mode keeps out gets in meanwhile.
        Path(path).chmod(mode)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise StartError(f"cannot listen on the unix socket {path}: {exc.strerror or exc}") from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file of a server that was killed; refuse one that is in use."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on the unix socket {path}: a file of that name exists")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise StartError(f"the unix socket {path} is in use by another server; choose another path")


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _bind_error(exc: OSError, host: str, port: int) -> StartError:
    if exc.errno == errno.EADDRINUSE:
        return StartError(
            f"port {port} on {host or 'every address'} is already in use; choose another port "
            "(0 takes a free one)"
        )
    if exc.errno == errno.EACCES:
        return StartError(
            f"port {port} on {host} needs more privileges; choose a port of 1024 or above"
        )
    return StartError(f"cannot listen on {host}, port {port}: {exc.strerror or exc}")


# Headers that carry what only the client and we may know.
_SECRET_HEADERS: Final = frozenset(
    {"authorization", "cookie", "sec-websocket-protocol", "x-api-key", "x-crossband-session"}
)


def _without_secrets(record: logging.LogRecord) -> bool:
    """Drop query strings and credentials from uvicorn's and websockets' log lines."""
    if isinstance(record.args, tuple):
        args = [
            arg.partition("?")[0] if isinstance(arg, str) and arg.startswith("/") else arg
            for arg in record.args
        ]
        # At "debug", websockets logs each header as "< %s: %s".
        if len(args) == 2 and str(args[0]).lower() in _SECRET_HEADERS:
            args[1] = "…"
        record.args = tuple(args)
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":  # uvloop does not exist there
        return None
    import uvloop

    return uvloop.new_event_loop


__all__ = ["ASGIApp", "LogLevel", "Server", "StartError"]
