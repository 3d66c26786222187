"""The lane: that it is taken, what it leaves alone, and that uvicorn still has what it uses."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import random
import re
import socket as sockets
import ssl
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import connect, unix_connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from crossband import Hub, Socket
from crossband.lane import USED, StreamLane, WebSocketLane
from crossband.server import Server
from tests.census import returns_to
from tests.clients.base import WAIT
from tests.clients.raw import CLOSE, TEXT, Polling, dialled, frame, upgrade
from tests.conftest import Serve

TLS = Path(__file__).parent / "tls"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def websocket_url(server: Server, path: str = "/ws") -> str:
    return server.url.replace("http", "ws", 1) + path


def lanes(server: Server) -> list[object]:
    """Return the server's connections that were taken over."""
    runner = server._uvicorn
    assert runner is not None
    return [
        connection
        for connection in runner.server_state.connections
        if isinstance(connection, (WebSocketLane, StreamLane))
    ]


def hub_with_echo(**settings: Any) -> Hub:
    hub = Hub(**settings)

    @hub.on("echo")
    def echo(socket: Socket, data: Any) -> Any:
        return data

    return hub


@pytest.mark.parametrize("protocol", USED, ids=lambda protocol: protocol.__name__)
def test_uvicorn_has_what_the_lane_uses(protocol: type[asyncio.Protocol]) -> None:
    # Attributes are set in methods: their names must stand in the class's source.
    source = inspect.getsource(protocol)
    for name in USED[protocol]:
        assert hasattr(protocol, name) or re.search(rf"\bself\.{name}\b", source), name


async def test_connections_of_every_door_are_taken_over(serve: Serve) -> None:
    hub = hub_with_echo()
    server = await serve(hub)
    async with (
        connect(websocket_url(server)) as raw,
        connect(websocket_url(server, "/socket.io/?EIO=4&transport=websocket")) as official,
        httpx.AsyncClient(verify=False) as http,
        http.stream("GET", server.url + "/events") as stream,
    ):
        await raw.recv()
        assert (await official.recv())[0] == "0"
        await official.send("40")
        assert str(await official.recv()).startswith("40{")
        lines = stream.aiter_lines()
        assert await anext(lines) == ": ok"
        kinds = sorted(type(lane).__name__ for lane in lanes(server))
        assert kinds == ["StreamLane", "WebSocketLane", "WebSocketLane"]
        # No task waits for any of them.
        runner = server._uvicorn
        assert runner is not None
        assert not runner.server_state.tasks
        await hub.emit("x", "é" * 100)
        assert json.loads(await raw.recv())["data"] == "é" * 100
        assert "é" * 100 in str(await official.recv())
        while not (line := await anext(lines)).startswith("event: x"):
            pass
        assert line == "event: x"


async def test_without_the_lane_all_is_the_same(serve: Serve) -> None:
    server = await serve(hub_with_echo(), lane=False)
    async with connect(websocket_url(server)) as raw:
        assert json.loads(await raw.recv())["type"] == "welcome"
        await raw.send('{"type": "echo", "data": [1], "id": 1}')
        assert json.loads(await raw.recv()) == {"type": "ack", "id": 1, "data": [1]}
        assert lanes(server) == []


@pytest.mark.parametrize("lane", [True, False])
async def test_compressed_messages_pass_both_ways(serve: Serve, lane: bool) -> None:
    hub = hub_with_echo()
    server = await serve(hub, lane=lane)
    text = "crossband " * 500
    async with connect(websocket_url(server), compression="deflate") as one:
        assert "permessage-deflate" in str(one.response and one.response.headers)
        async with connect(websocket_url(server), compression=None) as other:
            await one.recv()
            await other.recv()
            # Twice: each message by itself, whatever came before it.
            for number in (1, 2):
                await one.send(json.dumps({"type": "echo", "data": text, "id": number}))
                assert json.loads(await one.recv())["data"] == text
            await hub.emit("x", text)
            for client in (one, other):
                assert json.loads(await client.recv())["data"] == text


# A message that refers back further than the client's window: letters that repeat after 1.5 KiB.
FAR = "".join(random.Random(7).choices("abcdefgh", k=1_500)) * 20


@pytest.mark.parametrize("bits", [9, 10, 12, 15])
@pytest.mark.parametrize("path", ["/ws", "upgrade"])
async def test_client_with_a_small_window_can_read_everything(
    bits: int, path: str, serve: Serve
) -> None:
    hub = hub_with_echo()
    server = await serve(hub)
    window = ClientPerMessageDeflateFactory(server_max_window_bits=bits)
    if path == "upgrade":
        async with httpx.AsyncClient(verify=False) as http:
            polling = Polling(http, server.url)
            await polling.connect()
            path = f"/socket.io/?EIO=4&transport=websocket&sid={polling.params['sid']}"
            async with connect(websocket_url(server, path), extensions=[window]) as client:
                await client.send("2probe")
                assert await client.recv() == "3probe"
                await client.send("5")
                await hub.emit("x", FAR)
                assert FAR in str(await client.recv())
        return
    async with connect(websocket_url(server, path), extensions=[window]) as client:
        await client.recv()
        await hub.emit("x", FAR)
        assert json.loads(await client.recv())["data"] == FAR


@pytest.mark.parametrize("size", [1, 125, 126, 65_535, 65_536, 300_000])
async def test_binary_of_any_size_passes(serve: Serve, size: int) -> None:
    hub = Hub(limits={"message_size": 300_000})

    @hub.of("/plain", plain=True).on("message")
    async def message(socket: Socket, data: bytes) -> None:
        await socket.emit("message", data)

    server = await serve(hub)
    async with connect(websocket_url(server, "/ws/plain"), max_size=None) as client:
        await client.send(b"x" * size)
        assert await client.recv() == b"x" * size


async def test_fragmented_message_is_put_together(serve: Serve) -> None:
    server = await serve(hub_with_echo())
    async with connect(websocket_url(server)) as client:
        await client.recv()
        message = json.dumps({"type": "echo", "data": "é", "id": 1}, ensure_ascii=False)
        await client.send(list(message))
        assert json.loads(await client.recv())["data"] == "é"
        # And the common case afterwards.
        await client.send(message)
        assert json.loads(await client.recv())["data"] == "é"


async def test_ping_between_fragments_is_answered(serve: Serve) -> None:
    server = await serve(hub_with_echo())
    async with connect(websocket_url(server)) as client:
        await client.recv()
        message = json.dumps({"type": "echo", "data": 1, "id": 1})

        async def fragments() -> AsyncIterator[str]:
            yield message[:10]
            await (await client.ping(b"still there"))
            yield message[10:]

        await client.send(fragments())
        assert json.loads(await client.recv())["data"] == 1


async def test_client_that_closes_is_answered_with_its_code(serve: Serve) -> None:
    hub = hub_with_echo()
    reasons: asyncio.Queue[str] = asyncio.Queue()

    @hub.on("disconnect")
    def left(socket: Socket, reason: str) -> None:
        reasons.put_nowait(reason)

    server = await serve(hub)
    client = await connect(websocket_url(server))
    await client.recv()
    await client.close(4321, "done")
    assert client.close_code == 4321
    assert await reasons.get() == "transport close"
    assert not hub.sockets


async def test_dead_peer_is_ended_by_the_heartbeat(serve: Serve) -> None:
    hub = hub_with_echo(ping_interval=0.5, ping_timeout=1.5)
    reasons: asyncio.Queue[str] = asyncio.Queue()

    @hub.on("disconnect")
    def left(socket: Socket, reason: str) -> None:
        reasons.put_nowait(reason)

    server = await serve(hub)
    # One answers its pings, the other is deaf: it never answers anything.
    async with connect(websocket_url(server), ping_interval=None) as alive:
        await alive.recv()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(UPGRADE)
        async with asyncio.timeout(WAIT):
            assert await reasons.get() == "ping timeout"
            received = await reader.read()
        assert b"\x03\xf3ping timeout" in received
        writer.close()
        assert len(hub.sockets) == 1
        await hub.emit("x")
        assert json.loads(await alive.recv())["type"] == "x"


async def test_reader_that_stops_costs_a_bounded_outbox(serve: Serve) -> None:
    hub = hub_with_echo(limits={"outbox": 100_000})
    reasons: asyncio.Queue[str] = asyncio.Queue()

    @hub.on("disconnect")
    def left(socket: Socket, reason: str) -> None:
        reasons.put_nowait(reason)

    server = await serve(hub)
    raw = sockets.create_connection(("127.0.0.1", server.port))
    raw.sendall(
        b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    async with connect(websocket_url(server)) as client, asyncio.timeout(WAIT):
        await client.recv()
        number = 0
        while len(hub.sockets) == 1:
            await hub.emit("wake")
            await client.recv()
        # The stream's client reads nothing: the kernel's buffers fill, then its outbox.
        while reasons.empty():
            number += 1
            await hub.emit("x", [number, "x" * 10_000])
            message = json.loads(await client.recv())
            while message["type"] != "x":
                message = json.loads(await client.recv())
            # Its neighbour misses nothing.
            assert message["data"][0] == number
        assert await reasons.get() == "forced close"
    raw.close()


async def test_other_websocket_routes_keep_their_asgi(serve: Serve) -> None:
    app = FastAPI()
    app.mount("/realtime", hub_with_echo())

    @app.websocket("/other")
    async def other(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="a", headers=[(b"x-one", b"1")])
        await websocket.send_text(await websocket.receive_text())
        await websocket.send_bytes(await websocket.receive_bytes())
        await websocket.close(4000, "bye")

    @app.get("/page")
    async def page() -> dict[str, int]:
        return {"page": 1}

    server = await serve(app)
    async with connect(
        websocket_url(server, "/other"), subprotocols=[websockets.Subprotocol("a")]
    ) as client:
        assert client.subprotocol == "a"
        await client.send("text")
        assert await client.recv() == "text"
        await client.send(b"bytes")
        assert await client.recv() == b"bytes"
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4000, "bye")
    async with connect(websocket_url(server, "/realtime/ws")) as client:
        assert json.loads(await client.recv())["type"] == "welcome"
        assert len(lanes(server)) == 1
    async with httpx.AsyncClient(verify=False) as http:
        for _ in range(2):
            assert (await http.get(server.url + "/page")).json() == {"page": 1}


async def test_what_a_client_sent_before_it_was_accepted_is_not_lost(serve: Serve) -> None:
    hub = hub_with_echo()
    gate, reached = asyncio.Event(), asyncio.Event()

    @hub.use
    async def wait(socket: Socket) -> None:
        reached.set()
        await gate.wait()

    server = await serve(hub)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(UPGRADE)
    async with asyncio.timeout(WAIT):
        await reached.wait()
        writer.write(bytes((0x81, 0x80 | 33, 0, 0, 0, 0)) + b'{"type":"echo","data":"x","id":1}')
        # A whole round trip later the server has read it, too.
        async with httpx.AsyncClient(verify=False) as http:
            await http.get(server.url + "/healthz")
        gate.set()
        received = b""
        while b'"type":"ack"' not in received:
            received += await reader.read(1024)
    # After the welcome, as if it had come later.
    assert received.index(b'"type":"welcome"') < received.index(b'"type":"ack"')
    assert len(lanes(server)) == 1
    writer.close()


async def test_lane_over_tls(serve: Serve) -> None:
    hub = hub_with_echo()
    server = await serve(
        hub, ssl_certfile=TLS / "certificate.pem", ssl_keyfile=TLS / "key.pem", host="127.0.0.1"
    )
    context = ssl.create_default_context(cafile=TLS / "certificate.pem")
    context.check_hostname = False
    async with connect(websocket_url(server), ssl=context) as client:
        await client.recv()
        await client.send('{"type": "echo", "data": "x", "id": 1}')
        assert json.loads(await client.recv())["data"] == "x"
        assert len(lanes(server)) == 1
        (socket,) = hub.sockets.values()
        assert socket.handshake.secure
        # A message too large ends it although TLS cannot be half-closed.
        await client.send("x" * 100_000)
        assert json.loads(await client.recv())["code"] == "message_too_large"
        await client.wait_closed()
        assert client.close_code == 1009


async def test_client_at_fault_is_cut_over_tls_too(serve: Serve) -> None:
    server = await serve(
        hub_with_echo(), ssl_certfile=TLS / "certificate.pem", ssl_keyfile=TLS / "key.pem"
    )
    context = ssl.create_default_context(cafile=TLS / "certificate.pem")
    context.check_hostname = False
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    writer.write(UPGRADE)
    await reader.readuntil(b'"welcome"')
    # It does not read on, not even the end of TLS.
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    (lane,) = lanes(server)
    writer.write(b"\xff\xff\xff")
    await returns_to(Counter(), lambda: +Counter(held=lane in lanes(server)))
    writer.transport.abort()


async def test_close_frame_that_waited_behind_events_is_seen(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.lane.websocket.CLOSE_TIME", 600.0)
    hub = Hub(limits={"inbox": 2})
    gate = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        await gate.wait()

    server = await serve(hub)
    async with dialled(server.url) as tcp:
        tcp.send(upgrade("/ws"))
        await tcp.reader.readuntil(b'"welcome"')
        (lane,) = lanes(server)
        (socket,) = hub.sockets.values()
        assert isinstance(lane, WebSocketLane)
        tcp.send(frame(TEXT, b'{"type":"wait"}') * 10 + frame(CLOSE, b"\x03\xe8"))
        await returns_to(Counter(behind=1), lambda: Counter(behind=lane._held))
        # Not after the time that an answer may take: it is there.
        async with asyncio.timeout(WAIT):
            await socket.disconnect(close=True)
            await tcp.ended()
    gate.set()


async def test_inflated_messages_are_not_kept(serve: Serve) -> None:
    hub = Hub()
    sizes: list[int] = []

    @hub.on("take")
    def take(socket: Socket, data: str) -> bool:
        sizes.append(len(data))
        return True

    server = await serve(hub)
    gc.disable()
    try:
        async with connect(websocket_url(server), compression="deflate") as client:
            await client.recv()
            await client.send(json.dumps({"type": "take", "data": "x" * 60_000, "id": 1}))
            assert json.loads(await client.recv())["data"] is True
            (lane,) = lanes(server)
            assert isinstance(lane, WebSocketLane)
            assert lane._library is not None
            # While it idles, the parser keeps no message.
            assert not inspect.getgeneratorlocals(lane._library.parser)["frame"].data
            library = weakref.ref(lane._library)
            del lane
        await returns_to(Counter(), lambda: +Counter(kept=library() is not None))
    finally:
        gc.enable()
    assert sizes == [60_000]


async def test_lane_over_ipv6_and_unix_sockets(serve: Serve, tmp_path: Path) -> None:
    hub = hub_with_echo()
    server = await serve(hub, host="::1")
    async with connect(websocket_url(server)) as client:
        await client.recv()
        (socket,) = hub.sockets.values()
        assert socket.handshake.address == "::1"
        assert len(lanes(server)) == 1
    hub = hub_with_echo()
    path = str(tmp_path / "crossband.sock")
    server = await serve(hub, uds=path)
    async with unix_connect(path, "ws://localhost/ws") as client:
        await client.recv()
        (socket,) = hub.sockets.values()
        assert socket.handshake.address is None
        assert len(lanes(server)) == 1


@pytest.mark.parametrize("trusted", [True, False])
async def test_trusted_proxy_tells_the_clients_address(serve: Serve, trusted: bool) -> None:
    hub = hub_with_echo()
    server = await serve(hub, forwarded_allow_ips="127.0.0.1" if trusted else "192.0.2.1")
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    async with connect(websocket_url(server), additional_headers=headers) as client:
        await client.recv()
        (socket,) = hub.sockets.values()
        assert socket.handshake.address == ("203.0.113.7" if trusted else "127.0.0.1")
        assert socket.handshake.secure is trusted
        assert len(lanes(server)) == 1


async def test_plain_namespace_is_accepted_though_nothing_is_said(serve: Serve) -> None:
    hub = Hub()
    hub.of("/plain", plain=True)
    server = await serve(hub)
    async with asyncio.timeout(WAIT), connect(websocket_url(server, "/ws/plain")) as client:
        await hub.of("/plain").emit("message", "hello")
        assert await client.recv() == "hello"
