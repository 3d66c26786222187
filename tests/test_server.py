"""The server on real sockets: where it listens, how it stops, what it says when it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import websockets
from starlette.applications import Starlette
from starlette.routing import Mount

from crossband import Hub, Socket
from crossband.server import Server, StartError
from crossband.settings import Settings
from tests.clients.base import WAIT

TLS = Path(__file__).with_name("tls")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def greeter(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer "hello" over HTTP, and hold WebSockets open."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass


class FakeHub:
    """As much of a hub as the server knows, with a stream that only its `stop` ends."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.calls: list[str] = []
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")
        self.stopped.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await self.stopped.wait()
            await send({"type": "http.response.body", "body": b"last"})
            self.calls.append("ended")
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await self.stopped.wait()
            await send({"type": "websocket.close", "code": 1001})


async def get(url: str, *, verify: ssl.SSLContext | bool = False, **options: Any) -> str:
    async with httpx.AsyncClient(verify=verify, **options) as client:
        return (await client.get(url)).text


@contextlib.asynccontextmanager
async def stream(url: str) -> AsyncIterator[AsyncIterator[str]]:
    """Open a stream and return its chunks, the first already received."""
    async with httpx.AsyncClient(verify=False) as client, client.stream("GET", url) as response:
        chunks = response.aiter_text()
        assert await anext(chunks) == "first"
        yield chunks


# Where it listens.


async def test_answers_at_its_url() -> None:
    async with Server(greeter) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert await get(server.url) == "hello"


async def test_servers_on_port_zero_do_not_meet() -> None:
    async with Server(greeter) as one, Server(greeter) as other:
        assert one.port != other.port
        assert await get(one.url) == await get(other.url) == "hello"


async def test_a_stopped_server_leaves_its_port_to_the_next() -> None:
    async with Server(greeter) as server:
        await get(server.url)
    with pytest.raises(httpx.ConnectError):
        await get(server.url)
    async with Server(greeter, port=server.port) as successor:
        assert await get(successor.url) == "hello"


async def test_the_same_server_can_start_again() -> None:
    server = Server(greeter)
    for _ in range(2):
        async with server:
            assert await get(server.url) == "hello"


async def test_starting_twice_is_refused() -> None:
    async with Server(greeter) as server:
        with pytest.raises(RuntimeError, match="already running"):
            await server.start()
        assert await get(server.url) == "hello"


async def test_stopping_a_server_that_does_not_run_does_nothing() -> None:
    await Server(greeter).stop()


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
async def test_hosts_that_are_several_addresses(host: str) -> None:
    async with Server(greeter, host=host) as server:
        assert await get(server.url) == "hello"


async def test_no_host_is_every_address_with_a_port_as_well() -> None:
    async with Server(greeter, host="") as server:
        pass
    # Both families, on one port.
    async with Server(greeter, host="", port=server.port) as server:
        assert await get(f"http://127.0.0.1:{server.port}") == "hello"


async def test_localhost_with_a_port_is_every_address_of_that_name() -> None:
    async with Server(greeter) as server:
        port = server.port
    async with Server(greeter, host="localhost", port=port):
        found = await asyncio.get_running_loop().getaddrinfo("localhost", port)
        for host in {address[4][0] for address in found}:
            shown = f"[{host}]" if ":" in str(host) else host
            assert await get(f"http://{shown}:{port}") == "hello"


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
async def test_ipv6(host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with Server(greeter, host=host) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert await get(server.url) == "hello"
        if host == "::":
            assert await get(f"http://127.0.0.1:{server.port}") == "hello"


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    async with Server(greeter, uds=path) as server:
        assert server.url == f"unix:{path}"
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        assert await get("http://hub/", transport=transport) == "hello"
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o600])
async def test_unix_socket_has_the_permissions_it_was_given(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    server = Server(greeter, uds=path)
    async with server if mode == 0o666 else Server(greeter, uds=path, uds_mode=mode):
        assert path.stat().st_mode & 0o777 == mode


async def test_unix_socket_of_a_killed_server_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with Server(greeter, uds=path):
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        assert await get("http://hub/", transport=transport) == "hello"


async def test_tls() -> None:
    certificate, key = TLS / "certificate.pem", TLS / "key.pem"
    async with Server(greeter, ssl_certfile=certificate, ssl_keyfile=key) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        trusting = ssl.create_default_context(cafile=certificate)
        assert await get(server.url, verify=trusting) == "hello"
        url = f"wss://127.0.0.1:{server.port}"
        async with websockets.connect(url, ssl=trusting):
            pass


# What it says when it cannot.


async def test_busy_port_is_named() -> None:
    async with Server(greeter) as server:
        with pytest.raises(StartError, match=f"port {server.port} on 127.0.0.1 is already in use"):
            await Server(greeter, port=server.port).start()
        assert await get(server.url) == "hello"


async def test_busy_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    async with Server(greeter, uds=path):
        other = Server(greeter, uds=path)
        with pytest.raises(StartError, match="in use by another server"):
            await other.start()
        await other.stop()
        assert path.exists()


async def test_file_in_place_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    path.write_text("precious")
    with pytest.raises(StartError, match="a file of that name exists"):
        await Server(greeter, uds=path).start()
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "no.such.host.invalid"}, "cannot listen on 'no.such.host.invalid'"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
        ({"host": "\0"}, "cannot listen on"),
        ({"host": "a" * 300}, "cannot listen on"),
        ({"port": 65_536}, "port 65536 does not exist"),
        ({"port": -1}, "port -1 does not exist"),
        ({"uds": "/no/such/directory/hub.sock"}, "No such file or directory"),
        ({"uds": f"/tmp/{'long' * 50}"}, "path too long"),
        ({"ssl_certfile": "/no/such.pem"}, "No such file or directory"),
        ({"ssl_certfile": __file__}, "cannot read the TLS certificate from"),
        ({"ssl_certfile": TLS / "certificate.pem"}, "cannot read the TLS certificate from"),
        ({"ssl_keyfile": TLS / "key.pem"}, "without its certificate"),
    ],
)
async def test_what_cannot_be_served_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError, match=message):
        await Server(greeter, **options).start()


@pytest.mark.parametrize(
    ("app", "message"),
    [
        (5, "Server takes an ASGI application, such as a Hub(), not int"),
        ("module:hub", "such as a Hub(), not str"),
        (Hub, "Hub is a class: pass an instance, Hub(…)"),
        (Starlette, "Starlette is a class: pass an instance, Starlette(…)"),
    ],
)
def test_what_is_no_application_is_refused(app: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        Server(app)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": 5}, "host must be an address or a name, as a string, not 5"),
        ({"host": None}, "host must be an address or a name, as a string, not None"),
        ({"port": "8000"}, "port must be a whole number, not '8000'"),
        ({"port": True}, "port must be a whole number, not True"),
        ({"uds": 5}, "uds must be a path or None, not 5"),
        ({"uds_mode": "660"}, "uds_mode must be a whole number, such as 0o660, not '660'"),
        ({"ssl_certfile": b"key.pem"}, "ssl_certfile must be a path or None, not b'key.pem'"),
        ({"root_path": None}, "root_path must be a string, not None"),
        ({"lane": "no"}, "lane must be True or False, not 'no'"),
        ({"access_log": 1}, "access_log must be True or False, not 1"),
        ({"log_level": 10}, "log_level must be the name of a level, not 10"),
        ({"forwarded_allow_ips": ["10.0.0.1"]}, "separated by commas, or None, not ['10.0.0.1']"),
    ],
)
def test_argument_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        Server(greeter, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Meant was 0o660.
        ({"uds_mode": 660}, "uds_mode must be 0o000 to 0o777, not 660: it is octal"),
        ({"log_level": "loud"}, "log_level must be one of critical, error, warning, info, debug"),
        ({"forwarded_allow_ips": "10.0.0.1, foo"}, "'foo' does not appear to be an IPv4 or IPv6"),
        # To uvicorn a star among others is a name, of nobody.
        ({"forwarded_allow_ips": "10.0.0.1,*"}, "separated by commas, or '*' alone: '*' does not"),
        ({"forwarded_allow_ips": "10.0.0.1/8"}, "10.0.0.1/8 has host bits set"),
    ],
)
def test_argument_that_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Server(greeter, **options)


@pytest.mark.parametrize("proxies", ["*", "", "127.0.0.1", "10.0.0.0/8, ::1 ,fd00::/8"])
def test_proxies_may_be_addresses_and_networks(proxies: str) -> None:
    Server(greeter, forwarded_allow_ips=proxies)


async def test_app_that_fails_to_start() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    server = Server(broken)
    with pytest.raises(StartError, match="failed to start"):
        await server.start()
    async with Server(greeter, port=server.port):
        pass


async def test_hub_that_fails_to_start() -> None:
    class Broken(FakeHub):
        async def start(self) -> None:
            raise ConnectionError("no broker")

    server = Server(Broken())
    with pytest.raises(ConnectionError, match="no broker"):
        await server.start()
    async with Server(greeter, port=server.port):
        pass


# How it stops.


async def test_hub_ends_its_streams_before_the_server_stops() -> None:
    hub = FakeHub()
    async with Server(hub) as server, stream(server.url) as chunks:
        await server.stop()
        assert await anext(chunks) == "last"
    assert hub.calls == ["start", "stop", "ended"]


async def test_websockets_are_closed_by_the_hub() -> None:
    async with Server(FakeHub()) as server:
        connection = await websockets.connect(server.url.replace("http", "ws"))
    with pytest.raises(websockets.ConnectionClosed) as caught:
        await connection.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1001


async def test_websockets_of_another_app_are_closed_with_1012() -> None:
    async with Server(greeter) as server:
        connection = await websockets.connect(server.url.replace("http", "ws"))
    with pytest.raises(websockets.ConnectionClosed) as caught:
        await connection.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1012


async def test_what_does_not_end_is_cut_after_the_shutdown_timeout() -> None:
    class Stubborn(FakeHub):
        async def stop(self) -> None:
            self.calls.append("stop")

    async with (
        Server(Stubborn(shutdown_timeout=0.05)) as server,
        stream(server.url) as chunks,
        asyncio.timeout(WAIT),
    ):
        await server.stop()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(chunks)


async def test_client_that_never_answers_a_close_is_cut() -> None:
    async with Server(FakeHub(shutdown_timeout=600)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"GET / HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(WAIT):
            await server.stop()
            assert await reader.read() == b"\x88\x02\x03\xe9"  # close 1001
        writer.close()


async def test_mounted_hub_is_found_and_stopped() -> None:
    hub = FakeHub(ping_interval=5.0)
    app = Starlette(routes=[Mount("/deep", routes=[Mount("/realtime", hub)])])
    async with Server(app) as server, stream(f"{server.url}/deep/realtime/") as chunks:
        await server.stop()
        assert await anext(chunks) == "last"


async def test_credentials_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "uvicorn")
    async with Server(greeter, log_level="debug", access_log=True) as server:
        headers = {"Authorization": "Bearer secret", "Cookie": "a=secret", "X-API-Key": "secret"}
        url = f"{server.url.replace('http', 'ws')}/ws?token=secret"
        async with websockets.connect(url, additional_headers=headers):
            pass
    assert '"WebSocket /ws" [accepted]' in caplog.text
    assert "secret" not in caplog.text


async def test_access_log(caplog: pytest.LogCaptureFixture) -> None:
    async with Server(greeter, access_log=True) as server:
        await get(f"{server.url}/page?token=secret")
    assert '"GET /page HTTP/1.1" 200' in caplog.text
    assert "secret" not in caplog.text


# A process of its own.

PROGRAM = """
import asyncio, sys
from crossband.server import Server
from crossband.settings import Settings

class Hub:
    settings = Settings(shutdown_timeout=600)
    async def start(self): pass
    async def stop(self):
        print("stopping", flush=True)
        if "hang" in sys.argv:
            await asyncio.Event().wait()
    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": type(asyncio.get_running_loop())
            .__module__.encode()})

Server(Hub()).run(lambda server: print(server.url, flush=True))
"""


@contextlib.contextmanager
def program(*arguments: str) -> Any:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_process_gracefully(number: signal.Signals) -> None:
    with program() as process:
        url = process.stdout.readline().strip()
        assert httpx.get(url, verify=False).text.startswith(
            "uvloop" if os.name == "posix" else "asyncio"
        )
        process.send_signal(number)
        assert process.stdout.readline() == "stopping\n"
        assert process.wait(timeout=WAIT) == 0


def test_second_signal_exits_at_once() -> None:
    with program("hang") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT) == 128 + signal.SIGTERM


def test_settings_decide_pings_and_the_largest_message() -> None:
    hub = FakeHub(ping_interval=3.0, ping_timeout=2.0, shutdown_timeout=4.0)
    config = Server(hub)._config()
    limits = hub.settings.limits
    assert (config.ws_ping_interval, config.ws_ping_timeout) == (3.0, 2.0)
    assert config.timeout_graceful_shutdown == 4.0
    # What is too large by the hub's limits must reach it, to be answered with an error.
    assert config.ws_max_size > max(limits.message_size, limits.max_http_buffer_size)


async def test_stop_that_is_given_up_leaves_nothing_open() -> None:
    hub = Hub()
    waiting = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        waiting.set()
        await asyncio.Event().wait()

    server = Server(hub)
    await server.start()
    async with websockets.connect(f"ws://127.0.0.1:{server.port}/ws") as client:
        await client.send('{"type": "wait"}')
        await waiting.wait()
        stopping = asyncio.create_task(server.stop())
        # Whoever else stops it waits for the same end.
        also = asyncio.create_task(server.stop())
        await client.wait_closed()
        assert not also.done()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await also
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await server.stop()


async def test_start_that_fails_leaves_nothing_started(tmp_path: Path) -> None:
    def lifespan(app: Starlette) -> NoReturn:
        raise RuntimeError("no database")

    hub = Hub()
    app = Starlette(routes=[Mount("/realtime", hub)], lifespan=lifespan)
    path = tmp_path / "crossband.sock"
    with pytest.raises(StartError, match="failed to start"):
        await Server(app, uds=str(path)).start()
    assert not hub.started
    assert not path.exists()
    # Another attempt finds it as new.
    hub.configure(retry=3.0)


async def test_hubs_of_one_server_drain_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # Clients per second.
    monkeypatch.setattr("crossband.hub.drain.DRAIN_PACE", 10)
    hubs = [Hub() for _ in range(2)]
    app = Starlette(routes=[Mount(f"/{number}", hub) for number, hub in enumerate(hubs)])
    # The hub of each client that was told, in that order.
    told: list[int] = []

    async def listen(client: websockets.ClientConnection, hub: int) -> None:
        await client.wait_closed()
        told.append(hub)

    async with Server(app) as server, asyncio.TaskGroup() as group:
        for hub in (0, 1) * 10:
            client = await websockets.connect(f"ws://127.0.0.1:{server.port}/{hub}/ws")
            group.create_task(listen(client, hub))
        await server.stop()
    assert sorted(told) == [0] * 10 + [1] * 10
    # One after another, all of one hub would come first.
    assert told not in ([0] * 10 + [1] * 10, [1] * 10 + [0] * 10)


def test_signals_are_the_programs_again_after_the_run() -> None:
    program = """
import os, signal, threading
from crossband import Hub, Socket
from crossband.server import Server

before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
kill = lambda server: threading.Timer(0, os.kill, (os.getpid(), signal.SIGTERM)).start()
Server(Hub()).run(kill)
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
print("still here")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "still here\n"
