"""The manners of HTTP and WebSocket, by raw bytes, with the lane and without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket as sockets
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from crossband import Hub, Socket
from crossband.limits import Limits
from crossband.server import Server
from crossband.settings import KEEP_ALIVE
from tests.clients.base import WAIT
from tests.clients.raw import CLOSE, PING, PONG, TEXT, RawWebSocket, dialled, frame, http
from tests.conftest import Serve
from tests.test_lane import lanes

LANES = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
KEY = "a key"
SOCKETIO = "/socket.io/?EIO=4&transport=websocket"
PATHS = pytest.mark.parametrize("path", ["/ws", SOCKETIO], ids=["raw", "socketio"])


def hub_with_echo(**settings: Any) -> Hub:
    hub = Hub(api_keys=[KEY], **settings)

    @hub.on("echo")
    def echo(socket: Socket, data: Any) -> Any:
        return data

    return hub


def handshake(path: str, *lines: str, version: str | None = "13") -> bytes:
    """Build a WebSocket handshake of a version, or of none."""
    versions = [] if version is None else [f"Sec-WebSocket-Version: {version}"]
    return http(
        path,
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *versions,
        *lines,
    )


# WebSocket handshakes.


@LANES
@PATHS
@pytest.mark.parametrize("version", ["8", "14", "13, 8", "", None])
async def test_other_websocket_version_is_told_the_one_that_is_spoken(
    version: str | None, path: str, lane: bool, serve: Serve
) -> None:
    server = await serve(Hub(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(handshake(path, version=version))
        status, headers, _ = await tcp.answer()
        assert status == 426
        assert headers["sec-websocket-version"] == "13"
        assert headers["upgrade"] == "websocket"
        assert "upgrade" in headers["connection"].lower()
        await tcp.ended()


@LANES
async def test_plain_request_to_a_websocket_is_told_to_upgrade(lane: bool, serve: Serve) -> None:
    server = await serve(Hub(), lane=lane)
    async with httpx.AsyncClient(base_url=server.url, verify=False) as client:
        for method in ("GET", "POST", "HEAD"):
            response = await client.request(method, "/ws")
            assert response.status_code == 400
            assert response.headers["upgrade"] == "websocket"
            assert response.headers["connection"] == "upgrade"


@LANES
@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        (["chat"], "chat"),
        (["chat", "other"], "chat"),
        (["other", "crossband"], "crossband"),
        (["crossband", "bearer.secret"], "crossband"),
        (["bearer.secret", "chat"], "chat"),
        (["bearer.secret"], None),
        ([], None),
    ],
)
@PATHS
async def test_first_subprotocol_is_answered_and_no_token(
    offered: list[str], answered: str | None, path: str, lane: bool, serve: Serve
) -> None:
    server = await serve(Hub(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        lines = [f"Sec-WebSocket-Protocol: {', '.join(offered)}"] if offered else []
        tcp.send(handshake(path, *lines))
        status, headers, _ = await tcp.answer()
        assert status == 101
        assert headers.get("sec-websocket-protocol") == answered


@LANES
async def test_client_too_many_is_answered_in_its_subprotocol(lane: bool, serve: Serve) -> None:
    server = await serve(Hub(limits=Limits(connections=1)), lane=lane)
    url = server.url.replace("http", "ws", 1) + "/ws"
    protocols = [Subprotocol("chat")]
    async with (
        connect(url, subprotocols=protocols) as first,
        connect(url, subprotocols=protocols) as second,
    ):
        assert first.subprotocol == second.subprotocol == "chat"
        assert json.loads(await second.recv())["code"] == "too_many_connections"


# WebSocket frames.


@LANES
@PATHS
async def test_client_may_close_in_the_midst_of_a_message(
    path: str, lane: bool, serve: Serve
) -> None:
    server = await serve(Hub(), lane=lane)
    raw = await RawWebSocket.open(server.url + path)
    raw.send(frame(TEXT, b"a beginning", fin=False))
    raw.send(frame(CLOSE, (3001).to_bytes(2, "big") + b"bye"))
    async with asyncio.timeout(WAIT):
        while (await raw.receive())[0] != CLOSE:
            pass
        # What comes after it is nothing but the end.
        assert await raw.reader.read() == b""
    await raw.close()


@LANES
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", 1005),
        ((1000).to_bytes(2, "big"), 1000),
        ((3001).to_bytes(2, "big") + b"bye", 3001),
        (b"x", 1002),
        ((1005).to_bytes(2, "big"), 1002),
        ((1000).to_bytes(2, "big") + b"\xff", 1007),
    ],
)
async def test_close_frame_is_echoed_or_refused(
    payload: bytes, code: int, lane: bool, serve: Serve
) -> None:
    server = await serve(Hub(), lane=lane)
    raw = await RawWebSocket.open(server.url + "/ws")
    raw.send(frame(CLOSE, payload))
    assert await raw.close_code() == code
    await raw.close()


@LANES
async def test_each_ping_of_several_is_answered_before_the_close(lane: bool, serve: Serve) -> None:
    server = await serve(Hub(), lane=lane)
    raw = await RawWebSocket.open(server.url + "/ws")
    pings = [b"%d" % number for number in range(50)]
    raw.send(b"".join([frame(PING, ping) for ping in pings]) + frame(CLOSE, b"\x03\xe8"))
    pongs = []
    while (received := await raw.receive())[0] != CLOSE:
        if received[0] == PONG:
            pongs.append(received[1])
    assert pongs == pings
    await raw.close()


# permessage-deflate.


class Deflating:
    """A client that keeps its context, whatever the server says."""

    def __init__(self, bits: int = 12) -> None:
        self._deflate = zlib.compressobj(wbits=-bits)

    def frames(self, *parts: bytes) -> bytes:
        """Return a message in as many fragments, compressed as one."""
        built = b""
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            data = self._deflate.compress(part) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            first = number == 0
            built += frame(
                TEXT if first else 0,
                data[:-4] if last else data,
                fin=last,
                rsv=4 if first else 0,
            )
        return built


def echo_of(number: int, text: str) -> bytes:
    return json.dumps({"type": "echo", "data": text, "id": number}).encode()


@LANES
@pytest.mark.parametrize(
    ("offer", "bits"),
    [("client_max_window_bits", 12), ("client_max_window_bits=9", 9), ("", 15)],
)
async def test_client_that_keeps_its_deflate_context_is_understood(
    offer: str, bits: int, lane: bool, serve: Serve
) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    extension = f"permessage-deflate; {offer}".rstrip("; ")
    raw = await RawWebSocket.open(
        server.url + "/ws", headers=[("Sec-WebSocket-Extensions", extension)]
    )
    assert raw.headers["sec-websocket-extensions"].startswith("permessage-deflate")
    client = Deflating(bits)
    seen: list[bytes] = []
    for number in range(4):
        message = echo_of(number, "the same again " * 40)
        raw.send(client.frames(message) if number % 2 else client.frames(message[:9], message[9:]))
    while len(seen) < 4:
        opcode, payload = await raw.receive()
        assert opcode in (TEXT, CLOSE), payload
        assert opcode == TEXT, payload
        # Answers are compressed from 256 bytes on; an id is enough here.
        seen.append(payload)
        if b"welcome" in payload:
            seen.pop()
    await raw.close()


@LANES
async def test_bomb_is_capped_though_its_context_is_kept(lane: bool, serve: Serve) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    raw = await RawWebSocket.open(
        server.url + "/ws",
        headers=[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")],
    )
    client = Deflating()
    raw.send(client.frames(echo_of(1, "x" * 5_000)))
    raw.send(client.frames(b"x" * 50_000_000))
    assert await raw.close_code() == 1009
    await raw.close()


# HTTP versions and heads.


def requests_of(version: str, target: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", *lines, "", ""]).encode()


@LANES
async def test_http_1_0_gets_a_stream_without_chunks(lane: bool, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub, lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(requests_of("1.0", "/events"))
        status, headers, _ = await tcp.answer()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert headers["connection"] == "close"
        assert await tcp.reader.readuntil(b"\n") == b": ok\n"
        await tcp.reader.readuntil(b"\n\n")
        await hub.emit("news", "now")
        block = await tcp.reader.readuntil(b"\n\n")
        assert block.startswith(b'event: news\ndata: "now"\nid: ')
        await hub.disconnect_sockets()
        assert await tcp.reader.read() == b""


@LANES
@pytest.mark.parametrize("target", ["/healthz", "/api/status", "/nowhere", "/events/x/y"])
async def test_http_1_0_is_answered_and_closed(target: str, lane: bool, serve: Serve) -> None:
    server = await serve(Hub(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(requests_of("1.0", target, "Connection: keep-alive"))
        _, headers, body = await tcp.answer()
        assert headers["connection"] == "close"
        assert json.loads(body)
        await tcp.ended()


@LANES
async def test_http_1_0_gets_any_body_without_chunks(lane: bool, serve: Serve) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"transfer-encoding", b"chunked")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    server = await serve(application, lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(requests_of("1.0", "/"))
        _, headers, _ = await tcp.answer()
        assert "transfer-encoding" not in headers
        assert await tcp.reader.read() == b"onetwo"


@LANES
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (requests_of("1.1", "/healthz"), 400),
        (requests_of("1.1", "/healthz", "Host: a", "Host: b"), 400),
        (requests_of("1.0", "/healthz"), 200),
        (requests_of("1.0", "/healthz", "Host: a", "Host: b"), 400),
        (requests_of("2.0", "/healthz", "Host: a"), 505),
        (requests_of("0.9", "/healthz", "Host: a"), 505),
        (requests_of("1.1", "a:80", "Host: a:80", method="CONNECT"), 400),
    ],
    ids=["no host", "two hosts", "1.0", "1.0, two hosts", "2.0", "0.9", "connect"],
)
async def test_version_and_host_are_those_of_http_1(
    request_: bytes, status: int, lane: bool, serve: Serve
) -> None:
    server = await serve(Hub(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(request_)
        assert (await tcp.answer())[0] == status
        await tcp.ended()


# Upgrades to something else (RFC 9110 §7.8).

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
BROADCAST = b'{"event":"news","data":1}'


@LANES
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("offer", [H2C, ("Connection: upgrade", "Upgrade: websocket")])
async def test_offer_of_another_protocol_costs_no_body(
    offer: tuple[str, ...], chunked: bool, apart: bool, lane: bool, serve: Serve
) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    lines = [*offer, f"X-API-Key: {KEY}"]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            BROADCAST[:5],
            len(BROADCAST) - 5,
            BROADCAST[5:],
        )
    else:
        lines.append(f"Content-Length: {len(BROADCAST)}")
        body = BROADCAST
    head = http("/api/broadcast", *lines, method="POST")
    # And the connection goes on, with what came with it and after it.
    rest = [http("/healthz", *H2C) + http("/api/status"), http("/healthz")]
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        if apart:
            # The head alone, the body in two pieces.
            tcp.send(head)
            await tcp.writer.drain()
            await returned(server)
            tcp.send(body[:7])
            await returned(server)
            tcp.send(body[7:])
        else:
            tcp.send(head + body + rest[0])
        status, _, answer = await tcp.answer()
        assert (status, json.loads(answer)["success"]) == (200, True)
        if apart:
            tcp.send(rest[0])
        assert (await tcp.answer())[0] == 200
        assert b"uptime" in (await tcp.answer())[2]
        tcp.send(rest[1])
        assert (await tcp.answer())[0] == 200


async def returned(server: Server) -> None:
    """Wait for the answer to another connection's request: the server has read before it."""
    async with dialled(server.url) as other:
        other.send(http("/healthz"))
        await other.answer()


@LANES
async def test_offer_of_another_protocol_is_ignored_on_every_door(lane: bool, serve: Serve) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in H2C)]
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=WAIT, verify=False
    ) as client:
        opened = (await client.get("/socket.io/?EIO=4&transport=polling")).text
        sid = json.loads(opened[1:])["sid"]
        session = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
        assert (await client.post(session, content="40")).text == "ok"
        assert (await client.get(session)).text.startswith('40{"sid"')
        async with client.stream("GET", "/events") as stream:
            lines = stream.aiter_lines()
            while (line := await anext(lines)) != "event: welcome":
                pass
            line = await anext(lines)
            welcome = json.loads(line.removeprefix("data: "))
            answer = await client.post(
                f"/events/{welcome['sid']}",
                params={"session": welcome["session"]},
                json={"type": "echo", "data": [1], "id": 1},
            )
            assert answer.json() == {"type": "ack", "id": 1, "data": [1]}


@LANES
async def test_handshake_with_several_connection_lines_is_one(lane: bool, serve: Serve) -> None:
    server = await serve(Hub(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(
            http(
                "/ws",
                "Connection: Upgrade",
                "Connection: keep-alive",
                "Upgrade: WebSocket",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Version: 13",
            )
        )
        assert (await tcp.answer())[0] == 101


# Bodies that nobody wants.

# More than the buffers of both kernels hold between them.
ENDLESS = 64 * 1024 * 1024
TARGETS = {
    "broadcast": "/api/broadcast",
    "polling": "/socket.io/?EIO=4&transport=polling&sid=",
    "back-channel": "/events/nobody",
    "healthz": "/healthz",
    "nothing": "/nowhere",
}


@LANES
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("target", TARGETS)
async def test_body_that_nobody_wants_is_not_read_on(
    target: str, chunked: bool, lane: bool, serve: Serve
) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    path = TARGETS[target]
    if target == "polling":
        async with httpx.AsyncClient(base_url=server.url, verify=False) as client:
            path += json.loads((await client.get(path.partition("&sid")[0])).text[1:])["sid"]
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {ENDLESS}"
    piece = b"x" * 65_536
    if chunked:
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    sent = 0
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(http(path, length, f"X-API-Key: {KEY}", method="POST"))

        async def send() -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionError):
                while sent < ENDLESS:
                    tcp.send(piece)
                    await tcp.writer.drain()
                    sent += len(piece)

        sending = asyncio.create_task(send())
        status, headers, _ = await tcp.answer()
        assert headers["connection"] == "close"
        if target in ("broadcast", "polling"):
            assert status == 413
        await tcp.ended()
        tcp.writer.transport.abort()
        await sending
    assert sent < ENDLESS / 2


@LANES
async def test_short_body_that_nobody_wants_keeps_the_connection(lane: bool, serve: Serve) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(http("/nowhere", "Content-Length: 5", method="POST"))
        assert (await tcp.answer())[0] == 404
        tcp.send(b"12345" + http("/healthz"))
        assert (await tcp.answer())[0] == 200


@LANES
async def test_client_that_waits_to_be_asked_for_its_body_is_told_it_ends(
    lane: bool, serve: Serve
) -> None:
    server = await serve(hub_with_echo(), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(http("/nowhere", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        status, headers, _ = await tcp.answer()
        assert (status, headers["connection"]) == (404, "close")
        await tcp.ended()


# Idle connections.


@LANES
async def test_idle_connection_is_kept_as_long_as_is_set(lane: bool, serve: Serve) -> None:
    server = await serve(Hub(), lane=lane, keep_alive=0.05)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(http("/healthz"))
        await tcp.answer()
        assert await tcp.reader.read() == b""


def test_idle_connections_outlive_those_of_load_balancers() -> None:
    # AWS's ALB and Azure's close after 60 s.
    assert KEEP_ALIVE > 60
    with pytest.raises(ValueError, match="keep_alive must be a number of seconds above 0"):
        Server(Hub(), keep_alive=0)


# Middlewares.


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-stamp"] = "1"
        return response


class Header:
    """A middleware without Starlette's help."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.passed: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message["headers"] = [*message.get("headers", ()), (b"x-stamp", b"1")]
            await send(message)

        await self.app(scope, receive, stamped)


class Shout:
    """A middleware that changes what a WebSocket's client says."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def shouted() -> Message:
            message = await receive()
            if "text" in message:
                message["text"] = message["text"].replace("quiet", "LOUD")
            return message

        await self.app(scope, shouted, send)


def mounted(hub: Hub, *middlewares: Any) -> Starlette:
    middleware = [
        each if isinstance(each, Middleware) else Middleware(each) for each in middlewares
    ]
    return Starlette(routes=[Mount("/rt", hub)], middleware=middleware, lifespan=hub.lifespan)


@LANES
@pytest.mark.parametrize(
    "middlewares",
    [
        (Stamp,),
        (Header,),
        (Stamp, Stamp),
        (Middleware(CORSMiddleware, allow_origins=["*"], expose_headers=["x-stamp"]), Header),
    ],
    ids=["base", "plain", "two", "cors"],
)
async def test_event_stream_passes_through_middlewares(
    middlewares: tuple[Any, ...], lane: bool, serve: Serve
) -> None:
    hub = Hub(cors_origins=["*"])
    left = asyncio.Event()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        left.set()

    server = await serve(mounted(hub, *middlewares), lane=lane)
    async with (
        httpx.AsyncClient(
            timeout=WAIT, headers={"Origin": "https://x.example"}, verify=False
        ) as client,
        client.stream("GET", server.url + "/rt/events") as stream,
    ):
        assert stream.headers["x-stamp"] == "1"
        lines = stream.aiter_lines()
        while await anext(lines) != "event: welcome":
            pass
        await hub.emit("news", 1)
        while await anext(lines) != "event: news":
            pass
    async with asyncio.timeout(WAIT):
        await left.wait()


async def test_mounted_hub_takes_the_lane_where_no_middleware_is_bypassed(serve: Serve) -> None:
    hub = Hub()
    server = await serve(mounted(hub))
    async with (
        httpx.AsyncClient(timeout=WAIT, verify=False) as client,
        client.stream("GET", server.url + "/rt/events") as stream,
        connect(server.url.replace("http", "ws", 1) + "/rt/ws") as websocket,
    ):
        await anext(stream.aiter_lines())
        await websocket.recv()
        assert len(lanes(server)) == 2


@LANES
async def test_websocket_passes_through_middlewares(lane: bool, serve: Serve) -> None:
    server = await serve(mounted(hub_with_echo(), Header, Shout, Stamp), lane=lane)
    async with connect(server.url.replace("http", "ws", 1) + "/rt/ws") as websocket:
        assert websocket.response is not None
        assert websocket.response.headers["x-stamp"] == "1"
        await websocket.recv()
        await websocket.send('{"type":"echo","data":"quiet","id":1}')
        assert json.loads(await websocket.recv())["data"] == "LOUD"


# Clients that vanish.


@LANES
@pytest.mark.skipif(not hasattr(sockets, "TCP_USER_TIMEOUT"), reason="Linux")
async def test_kernel_is_told_when_a_client_has_vanished(lane: bool, serve: Serve) -> None:
    server = await serve(Hub(limits=Limits(send_time=3.0)), lane=lane)
    async with dialled(server.url) as tcp, asyncio.timeout(WAIT):
        tcp.send(http("/events"))
        await tcp.answer()
        (connection,) = connections(server)
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT) == 3_000


def connections(server: Server) -> Iterator[Any]:
    runner = server._uvicorn
    assert runner is not None
    return iter(list(runner.server_state.connections))


VANISH = """
import asyncio, subprocess, sys
from crossband import Hub, Socket
from crossband.server import Server

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

async def main():
    hub, gone = Hub(keepalive_interval=0.2, limits={"send_time": 0.5}), asyncio.Event()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str):
        gone.set()

    async with Server(hub, lane=sys.argv[1] == "lane") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /events HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        await reader.readuntil(b"welcome")
        subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
        async with asyncio.timeout(30):
            await gone.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["lane", "asgi"])
@pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or not (shutil.which("unshare") and shutil.which("ip")),
    reason="needs root, for a network of its own",
)
def test_event_stream_of_a_client_that_vanished_ends(kind: str) -> None:
    run = ["unshare", "-n", sys.executable, "-c", VANISH, kind]
    subprocess.run(run, check=True, timeout=60)
