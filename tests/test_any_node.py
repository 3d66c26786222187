"""No sticky sessions: each request of a client goes to another node, and official clients work.

In memory, over a broker elsewhere, which is late and drops its connections, and over Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crossband import Hub, MemoryBroker, Socket
from crossband.broker import Broker
from crossband.broker.redis import RedisBroker
from crossband.names import new_id
from tests.clients import CLIENTS, NewClient
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import shared
from tests.far import Engine
from tests.front import Spread
from tests.waiting import until

NODES = 3
# Events, by broker: where each takes its time, fewer show the same.
COUNTS = {"memory": 200, "elsewhere": 200, "redis": 1_000}
BLOB = bytes(range(256)) * 4


def brokers_of(kind: str) -> list[Broker]:
    if kind == "memory":
        memory = MemoryBroker()
        return [memory, *(memory.peer() for _ in range(NODES - 1))]
    if kind == "redis":
        url = f"{shared().url}?prefix={new_id()}"
        return [RedisBroker(url) for _ in range(NODES)]
    engine = Engine(MemoryBroker(), seed=11)
    return [engine.node() for _ in range(NODES)]


class Site:
    """Three nodes behind one address."""

    def __init__(self, front: Spread, hubs: list[Hub], numbers: list[int], count: int) -> None:
        # How many events a client sends, or is sent.
        self.count = count
        self.front = front
        self.hubs = hubs
        # What clients sent as "number".
        self.numbers = numbers

    @property
    def url(self) -> str:
        return self.front.url


@pytest.fixture(params=["memory", "elsewhere", "redis"])
async def site(request: pytest.FixtureRequest, serve: Serve) -> AsyncIterator[Site]:
    hubs, urls = [], []
    numbers: list[int] = []
    for broker in brokers_of(request.param):
        hub = make_hub(broker, numbers)
        hubs.append(hub)
        urls.append((await serve(hub)).url)
    async with Spread(urls) as front:
        yield Site(front, hubs, numbers, COUNTS[request.param])
        # All clients are closed: nothing is left of what the nodes did together.
        await until(lambda: not any(map(under_way, hubs)))


def under_way(hub: Hub) -> list[object]:
    """Return the exchanges of a node with others."""
    exchanges = hub._routes._exchanges
    return [*exchanges._begun.values(), *exchanges._taken.values()]


def make_hub(broker: Broker, numbers: list[int]) -> Hub:
    hub = Hub(broker)

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("all")

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("number")
    async def number(socket: Socket, number: int) -> None:
        numbers.append(number)

    @hub.on("ask back")
    async def ask_back(socket: Socket, data: Any) -> Any:
        return await socket.timeout(WAIT).emit_with_ack("question", data)

    return hub


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_every_client_works_through_any_node(
    kind: str, site: Site, new_client: NewClient
) -> None:
    client = new_client(kind)
    await client.connect(site.url)
    client.answer("question", lambda data: data)
    for text in ("hé", "x" * 50_000):
        assert await client.call("echo", text) == text
        assert await client.call("ask back", text) == text
    if client.binary:
        assert await client.call("echo", BLOB) == BLOB
        assert await client.call("ask back", BLOB) == BLOB
    await client.settled()
    for hub in site.hubs:
        await hub.to("all").emit("news", "from a node")
        assert (await client.next_event("news")).data == "from a node"
    assert await client.call("echo", 1) == 1
    assert sum(len(hub.sockets) for hub in site.hubs) == 1
    # Requests did go to all.
    assert "polling" not in kind or all(site.front.counts)


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_events_of_one_client_stay_in_order(
    kind: str, site: Site, new_client: NewClient
) -> None:
    client = new_client(kind)
    await client.connect(site.url)
    for number in range(site.count):
        await client.emit("number", number)
    await until(lambda: len(site.numbers) == site.count)
    assert site.numbers == [*range(site.count)]


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_events_for_one_client_stay_in_order(
    kind: str, site: Site, new_client: NewClient
) -> None:
    client = new_client(kind)
    await client.connect(site.url)

    async def publish() -> None:
        for number in range(site.count):
            await site.hubs[number % NODES].to("all").emit("number", number)

    publishing = asyncio.create_task(publish())
    heard = 0
    while heard < site.count:
        event = asyncio.ensure_future(client.next_event("number"))
        gone = asyncio.ensure_future(client.gone.wait())
        await asyncio.wait([event, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if event.done():
            assert event.result().data == heard
            heard += 1
        else:
            # A message between nodes was lost.
            event.cancel()
            await client.resume()
            assert client.recovered or not client.tells_recovered
    await publishing
    await client.settled()


@pytest.mark.node
@pytest.mark.parametrize("kind", ["socket.io-client upgrading", "python-socketio"])
async def test_session_moves_to_the_node_of_its_websocket(
    kind: str, site: Site, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is.
    monkeypatch.setattr("crossband.transports.engineio.packets.HOLD_TIME", 600.0)
    monkeypatch.setattr("crossband.transports.engineio.elsewhere.UPGRADE_HOLD_TIME", 600.0)
    for _ in range(2 * NODES):
        client = new_client(kind)
        await client.connect(site.url)
        await client.settled()
        assert await client.call("echo", "here") == "here"
    sockets = [socket for hub in site.hubs for socket in hub.sockets.values()]
    assert {socket.transport for socket in sockets} == {"websocket"}
    # None of them is relayed.
    await until(lambda: not any(map(under_way, site.hubs)))
