"""The Socket.IO door, byte for byte: what other servers get wrong, a test each."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crossband import ConnectionRefused, Hub, Socket
from crossband.hub.places import TAILS
from crossband.limits import Limits
from tests.clients import NewClient, NodeRunner
from tests.clients.base import WAIT
from tests.clients.raw import (
    SEPARATOR,
    Polling,
    answer_of,
    close_code,
    engine_url,
    engine_websocket,
    text,
)
from tests.conftest import Serve


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as client:
        yield client


NewPolling = Callable[[str], Polling]


@pytest.fixture
async def new_polling(serve: Serve, http: httpx.AsyncClient) -> AsyncIterator[NewPolling]:
    """Make polling sessions by hand; each is closed before its server is."""
    made: list[Polling] = []

    def make(url: str) -> Polling:
        made.append(Polling(http, url))
        return made[-1]

    yield make
    for polling in made:
        await polling.close()


class Departures:
    """Collects why sockets left."""

    def __init__(self, hub: Hub) -> None:
        self._reasons: asyncio.Queue[str] = asyncio.Queue()
        hub.on("disconnect", self._note)

    def _note(self, socket: Socket, reason: str) -> None:
        self._reasons.put_nowait(reason)

    async def next(self) -> str:
        async with asyncio.timeout(WAIT):
            return await self._reasons.get()


def echo_hub(**settings: Any) -> Hub:
    hub = Hub(**settings)

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)

    return hub


# --- Engine.IO: the handshake ---------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "",
        "EIO=4",
        "transport=polling",
        "EIO=4&transport=",
        "EIO=4&transport=carrier-pigeon",
        "EIO=&transport=polling",
        "EIO=3&transport=polling",
        "EIO=5&transport=polling",
        "EIO=abc&transport=polling",
        "EIO=4&transport=polling&sid=unknown",
        "EIO=4&transport=polling&sid=__proto__",
        "EIO=4&transport=polling&sid=",
        "EIO=4&transport=polling&sid=%00",
        "EIO=4&transport=polling&sid=" + "x" * 5000,
    ],
)
async def test_bad_handshake_query_is_answered_400(
    query: str, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub())
    response = await http.get(f"{server.url}/socket.io/?{query}")
    assert response.status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "",
        "EIO=4",
        "transport=websocket",
        "EIO=3&transport=websocket",
        "EIO=4&transport=polling",
        "EIO=4&transport=websocket&sid=unknown",
    ],
)
async def test_bad_websocket_handshake_is_refused_before_the_upgrade(
    query: str, serve: Serve
) -> None:
    server = await serve(echo_hub())
    url = server.url.replace("http", "ws", 1)
    with pytest.raises(InvalidStatus) as refusal:
        await connect(f"{url}/socket.io/?{query}", proxy=None)
    assert refusal.value.response.status_code == 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_other_methods_are_answered_400(
    method: str, serve: Serve, http: httpx.AsyncClient, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    url = f"{server.url}/socket.io/?EIO=4&transport=polling"
    assert (await http.request(method, url)).status_code == 400
    polling = new_polling(server.url)
    await polling.open()
    assert (await http.request(method, url, params=polling.params)).status_code == 400


async def test_post_without_a_session_is_answered_400(
    serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    assert (await new_polling(server.url).post("40")).status_code == 400


async def test_open_packet_holds_the_settings_in_milliseconds(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub(ping_interval=0.3, ping_timeout=0.2, limits=Limits(max_http_buffer_size=123_456))
    server = await serve(hub)
    handshake = await new_polling(server.url).open()
    assert isinstance(handshake.pop("sid"), str)
    assert handshake == {
        "upgrades": ["websocket"],
        "pingInterval": 300,
        "pingTimeout": 200,
        "maxPayload": 123_456,
    }
    async with connect(engine_url(server.url), proxy=None) as connection:
        opening = json.loads((await text(connection))[1:])
        assert opening["upgrades"] == []
        assert opening["pingInterval"] == 300


async def test_socket_ids_are_20_characters_and_not_the_engine_id(
    serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    answer = await polling.connect()
    assert len(answer["sid"]) == 20
    assert answer["sid"] != polling.params["sid"]


# --- Engine.IO: polling ---------------------------------------------------------------------


async def test_second_concurrent_poll_closes_the_session(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.connect()
    first = await polling.pending_poll()
    second = await polling.poll()
    assert second.status_code == 400
    assert (await first).text == "1"
    assert (await polling.poll()).status_code == 400
    assert await departures.next() == "transport error"
    assert not hub.sockets


async def test_posted_close_ends_a_pending_poll_with_noop(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.connect()
    pending = await polling.pending_poll()
    assert (await polling.post("1")).text == "ok"
    assert (await pending).text == "6"
    assert (await polling.poll()).status_code == 400
    assert await departures.next() == "transport close"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"abc",
        b"9hello",
        SEPARATOR.encode(),
        b"4" + SEPARATOR.encode() + SEPARATOR.encode() + b"4",
        b"b!!!!",
        b"bAAA",
        b"\xff\xfe4",
        b"0{}",
        b"5",
    ],
)
async def test_post_that_does_not_parse_closes_the_session(
    body: bytes, serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    bystander = new_polling(server.url)
    await bystander.connect()
    polling = new_polling(server.url)
    await polling.connect()
    pending = await polling.pending_poll()
    assert (await polling.post_body(body)).status_code == 400
    # Closed at once: the poll does not hang until the next heartbeat.
    async with asyncio.timeout(WAIT):
        assert (await pending).status_code in (200, 400)
    assert (await polling.poll()).status_code == 400
    assert await departures.next() in ("parse error", "transport error")
    assert (await bystander.post('420["echo",1]')).text == "ok"
    assert await bystander.packet() == "430[1]"


@pytest.mark.parametrize(
    "packet",
    [
        "49",
        "4",
        "4x",
        '42{"not":"an array"}',
        "42[]",
        "42[true]",
        '42["unclosed"',
        '42["a"]trailing',
        "40[]",
        '40"text"',
        "41[",
        "43[]",
        "43x[]",
        '4299999999999999999["a"]',
        '42-1["a"]',
        '42/unjoined,["a"]',
        '451-["a"]',
        '45-["a",{"_placeholder":true,"num":0}]',
        '45x-["a"]',
        "45" + "9" * 400 + '-["a"]',
        '4511-["a",{"_placeholder":true,"num":0}]',
        "42" + "[" * 100_000,
        '42["a",' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "]",
        '42["\\ud800"]',
        '42["connect"]',
        '42["disconnect"]',
        "bAAAA",
    ],
    ids=range(27),
)
@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_bad_socketio_packet_harms_nobody_else(
    packet: str, transport: str, serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    bystander = new_polling(server.url)
    await bystander.connect()
    if transport == "polling":
        polling = new_polling(server.url)
        await polling.connect()
        pending = await polling.pending_poll()
        await polling.post(packet)
        # Either the whole session is over, or the packet was answered or ignored.
        assert (await polling.post('427["echo","alive"]')).status_code in (200, 400)
        async with asyncio.timeout(WAIT):
            await pending
    else:
        connection, _ = await engine_websocket(server.url)
        await connection.send(base64.b64decode(packet[1:]) if packet[0] == "b" else packet)
        try:
            await connection.send('427["echo","alive"]')
            async with asyncio.timeout(WAIT):
                while await text(connection) != '437["alive"]':
                    continue
        except ConnectionClosed:
            # Closed with a code that says so, and the app was told.
            assert connection.close_code in (1000, 1002, 1003, 1005, 1007)
            assert await departures.next() in ("parse error", "transport error")
        await connection.close()
    assert (await bystander.post('420["echo",1]')).text == "ok"
    assert await bystander.packet() == "430[1]"


# Not even a hostile client should find the session alive after these.
@pytest.mark.parametrize(
    "packet",
    ["4x", '42{"a":1}', "42[null]", '42["unclosed"', "45" + "9" * 400 + '-["a"]', "49", "9"],
)
async def test_protocol_error_closes_a_websocket_at_once(packet: str, serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    connection, _ = await engine_websocket(server.url)
    started = asyncio.get_running_loop().time()
    await connection.send(packet)
    assert await close_code(connection) == 1002
    assert asyncio.get_running_loop().time() - started < 0.25
    assert await departures.next() in ("parse error", "transport error")
    assert not hub.sockets


async def test_packets_of_one_payload_are_split_and_bounded(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub(limits=Limits(packets_per_payload=8))
    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.connect()
    assert (await polling.post(*(f'42{n}["echo",{n}]' for n in range(8)))).text == "ok"
    assert [await polling.packet() for _ in range(8)] == [f"43{n}[{n}]" for n in range(8)]
    assert (await polling.post(*['42["echo",0]'] * 9)).status_code == 400
    assert (await polling.poll()).status_code == 400


async def test_a_megabyte_of_separators_is_answered_400(
    serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    await polling.connect()
    started = asyncio.get_running_loop().time()
    assert (await polling.post_body(SEPARATOR.encode() * 999_999)).status_code == 400
    assert asyncio.get_running_loop().time() - started < 1


def body_in_chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b"4" * 1000


async def test_body_over_max_http_buffer_size_is_answered_413(
    serve: Serve, http: httpx.AsyncClient, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub(limits=Limits(max_http_buffer_size=10_000)))
    polling = new_polling(server.url)
    await polling.connect()
    fits = '421["echo","' + "x" * (10_000 - 15) + '"]'
    assert len(fits) <= 10_000
    assert (await polling.post(fits)).text == "ok"
    assert (await polling.packet()).startswith('431["xxx')
    url, params = f"{server.url}/socket.io/", polling.params
    assert (await polling.post_body(b"4" * 10_001)).status_code == 413
    polling = new_polling(server.url)
    await polling.connect()

    # Chunked, with no Content-Length to go by.
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in body_in_chunks(50_000):
            yield chunk

    response = await http.post(url, params=params | polling.params, content=chunks())
    assert response.status_code == 413


async def test_websocket_message_over_max_http_buffer_size_closes_1009(serve: Serve) -> None:
    hub = echo_hub(limits=Limits(max_http_buffer_size=10_000))
    departures = Departures(hub)
    server = await serve(hub)
    connection, _ = await engine_websocket(server.url)
    await connection.send('421["echo","' + "x" * 10_000 + '"]')
    assert await close_code(connection) == 1009
    assert await departures.next() in ("transport error", "transport close", "parse error")


async def test_polling_answers_are_text_and_never_cached(
    serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    response = await polling.poll()
    assert response.headers["content-type"].lower() == "text/plain; charset=utf-8"
    assert "no-store" in response.headers["cache-control"]
    response = await polling.post("40")
    assert response.text == "ok"
    assert response.headers["content-type"].startswith("text/")


async def test_binary_both_ways_over_polling(serve: Serve, new_polling: NewPolling) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    await polling.connect()
    part = "b" + base64.b64encode(b"\x00\x01\xff").decode()
    await polling.post('451-5["echo",{"part":{"_placeholder":true,"num":0}}]', part)
    assert await polling.packet() == '461-5[{"part":{"_placeholder":true,"num":0}}]'
    assert await polling.packet() == part


async def test_binary_both_ways_over_websocket(serve: Serve) -> None:
    server = await serve(echo_hub())
    connection, _ = await engine_websocket(server.url)
    await connection.send(
        '452-5["echo",[{"_placeholder":true,"num":1},{"_placeholder":true,"num":0}]]'
    )
    await connection.send(b"zero")
    await connection.send(b"one")
    answer = await text(connection)
    assert answer.startswith("462-5[")
    parts = [await connection.recv(), await connection.recv()]
    (places,) = json.loads(answer.removeprefix("462-5"))
    assert [parts[place["num"]] for place in places] == [b"one", b"zero"]
    await connection.close()


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_more_than_ten_attachments_are_refused(
    transport: str, serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())

    def packet(count: int) -> str:
        places = ",".join(f'{{"_placeholder":true,"num":{n}}}' for n in range(count))
        return f'45{count}-1["echo",[{places}]]'

    if transport == "polling":
        polling = new_polling(server.url)
        await polling.connect()
        await polling.post(packet(10), *["bAA=="] * 10)
        assert (await polling.packet()).startswith("4610-1[")
        assert (await polling.post(packet(11), *["bAA=="] * 11)).status_code == 400
        assert (await polling.poll()).status_code == 400
    else:
        connection, _ = await engine_websocket(server.url)
        await connection.send(packet(10))
        for _ in range(10):
            await connection.send(b"\x00")
        assert (await text(connection)).startswith("4610-1[")
        await connection.send(packet(11))
        assert await close_code(connection) == 1002


@pytest.mark.parametrize("message", [b"binary", '451-["a",{"_placeholder":true,"num":0}]'])
async def test_nothing_but_connect_is_taken_before_connect(
    message: bytes | str, serve: Serve
) -> None:
    server = await serve(echo_hub())
    async with connect(engine_url(server.url), proxy=None) as connection:
        await text(connection)
        await connection.send(message)
        assert await close_code(connection) is not None


async def test_client_that_never_connects_is_closed(serve: Serve, new_polling: NewPolling) -> None:
    server = await serve(echo_hub(limits=Limits(handshake_time=0.5)))
    async with connect(engine_url(server.url), proxy=None) as connection:
        await text(connection)
        assert await close_code(connection) is not None
    polling = new_polling(server.url)
    await polling.open()
    async with asyncio.timeout(WAIT):
        assert (await polling.poll()).text in ("1", "6")
    assert (await polling.poll()).status_code == 400


# --- Engine.IO: heartbeat -------------------------------------------------------------------


async def test_sub_second_ping_interval_is_honoured(serve: Serve, new_polling: NewPolling) -> None:
    hub = echo_hub(ping_interval=0.1, ping_timeout=WAIT)
    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.connect()
    connection, _ = await engine_websocket(server.url)
    started = asyncio.get_running_loop().time()
    for _ in range(20):
        assert await polling.packet() == "2"
        await polling.post("3")
        assert await text(connection) == "2"
        await connection.send("3")
    # In whole seconds they would take 20.
    assert 1.9 < asyncio.get_running_loop().time() - started < 20
    assert len(hub.sockets) == 2
    await connection.close()


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_silent_client_leaves_by_ping_timeout(
    transport: str, serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub(ping_interval=1.0, ping_timeout=0.5)
    departures = Departures(hub)
    server = await serve(hub)
    if transport == "polling":
        polling = new_polling(server.url)
        await polling.connect()
        await polling.post('420["join","room"]')
        assert await departures.next() == "ping timeout"
        assert (await polling.poll()).status_code == 400
    else:
        connection, _ = await engine_websocket(server.url)
        await connection.send('420["join","room"]')
        assert await departures.next() == "ping timeout"
        assert await close_code(connection) is not None
    assert not hub.sockets
    assert not hub.rooms


async def test_unasked_pong_is_no_error(serve: Serve) -> None:
    server = await serve(echo_hub())
    connection, _ = await engine_websocket(server.url)
    await connection.send("3")
    await connection.send('421["echo",1]')
    assert await text(connection) == "431[1]"
    await connection.close()


# --- Engine.IO: the upgrade -----------------------------------------------------------------


async def test_upgrade_releases_the_pending_poll_and_ends_the_old_transport(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    polling = new_polling(server.url)
    answer = await polling.connect()
    sid = polling.params["sid"]
    connection = await connect(engine_url(server.url, sid=sid), proxy=None)
    await connection.send("2probe")
    assert await text(connection) == "3probe"
    pending = await polling.pending_poll()
    async with asyncio.timeout(WAIT):
        assert (await pending).text == "6"
    await connection.send("5")
    await hub.emit("after", 1)
    # No stray noop on the WebSocket: the event is the first thing that comes.
    assert (await text(connection)).startswith('42["after",1,')
    # The session goes by the new transport only.
    assert (await polling.poll()).status_code == 400
    assert (await polling.post('42["echo",1]')).status_code == 400
    # A second WebSocket is accepted and closed, as the official suite wants it.
    second = await connect(engine_url(server.url, sid=sid), proxy=None)
    assert await close_code(second) == 1002
    await connection.send('421["echo","alive"]')
    assert await text(connection) == '431["alive"]'
    assert hub.sockets[answer["sid"]].transport == "websocket"
    await connection.close()


async def test_no_event_is_lost_or_reordered_by_the_upgrade(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.connect()
    sid = polling.params["sid"]
    received: list[int] = []

    def note(packets: str) -> None:
        received.extend(
            json.loads(packet[2:])[1]
            for packet in packets.split(SEPARATOR)
            if packet.startswith("42")
        )

    await hub.emit("number", 0)
    note((await polling.poll()).text)
    connection = await connect(engine_url(server.url, sid=sid), proxy=None)
    await hub.emit("number", 1)
    await connection.send("2probe")
    assert await text(connection) == "3probe"
    await hub.emit("number", 2)
    # Between probe and upgrade: one event waits, the next comes with nobody polling.
    note((await polling.poll()).text)
    await hub.emit("number", 3)
    await connection.send("5")
    await hub.emit("number", 4)
    while received[-1] != 4:
        note(await text(connection))
    assert received == [0, 1, 2, 3, 4]
    await connection.close()


@pytest.mark.parametrize("first", ["2", "3probe", "5", '42["echo",1]', "2prob", "xprobe"])
async def test_upgrade_without_probe_is_dropped_and_polling_goes_on(
    first: str, serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    await polling.connect()
    connection = await connect(engine_url(server.url, sid=polling.params["sid"]), proxy=None)
    await connection.send(first)
    assert await close_code(connection) is not None
    await polling.post('421["echo","alive"]')
    assert await polling.packet() == '431["alive"]'


async def test_probe_cut_before_the_upgrade_leaves_polling_alone(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.connect()
    connection = await connect(engine_url(server.url, sid=polling.params["sid"]), proxy=None)
    await connection.send("2probe")
    assert await text(connection) == "3probe"
    connection.transport.abort()
    await hub.emit("after", 1)
    while not (packet := await polling.packet()).startswith("42"):
        assert packet == "6"
    assert packet.startswith('42["after",1,')


# --- Socket.IO: namespaces and acknowledgements -----------------------------------------------


async def test_unknown_namespace_is_answered_by_connect_error(
    serve: Serve, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    await polling.open()
    await polling.post("40/custom,")
    assert await polling.packet() == '44/custom,{"message":"Invalid namespace"}'
    # The connection goes on.
    await polling.post("40")
    answer_of(await polling.packet())


async def test_connect_error_carries_the_code_of_the_refusal(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()

    @hub.use
    def refuse(socket: Socket) -> None:
        data = socket.handshake.auth.get("data")
        raise ConnectionRefused("Not an admin", code="not_admin", data=data)

    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.open()
    for sent, answer in (
        ("40", '{"message":"Not an admin","data":{"code":"not_admin","error":"Not an admin"}}'),
        # What the application gives is left as it is.
        ('40{"data":{"hint":1}}', '{"message":"Not an admin","data":{"hint":1}}'),
    ):
        await polling.post(sent)
        assert await polling.packet() == "44" + answer


async def test_several_namespaces_share_one_connection(serve: Serve) -> None:
    hub = echo_hub()
    admin = hub.of("/admin")

    @admin.on("who")
    async def who(socket: Socket) -> str:
        return socket.namespace.name

    server = await serve(hub)
    connection, _ = await engine_websocket(server.url)
    await connection.send("40/admin,")
    assert (await text(connection)).startswith('40/admin,{"sid":')
    await connection.send('42/admin,3["who"]')
    assert await text(connection) == '43/admin,3["/admin"]'
    # The query of a namespace is no part of its name.
    await connection.send("41/admin,")
    await connection.send("40/admin?token=1,")
    assert (await text(connection)).startswith('40/admin,{"sid":')
    await connection.send('421["echo",1]')
    assert await text(connection) == "431[1]"
    await connection.close()


async def test_first_emit_comes_after_the_connect_answer(
    serve: Serve, new_polling: NewPolling
) -> None:
    hub = echo_hub()

    @hub.use
    async def eager(socket: Socket) -> None:
        await socket.emit("from middleware", 1)
        await hub.emit("to all", 2)

    @hub.on("connect")
    async def welcome(socket: Socket) -> None:
        await socket.emit("hello", 3)

    server = await serve(hub)
    connection, _ = await engine_websocket(server.url)
    names = []
    while "hello" not in names:
        names.append(json.loads((await text(connection))[2:])[0])
    polling = new_polling(server.url)
    await polling.connect()
    await connection.close()


async def test_acknowledgements_of_several_arguments_both_ways(serve: Serve) -> None:
    hub = echo_hub()

    @hub.on("several")
    async def several(socket: Socket, first: int, second: str) -> tuple[str, int]:
        return second, first

    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    await connection.send('420["several",1,"two"]')
    assert await text(connection) == '430["two",1]'
    asked = asyncio.ensure_future(
        hub.sockets[answer["sid"]].timeout(WAIT).emit_with_ack("question", 1, "two")
    )
    request = await text(connection)
    # An event that asks for an acknowledgement carries no offset.
    ident = request.removeprefix("42").removesuffix('["question",1,"two"]')
    await connection.send(f'43{ident}["answer"]')
    assert await asked == "answer"
    # Unasked and doubled answers are nobody's problem.
    await connection.send(f'43{ident}["again"]')
    await connection.send('431000["never asked"]')
    await connection.send('421["echo",1]')
    assert await text(connection) == "431[1]"
    await connection.close()


async def test_refusal_carries_message_and_data(serve: Serve, new_polling: NewPolling) -> None:
    hub = Hub()

    @hub.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused("no entry", data={"code": 7})

    server = await serve(hub)
    polling = new_polling(server.url)
    await polling.open()
    await polling.post("40")
    packet = await polling.packet()
    assert packet.startswith("44")
    assert json.loads(packet[2:]) == {"message": "no entry", "data": {"code": 7}}


# --- Socket.IO: connection state recovery -----------------------------------------------------


def offset_of(packet: str) -> str:
    offset = json.loads(packet[2:])[-1]
    assert isinstance(offset, str)
    return offset


async def test_connect_answers_sid_and_pid(serve: Serve) -> None:
    server = await serve(echo_hub())
    connection, answer = await engine_websocket(server.url)
    assert set(answer) == {"sid", "pid"}
    assert answer["pid"] != answer["sid"]
    await connection.close()


async def test_only_recorded_events_carry_an_offset(serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    socket = hub.sockets[answer["sid"]]
    await hub.emit("to all", 1)
    first = await text(connection)
    assert len(json.loads(first[2:])) == 3
    await socket.emit("to one", 1)
    second = await text(connection)
    assert len(json.loads(second[2:])) == 3
    assert offset_of(first) != offset_of(second)
    await hub.volatile.emit("volatile", 1)
    assert await text(connection) == '42["volatile",1]'
    await hub.emit("no arguments")
    third = await text(connection)
    assert json.loads(third[2:])[0] == "no arguments"
    assert offset_of(third)
    await connection.send('428["echo","a string"]')
    assert await text(connection) == '438["a string"]'
    await connection.close()


@pytest.mark.parametrize("args", [("a string",), ()])
async def test_unrecorded_event_carries_nothing_more_and_costs_no_gap(
    args: tuple[str, ...], serve: Serve
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    departures = Departures(hub)
    connection, answer = await engine_websocket(server.url)
    await hub.emit("number", 1)
    await text(connection)
    await hub.volatile.emit("tick", *args)
    assert json.loads((await text(connection))[2:]) == ["tick", *args]
    connection.transport.abort()
    await departures.next()
    await hub.emit("number", 2)
    # What the official client takes for its offset: whatever string comes last.
    offset = args[0] if args else "tick"
    again, answer_again = await engine_websocket(
        server.url, {"pid": answer["pid"], "offset": offset}
    )
    assert answer_again == answer
    assert json.loads((await text(again))[2:])[:2] == ["number", 2]
    await again.close()


@pytest.mark.parametrize("between", ["recorded", "unrecorded"])
async def test_client_whose_place_may_be_forgotten_hears_of_a_gap(
    between: str, serve: Serve
) -> None:
    hub = echo_hub(history_size=4 if between == "recorded" else 100)
    server = await serve(hub)
    departures = Departures(hub)
    other, _ = await engine_websocket(server.url)
    connection, answer = await engine_websocket(server.url)
    await hub.volatile.emit("status", "busy")
    assert json.loads((await text(connection))[2:]) == ["status", "busy"]
    connection.transport.abort()
    await departures.next()
    await hub.emit("number", 1)
    for number in range(TAILS):
        if between == "recorded":
            await hub.emit("number", number)
        else:
            await hub.volatile.emit("tick")
    # It did not get this one; which of the two it shows nobody can tell.
    await hub.volatile.emit("status", "busy")
    await hub.emit("number", 2)
    again, answer_again = await engine_websocket(
        server.url, {"pid": answer["pid"], "offset": "busy"}
    )
    assert answer_again["pid"] != answer["pid"]
    event, data, *_ = json.loads((await text(again))[2:])
    assert (event, data["reason"]) == ("gap", "expired")
    await again.close()
    # It has not read what it was sent.
    other.transport.abort()


async def test_place_behind_what_another_client_was_sent_alone_costs_no_event_twice(
    serve: Serve,
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    departures = Departures(hub)
    other, other_answer = await engine_websocket(server.url)
    connection, answer = await engine_websocket(server.url)
    await hub.emit("number", 1)
    await text(connection)
    await hub.to(other_answer["sid"]).emit("private", 1)
    await hub.volatile.emit("status", "busy")
    await text(connection)
    connection.transport.abort()
    await departures.next()
    await hub.emit("number", 2)
    again, answer_again = await engine_websocket(
        server.url, {"pid": answer["pid"], "offset": "busy"}
    )
    assert answer_again == answer
    assert json.loads((await text(again))[2:])[:2] == ["number", 2]
    await again.close()
    await other.close()


async def test_recovered_client_gets_its_pid_sid_rooms_and_data_back(serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    await connection.send('420["join","room"]')
    assert (await text(connection)).startswith("430[")
    hub.sockets[answer["sid"]].data["name"] = "Ada"
    await hub.emit("number", 0)
    offset = offset_of(await text(connection))
    departures = Departures(hub)
    connection.transport.abort()
    assert await departures.next() in ("transport error", "transport close")
    await hub.to("room").emit("number", 1)
    await hub.to("elsewhere").emit("number", -1)
    await hub.to("room", "elsewhere").emit("number", 2)
    await hub.except_("room").emit("number", -2)
    await hub.to("room").except_(answer["sid"]).emit("number", -3)
    await hub.to(answer["sid"]).emit("number", 3)
    await hub.volatile.emit("number", -4)

    auth = {"pid": answer["pid"], "offset": offset, "token": "kept"}
    connection, again = await engine_websocket(server.url, auth)
    # The answer came first, before anything missed.
    assert again == answer
    for number in (1, 2, 3):
        packet = json.loads((await text(connection))[2:])
        assert packet[:2] == ["number", number]
    socket = hub.sockets[answer["sid"]]
    assert socket.recovered
    assert socket.data == {"name": "Ada"}
    assert set(socket.rooms) == {answer["sid"], "room"}
    assert socket.handshake.auth["token"] == "kept"
    await hub.emit("number", 4)
    assert json.loads((await text(connection))[2:])[:2] == ["number", 4]
    await connection.close()


async def test_client_with_a_pid_and_no_offset_is_recovered(serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    connection.transport.abort()
    await departures.next()
    await hub.emit("number", 1)
    connection, again = await engine_websocket(server.url, {"pid": answer["pid"]})
    assert again == answer
    assert (await text(connection)).startswith('42["number",1,')
    await connection.close()


async def test_missed_packets_wait_for_the_middleware(serve: Serve) -> None:
    hub = echo_hub()
    departures = Departures(hub)

    @hub.use
    def banned(socket: Socket) -> None:
        if socket.handshake.auth.get("banned"):
            raise ConnectionRefused("banned")

    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    await hub.emit("number", 0)
    offset = offset_of(await text(connection))
    connection.transport.abort()
    await departures.next()
    await hub.emit("number", 1)
    async with connect(engine_url(server.url), proxy=None) as connection:
        await text(connection)
        auth = {"pid": answer["pid"], "offset": offset, "banned": True}
        await connection.send("40" + json.dumps(auth))
        assert json.loads((await text(connection))[2:])["message"] == "banned"
        # Whatever was missed did not slip out, before or after.
        await hub.emit("number", 2)
        await connection.send("40/nowhere,")
        assert (await text(connection)).startswith("44/nowhere,")
    # And the refusal cost the session nothing.
    connection, again = await engine_websocket(server.url, {"pid": answer["pid"], "offset": offset})
    assert again == answer
    assert (await text(connection)).startswith('42["number",1,')
    await connection.close()


@pytest.mark.parametrize("farewell", ["41", "1", "server"])
async def test_session_left_on_purpose_is_not_kept(
    farewell: str, serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = echo_hub()
    departures = Departures(hub)
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    await hub.emit("number", 0)
    offset = offset_of(await text(connection))
    if farewell == "server":
        await hub.sockets[answer["sid"]].disconnect()
        assert await departures.next() == "server namespace disconnect"
    elif farewell == "41":
        await connection.send("41")
        assert await departures.next() == "client namespace disconnect"
    else:
        # Engine.IO's own close is what a page that is left sends: the session may be wanted.
        await connection.send("1")
        assert await departures.next() == "transport close"
    await connection.close()
    connection, again = await engine_websocket(server.url, {"pid": answer["pid"], "offset": offset})
    if farewell == "1":
        assert again == answer
    else:
        assert again["sid"] != answer["sid"]
        assert again["pid"] != answer["pid"]
        packet = json.loads((await text(connection))[2:])
        assert packet[0] == "gap"
        assert packet[1]["reason"] == "session"
    await connection.close()


async def test_session_survives_a_ping_timeout(serve: Serve) -> None:
    hub = echo_hub(ping_interval=1.0, ping_timeout=0.5)
    departures = Departures(hub)
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    await hub.emit("number", 0)
    offset = offset_of(await text(connection))
    assert await departures.next() == "ping timeout"
    await close_code(connection)
    await hub.emit("number", 1)
    auth = {"pid": answer["pid"], "offset": offset}
    connection, again = await engine_websocket(server.url, auth)
    assert again == answer
    assert (await text(connection)).startswith('42["number",1,')
    await connection.close()


@pytest.mark.parametrize(
    "auth",
    [
        {"pid": "x" * 20, "offset": "nonsense"},
        {"pid": "x" * 20},
        {"pid": 5, "offset": 5},
        {"pid": ["a"], "offset": {"a": 1}},
        {"pid": None, "offset": None},
        {"pid": "x" * 5000, "offset": "y" * 5000},
        {"pid": "\u0000", "offset": "\u0000"},
    ],
    ids=range(7),
)
async def test_hostile_recovery_auth_starts_a_fresh_session(
    auth: dict[str, Any], serve: Serve
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    async with connect(engine_url(server.url), proxy=None) as connection:
        await text(connection)
        await connection.send("40" + json.dumps(auth))
        packet = await text(connection)
        if packet.startswith("44"):
            assert json.loads(packet[2:])["message"]
            assert not hub.sockets
            return
        answer = answer_of(packet)
        assert answer["pid"] != auth["pid"]
        await connection.send('421["echo",1]')
        while (packet := await text(connection)) != "431[1]":
            assert packet.startswith('42["gap",{')


async def test_recovery_false_in_auth_means_no_pid_and_no_offsets(serve: Serve) -> None:
    hub = echo_hub()
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url, {"recovery": False})
    assert set(answer) == {"sid"}
    await hub.emit("number", 1)
    assert await text(connection) == '42["number",1]'
    await connection.close()


async def test_recovery_off_in_the_settings_means_no_pid_and_no_offsets(serve: Serve) -> None:
    hub = echo_hub(recovery=False)
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    assert set(answer) == {"sid"}
    await hub.emit("number", "text")
    assert await text(connection) == '42["number","text"]'
    await connection.close()


async def test_session_expires_after_the_history_age(serve: Serve) -> None:
    hub = echo_hub(history_age=0.1)
    departures = Departures(hub)
    server = await serve(hub)
    connection, answer = await engine_websocket(server.url)
    await hub.emit("number", 0)
    offset = offset_of(await text(connection))
    connection.transport.abort()
    await departures.next()
    # The age itself has to pass.
    await asyncio.sleep(0.25)
    connection, again = await engine_websocket(server.url, {"pid": answer["pid"], "offset": offset})
    assert again["pid"] != answer["pid"]
    packet = json.loads((await text(connection))[2:])
    assert packet[0] == "gap"
    assert packet[1]["reason"] in ("expired", "session")
    await connection.close()


# --- CORS -------------------------------------------------------------------------------------

SITE = "https://app.example.com"


async def test_credentialed_cors(
    serve: Serve, http: httpx.AsyncClient, new_polling: NewPolling
) -> None:
    server = await serve(echo_hub(cors_origins=(SITE,)))
    url = f"{server.url}/socket.io/?EIO=4&transport=polling"
    preflight = await http.options(
        url,
        headers={
            "Origin": SITE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,x-custom",
        },
    )
    assert preflight.status_code in (200, 204)
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
    polling = new_polling(server.url)
    polling.headers["Origin"] = SITE
    opened, posted = await polling.poll(), await polling.post("40")
    assert (opened.status_code, posted.status_code) == (200, 200)
    for each in (preflight, opened, posted):
        assert each.headers["access-control-allow-origin"] == SITE
        assert each.headers["access-control-allow-credentials"] == "true"
        assert "origin" in each.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", "null", SITE + ".evil.com", SITE + ":8443"]
)
async def test_other_origins_are_refused_on_both_transports(
    origin: str, serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(echo_hub(cors_origins=(SITE,)))
    url = f"{server.url}/socket.io/?EIO=4&transport=polling"
    response = await http.get(url, headers={"Origin": origin})
    assert response.status_code == 403
    assert response.json()["message"] == "Forbidden"
    assert "access-control-allow-origin" not in response.headers
    with pytest.raises(InvalidStatus) as refusal:
        await connect(engine_url(server.url), proxy=None, additional_headers={"Origin": origin})
    assert refusal.value.response.status_code == 403


async def test_same_origin_needs_no_setting(serve: Serve, new_polling: NewPolling) -> None:
    server = await serve(echo_hub())
    polling = new_polling(server.url)
    polling.headers["Origin"] = server.url
    await polling.connect()
    async with connect(
        engine_url(server.url), proxy=None, additional_headers={"Origin": server.url}
    ) as connection:
        assert (await text(connection)).startswith("0{")


async def test_any_origin_goes_without_credentials(serve: Serve, new_polling: NewPolling) -> None:
    server = await serve(echo_hub(cors_origins=("*",)))
    polling = new_polling(server.url)
    polling.headers["Origin"] = SITE
    response = await polling.poll()
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] in ("*", SITE)
    assert "access-control-allow-credentials" not in response.headers


# --- With the official client -----------------------------------------------------------------


@pytest.mark.node
async def test_official_client_reconnects_by_itself_and_is_recovered(
    serve: Serve, node: NodeRunner
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    upgraded, recovered = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    def on_notice(message: dict[str, Any]) -> None:
        if message["notice"] == "event":
            seen.append(message["args"][0])
        elif message["notice"] == "upgrade":
            upgraded.set()
        elif message["notice"] == "connect" and message["state"]["times"]["recovered"]:
            recovered.set()

    client = node.new_client(on_notice)
    await node.ask(
        "open",
        client=client,
        kind="socketio",
        url=server.url,
        namespace="/",
        transports=["polling", "websocket"],
        reconnection={"reconnectionDelay": 50, "reconnectionDelayMax": 200},
    )
    assert (await node.ask("connect", client=client))["connected"]
    async with asyncio.timeout(WAIT):
        await upgraded.wait()
    await node.ask("cut", client=client, torn=False)
    await hub.emit("number", 1)
    async with asyncio.timeout(WAIT):
        await recovered.wait()
    await hub.emit("number", 2)
    answer = await node.ask("call", client=client, event="echo", args=[1], timeout=WAIT * 1000)
    assert answer == {"answer": 1}
    assert seen == [1, 2]
    await node.ask("close", client=client)


@pytest.mark.node
@pytest.mark.parametrize("path", ["/socket.io/", "/socket.io", "/realtime/socket.io/"])
async def test_official_client_finds_any_path(path: str, serve: Serve, node: NodeRunner) -> None:
    hub = echo_hub(socketio_path="/realtime/socket.io") if "realtime" in path else echo_hub()
    server = await serve(hub)
    client = node.new_client(lambda message: None)
    await node.ask(
        "open",
        client=client,
        kind="socketio",
        url=server.url,
        namespace="/",
        path=path,
        transports=["polling", "websocket"],
    )
    assert (await node.ask("connect", client=client))["connected"]
    await node.ask("close", client=client)


@pytest.mark.node
@pytest.mark.parametrize("close", [False, True])
async def test_official_client_is_told_of_a_server_disconnect(
    close: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = echo_hub()
    server = await serve(hub)
    client = new_client("socket.io-client websocket")
    await client.connect(server.url)
    await hub.sockets[client.sid].disconnect(close=close)
    async with asyncio.timeout(WAIT):
        await client.gone.wait()
    assert vars(client)["disconnect_reason"] == "io server disconnect"
    assert not hub.sockets
