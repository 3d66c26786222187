"""The raw WebSocket door: envelopes, frames by hand, plain namespaces, heartbeat."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crossband import ConnectionRefused, Hub, Socket
from crossband.limits import Limits
from tests.clients import NewClient, WebSocketClient
from tests.clients.base import WAIT
from tests.clients.raw import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    close_code,
    frame,
    text,
)
from tests.conftest import Serve

SITE = "https://app.example.com"
TOO_DEEP = "[" * 20_000


class Departures:
    """Collects who left, and why."""

    def __init__(self, hub: Hub) -> None:
        self._left: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        hub.on("disconnect", self._note)

    def _note(self, socket: Socket, reason: str) -> None:
        self._left.put_nowait((socket.id, reason))

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(WAIT):
            return await self._left.get()


def echo_hub(**settings: Any) -> Hub:
    hub = Hub(**settings)

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("number")
    async def number(socket: Socket, value: int) -> int:
        return value

    @hub.on("join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)

    @hub.on("broken")
    async def broken(socket: Socket) -> None:
        raise RuntimeError("a bug of the app, and none of the client's business")

    return hub


def address(url: str, path: str = "/ws") -> str:
    return url.replace("http", "ws", 1) + path


# --- Envelopes --------------------------------------------------------------------------------


async def test_first_frame_is_the_welcome(serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    async with connect(address(server.url), proxy=None) as connection:
        welcome = json.loads(await text(connection))
        assert set(welcome) == {"type", "sid", "session", "recovered", "offset"}
        assert welcome["type"] == "welcome"
        assert welcome["recovered"] is False
        assert list(hub.sockets) == [welcome["sid"]]
        cursor = await hub.emit("news", 1, 2)
        event = json.loads(await text(connection))
        assert event == {"type": "news", "data": [1, 2], "offset": cursor}
        await hub.volatile.emit("news")
        assert json.loads(await text(connection)) == {"type": "news", "data": None}


async def test_welcome_before_a_gap_carries_no_cursor(serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    cursor = await hub.emit("number", 0)
    async with connect(address(server.url, "/ws?lastEventId=unknown"), proxy=None) as connection:
        # Cut before the gap, the client must not come back as if it had lost nothing.
        welcome = json.loads(await text(connection))
        assert (welcome["type"], welcome["offset"]) == ("welcome", None)
        gap = json.loads(await text(connection))
        assert gap == {"type": "gap", "reason": "unknown", "offset": cursor}


# (frame, path, words of the reason)
MALFORMED: list[tuple[str | bytes, str, str]] = [
    ("", "$", ""),
    ("{", "$", ""),
    ("hello", "$", ""),
    ("[]", "$", "object"),
    ('"text"', "$", "object"),
    ("null", "$", "object"),
    ("{}", "$", "type"),
    ('{"data":1}', "$", "type"),
    ('{"type":5}', "$.type", "str"),
    ('{"type":null}', "$.type", "str"),
    ('{"type":""}', "$.type", ""),
    ('{"type":"echo","id":-1}', "$.id", ""),
    ('{"type":"echo","id":"1"}', "$.id", ""),
    ('{"type":"echo","id":1.5}', "$.id", ""),
    ('{"type":"echo","id":9007199254740992}', "$.id", ""),
    ('{"type":"echo"} {"type":"echo"}', "$", ""),
    ('{"type":"\\ud800"}', "$", ""),
    ('{"type":"a\\u0000b"}', "$.type", ""),
    ('{"type":"' + "x" * 257 + '"}', "$.type", ""),
    ('{"type":"echo","data":' + TOO_DEEP, "$", ""),
    ('{"type":"echo","data":' + TOO_DEEP + TOO_DEEP.replace("[", "]") + "}", "$", ""),
    ('{"type":"connect"}', "$.type", ""),
    ('{"type":"disconnect"}', "$.type", ""),
    ('{"type":"number","data":"x"}', "$", "int"),
    ('{"type":"number","data":[1,2]}', "$", ""),
    ('{"type":"number"}', "$", ""),
    ('{"type":"ack"}', "$.id", ""),
    (b'{"type":"echo"}', "$", "text"),
    (b"\x00\xff", "$", "text"),
]


@pytest.mark.parametrize(("message", "path", "reason"), MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_envelope_is_answered_and_the_connection_goes_on(
    message: str | bytes, path: str, reason: str, serve: Serve, new_client: NewClient
) -> None:
    server = await serve(echo_hub())
    bystander, client = new_client("websocket"), new_client("websocket")
    assert isinstance(client, WebSocketClient)
    await bystander.connect(server.url)
    await client.connect(server.url)
    assert client.connection is not None
    await client.connection.send(message)
    error = await client.next_error()
    assert error["code"] == "invalid_message"
    assert error["error"] == "Invalid message format"
    assert error["path"].startswith(path)
    assert reason in error["reason"]
    assert error["reason"]
    assert await client.call("echo", "alive") == "alive"
    assert await bystander.call("echo", "alive") == "alive"
    assert not bystander.log


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "nobody knows"}, "unknown_event"),
        ({"type": "nobody knows", "id": 3}, "unknown_event"),
        ({"type": "broken", "id": 3}, "internal_error"),
        ({"type": "broken"}, "internal_error"),
        ({"type": "number", "data": "x", "id": 3}, "invalid_message"),
        ({"type": "ack", "id": 77}, "unknown_ack"),
    ],
)
async def test_error_frame_names_its_code_and_repeats_the_id(
    message: dict[str, Any], code: str, serve: Serve
) -> None:
    server = await serve(echo_hub())
    async with connect(address(server.url), proxy=None) as connection:
        await text(connection)
        await connection.send(json.dumps(message))
        error = json.loads(await text(connection))
        assert (error["type"], error["code"]) == ("error", code)
        assert isinstance(error["error"], str)
        assert error.get("id") == message.get("id")
        assert "bug" not in str(error)


async def test_unknown_keys_are_ignored(serve: Serve) -> None:
    server = await serve(echo_hub())
    async with connect(address(server.url), proxy=None) as connection:
        await text(connection)
        await connection.send('{"type":"echo","data":1,"id":0,"extra":{"a":[]},"offset":"x"}')
        assert json.loads(await text(connection)) == {"type": "ack", "id": 0, "data": 1}


@pytest.mark.parametrize("filler", ["x", "ž", "🐎"])
async def test_message_over_the_limit_is_told_and_closes_1009(filler: str, serve: Serve) -> None:
    hub = echo_hub(limits=Limits(message_size=1000))
    departures = Departures(hub)
    server = await serve(hub)
    async with connect(address(server.url), proxy=None) as connection:
        sid = json.loads(await text(connection))["sid"]
        head, tail = '{"type":"echo","id":1,"data":"', '"}'
        size = len(filler.encode())
        fits = head + filler * ((1000 - len(head + tail)) // size) + tail
        assert len(fits.encode()) <= 1000
        await connection.send(fits)
        assert json.loads(await text(connection))["type"] == "ack"
        await connection.send(fits + " " * 8)
        error = json.loads(await text(connection))
        assert (error["type"], error["code"]) == ("error", "message_too_large")
        assert (error["error"], error["maxSize"]) == ("Message too large", 1000)
        assert await close_code(connection) == 1009
    assert (await departures.next())[0] == sid


# --- Frames -----------------------------------------------------------------------------------

ECHO = b'{"type":"echo","id":1,"data":1}'

BAD_FRAMES = [
    ("unmasked", frame(TEXT, ECHO, masked=False), {1002}),
    ("rsv1 without deflate", frame(TEXT, ECHO, rsv=4), {1002}),
    ("rsv2", frame(TEXT, ECHO, rsv=2), {1002}),
    ("rsv3", frame(TEXT, ECHO, rsv=1), {1002}),
    ("opcode 3", frame(0x3, ECHO), {1002}),
    ("opcode 11", frame(0xB), {1002}),
    ("invalid UTF-8", frame(TEXT, b"\xff\xfe"), {1007}),
    ("truncated UTF-8", frame(TEXT, "ž".encode()[:1]), {1007}),
    ("long ping", frame(PING, b"x" * 126), {1002}),
    ("fragmented ping", frame(PING, b"x", fin=False), {1002}),
    ("continuation of nothing", frame(CONTINUATION, b"x"), {1002}),
    ("text inside a message", frame(TEXT, b"{", fin=False) + frame(TEXT, ECHO), {1002}),
    ("close of one byte", frame(CLOSE, b"\x03"), {1002}),
    ("close code 999", frame(CLOSE, b"\x03\xe7"), {1002}),
    ("close code 1005", frame(CLOSE, b"\x03\xed"), {1002}),
    ("close with bad UTF-8", frame(CLOSE, b"\x03\xe8\xff"), {1002, 1007}),
    ("length 2^63", frame(TEXT, ECHO, length=2**63), {1002, 1009}),
    ("length 2^63 - 1", frame(TEXT, ECHO, length=2**63 - 1), {1009}),
    ("100 MB announced", frame(TEXT, ECHO, length=100_000_000), {1009}),
]


@pytest.mark.parametrize(
    ("data", "codes"), [row[1:] for row in BAD_FRAMES], ids=[row[0] for row in BAD_FRAMES]
)
async def test_bad_frame_closes_at_once_with_its_code(
    data: bytes, codes: set[int], serve: Serve, new_client: NewClient
) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    bystander = new_client("websocket")
    await bystander.connect(server.url)
    raw = await RawWebSocket.open(address(server.url))
    sid = (await raw.text())["sid"]
    raw.send(data)
    started = asyncio.get_running_loop().time()
    code = await raw.close_code()
    assert asyncio.get_running_loop().time() - started < 0.25
    assert code in codes
    await raw.close()
    assert (await departures.next())[0] == sid
    assert await bystander.call("echo", 1) == 1


@pytest.mark.parametrize("size", range(0, len(frame(TEXT, ECHO)), 5))
async def test_frame_cut_in_two_by_a_vanished_client_harms_nobody(size: int, serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    raw = await RawWebSocket.open(address(server.url))
    sid = (await raw.text())["sid"]
    raw.send(frame(TEXT, ECHO)[:size])
    await raw.writer.drain()
    raw.writer.transport.abort()
    assert await departures.next() in ((sid, "transport close"), (sid, "transport error"))
    assert not hub.sockets


async def test_fragments_are_joined_with_pings_between(serve: Serve) -> None:
    server = await serve(echo_hub())
    raw = await RawWebSocket.open(address(server.url))
    await raw.text()
    raw.send(frame(TEXT, ECHO[:10], fin=False))
    raw.send(frame(PING, b"between"))
    raw.send(frame(CONTINUATION, b"", fin=False))
    raw.send(frame(CONTINUATION, ECHO[10:20], fin=False))
    raw.send(frame(CONTINUATION, ECHO[20:]))
    assert await raw.receive() == (PONG, b"between")
    assert await raw.text() == {"type": "ack", "id": 1, "data": 1}
    raw.send(frame(CLOSE, b"\x03\xe8bye"))
    assert await raw.close_code() == 1000
    await raw.close()


@pytest.mark.parametrize("fragments", [20, 200])
async def test_size_limit_counts_all_fragments(fragments: int, serve: Serve) -> None:
    server = await serve(echo_hub(limits=Limits(message_size=1000)))
    raw = await RawWebSocket.open(address(server.url))
    await raw.text()
    raw.send(frame(TEXT, b"{", fin=False))
    for _ in range(fragments):
        raw.send(frame(CONTINUATION, b"x" * 100, fin=False))
    raw.send(frame(CONTINUATION, b"}"))
    assert await raw.close_code() == 1009
    await raw.close()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Sec-WebSocket-Protocol", "x" * 4000),
        ("Sec-WebSocket-Protocol", "a, b, c"),
        ("Sec-WebSocket-Extensions", "unknown; a=b, permessage-deflate; server_max_window_bits=99"),
        ("Cookie", "é"),
        ("X-Anything", "\x01"),
    ],
)
async def test_odd_handshake_headers_end_no_process(header: str, value: str, serve: Serve) -> None:
    server = await serve(echo_hub())
    raw = await RawWebSocket.open(address(server.url), headers=[(header, value)])
    assert raw.status in (101, 400)
    await raw.close()
    async with connect(address(server.url), proxy=None) as connection:
        assert json.loads(await text(connection))["type"] == "welcome"


async def test_two_thousand_headers_end_no_process(serve: Serve) -> None:
    server = await serve(echo_hub())
    headers = [(f"X-{number}", "x") for number in range(2000)]
    raw = await RawWebSocket.open(address(server.url), headers=headers)
    assert raw.status in (101, 400, 431)
    await raw.close()
    async with connect(address(server.url), proxy=None) as connection:
        assert json.loads(await text(connection))["type"] == "welcome"


# --- permessage-deflate -----------------------------------------------------------------------


async def test_compression_is_negotiated_and_used_both_ways(serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    async with connect(address(server.url), proxy=None, compression="deflate") as connection:
        await text(connection)
        assert connection.response is not None
        extensions = connection.response.headers["Sec-WebSocket-Extensions"]
        assert extensions.startswith("permessage-deflate")
        data = "compress me " * 4000
        for number in range(3):
            await connection.send(json.dumps({"type": "echo", "id": number, "data": data}))
            answer = json.loads(await text(connection))
            assert answer == {"type": "ack", "id": number, "data": data}
    async with connect(address(server.url), proxy=None, compression=None) as connection:
        await text(connection)
        assert connection.response is not None
        assert "Sec-WebSocket-Extensions" not in connection.response.headers


async def test_decompression_bomb_is_stopped_while_it_inflates(serve: Serve) -> None:
    server = await serve(echo_hub())
    raw = await RawWebSocket.open(
        address(server.url),
        headers=[("Sec-WebSocket-Extensions", "permessage-deflate; client_no_context_takeover")],
    )
    assert raw.headers["sec-websocket-extensions"].startswith("permessage-deflate")
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    # 50 MB in 50 KB.
    bomb = b"".join(compressor.compress(bytes(1_000_000)) for _ in range(50))
    bomb += compressor.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 60_000
    opcode, _ = await raw.receive()
    assert opcode == TEXT
    raw.send(frame(TEXT, bomb.removesuffix(b"\x00\x00\xff\xff"), rsv=4))
    assert await raw.close_code() == 1009
    await raw.close()


async def test_garbage_in_place_of_compressed_data_closes(serve: Serve) -> None:
    server = await serve(echo_hub())
    raw = await RawWebSocket.open(
        address(server.url), headers=[("Sec-WebSocket-Extensions", "permessage-deflate")]
    )
    await raw.receive()
    raw.send(frame(TEXT, b"\xff" * 50, rsv=4))
    assert await raw.close_code() in (1002, 1007)
    await raw.close()


# --- Plain namespaces -------------------------------------------------------------------------


async def test_plain_namespace_speaks_bare_frames(serve: Serve) -> None:
    hub = Hub()
    plain = hub.of("/echo", plain=True)
    seen: list[str | bytes] = []

    @plain.on("message")
    async def message(socket: Socket, data: Any) -> None:
        seen.append(data)
        await socket.emit("message", data)

    server = await serve(hub)
    async with connect(address(server.url, "/ws/echo"), proxy=None) as connection:
        # No welcome: the first frame is the answer.
        for sent in ("hello", "", '{"type":"x"}', "ž\u2028", b"", b"\x00\xff", b"x" * 1000):
            await connection.send(sent)
            async with asyncio.timeout(WAIT):
                assert await connection.recv() == sent
        for data, expected in (({"a": [1, None]}, {"a": [1, None]}), (5, 5), (None, None)):
            await plain.emit("anything", data)
            assert json.loads(await text(connection)) == expected
        await plain.emit("message", "to all")
        assert await text(connection) == "to all"
        await plain.emit("message", b"to all")
        async with asyncio.timeout(WAIT):
            assert await connection.recv() == b"to all"
    assert seen[:3] == ["hello", "", '{"type":"x"}']
    assert b"\x00\xff" in seen


async def test_typed_handlers_of_a_plain_namespace(serve: Serve) -> None:
    hub = Hub()
    plain = hub.of("/upper", plain=True)

    @plain.on("message")
    async def message(socket: Socket, data: str) -> None:
        await socket.emit("message", data.upper())

    server = await serve(hub)
    async with connect(address(server.url, "/ws/upper"), proxy=None) as connection:
        await connection.send("shout")
        assert await text(connection) == "SHOUT"
        await connection.send(b"\x00")
        error = json.loads(await text(connection))
        assert (error["type"], error["code"]) == ("error", "invalid_message")
        await connection.send("still here")
        assert await text(connection) == "STILL HERE"


async def test_plain_namespace_is_shared_with_the_other_doors(
    serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    plain = hub.of("/echo", plain=True)

    @plain.on("message")
    async def message(socket: Socket, data: str) -> str:
        await socket.broadcast.emit("message", data)
        return "heard"

    server = await serve(hub)
    stream, sio = new_client("sse"), new_client("python-socketio")
    await stream.connect(server.url, "/echo")
    await sio.connect(server.url, "/echo")
    async with connect(address(server.url, "/ws/echo"), proxy=None) as connection:
        await connection.send("from a bare frame")
        for client in (stream, sio):
            assert (await client.next_event("message")).data == "from a bare frame"
        assert await stream.call("message", "from an envelope") == "heard"
        assert await text(connection) == "from an envelope"
        assert await sio.call("message", "from a packet") == "heard"
        assert await text(connection) == "from a packet"


# --- Heartbeat --------------------------------------------------------------------------------


async def test_dead_peer_is_terminated_and_leaves_its_rooms(
    serve: Serve, new_client: NewClient
) -> None:
    hub = echo_hub(ping_interval=0.5, ping_timeout=1.5)
    departures = Departures(hub)
    server = await serve(hub)
    alive = new_client("websocket")
    await alive.connect(server.url, rooms=["room"])
    raw = await RawWebSocket.open(address(server.url, "/ws?room=room"))
    sid = (await raw.text())["sid"]
    assert sid in hub.rooms["room"]
    # It never answers a ping.
    opcode, _ = await raw.receive()
    assert opcode == PING
    left, reason = await departures.next()
    assert left == sid
    assert reason in ("ping timeout", "transport close", "transport error")
    assert list(hub.rooms["room"]) == [alive.sid]
    assert await alive.call("echo", 1) == 1
    await raw.close_code()
    await raw.close()


async def test_peer_that_answers_pings_stays(serve: Serve) -> None:
    hub = echo_hub(ping_interval=0.1, ping_timeout=WAIT)
    server = await serve(hub)
    raw = await RawWebSocket.open(address(server.url))
    sid = (await raw.text())["sid"]
    started = asyncio.get_running_loop().time()
    for _ in range(4):
        opcode, payload = await raw.receive()
        assert opcode == PING
        raw.send(frame(PONG, payload))
    assert asyncio.get_running_loop().time() - started > 0.25
    assert sid in hub.sockets
    raw.send(frame(TEXT, ECHO))
    while (received := await raw.receive())[0] == PING:
        raw.send(frame(PONG, received[1]))
    assert json.loads(received[1])["type"] == "ack"
    await raw.close()


# --- Handshake, closing -----------------------------------------------------------------------


async def test_refused_handshake_is_answered_with_status_and_json(serve: Serve) -> None:
    hub = Hub()

    @hub.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused("no entry", data=[1], status=401)

    server = await serve(hub)
    for path, status, body in (
        (
            "/ws",
            401,
            {"type": "error", "code": "refused", "error": "no entry", "data": [1]},
        ),
        (
            "/ws/nowhere",
            404,
            {"type": "error", "code": "invalid_namespace", "error": "Invalid namespace"},
        ),
    ):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(address(server.url, path), proxy=None)
        response = refusal.value.response
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/json"
        assert json.loads(response.body or b"") == body
    assert not hub.sockets


@pytest.mark.parametrize(
    "query",
    [
        "room=",
        "room=a%00b",
        "room=%0d%0aevil",
        "room=" + "x" * 257,
        "session=short",
        "session=" + "x" * 65,
        "session=sixteen%20letters%20",
        "&".join(f"room={n}" for n in range(300)),
    ],
)
async def test_unusable_query_is_refused_400(query: str, serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    with pytest.raises(InvalidStatus) as refusal:
        await connect(address(server.url, f"/ws?{query}"), proxy=None)
    assert refusal.value.response.status_code in (400, 403)
    assert json.loads(refusal.value.response.body or b"")["type"] == "error"
    assert not hub.sockets


async def test_origins_are_checked(serve: Serve) -> None:
    server = await serve(echo_hub(cors_origins=(SITE,)))
    for origin in (SITE, server.url):
        async with connect(
            address(server.url), proxy=None, additional_headers={"Origin": origin}
        ) as connection:
            assert json.loads(await text(connection))["type"] == "welcome"
    for origin in ("https://evil.example.com", "null", f"{SITE}.evil.com", f"{SITE}:8443"):
        with pytest.raises(InvalidStatus) as refusal:
            await connect(address(server.url), proxy=None, additional_headers={"Origin": origin})
        assert refusal.value.response.status_code == 403
        assert json.loads(refusal.value.response.body or b"")["code"] == "origin_not_allowed"


async def test_shutdown_is_told_and_closes_1001(serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    async with connect(address(server.url), proxy=None) as connection:
        sid = json.loads(await text(connection))["sid"]
        stopping = asyncio.create_task(hub.stop())
        shutdown = json.loads(await text(connection))
        assert shutdown["type"] == "server:shutdown"
        assert isinstance(shutdown["message"], str)
        assert await close_code(connection) == 1001
        await stopping
    assert await departures.next() == (sid, "server shutting down")


async def test_server_disconnect_closes_4000(serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    async with connect(address(server.url), proxy=None) as connection:
        sid = json.loads(await text(connection))["sid"]
        await hub.sockets[sid].disconnect()
        assert await close_code(connection) == 4000
    assert await departures.next() == (sid, "server namespace disconnect")


@pytest.mark.parametrize("code", [1000, 1001, 4999])
async def test_clients_close_is_answered(code: int, serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    connection = await connect(address(server.url), proxy=None)
    sid = json.loads(await text(connection))["sid"]
    await connection.close(code)
    assert connection.close_code == code
    assert await departures.next() == (sid, "transport close")


async def test_bytes_in_events_are_base64_in_envelopes(serve: Serve) -> None:
    hub = Hub()

    @hub.on("blob")
    async def blob(socket: Socket, data: bytes) -> bytes:
        return data[::-1]

    server = await serve(hub)
    async with connect(address(server.url), proxy=None) as connection:
        await text(connection)
        encoded = base64.b64encode(b"\x00\x01\xff").decode()
        await connection.send(json.dumps({"type": "blob", "id": 1, "data": encoded}))
        answer = json.loads(await text(connection))
        assert base64.b64decode(answer["data"]) == b"\xff\x01\x00"
        await hub.emit("blob", {"part": b"\x00"})
        assert json.loads(await text(connection))["data"] == {"part": "AA=="}
        await connection.send(json.dumps({"type": "blob", "id": 2, "data": "not base64!"}))
        assert json.loads(await text(connection))["code"] == "invalid_message"


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
async def test_client_cut_before_its_welcome_is_told_why(lane: bool, serve: Serve) -> None:
    hub = echo_hub(history_size=5)
    waiting, gate = asyncio.Event(), asyncio.Event()

    @hub.use
    async def examine(socket: Socket) -> None:
        waiting.set()
        await gate.wait()

    server = await serve(hub, lane=lane)
    cursor = await hub.emit("n", 0)

    async def join() -> int | None:
        url = address(server.url, f"/ws?lastEventId={cursor}")
        async with connect(url, proxy=None) as client:
            with pytest.raises(ConnectionClosed):
                await client.recv()
            return client.close_code

    joining = asyncio.create_task(join())
    await waiting.wait()
    for number in range(20):
        await hub.emit("n", number)
    gate.set()
    async with asyncio.timeout(WAIT):
        assert await joining == 4008
    assert not hub._core.root.replays.count
