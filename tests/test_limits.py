"""Every limit on every door: what the client is told, and that the others go on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crossband import Hub, Socket
from crossband.limits import Limits
from tests.census import census, returns_to
from tests.clients import EventStreamClient
from tests.clients.base import WAIT
from tests.clients.raw import (
    SEPARATOR,
    Polling,
    close_code,
    engine_url,
    engine_websocket,
    text,
)
from tests.conftest import Serve
from tests.lanes import HUBS

KEY = "the-only-key"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as client:
        yield client


def hub_with(kind: type[Hub] = Hub, **limits: Any) -> Hub:
    hub = kind(api_keys=(KEY,), limits=Limits(**limits))
    hub.of("/plain", plain=True).on("message", lambda socket, data: None)

    @hub.on("echo")
    def echo(socket: Socket, data: Any) -> Any:
        return data

    return hub


def websocket_url(url: str, path: str = "/ws") -> str:
    return url.replace("http", "ws", 1) + path


async def opened(url: str, path: str = "/ws") -> ClientConnection:
    connection = await connect(websocket_url(url, path), proxy=None)
    if not path.startswith(("/ws/plain", "/ws/bare")):
        assert json.loads(await text(connection))["type"] == "welcome"
    return connection


async def broadcast(http: httpx.AsyncClient, url: str) -> httpx.Response:
    return await http.post(
        f"{url}/api/broadcast", json={"event": "news"}, headers={"X-API-Key": KEY}
    )


# --- Messages per second ---------------------------------------------------------------------

# Two at once, and the next after ten seconds: nobody's clock is in these tests.
SLOW: dict[str, Any] = {"message_rate": 0.02, "burst_time": 100.0}


def is_rate_limited(error: dict[str, Any]) -> bool:
    assert error["code"] == "rate_limited"
    assert error["error"] == "Rate limit exceeded"
    assert 0 < error["retryAfter"] <= 100
    return True


@HUBS
async def test_websocket_message_too_many_is_answered_and_the_connection_stays(
    kind: type[Hub], serve: Serve
) -> None:
    server = await serve(hub_with(kind, **SLOW))
    async with await opened(server.url) as connection:
        for number in range(3):
            await connection.send(json.dumps({"type": "echo", "data": number, "id": number}))
        answers = [json.loads(await text(connection)) for _ in range(3)]
        assert [answer["type"] for answer in answers] == ["ack", "ack", "error"]
        assert is_rate_limited(answers[2])
        assert (answers[2]["id"], answers[2]["event"]) == (2, "echo")
        # What cannot be read counts too, and an acknowledgement is owed no answer by its id.
        for message in ("{", json.dumps({"type": "ack", "id": 1})):
            await connection.send(message)
            # Or the client would not get round to reading the close frame.
            await asyncio.sleep(0)
            answer = json.loads(await text(connection))
            assert is_rate_limited(answer)
            assert "id" not in answer


@HUBS
async def test_plain_frame_too_many_is_answered(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, **SLOW))
    async with await opened(server.url, "/ws/plain") as connection:
        for _ in range(3):
            await connection.send(b"x")
        assert is_rate_limited(json.loads(await text(connection)))


@HUBS
async def test_socketio_event_too_many_is_answered(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, **SLOW))
    connection, _ = await engine_websocket(server.url)
    async with connection:
        # CONNECT was the first.
        for number in range(3):
            await connection.send(f'42{number}["echo",{number}]')
        await connection.send('42["echo",3]')
        await connection.send("40/plain,")
        assert await text(connection) == "430[0]"
        for number in (1, 2):
            packet = await text(connection)
            assert packet.startswith(f"43{number}[")
            assert is_rate_limited(json.loads(packet[3:])[0])
        packet = await text(connection)
        assert packet.startswith('42["error",')
        error = json.loads(packet[2:])[1]
        assert is_rate_limited(error)
        assert error["event"] == "echo"
        assert (await text(connection)).startswith('44/plain,{"message":"Rate limit exceeded"')


async def test_polled_event_too_many_is_answered(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(hub_with(**SLOW))
    polling = Polling(http, server.url)
    await polling.connect()
    await polling.post('420["echo",0]', '421["echo",1]', '42["echo",2]')
    assert await polling.packet() == "430[0]"
    packet = await polling.packet()
    assert packet.startswith("431[")
    assert is_rate_limited(json.loads(packet[3:])[0])
    assert is_rate_limited(json.loads((await polling.packet())[2:])[1])
    await polling.close()


# 2,024 bytes at once, the largest message and its header, and the next after a long while:
# two of this text fit, or one twice as large.
HEAVY: dict[str, Any] = {"byte_rate": 1, "message_size": 1_000, "max_http_buffer_size": 1_000}
TEXT = "x" * 900


def is_refused_by_size(error: dict[str, Any]) -> bool:
    assert error["code"] == "rate_limited"
    assert 500 < error["retryAfter"] <= 2_024
    return True


@HUBS
async def test_websocket_bytes_too_many_are_answered(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, **HEAVY))
    async with await opened(server.url) as connection:
        # Deflated, it is a few bytes of each: counted is what they say.
        assert any(each.name == "permessage-deflate" for each in connection.protocol.extensions)
        for number in range(3):
            await connection.send(json.dumps({"type": "echo", "data": TEXT, "id": number}))
        await connection.send(json.dumps({"type": "echo", "data": 1, "id": 3}))
        answers = [json.loads(await text(connection)) for _ in range(4)]
        assert [answer["type"] for answer in answers] == ["ack", "ack", "error", "ack"]
        assert is_refused_by_size(answers[2])
        assert (answers[2]["id"], answers[2]["event"]) == (2, "echo")
    async with await opened(server.url, "/ws/plain") as connection:
        for _ in range(3):
            await connection.send(b"x" * 900)
        assert is_refused_by_size(json.loads(await text(connection)))


@HUBS
async def test_socketio_bytes_too_many_are_answered(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, **HEAVY))
    connection, _ = await engine_websocket(server.url)
    async with connection:
        for number in range(3):
            await connection.send(f'42{number}["echo","{TEXT}"]')
        # The attachments count with their packet, which is put together all the same.
        await connection.send(
            '452-3["echo",[{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]]'
        )
        await connection.send(b"x" * 400)
        await connection.send(b"x" * 400)
        await connection.send('424["echo",4]')
        answers = [await text(connection) for _ in range(5)]
        assert [answer[:4] for answer in answers] == ["430[", "431[", "432[", "433[", "434["]
        assert is_refused_by_size(json.loads(answers[2][3:])[0])
        assert is_refused_by_size(json.loads(answers[3][3:])[0])
        assert answers[4] == "434[4]"


async def test_polled_bytes_too_many_are_answered(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(hub_with(**HEAVY))
    polling = Polling(http, server.url)
    await polling.connect()
    for number in range(3):
        assert (await polling.post(f'42{number}["echo","{TEXT}"]')).status_code == 200
    assert (await polling.packet()).startswith("430[")
    assert (await polling.packet()).startswith("431[")
    packet = await polling.packet()
    assert packet.startswith("432[")
    assert is_refused_by_size(json.loads(packet[3:])[0])
    await polling.close()


@HUBS
async def test_posted_bytes_too_many_are_answered_429(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(hub_with(kind, **HEAVY))
    client = EventStreamClient()
    await client.connect(server.url)
    target = f"{server.url}/events/{client.sid}?session={client.session}"
    for status in (200, 200, 429):
        response = await http.post(target, json={"type": "echo", "data": TEXT})
        assert response.status_code == status
    assert is_refused_by_size(response.json())
    assert (await http.post(target, json={"type": "echo", "data": 1})).status_code == 200
    await client.close()


@HUBS
async def test_largest_message_passes_at_any_byte_rate(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, byte_rate=0.1))
    connection, _ = await engine_websocket(server.url)
    async with connection:
        data = "x" * (1_000_000 - len('420["echo",""]'))
        await connection.send(f'420["echo","{data}"]')
        assert await text(connection) == f'430["{data}"]'


@HUBS
async def test_post_too_many_is_answered_429(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(hub_with(kind, **SLOW))
    client = EventStreamClient()
    await client.connect(server.url)
    target = f"{server.url}/events/{client.sid}?session={client.session}"
    for status in (200, 200, 429):
        response = await http.post(target, json={"type": "echo", "data": 1})
        assert response.status_code == status
    assert is_rate_limited(response.json())
    assert 1 <= int(response.headers["retry-after"]) <= 100
    await client.close()


async def test_broadcast_too_many_is_answered_429(serve: Serve, http: httpx.AsyncClient) -> None:
    hub = hub_with(publish_rate=0.02, burst_time=100.0)
    hub.configure(api_keys=(KEY, "another"))
    server = await serve(hub)
    assert [(await broadcast(http, server.url)).status_code for _ in range(3)] == [200, 200, 429]
    refused = await broadcast(http, server.url)
    assert is_rate_limited(refused.json())
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    # Another key's pace is its own.
    other = await http.post(
        f"{server.url}/api/broadcast", json={"event": "news"}, headers={"X-API-Key": "another"}
    )
    assert other.status_code == 200


# Fifty at once, and one every 10 ms: who sends more waits, and is not refused.
BRISK: dict[str, Any] = {"message_rate": 100, "burst_time": 0.5}


@HUBS
async def test_websocket_that_is_too_fast_is_held_back(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, **BRISK, refusals=1))
    async with await opened(server.url) as connection:
        begun = asyncio.get_running_loop().time()
        for number in range(100):
            await connection.send(json.dumps({"type": "echo", "data": number, "id": number}))
        for number in range(100):
            answer = json.loads(await text(connection))
            assert answer == {"type": "ack", "id": number, "data": number}
        assert asyncio.get_running_loop().time() - begun >= 0.4


@HUBS
async def test_plain_frames_that_are_too_fast_are_held_back(kind: type[Hub], serve: Serve) -> None:
    hub = hub_with(kind, **BRISK, refusals=1)
    heard: asyncio.Queue[str] = asyncio.Queue()
    hub.of("/bare", plain=True).on("message", lambda socket, data: heard.put_nowait(data))
    server = await serve(hub)
    async with await opened(server.url, "/ws/bare") as connection:
        for number in range(100):
            await connection.send(str(number))
        async with asyncio.timeout(WAIT):
            assert [await heard.get() for _ in range(100)] == [str(n) for n in range(100)]


@HUBS
async def test_socketio_client_that_is_too_fast_is_held_back(kind: type[Hub], serve: Serve) -> None:
    server = await serve(hub_with(kind, **BRISK, refusals=1))
    connection, _ = await engine_websocket(server.url)
    async with connection:
        for number in range(100):
            await connection.send(f'42{number}["echo",{number}]')
            # Heartbeats count too.
            if number % 10 == 0:
                await connection.send("3")
        for number in range(100):
            assert await text(connection) == f"43{number}[{number}]"


async def test_polling_client_that_is_too_fast_is_held_back(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(hub_with(**BRISK, refusals=1))
    polling = Polling(http, server.url)
    await polling.connect()
    begun = asyncio.get_running_loop().time()
    assert (await polling.post(*(f'42{n}["echo",{n}]' for n in range(100)))).text == "ok"
    assert asyncio.get_running_loop().time() - begun >= 0.4
    assert [await polling.packet() for _ in range(100)] == [f"43{n}[{n}]" for n in range(100)]
    await polling.close()


@HUBS
async def test_posts_that_are_too_fast_are_held_back(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(hub_with(kind, message_rate=20, burst_time=0.05))
    client = EventStreamClient()
    await client.connect(server.url)
    target = f"{server.url}/events/{client.sid}?session={client.session}"
    begun = asyncio.get_running_loop().time()
    for number in range(6):
        response = await http.post(target, json={"type": "echo", "data": number})
        assert response.json() == {"type": "ack", "data": number}
    assert asyncio.get_running_loop().time() - begun >= 0.2
    await client.close()


@HUBS
async def test_posts_at_once_are_refused_where_they_would_wait_for_long(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    server = await serve(hub_with(kind, message_rate=2, burst_time=0.5))
    client = EventStreamClient()
    await client.connect(server.url)
    target = f"{server.url}/events/{client.sid}?session={client.session}"
    posts = [http.post(target, json={"type": "echo", "data": 1}) for _ in range(30)]
    statuses = Counter(response.status_code for response in await asyncio.gather(*posts))
    assert statuses[200] >= 4
    assert statuses[429] == 30 - statuses[200] > 0
    await client.close()


@HUBS
async def test_bytes_that_are_too_fast_are_held_back(kind: type[Hub], serve: Serve) -> None:
    # 5,000 bytes at once and 20,000 a second.
    limits = {"byte_rate": 20_000, "burst_time": 0.25, "refusals": 1}
    server = await serve(hub_with(kind, **limits, message_size=2_000, max_http_buffer_size=2_000))
    begun = asyncio.get_running_loop().time()
    async with await opened(server.url) as connection:
        for number in range(15):
            await connection.send(json.dumps({"type": "echo", "data": TEXT, "id": number}))
        for number in range(15):
            assert json.loads(await text(connection))["id"] == number
    assert asyncio.get_running_loop().time() - begun >= 0.4


@HUBS
@pytest.mark.parametrize("door", ["websocket", "socketio"])
async def test_client_that_is_held_back_does_not_time_out(
    door: str, kind: type[Hub], serve: Serve
) -> None:
    if kind is not Hub:
        pytest.skip("there the server pings")
    hub = hub_with(kind, **BRISK)
    hub.configure(ping_interval=0.5, ping_timeout=1.5)
    server = await serve(hub)
    if door == "websocket":
        connection = await opened(server.url)
        message, answer = '{"type":"echo","data":1,"id":%d}', '{"type":"ack","id":%d,"data":1}'
    else:
        connection, _ = await engine_websocket(server.url)
        message, answer = '42%d["echo",1]', "43%d[1]"
    async with connection:
        # Its pongs come behind these, of which the last are taken after three seconds.
        for number in range(350):
            await connection.send(message % number)
        for number in range(350):
            while (packet := await text(connection)) == "2":
                await connection.send("3")
            assert packet == answer % number


@HUBS
async def test_client_that_is_held_back_for_long_is_a_flood(kind: type[Hub], serve: Serve) -> None:
    hub = hub_with(kind, message_rate=200, burst_time=0.1, flood_time=0.3, refusals=5)
    server = await serve(hub)
    # Nothing is answered: the client reads no queue empty.
    closed = await until_closed(await opened(server.url), '{"type":"echo","data":1}')
    assert closed == (1008, "Rate limit exceeded")
    assert await flood_socketio(server.url) == (1008, "Rate limit exceeded")


async def flood_websocket(url: str) -> tuple[int, str]:
    connection = await opened(url)
    return await until_closed(connection, '{"type":"echo"}')


async def flood_plain(url: str) -> tuple[int, str]:
    return await until_closed(await opened(url, "/ws/plain"), "x")


async def flood_socketio(url: str) -> tuple[int, str]:
    connection, _ = await engine_websocket(url)
    return await until_closed(connection, '42["echo",1]')


async def flood_heartbeats(url: str) -> tuple[int, str]:
    connection, _ = await engine_websocket(url)
    return await until_closed(connection, "3")


async def until_closed(connection: ClientConnection, message: str) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as caught:
        await send_without_end(connection, message)
    close = caught.value.rcvd
    assert close is not None
    return close.code, close.reason


async def send_without_end(connection: ClientConnection, message: str) -> None:
    async with asyncio.timeout(WAIT):
        while True:
            await connection.send(message)
            # Or the client would not get round to reading the close frame.
            await asyncio.sleep(0)


@HUBS
@pytest.mark.parametrize("flood", [flood_websocket, flood_plain, flood_socketio, flood_heartbeats])
async def test_flood_is_closed_with_1008(
    flood: Callable[[str], Awaitable[tuple[int, str]]], kind: type[Hub], serve: Serve
) -> None:
    hub = hub_with(kind, **SLOW, refusals=5)
    server = await serve(hub)
    start = census(hub)
    assert await flood(server.url) == (1008, "Rate limit exceeded")
    await returns_to(start, lambda: census(hub))
    assert hub.status()["evictions"]["rate_limited"] == 1


@HUBS
async def test_flood_of_bytes_is_closed_with_1008(kind: type[Hub], serve: Serve) -> None:
    hub = hub_with(kind, **HEAVY, refusals=5)
    server = await serve(hub)
    start = census(hub)
    closed = await until_closed(await opened(server.url), json.dumps({"type": "x", "data": TEXT}))
    assert closed == (1008, "Rate limit exceeded")
    await returns_to(start, lambda: census(hub))


@HUBS
async def test_flooded_stream_is_told_and_ended(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = hub_with(kind, **SLOW, refusals=5)
    server = await serve(hub)
    async with http.stream("GET", f"{server.url}/events") as stream:
        lines = stream.aiter_lines()
        async for line in lines:
            if line.startswith("data:"):
                welcome = json.loads(line[5:])
                break
        target = f"{server.url}/events/{welcome['sid']}?session={welcome['session']}"
        statuses = [
            (await http.post(target, json={"type": "echo", "data": 1})).status_code
            for _ in range(8)
        ]
        assert statuses == [200, 200, 429, 429, 429, 429, 429, 404]
        async with asyncio.timeout(WAIT):
            rest = [line async for line in lines]
    assert "event: error" in rest
    assert is_rate_limited(json.loads(rest[rest.index("event: error") + 1][5:]))


async def test_flooded_polling_session_is_told_and_ended(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = hub_with(**SLOW, refusals=5)
    server = await serve(hub)
    polling = Polling(http, server.url)
    await polling.connect()
    await polling.post(*['42["echo",1]'] * 50)
    packets = (await polling.poll()).text.split(SEPARATOR)
    assert len(packets) == 5
    assert all(is_rate_limited(json.loads(packet[2:])[1]) for packet in packets)
    assert (await polling.poll()).text == "1"
    assert (await polling.poll()).status_code == 400


async def test_pace_within_the_limit_is_never_refused(serve: Serve) -> None:
    server = await serve(hub_with(message_rate=1_000_000))
    async with await opened(server.url) as connection:
        for number in range(5_000):
            await connection.send(json.dumps({"type": "echo", "data": number, "id": number}))
        for number in range(5_000):
            assert json.loads(await text(connection)) == {
                "type": "ack",
                "id": number,
                "data": number,
            }


async def test_without_a_limit_nothing_is_metered(serve: Serve) -> None:
    hub = hub_with(message_rate=0, byte_rate=0)
    server = await serve(hub)
    async with await opened(server.url):
        assert hub._routes._websockets is not None
        assert [each.meter for each in hub._routes._websockets._connections] == [None]


# --- Connections -----------------------------------------------------------------------------


async def open_websocket(url: str, stack: AsyncExitStack) -> dict[str, Any]:
    connection = await stack.enter_async_context(await connect(websocket_url(url), proxy=None))
    first: dict[str, Any] = json.loads(await text(connection))
    if first["type"] == "error":
        first["close"] = await close_code(connection), connection.close_reason
    return first


async def open_socketio(url: str, stack: AsyncExitStack) -> dict[str, Any]:
    connection = await stack.enter_async_context(await connect(engine_url(url), proxy=None))
    try:
        await text(connection)
    except ConnectionClosed:
        return {"close": (connection.close_code, connection.close_reason)}
    return {}


async def open_polling(url: str, stack: AsyncExitStack) -> dict[str, Any]:
    http = await stack.enter_async_context(
        httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False)
    )
    polling = Polling(http, url)
    response = await polling.poll()
    if response.status_code == 200:
        stack.push_async_callback(polling.close)
        return {}
    return {**response.json(), "status": response.status_code}


async def open_stream(url: str, stack: AsyncExitStack) -> dict[str, Any]:
    http = await stack.enter_async_context(
        httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False)
    )
    response = await stack.enter_async_context(http.stream("GET", f"{url}/events"))
    if response.status_code == 200:
        return {}
    return {**json.loads(await response.aread()), "status": response.status_code}


DOORS = pytest.mark.parametrize(
    "door",
    [open_websocket, open_socketio, open_polling, open_stream],
    ids=["websocket", "socketio", "polling", "sse"],
)
Door = Callable[[str, AsyncExitStack], Awaitable[dict[str, Any]]]


@HUBS
@DOORS
@pytest.mark.parametrize(
    ("limit", "scope", "status", "code"),
    [("connections", "server", 503, 1013), ("connections_per_address", "address", 429, 1008)],
)
async def test_connection_too_many_is_refused(
    limit: str, scope: str, status: int, code: int, door: Door, kind: type[Hub], serve: Serve
) -> None:
    hub = hub_with(kind, **{limit: 2})
    server = await serve(hub)
    start = census(hub)
    async with AsyncExitStack() as stack:
        # Over whichever door they came.
        await open_stream(server.url, stack)
        await open_websocket(server.url, stack)
        refused = await door(server.url, stack)
        if "error" in refused:
            assert refused["code"] == "too_many_connections"
            assert refused["error"] == "Too many connections"
            assert (refused["scope"], refused["max"]) == (scope, 2)
        if "status" in refused:
            assert refused["status"] == status
        else:
            assert refused["close"] == (code, "Too many connections")
        assert hub._core.quotas.slots.taken == 2
    # As many may come again when those have gone.
    await returns_to(start, lambda: census(hub))
    async with AsyncExitStack() as stack:
        assert "close" not in await door(server.url, stack)
        assert "status" not in await door(server.url, stack)


@HUBS
async def test_refused_clients_hold_no_slot(kind: type[Hub], serve: Serve) -> None:
    hub = hub_with(kind, connections_per_address=1)
    server = await serve(hub)
    for path in ("/ws/nope", "/ws?session=short"):
        with pytest.raises(InvalidStatus):
            await connect(websocket_url(server.url, path), proxy=None)
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        assert (await http.get(f"{server.url}/events/nope")).status_code == 404
        polling = Polling(http, server.url)
        await polling.open()
        await polling.post("1")
    async with await opened(server.url):
        assert hub._core.quotas.slots.taken == 1


async def test_upgrade_of_a_session_takes_no_second_slot(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = hub_with(connections_per_address=1)
    server = await serve(hub)
    start = census(hub)
    polling = Polling(http, server.url)
    await polling.connect()
    url = engine_url(server.url, sid=polling.params["sid"])
    async with connect(url, proxy=None) as connection:
        await connection.send("2probe")
        assert await text(connection) == "3probe"
        await connection.send("5")
        await connection.send('420["echo",1]')
        assert await text(connection) == "430[1]"
        assert hub._core.quotas.slots.taken == 1
    await returns_to(start, lambda: census(hub))


# --- Rooms and time --------------------------------------------------------------------------


async def test_request_for_too_many_rooms_is_refused(serve: Serve, http: httpx.AsyncClient) -> None:
    server = await serve(hub_with(subscriptions=100))
    allowed = "&".join(f"room=r{number}" for number in range(100))
    async with http.stream("GET", f"{server.url}/events?{allowed}") as stream:
        assert stream.status_code == 200
    connection = await opened(server.url, f"/ws?{allowed}")
    await connection.close()
    for extra in ("&room=more", "&room=more&room=and-more"):
        response = await http.get(f"{server.url}/events?{allowed}{extra}")
        assert response.status_code in (400, 403)
        with pytest.raises(InvalidStatus) as caught:
            await connect(websocket_url(server.url, f"/ws?{allowed}{extra}"), proxy=None)
        body = json.loads(caught.value.response.body or b"")
        assert body == response.json()
        assert body["code"] in ("too_many_subscriptions", "invalid_request")


@HUBS
async def test_connect_middleware_that_takes_too_long_is_given_up(
    kind: type[Hub], serve: Serve, http: httpx.AsyncClient
) -> None:
    hub = hub_with(kind, handshake_time=0.5)
    started = asyncio.Queue[str]()
    gate = asyncio.Event()

    @hub.of("/slow").use
    async def slow(socket: Socket) -> None:
        started.put_nowait(socket.transport)
        await gate.wait()

    server = await serve(hub)
    start = census(hub)
    with pytest.raises(InvalidStatus) as caught:
        await connect(websocket_url(server.url, "/ws/slow"), proxy=None)
    assert caught.value.response.status_code == 503
    response = await http.get(f"{server.url}/events/slow")
    assert response.status_code == 503
    for body in (caught.value.response.body or b"", response.content):
        assert json.loads(body)["code"] == "handshake_timeout"
    connection, _ = await engine_websocket(server.url)
    async with connection:
        await connection.send("40/slow,")
        assert (await text(connection)).startswith('44/slow,{"message":"Handshake timed out"')
    assert started.qsize() == 3
    await returns_to(start, lambda: census(hub))


@pytest.mark.parametrize("door", ["websocket", "socketio", "attachments"])
@HUBS
async def test_inbox_is_bounded_in_bytes(kind: type[Hub], door: str, serve: Serve) -> None:
    hub = kind(limits=Limits(inbox_size=10_000))
    gate, done = asyncio.Event(), asyncio.Event()
    waited: list[int] = []

    @hub.on("wait")
    async def wait(socket: Socket, data: Any) -> None:
        await gate.wait()
        waited.append(socket.waiting)
        if len(waited) == 100:
            done.set()

    server = await serve(hub)
    async with AsyncExitStack() as stack:
        messages: list[str | bytes]
        if door == "websocket":
            client = await opened(server.url)
            messages = ['{"type":"wait","data":"%s"}' % ("x" * 4_000)]
        else:
            client, _ = await engine_websocket(server.url)
            messages = ['42["wait","%s"]' % ("x" * 4_000)]
            if door == "attachments":
                messages = ['451-["wait",{"_placeholder":true,"num":0}]', b"x" * 4_000]
        stack.push_async_callback(client.close)

        async def send() -> None:
            for message in messages * 100:
                await client.send(message)

        sending = asyncio.create_task(send())
        # The first waits in its handler, and three are more than 10,000 bytes.
        await returns_to(
            Counter(waiting=3),
            lambda: Counter(waiting=sum(socket.waiting for socket in hub.sockets.values())),
        )
        gate.set()
        async with asyncio.timeout(WAIT):
            await done.wait()
            await sending
    assert max(waited) <= 3
