"""Requests and WebSockets that reach a node which has not got their client, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crossband import Hub, MemoryBroker, Socket
from crossband.server import Server
from crossband.transports import exchanges, forwarding
from crossband.transports.engineio import packets, relay
from tests.clients import raw
from tests.clients.base import WAIT
from tests.clients.raw import Polling, answer_of, close_code, dialled, engine_url, text
from tests.conftest import Serve
from tests.far import Engine, FarBroker
from tests.waiting import until

UNKNOWN = {"code": 1, "message": "Session ID unknown"}


class Nodes:
    """Two nodes: clients are at the first and ask the second."""

    def __init__(self, hubs: list[Hub], servers: list[Server]) -> None:
        self.hubs = hubs
        self.servers = servers
        self.own, self.other = (server.url for server in servers)
        # Why clients left, at any node.
        self.left: list[str] = []
        for hub in hubs:
            hub.on("disconnect", self._note)

    def _note(self, socket: Socket, reason: str) -> None:
        self.left.append(reason)

    def here(self) -> Socket:
        """Return the first node's only client."""
        (socket,) = self.hubs[0].sockets.values()
        return socket


async def start(serve: Serve, **settings: Any) -> Nodes:
    memory = MemoryBroker()
    return await start_on(serve, [memory, memory.peer()], **settings)


async def start_on(serve: Serve, brokers: list[Any], **settings: Any) -> Nodes:
    hubs, servers = [], []
    for broker in brokers:
        hub = Hub(broker, **settings)

        @hub.on("echo")
        async def echo(socket: Socket, data: Any) -> Any:
            return data

        @hub.on("size")
        async def size(socket: Socket, data: str) -> int:
            return len(data)

        hubs.append(hub)
        servers.append(await serve(hub))
    return Nodes(hubs, servers)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as client:
        yield client


@pytest.fixture(autouse=True)
def quick_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no client wait for an upgrade that it does not ask for."""
    monkeypatch.setattr(packets, "HOLD_TIME", 0.0)


async def joined(nodes: Nodes, http: httpx.AsyncClient) -> Polling:
    """Return a polling client of the first node that goes on at the second."""
    client = Polling(http, nodes.own)
    await client.connect()
    client.move(nodes.other)
    return client


async def next_of(client: Polling) -> str:
    """Return the next packet that is neither a ping nor a noop."""
    while (packet := await client.packet()) in ("2", "6"):
        pass
    return packet


# Requests.


async def test_answers_are_those_of_the_session_s_node(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve, cors_origins=["https://page.test"])
    client = await joined(nodes, http)
    client.headers = {"Origin": "https://page.test"}
    response = await client.post('420["echo","hé"]')
    assert (response.status_code, response.text) == (200, "ok")
    assert response.headers["content-type"] == "text/html"
    assert response.headers["access-control-allow-origin"] == "https://page.test"
    response = await client.poll()
    assert response.text == '430["hé"]'
    assert response.headers["content-type"] == "text/plain; charset=UTF-8"
    assert response.headers["cache-control"] == "no-store"
    client.headers = {"Origin": "https://elsewhere.test"}
    assert (await client.poll()).status_code == 403
    client.headers = {}
    response = await client.post("9")
    assert response.status_code == 400
    assert response.json()["code"] == 3
    assert "reason" in response.json()
    assert (await client.poll()).json() == UNKNOWN


async def test_waiting_poll_is_answered_when_there_is_something(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    poll = await client.pending_poll()
    await nodes.hubs[1].emit("news", 1)
    assert '42["news",1,' in (await poll).text


async def test_two_polls_at_once_end_the_session_wherever_they_are(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    connection: Any = nodes.here().connection
    poll = await client.pending_poll()
    await until(lambda: not connection.polling.busy)
    client.move(nodes.own)
    response = await client.poll()
    assert (response.status_code, response.json()["reason"]) == (400, "two polls at once")
    assert (await poll).text == "1"
    await until(lambda: nodes.left == ["transport error"])


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_body_that_is_too_large_is_refused_and_ends_the_session(
    chunked: bool, serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    body = b'42["size","' + b"x" * 1_000_000 + b'"]'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    response = await http.post(
        f"{nodes.other}/socket.io/", params=client.params, content=pieces() if chunked else body
    )
    assert response.status_code == 413
    assert response.json()["maxSize"] == 1_000_000
    await until(lambda: nodes.left == ["parse error"])


async def test_large_bodies_pass_both_ways_in_parts(serve: Serve, http: httpx.AsyncClient) -> None:
    nodes = await start(
        serve,
        limits={"max_http_buffer_size": 8_000_000, "outbox": 8_000_000, "byte_rate": 0},
    )
    client = await joined(nodes, http)
    for size in (65_000, 66_000, 3_500_000):
        data = "é" * size
        assert (await client.post(f'420["size","{data}"]')).text == "ok"
        assert await next_of(client) == f"430[{size}]"
        assert (await client.post(f'420["echo","{data}"]')).text == "ok"
        assert await next_of(client) == f'430["{data}"]'


async def test_client_that_hangs_up_in_its_poll_has_left(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    connection: Any = nodes.here().connection
    poll = await client.pending_poll()
    await until(lambda: not connection.polling.busy)
    poll.cancel()
    await until(lambda: nodes.left == ["transport error"])


async def test_client_that_hangs_up_in_its_body_has_left(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    begun = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'42["size","'
        begun.set()
        await asyncio.Event().wait()

    url = f"{nodes.other}/socket.io/"
    post = asyncio.create_task(http.post(url, params=client.params, content=body()))
    await begun.wait()
    connection: Any = nodes.here().connection
    await until(lambda: connection.polling.posting)
    post.cancel()
    await until(lambda: nodes.left == ["transport error"])


async def test_body_that_takes_too_long_is_given_up(serve: Serve, http: httpx.AsyncClient) -> None:
    nodes = await start(serve, limits={"body_time": 0.1})
    for size in (100, 100_000):
        client = await joined(nodes, http)
        path = httpx.URL("/socket.io/", params=client.params)
        async with dialled(nodes.other) as tcp:
            tcp.send(raw.http(str(path), f"Content-Length: {size}", method="POST") + b"4")
            status, _, content = await tcp.answer()
        assert (status, json.loads(content)["code"]) == (408, "request_timeout")
        await until(lambda: nodes.left == ["parse error"])
        nodes.left.clear()


async def test_sid_of_a_node_that_has_gone_is_unknown_at_once(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    poll = await client.pending_poll()
    connection: Any = nodes.here().connection
    await until(lambda: not connection.polling.busy)
    # With the bus, not with its sessions: as a process that is killed.
    await nodes.hubs[0].broker.bus.stop()
    response = await poll
    assert (response.status_code, response.json()) == (400, UNKNOWN)
    response = await client.post("3")
    assert (response.status_code, response.json()) == (400, UNKNOWN)
    with pytest.raises(InvalidStatus) as refusal:
        await connect(engine_url(nodes.other, sid=client.params["sid"]), proxy=None)
    assert refusal.value.response.status_code == 400


async def test_poll_at_a_node_that_stops_is_answered_and_the_session_goes_on(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve, drain_time=0.0)
    client = await joined(nodes, http)
    poll = await client.pending_poll()
    connection: Any = nodes.here().connection
    await until(lambda: not connection.polling.busy)
    await nodes.hubs[1].stop()
    assert (await poll).text == "6"
    client.move(nodes.own)
    await client.post('420["echo",1]')
    assert await next_of(client) == "430[1]"


async def test_poll_of_a_stopping_session_s_node_is_told(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve, drain_time=0.0)
    client = await joined(nodes, http)
    poll = await client.pending_poll()
    connection: Any = nodes.here().connection
    await until(lambda: not connection.polling.busy)
    stopping = asyncio.create_task(nodes.hubs[0].stop())
    packets = [(await poll).text]
    while not packets[-1].endswith("1"):
        packets.append((await client.poll()).text)
    assert '"server:shutdown"' in packets[0]
    await stopping


async def test_poll_that_is_repeated_since_its_answer_was_lost_ends_the_session(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "DELIVERY_TIME", 0.1)
    nodes = await start(serve)
    client = await joined(nodes, http)
    poll = await client.pending_poll()
    connection: Any = nodes.here().connection
    await until(lambda: not connection.polling.busy)
    # The other node dies after it has got the answer, so it never says that it passed it on.
    Lossy(nodes.hubs[1], monkeypatch).loses = True
    await nodes.hubs[0].emit("news", 1)
    await poll
    client.move(nodes.own)
    response = await client.poll()
    assert (response.status_code, response.json()) == (400, UNKNOWN)
    await until(lambda: nodes.left == ["transport error"])


# Upgrades.


async def upgrade(nodes: Nodes, client: Polling) -> ClientConnection:
    """Ask the second node for an upgrade, up to its last packet."""
    url = engine_url(nodes.other, sid=client.params["sid"])
    websocket = await connect(url, proxy=None, compression=None)
    await websocket.send("2probe")
    assert await text(websocket) == "3probe"
    return websocket


async def test_session_moves_to_its_websocket_before_it_begins(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "HOLD_TIME", 600.0)
    nodes = await start(serve)
    client = Polling(http, nodes.own)
    client.headers = {"X-First": "yes"}
    await client.open()
    client.move(nodes.other)
    # The request shows that requests are spread: so it waits.
    assert (await client.post("40")).text == "ok"
    poll = await client.pending_poll()
    websocket = await upgrade(nodes, client)
    assert (await poll).text == "6"
    await websocket.send("5")
    sid = answer_of(await text(websocket))["sid"]
    (socket,) = nodes.hubs[1].sockets.values()
    assert (socket.id, socket.transport) == (sid, "websocket")
    assert socket.handshake.headers["x-first"] == "yes"
    assert not nodes.hubs[0].sockets
    for frame in ('420["echo",1]', '421["echo",2]'):
        await websocket.send(frame)
    assert [await text(websocket) for _ in range(2)] == ["430[1]", "431[2]"]
    for url in (nodes.own, nodes.other):
        client.move(url)
        assert (await client.poll()).status_code == 400
    await websocket.close()
    await until(lambda: nodes.left == ["transport close"])


async def relayed(nodes: Nodes, http: httpx.AsyncClient) -> ClientConnection:
    """Return the WebSocket at the second node of a session that began at the first."""
    client = await joined(nodes, http)
    websocket = await upgrade(nodes, client)
    await websocket.send("5")
    await until(lambda: nodes.here().transport == "websocket")
    return websocket


async def test_session_that_has_begun_is_relayed(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PIECE", 1_000)
    nodes = await start(serve)
    websocket = await relayed(nodes, http)
    blob = bytes(range(256)) * 20
    for number in range(50):
        await websocket.send(f'42{number}["echo","{"é" * number * 100}"]')
        await websocket.send(f'451-9{number}["echo",{{"_placeholder":true,"num":0}}]')
        await websocket.send(blob)
    for number in range(50):
        assert await text(websocket) == f'43{number}["{"é" * number * 100}"]'
        assert await text(websocket) == f'461-9{number}[{{"_placeholder":true,"num":0}}]'
        assert await websocket.recv() == blob
    await nodes.hubs[1].emit("news", 1)
    assert (await text(websocket)).startswith('42["news",1,')
    await websocket.close()
    await until(lambda: nodes.left == ["transport close"])
    assert not nodes.hubs[0].sockets


async def test_relayed_client_is_closed_by_its_session(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    websocket = await relayed(nodes, http)
    await websocket.send("9")
    assert await close_code(websocket) == 1002
    await until(lambda: nodes.left == ["parse error"])


async def test_relayed_message_that_is_too_large_ends_the_session(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    websocket = await relayed(nodes, http)
    await websocket.send("4" + "x" * 1_000_001)
    assert await close_code(websocket) == 1009
    await until(lambda: nodes.left == ["parse error"])


async def test_relayed_client_that_reads_nothing_is_slow(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve, limits={"outbox": 65_536})
    websocket = await relayed(nodes, http)
    websocket.transport.pause_reading()
    while not nodes.left:
        await nodes.hubs[1].emit("flood", "x" * 20_000)
        await asyncio.sleep(0)
    assert nodes.hubs[0]._core.traffic.evictions["slow_client"] == 1
    websocket.transport.resume_reading()
    async with asyncio.timeout(WAIT):
        with contextlib.suppress(ConnectionClosed):
            async for _ in websocket:
                pass


async def test_relayed_flood_is_held_back_and_all_of_it_arrives(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve, limits={"inbox": 2})
    count = 0

    @nodes.hubs[0].on("slow")
    async def slow(socket: Socket, number: int) -> None:
        nonlocal count
        assert number == count
        await asyncio.sleep(0)
        count += 1

    websocket = await relayed(nodes, http)
    for number in range(2_000):
        await websocket.send(f'42["slow",{number}]')
    await until(lambda: count == 2_000)


@pytest.mark.parametrize("dead", [0, 1], ids=["of the session", "of the websocket"])
async def test_relay_ends_with_either_node(
    dead: int, serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    websocket = await relayed(nodes, http)
    await nodes.hubs[dead].broker.bus.stop()
    if dead:
        await until(lambda: nodes.left == ["transport close"])
    else:
        assert await close_code(websocket) == 1001


async def test_second_upgrade_is_turned_away(serve: Serve, http: httpx.AsyncClient) -> None:
    nodes = await start(serve)
    client = await joined(nodes, http)
    first = await upgrade(nodes, client)
    second = await connect(engine_url(nodes.other, sid=client.params["sid"]), proxy=None)
    with pytest.raises(ConnectionClosed):
        await text(second)
    assert second.close_code == 1002
    await first.send("5")
    await first.send('420["echo",1]')
    assert await text(first) == "430[1]"


async def test_upgrade_that_fails_leaves_the_session_with_polling(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "HOLD_TIME", 600.0)
    monkeypatch.setattr("crossband.transports.engineio.elsewhere.UPGRADE_HOLD_TIME", 600.0)
    nodes = await start(serve)
    client = Polling(http, nodes.own)
    await client.open()
    client.move(nodes.other)
    await client.post("40")
    websocket = await upgrade(nodes, client)
    await websocket.close()
    # It waited for the upgrade, and no longer does.
    answer_of(await next_of(client))
    await client.post('420["echo",1]')
    assert await next_of(client) == "430[1]"


async def test_session_that_moves_takes_a_slot_there(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "HOLD_TIME", 600.0)
    nodes = await start(serve, limits={"connections_per_address": 1})
    for _ in range(2):
        client = Polling(http, nodes.own)
        await client.open()
        client.move(nodes.other)
        await client.post("40")
        websocket = await upgrade(nodes, client)
        await websocket.send("5")
        if nodes.hubs[1].sockets:
            # The first node had room again, the second has none.
            assert await close_code(websocket) == 1008
        else:
            answer_of(await text(websocket))
    slots = [hub._core.quotas.slots.taken for hub in nodes.hubs]
    assert slots == [0, 1]


# Waiting for an upgrade.


async def test_nobody_waits_where_requests_reach_their_own_node(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "HOLD_TIME", 600.0)
    nodes = await start(serve)
    await Polling(http, nodes.own).connect()
    # Even if others do not, their upgrade ends it.
    nodes.hubs[0]._routes._engine.registry.note_spread()
    client = Polling(http, nodes.own)
    await client.open()
    await client.post("40")
    websocket = await connect(engine_url(nodes.own, sid=client.params["sid"]), proxy=None)
    answer_of(await next_of(client))
    await websocket.close()


# Messages that are lost.


class Lossy:
    """Loses what a node sends, while it is told to."""

    def __init__(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loses = False
        self.lost = 0
        send = hub.broker.bus.send

        def maybe(frame: bytes, to: str | None) -> None:
            if self.loses:
                self.lost += 1
            else:
                send(frame, to)

        monkeypatch.setattr(hub.broker.bus, "send", maybe)


@pytest.mark.parametrize("lossy", [0, 1], ids=["answer", "question"])
async def test_request_that_is_lost_between_nodes_is_given_up(
    lossy: int, serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "CHECK_TIME", 0.05)
    nodes = await start(serve)
    client = await joined(nodes, http)
    link = Lossy(nodes.hubs[lossy], monkeypatch)
    connection: Any = nodes.here().connection
    if lossy:
        link.loses = True
        poll = await client.pending_poll()
    else:
        poll = await client.pending_poll()
        await until(lambda: not connection.polling.busy)
        link.loses = True
        await nodes.hubs[0].emit("news", 1)
    await until(lambda: link.lost)
    link.loses = False
    response = await poll
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


async def test_request_to_a_node_that_is_silent_is_given_up(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "CHECK_TIME", 0.05)
    monkeypatch.setattr(exchanges, "SILENCE", 0.1)
    nodes = await start(serve)
    client = await joined(nodes, http)
    Lossy(nodes.hubs[0], monkeypatch).loses = True
    response = await client.poll()
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


async def test_node_that_reaches_nobody_says_so_at_once(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    engine = Engine(MemoryBroker(), seed=3)
    brokers = [engine.node(), engine.node()]
    nodes = await start_on(serve, brokers)
    client = await joined(nodes, http)
    brokers[1].cut(600.0)
    response = await client.poll()
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    brokers[1]._reconnect()


@pytest.mark.parametrize("lossy", [0, 1], ids=["down", "up"])
@pytest.mark.parametrize("more", [False, True], ids=["the last", "not the last"])
async def test_relay_of_which_a_message_is_lost_ends(
    lossy: int,
    more: bool,
    serve: Serve,
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchanges, "CHECK_TIME", 600.0 if more else 0.05)
    nodes = await start(serve)
    websocket = await relayed(nodes, http)
    link = Lossy(nodes.hubs[lossy], monkeypatch)
    link.loses = True
    if lossy:
        await websocket.send('42["echo",1]')
    else:
        await nodes.hubs[0].emit("news", 1)
    await until(lambda: link.lost)
    link.loses = False
    if more:
        if lossy:
            await websocket.send('42["echo",1]')
        else:
            await nodes.hubs[0].emit("news", 2)
    assert await close_code(websocket) == 1001
    await until(lambda: nodes.left == ["transport close"])


# The back-channel of event streams.


class Stream:
    """An event stream of the first node, whose client posts to any."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.sid = self.session = ""

    async def open(self, response: httpx.Response) -> None:
        # Kept: where it is dropped, the stream ends.
        self._lines = response.aiter_lines()
        while not (line := await anext(self._lines)).startswith("data:"):
            pass
        welcome = json.loads(line.removeprefix("data:"))
        self.sid, self.session = welcome["sid"], welcome["session"]

    async def post(self, url: str, content: Any, **headers: str) -> httpx.Response:
        return await self._http.post(
            f"{url}/events/{self.sid}",
            content=content,
            headers={"X-Crossband-Session": self.session, **headers},
        )


async def test_post_of_a_stream_s_client_reaches_any_node(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve, cors_origins=["https://page.test"])
    stream = Stream(http)
    async with http.stream("GET", f"{nodes.own}/events") as response:
        await stream.open(response)
        for url in (nodes.other, nodes.own, nodes.other):
            answer = await stream.post(
                url, b'{"type":"echo","data":"h","id":7}', Origin="https://page.test"
            )
            assert answer.status_code == 200
            assert answer.json() == {"type": "ack", "id": 7, "data": "h"}
            assert answer.headers["access-control-allow-origin"] == "https://page.test"
        assert (await stream.post(nodes.other, b"no json")).json()["code"] == "invalid_message"
        assert (await stream.post(nodes.other, b"x" * 70_000)).status_code == 413
        session, stream.session = stream.session, "wrong"
        assert (await stream.post(nodes.other, b"{}")).status_code == 401
        stream.session = session
    await until(lambda: len(nodes.left) == 1)
    answer = await stream.post(nodes.other, b'{"type":"echo","data":1}')
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_client")
    stream.sid = "nobody"
    assert (await stream.post(nodes.other, b"{}")).status_code == 404


async def test_post_follows_a_stream_that_changes_its_node(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    nodes = await start(serve)
    stream = Stream(http)
    async with http.stream("GET", f"{nodes.own}/events") as response:
        await stream.open(response)
        answer = await stream.post(nodes.other, b'{"type":"echo","data":1}')
        assert answer.status_code == 200
    async with http.stream(
        "GET", f"{nodes.other}/events", params={"session": stream.session}
    ) as response:
        await stream.open(response)
        for url in (nodes.own, nodes.other):
            assert (await stream.post(url, b'{"type":"echo","data":1}')).status_code == 200


async def test_post_is_refused_where_its_node_does_not_answer(
    serve: Serve, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "CHECK_TIME", 0.05)
    nodes = await start(serve)
    stream = Stream(http)
    async with http.stream("GET", f"{nodes.own}/events") as response:
        await stream.open(response)
        assert (await stream.post(nodes.other, b'{"type":"echo","data":1}')).status_code == 200
        link = Lossy(nodes.hubs[1], monkeypatch)
        link.loses = True
        posting = asyncio.create_task(stream.post(nodes.other, b'{"type":"echo","data":1}'))
        await until(lambda: link.lost)
        link.loses = False
        answer = await posting
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_client_of_a_killed_node_is_unknown_to_the_others(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    engine = Engine(MemoryBroker(), seed=3)
    brokers = [engine.node(), engine.node()]
    nodes = await start_on(serve, brokers)
    client = await joined(nodes, http)
    killed: FarBroker = brokers[0]
    await killed.kill()
    response = await client.poll()
    assert (response.status_code, response.json()) == (400, UNKNOWN)
