"""Two hubs that share a broker are one hub to their clients and to the application.

In memory, and over a broker elsewhere, which is late and drops its connections.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import re
import threading
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import httpx
import msgspec
import pytest

from crossband import (
    AckTimeout,
    BrokerUnavailable,
    Disconnected,
    EncodeError,
    EventError,
    Hub,
    Identity,
    MemoryBroker,
    Publication,
    RemoteSocket,
    Session,
    Socket,
)
from crossband.broker import Broker
from crossband.broker.redis import RedisBroker
from crossband.hub.messages import Choice, Departing, Fetch, encode
from crossband.names import new_id
from tests.clients import (
    Client,
    EventFailed,
    NewClient,
    NodeRunner,
    Refused,
    WebSocketClient,
)
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import Engine as Redis
from tests.engines import shared
from tests.far import Engine, FarBroker
from tests.front import Front
from tests.targets import NodeTarget
from tests.waiting import until


def brokers_of(kind: str) -> list[Broker]:
    if kind == "memory":
        memory = MemoryBroker()
        return [memory, memory.peer()]
    if kind == "redis":
        # Each test has keys of its own.
        url = f"{shared().url}?prefix={new_id()}"
        return [RedisBroker(url), RedisBroker(url)]
    engine = Engine(MemoryBroker(), seed=7)
    return [engine.node(), engine.node()]


class Nodes:
    """Two served hubs with the same handlers."""

    def __init__(self, serve: Serve, kind: str) -> None:
        self._serve = serve
        self.brokers: Sequence[Broker] = brokers_of(kind)
        self.hubs: list[Hub] = []
        self.urls: list[str] = []

    async def start(self, prepare: Callable[[Hub], None] | None = None, **settings: Any) -> Nodes:
        for broker in self.brokers:
            hub = Hub(broker, **settings)

            @hub.on("join")
            async def join(socket: Socket, room: str) -> None:
                await socket.join(room)

            @hub.on("rooms")
            async def rooms(socket: Socket) -> list[str]:
                return sorted(room for room in socket.rooms if room != socket.id)

            if prepare is not None:
                prepare(hub)
            self.hubs.append(hub)
            self.urls.append((await self._serve(hub)).url)
        return self

    @property
    def here(self) -> Hub:
        return self.hubs[0]

    @property
    def there(self) -> Hub:
        return self.hubs[1]


@pytest.fixture(params=["memory", "elsewhere", "redis"])
def nodes(request: pytest.FixtureRequest, serve: Serve) -> Nodes:
    return Nodes(serve, request.param)


@pytest.fixture
def far(serve: Serve) -> Nodes:
    return Nodes(serve, "elsewhere")


async def two(nodes: Nodes, new_client: NewClient, **options: Any) -> tuple[Client, Client]:
    """Return a client on each node, both in the room `both`."""
    clients = []
    for url in nodes.urls:
        client = new_client("websocket")
        await client.connect(url, **options)
        await client.call("join", "both")
        clients.append(client)
    return clients[0], clients[1]


# What spans nodes.


async def test_sockets_of_all_nodes_are_fetched(nodes: Nodes, new_client: NewClient) -> None:
    def prepare(hub: Hub) -> None:
        @hub.on("remember")
        async def remember(socket: Socket, name: str) -> None:
            socket.data["name"] = name

    await nodes.start(prepare)
    one, other = await two(nodes, new_client)
    await other.call("remember", "Ada")
    found = {socket.id: socket for socket in await nodes.here.fetch_sockets()}
    assert found.keys() == {one.sid, other.sid}
    assert isinstance(found[one.sid], Socket)
    remote = found[other.sid]
    assert isinstance(remote, RemoteSocket)
    assert remote.rooms == {"both", other.sid}
    assert remote.data == {"name": "Ada"}
    assert remote.transport == "websocket"
    assert remote.user is None
    assert remote.node == nodes.brokers[1].bus.node
    assert remote.handshake.address == "127.0.0.1"
    assert repr(remote) == f"<RemoteSocket {other.sid} in '/' on node {remote.node}>"
    assert [socket.id for socket in await nodes.here.to(other.sid).fetch_sockets()] == [other.sid]
    assert await nodes.here.to("nobody").fetch_sockets() == []
    assert [s.id for s in await nodes.here.except_(one.sid).fetch_sockets()] == [other.sid]


async def test_many_sockets_are_fetched_in_pages(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.messages.PAGE_SIZE", 1_000)
    await nodes.start()
    clients = [new_client("websocket") for _ in range(7)]
    for client in clients:
        await client.connect(nodes.urls[1])
    for number, client in enumerate(clients):
        # Two of them fit into a page, and one is larger than that.
        size = 2_000 if number == 3 else 250
        nodes.there.sockets[client.sid].data["text"] = "x" * size
    asked = 0
    hear = nodes.brokers[1].bus.received

    def count(data: bytes) -> None:
        nonlocal asked
        asked += 1
        hear(data)

    monkeypatch.setattr(nodes.brokers[1].bus, "received", count)
    found = await nodes.here.fetch_sockets()
    assert sorted(each.id for each in found) == sorted(client.sid for client in clients)
    sizes = {each.id: len(each.data.get("text", "")) for each in found}
    assert sizes == {client.sid: 0 if client is clients[3] else 250 for client in clients}
    assert 1 < asked <= 7


async def test_nothing_secret_of_a_client_goes_to_other_nodes(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    client = new_client("sse")
    await client.connect(nodes.urls[1], auth={"token": "a-secret"}, session="s" * 20)
    (remote,) = await nodes.here.fetch_sockets()
    assert isinstance(remote, RemoteSocket)
    handshake = remote.handshake
    assert (handshake.query, handshake.auth) == ({}, {})
    assert handshake.headers.keys() <= {"accept-language", "host", "origin", "user-agent"}
    body = nodes.there._core.cluster.hear("x", encode(Fetch(Choice("/"))))
    assert isinstance(body, bytes)
    assert client.sid.encode() in body
    assert b"a-secret" not in body
    assert b"s" * 20 not in body


async def test_what_a_remote_socket_can_do(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start()
    _, other = await two(nodes, new_client)
    other.answer("question", lambda data: {"answer": data["number"] * 2})
    (remote,) = await nodes.here.to(other.sid).fetch_sockets()
    await remote.join("one", "two")
    assert await other.call("rooms") == ["both", "one", "two"]
    await remote.leave("one", "both")
    assert await other.call("rooms") == ["two"]
    await remote.emit("news", {"number": 1})
    assert (await other.next_event("news")).data == {"number": 1}
    assert await remote.emit_with_ack("question", {"number": 21}) == {"answer": 42}
    with pytest.raises(EncodeError):
        await remote.join("a\nb")
    await remote.disconnect()
    async with asyncio.timeout(WAIT):
        await other.gone.wait()
    with pytest.raises(Disconnected):
        await remote.emit_with_ack("question", {"number": 1})


async def test_limit_of_rooms_is_told_over_nodes(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start(limits={"rooms": 3})
    _, other = await two(nodes, new_client)
    (remote,) = await nodes.here.to(other.sid).fetch_sockets()
    with pytest.raises(EventError, match="3 rooms") as failure:
        await remote.join("one", "two")
    assert failure.value.code == "too_many_rooms"


async def test_sockets_of_all_nodes_join_leave_and_are_disconnected(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    one, other = await two(nodes, new_client)
    await nodes.here.to("both").sockets_join("new")
    # Done everywhere by now: nobody misses what is sent there next.
    await nodes.there.to("new").emit("news", 1)
    for client in (one, other):
        assert (await client.next_event("news")).data == 1
        assert await client.call("rooms") == ["both", "new"]
    await nodes.there.sockets_leave("both")
    for client in (one, other):
        assert await client.call("rooms") == ["new"]
    await nodes.here.to("new").disconnect_sockets()
    async with asyncio.timeout(WAIT):
        await one.gone.wait()
        await other.gone.wait()


async def test_broadcast_gathers_acknowledgements_of_all_nodes(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    one, other = await two(nodes, new_client)
    one.answer("who", lambda data: ["one", data])
    other.answer("who", lambda data: ["other", data])
    answers = await nodes.here.to("both").timeout(WAIT).emit_with_ack("who", b"\x00\xff")
    # The envelope carries base64.
    assert sorted(answers) == [["one", "AP8="], ["other", "AP8="]]
    assert await nodes.here.to("nobody").emit_with_ack("who") == []


async def test_broadcast_too_large_for_other_nodes_asks_nobody(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.messages.MAX_MESSAGE", 1_000)
    await nodes.start()
    one, _ = await two(nodes, new_client)
    asked: list[Any] = []
    one.answer("who", asked.append)
    with pytest.raises(EncodeError, match="at most 1000 bytes"):
        await nodes.here.to("both").emit_with_ack("who", "x" * 1_000)
    with pytest.raises(EncodeError, match="at most 1000 bytes"):
        await nodes.here.to("both").sockets_join(*(f"room {n}" for n in range(500)))
    assert await one.call("rooms") == ["both"]
    assert asked == []


async def test_acknowledgements_too_large_for_other_nodes_are_missing(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.messages.MAX_MESSAGE", 4_000)
    await nodes.start()
    one, other = await two(nodes, new_client)
    third = new_client("websocket")
    await third.connect(nodes.urls[1])
    await third.call("join", "both")
    one.answer("who", lambda data: "one")
    other.answer("who", lambda data: "x" * 5_000)
    third.answer("who", lambda data: "third")
    with pytest.raises(AckTimeout, match="2 of 3 clients") as failure:
        await nodes.here.to("both").emit_with_ack("who")
    assert sorted(failure.value.responses) == ["one", "third"]


async def test_node_that_missed_what_to_do_is_told_again(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.others.ANSWER_TIME", 0.1)
    await nodes.start(limits={"rooms": 3})
    one, other = await two(nodes, new_client)
    bus = nodes.brokers[1].bus
    hear, lost = bus.received, 0

    def lose_once(data: bytes) -> None:
        nonlocal lost
        if lost:
            hear(data)
        # The next question has all the time it needs.
        monkeypatch.setattr("crossband.hub.others.ANSWER_TIME", 600.0)
        lost += 1

    monkeypatch.setattr(bus, "received", lose_once)
    # Here it fails, and there it happens all the same.
    await nodes.here.sockets[one.sid].join("full")
    with pytest.raises(EventError, match="3 rooms"):
        await nodes.here.to("both").sockets_join("new")
    assert lost == 2
    assert await other.call("rooms") == ["both", "new"]


async def test_missing_acknowledgements_of_other_nodes_are_counted(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    one, _ = await two(nodes, new_client)
    one.answer("who", lambda data: "one")
    with pytest.raises(AckTimeout, match="1 of 2 clients") as failure:
        await nodes.here.to("both").timeout(0.2).emit_with_ack("who")
    assert failure.value.responses == ["one"]


async def test_clients_of_a_broadcast_over_http_are_those_of_all_nodes(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(api_keys=["key-of-16-letters"])
    one, other = await two(nodes, new_client)
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.post(
            f"{nodes.urls[0]}/api/broadcast",
            json={"event": "news", "data": 1, "room": "both"},
            headers={"Authorization": "Bearer key-of-16-letters"},
        )
    answer = response.json()
    assert answer["clients"] == 2
    for client in (one, other):
        event = await client.next_event("news")
        assert (event.data, event.offset) == (1, answer["offset"])


async def test_node_that_hangs_holds_up_no_broadcast_over_http(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.others.COUNT_TIME", 600.0)
    await nodes.start(api_keys=["key-of-16-letters"])
    one, _ = await two(nodes, new_client)
    asked: list[bytes] = []
    monkeypatch.setattr(nodes.brokers[1].bus, "received", asked.append)
    async with httpx.AsyncClient(trust_env=False) as http:
        posting = asyncio.create_task(
            http.post(
                f"{nodes.urls[0]}/api/broadcast",
                json={"event": "news", "data": 1},
                headers={"X-API-Key": "key-of-16-letters"},
            )
        )
        assert (await one.next_event("news")).data == 1
        await until(lambda: bool(asked))
        assert not posting.done()
        # It is not waited for once it has gone.
        nodes.brokers[0].bus.gone(nodes.brokers[1].bus.node)
        response = await posting
    assert response.json()["clients"] == 1


async def test_status_of_all_nodes(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start()
    await two(nodes, new_client)
    stream = new_client("sse")
    await stream.connect(nodes.urls[1], namespace="/")
    here, there = (broker.bus.node for broker in nodes.brokers)
    async with httpx.AsyncClient(trust_env=False) as http:
        own = (await http.get(f"{nodes.urls[1]}/api/status")).json()
        answer = (await http.get(f"{nodes.urls[0]}/api/status?nodes=all")).json()
        refused = await http.get(f"{nodes.urls[0]}/api/status?nodes=some")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert own["node"] == there
    assert answer["missing"] == []
    assert answer["nodes"].keys() == {here, there}
    assert answer["nodes"][there].keys() == own.keys()
    assert answer["nodes"][there]["clients"] == own["clients"]
    assert answer["total"]["clients"] == {"total": 3, "websocket": 2, "polling": 0, "sse": 1}
    assert answer["total"]["namespaces"] == {"/": {"clients": 3}}
    assert answer["total"]["messages"]["received"] == 2


async def test_node_that_does_not_answer_is_missing_in_the_status_of_all(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.others.ask.__kwdefaults__", {"to": None, "timeout": 0.05})
    await nodes.start()
    asked: list[bytes] = []
    monkeypatch.setattr(nodes.brokers[1].bus, "received", asked.append)
    # Who asks meanwhile shares the answer, even if the first gives up.
    first = asyncio.create_task(nodes.here.status_of_all())
    second = asyncio.create_task(nodes.here.status_of_all())
    await until(lambda: bool(asked))
    first.cancel()
    status = await second
    assert status["missing"] == [nodes.brokers[1].bus.node]
    assert status["nodes"].keys() == {nodes.brokers[0].bus.node}
    assert len(asked) == 1


def by_query(handshake: Any) -> Identity | None:
    (user,) = handshake.query.get("token", [None])
    return None if user is None else Identity(user)


async def test_revocation_ends_the_user_on_all_nodes(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start(authenticate=by_query)
    one, other = await two(nodes, new_client, auth={"token": "ada"})
    bob = new_client("websocket")
    await bob.connect(nodes.urls[1], auth={"token": "bob"})
    assert await nodes.here.revoke("ada") == 2
    async with asyncio.timeout(WAIT):
        await one.gone.wait()
        await other.gone.wait()
    assert not bob.gone.is_set()
    assert await nodes.here.revoke("nobody") == 0
    # Their sessions are forgotten, on both.
    for client, url in ((one, nodes.urls[1]), (other, nodes.urls[0])):
        client.url = url
        await client.resume()
        assert not client.recovered


async def test_node_that_starts_later_knows_who_was_revoked(serve: Serve) -> None:
    memory = MemoryBroker()
    hub = Hub(memory)
    await serve(hub)
    await hub.revoke("ada")
    later = Hub(memory.peer())
    await serve(later)
    assert "ada" in later._core.access._revoked
    assert "ada" in hub._core.access._revoked


async def test_node_that_was_out_of_reach_hears_of_a_revocation_later(
    far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.cluster.HEARTBEAT", 0.02)
    await far.start(authenticate=by_query)
    one, other = await two(far, new_client, auth={"token": "ada"})
    away = far.brokers[1]
    assert isinstance(away, FarBroker)
    away.cut(600.0)
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(f"{far.urls[1]}/readyz")
        assert (response.status_code, response.json()) == (
            503,
            {"status": "unavailable", "reason": "the connection to the broker is down"},
        )
    # It does not hear, and so does not answer.
    monkeypatch.setattr("crossband.hub.others.ask.__kwdefaults__", {"to": None, "timeout": 0.1})
    assert await far.here.revoke("ada") == 1
    assert not other.gone.is_set()
    away._reconnect()
    async with asyncio.timeout(WAIT):
        await one.gone.wait()
        await other.gone.wait()
    assert "4403" in other.farewell
    # Who comes anew stays: each revocation is applied once.
    again = new_client("websocket")
    await again.connect(far.urls[1], auth={"token": "ada"})
    beats = 0
    renew = away.sessions.renew

    def count(owner: str) -> None:
        nonlocal beats
        beats += 1
        renew(owner)

    monkeypatch.setattr(away.sessions, "renew", count)
    await until(lambda: beats > 3)
    assert not again.gone.is_set()


async def test_node_that_cannot_know_who_was_revoked_accepts_no_tokens(
    far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def issued_long_ago(handshake: Any) -> Identity:
        return Identity(handshake.query["token"][0], issued=1.0)

    await far.start(
        authenticate=issued_long_ago, authorize=lambda *_: True, api_keys=["key-of-16-letters"]
    )
    client = new_client("websocket")
    await client.connect(far.urls[1], auth={"token": "eve"})
    # Its heartbeats fail, and it has counted as gone for a while.
    far.there._core.cluster._beating.cancel()  # type: ignore[union-attr]
    monkeypatch.setattr("crossband.hub.others.ask.__kwdefaults__", {"to": None, "timeout": 0.1})
    with monkeypatch.context() as patch:
        patch.setattr("crossband.hub.revocations.SILENCE", -1.0)
        patch.setattr(far.brokers[1].bus, "received", lambda data: None)
        assert await far.here.revoke("ada") == 0

        async def unavailable(after: int = 0) -> Any:
            raise BrokerUnavailable("the broker is out of reach")

        with patch.context() as away:
            away.setattr(far.brokers[1].sessions, "revocations", unavailable)
            for kind in ("websocket", "sse"):
                with pytest.raises(Refused, match="out of reach") as refusal:
                    await new_client(kind).connect(far.urls[1], auth={"token": "bob"})
                assert refusal.value.status == 503
            with pytest.raises(EventFailed) as failure:
                await client.call("token:refresh", "eve")
            assert failure.value.code == "unavailable"
            async with httpx.AsyncClient(trust_env=False) as http:
                url = f"{far.urls[1]}/api/broadcast?token=bob"
                response = await http.post(url, json={"event": "news"})
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        # What it missed is read before the first token is accepted.
        with pytest.raises(Refused, match="revoked"):
            await new_client("websocket").connect(far.urls[1], auth={"token": "ada"})
        await new_client("websocket").connect(far.urls[1], auth={"token": "bob"})


@pytest.mark.parametrize("lost", ["all", "the last"])
async def test_nodes_give_back_the_revocations_that_the_store_lost(
    lost: str, far: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.start()
    await far.here.revoke("ada")
    await far.there._core.revocations.catch_up()
    if lost == "the last":
        # The second is told, and is lost before any node reads it.
        await far.here.revoke("bob")
    store = engine_of(far).sessions
    before = {each.user: each.time for each in await store.revocations()}
    if lost == "all":
        store._revoked.clear()
    else:
        del store._revoked["bob"]
        # Another comes in its place.
        await store.revoke("cy", 1.0)
    await far.there._core.revocations.catch_up()
    after = {each.user: each.time for each in await store.revocations()}
    assert after == before | ({} if lost == "all" else {"cy": 1.0})
    assert far.there._core.access.is_revoked("cy", 1.0) == (lost != "all")
    # And that is all: nobody gives anything back again.
    numbers = [each.number for each in await store.revocations()]
    for hub in (far.here, far.there, far.here, far.there):
        await hub._core.revocations.catch_up()
    assert [each.number for each in await store.revocations()] == numbers


async def test_revocations_outlive_the_data_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossband.hub.cluster.HEARTBEAT", 0.05)
    with Redis() as redis:
        hub = Hub(redis.url)
        await hub.start()
        await hub.revoke("ada")
        redis.kill()
        redis.start(empty=True)
        # It is told again by whoever knows.
        await until(lambda: redis.command("HEXISTS", "crossband:{bus}:revoked", "ada") == 1)
        later = Hub(redis.url)
        await later.start()
        assert later._core.access.revoked_at("ada") == hub._core.access.revoked_at("ada") > 0
        await later.stop()
        await hub.stop()


async def test_revocation_heard_of_late_leaves_who_came_since(
    far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.cluster.HEARTBEAT", 0.02)
    monkeypatch.setattr("crossband.hub.others.ask.__kwdefaults__", {"to": None, "timeout": 0.1})
    examined, go_on = asyncio.Event(), asyncio.Event()

    def prepare(hub: Hub) -> None:
        @hub.use
        async def examine(socket: Socket) -> None:
            if socket.handshake.query.get("wait"):
                examined.set()
                await go_on.wait()

    def authenticate(handshake: Any) -> Identity:
        return Identity("ada", issued=float(handshake.query["issued"][0]))

    await far.start(prepare, authenticate=authenticate)
    old, new = new_client("websocket"), new_client("websocket")
    await old.connect(far.urls[1], auth={"issued": "1"})
    away = far.brokers[1]
    assert isinstance(away, FarBroker)
    away.cut(0.5)
    await far.here.revoke("ada")
    later = str(far.there._core.access._clock() + 1)
    coming = asyncio.create_task(new.connect(far.urls[1], auth={"issued": later, "wait": "1"}))
    await examined.wait()
    async with asyncio.timeout(WAIT):
        await old.gone.wait()
    go_on.set()
    await coming
    await far.there.emit("news", 1)
    assert (await new.next_event("news")).data == 1


async def test_connections_per_user_are_counted_over_all_nodes(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(authenticate=by_query, limits={"connections_per_user": 2})
    one, other = await two(nodes, new_client, auth={"token": "ada"})
    for url in nodes.urls:
        third = new_client("sse")
        with pytest.raises(Refused, match="Too many connections") as refusal:
            await third.connect(url, auth={"token": "ada"})
        assert refusal.value.status == 429
    bob = new_client("websocket")
    await bob.connect(nodes.urls[0], auth={"token": "bob"})
    # Who comes back to the other node is not one more.
    one.url = nodes.urls[1]
    await one.cut()
    await one.resume()
    assert one.recovered
    await other.close()
    # And its place is free again.
    while True:
        third = new_client("sse")
        try:
            await third.connect(nodes.urls[0], auth={"token": "ada"})
        except Refused:
            continue
        break


# Clients that change nodes.


@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_client_takes_rooms_and_data_to_the_other_node(
    kind: str, nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(with_a_name)
    client = new_client(kind)
    await client.connect(nodes.urls[0])
    await client.call("join", "cave")
    await call_her_ada(client)
    await nodes.there.to("cave").emit("news", 1)
    await client.next_event("news")
    sid = client.sid
    for hop in (1, 0, 1):
        if isinstance(client, WebSocketClient) and hop:
            # The first node does not notice that it has gone.
            await client.desert()
        else:
            await client.cut()
        await nodes.hubs[hop].to("cave").emit("news", hop)
        client.url = nodes.urls[hop]
        await client.resume()
        assert (client.recovered, client.sid) == (True, sid)
        assert (await client.next_event("news")).data == hop
        assert await client.call("rooms") == ["cave"]
        assert await client.call("name") == "Ada"
        assert [list(hub.sockets) for hub in nodes.hubs] == [
            [sid] if number == hop else [] for number in range(2)
        ]


@pytest.mark.node
async def test_client_that_takes_a_string_for_its_cursor_goes_on_at_the_other_node(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    async with Front(nodes.urls) as front:
        client = new_client("socket.io-client websocket")
        await client.connect(front.url)
        for number in range(0, 12, 2):
            # The official client takes any string at the end for its cursor.
            await nodes.there.emit("number", number)
            await nodes.hubs[front.target].volatile.emit("noise", f"not a cursor {number}")
            assert (await client.next_event("noise")).data == f"not a cursor {number}"
            await client.cut()
            await nodes.here.emit("number", number + 1)
            # And back, at once: it has heard nothing else until then.
            for _ in range(1 + number % 4):
                front.target = 1 - front.target
                await client.resume()
                assert client.recovered
                assert client.data_of("number")[: number + 1] == list(range(number + 1))
                await client.cut()
            await client.resume()
            while len(client.data_of("number")) < number + 2:
                await client.next_event("number")
        assert client.data_of("number") == list(range(12))


async def test_session_that_is_still_connected_elsewhere_is_ended_there(
    nodes: Nodes, new_client: NewClient
) -> None:
    left: list[str] = []

    def prepare(hub: Hub) -> None:
        @hub.on("disconnect")
        async def disconnect(socket: Socket, reason: str) -> None:
            left.append(reason)

    await nodes.start(prepare)
    first, second = new_client("websocket"), new_client("websocket")
    await first.connect(nodes.urls[0], session="k" * 20)
    await nodes.here.emit("news", 1)
    offset = (await first.next_event("news")).offset
    await second.connect(nodes.urls[1], session="k" * 20, offset=offset)
    assert second.recovered
    assert second.sid == first.sid
    async with asyncio.timeout(WAIT):
        await first.gone.wait()
    assert "4001" in first.farewell
    assert left == ["transport close"]
    # What the first node still had to say of the session changes nothing.
    await second.cut()
    await second.resume()
    assert second.recovered


async def test_client_that_leaves_while_its_session_is_taken_leaves_it_to_its_next_attempt(
    far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.start(with_a_name)
    client = new_client("websocket")
    await client.connect(far.urls[0], session="k" * 20)
    await far.here.emit("news", 1)
    await client.next_event("news")
    await call_her_ada(client)
    slow = far.brokers[0].bus
    real, asked = slow.received, asyncio.Event()

    def late(data: bytes) -> None:
        asyncio.get_running_loop().call_later(0.1, real, data)
        asked.set()

    with monkeypatch.context() as patch:
        patch.setattr(slow, "received", late)
        impatient = WebSocketClient()
        attempt = asyncio.create_task(
            impatient.connect(far.urls[1], session="k" * 20, offset=client.offset)
        )
        await asked.wait()
        attempt.cancel()
        await asyncio.wait([attempt])
        await impatient.close()
        async with asyncio.timeout(WAIT):
            await client.gone.wait()
    broker = far.brokers[0]
    assert isinstance(broker, FarBroker)
    # Nobody is connected, and the store knows it: the session expires with its age.
    await until(lambda: not broker._engine.memory.sessions._connected)
    await client.cut()
    client.url = far.urls[1]
    await client.resume()
    assert client.recovered
    assert await client.call("name") == "Ada"


async def test_messages_of_a_user_count_on_all_nodes(
    far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.cluster.HEARTBEAT", 0.02)
    # Ten at once, and the next in a hundred seconds.
    limits = {"user_message_rate": 0.01, "burst_time": 1_000.0}
    await far.start(authenticate=by_query, limits=limits)
    one, other = await two(far, new_client, auth={"token": "ada"})
    idle = new_client("websocket")
    await idle.connect(far.urls[1], auth={"token": "bob"})
    for _ in range(4):
        await one.call("rooms")
    there = far.there._core.quotas._user_rates
    assert there is not None
    # One joined a room on each node: six are used, and four are left.
    now = asyncio.get_running_loop().time()
    await until(lambda: there.of("ada", now)._full >= now + 550)
    for _ in range(4):
        await other.call("rooms")
    with pytest.raises(EventFailed) as failure:
        await other.call("rooms")
    assert failure.value.code == "rate_limited"
    await idle.call("rooms")


# How what a node knows of its clients outlives it.


async def test_node_ends_a_client_when_it_saves_a_session_that_another_has_taken(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The node that had the client never hears that it has come back elsewhere.
    monkeypatch.setattr("crossband.hub.others.PATIENCE", (0.05,))
    await nodes.start()
    first, second = new_client("websocket"), new_client("websocket")
    await first.connect(nodes.urls[0], session="k" * 20)
    await nodes.here.emit("news", 1)
    offset = (await first.next_event("news")).offset
    with monkeypatch.context() as patch:
        patch.setattr(nodes.brokers[0].bus, "received", lambda data: None)
        # Nor is it told again.
        patch.setattr("crossband.hub.resumption.Resumptions._insist", nothing)
        await second.connect(nodes.urls[1], session="k" * 20, offset=offset)
    assert second.recovered
    assert nodes.here.sockets.keys() == nodes.there.sockets.keys()
    await nodes.here.sockets[first.sid].join("new")
    async with asyncio.timeout(WAIT):
        await first.gone.wait()
    assert "4001" in first.farewell
    assert await second.call("rooms") == []


async def nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "not taken"])
async def test_session_is_put_back_if_the_reply_of_its_taking_was_lost(
    taken: bool, far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.resumption.HEARTBEAT", 0.01)
    await far.start()
    client = new_client("websocket")
    await client.connect(far.urls[0], session="k" * 20)
    await far.here.emit("news", 1)
    await client.next_event("news")
    await client.cut()
    sessions = far.brokers[1].sessions
    take, find, found = sessions.take, sessions.find, asyncio.Event()

    async def unanswered(session: Session, owner: str) -> Session | None:
        if taken:
            await take(session, owner)
        raise BrokerUnavailable("the broker is out of reach")

    async def find_later(namespace: str, key: str) -> Session | None:
        if not found.is_set():
            found.set()
            raise BrokerUnavailable("the broker is out of reach")
        return await find(namespace, key)

    with monkeypatch.context() as patch:
        patch.setattr(sessions, "take", unanswered)
        attempt = asyncio.create_task(WebSocketClient().connect(far.urls[1], session="k" * 20))
        # It is found first, and then the store is away for a while.
        await until(lambda: engine_of(far).sessions._attempts.get(("/", "k" * 20)) is not None)
        patch.setattr(sessions, "find", find_later)
        with pytest.raises(Refused, match="out of reach"):
            await attempt
        if taken:
            async with asyncio.timeout(WAIT):
                await found.wait()
    # The client is away, and the store knows it: the session expires with its age.
    await until(lambda: ("/", "k" * 20) in engine_of(far).sessions._waiting)
    await client.resume()
    assert client.recovered


def engine_of(nodes: Nodes) -> Engine:
    broker = nodes.brokers[0]
    assert isinstance(broker, FarBroker)
    return broker._engine


async def test_killed_node_loses_nothing_that_was_set_in_the_data_of_a_client(
    far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(hub: Hub) -> None:
        @hub.on("change")
        async def change(socket: Socket) -> None:
            socket.data.update(one=1, two=2, three=3)
            del socket.data["one"]
            socket.data["four"] = socket.data.pop("two")
            # A copy is the application's own.
            for copied in (copy.copy(socket.data), copy.deepcopy(socket.data), {**socket.data}):
                assert copied == socket.data
                copied["five"] = 5
                await asyncio.sleep(0)

    sessions = far.brokers[0].sessions
    save, saves = sessions.save, 0

    def count(session: Session) -> None:
        nonlocal saves
        saves += 1
        save(session)

    monkeypatch.setattr(sessions, "save", count)
    await far.start(prepare)
    client = new_client("websocket")
    await client.connect(far.urls[0], session="k" * 20)
    await far.here.emit("news", 1)
    await client.next_event("news")
    assert saves == 1
    await client.call("change")
    # Once for all that changed together.
    assert saves == 2
    found = await sessions.find("/", "k" * 20)
    assert found is not None
    assert found.data == {"three": 3, "four": 2}
    broker = far.brokers[0]
    assert isinstance(broker, FarBroker)
    await client.cut()
    await broker.kill()
    client.url = far.urls[1]
    await client.resume()
    assert client.recovered
    assert far.there.sockets[client.sid].data == {"three": 3, "four": 2}


async def test_what_disconnect_handlers_set_is_kept(nodes: Nodes, new_client: NewClient) -> None:
    left = asyncio.Event()

    def prepare(hub: Hub) -> None:
        @hub.on("disconnect")
        async def disconnect(socket: Socket, reason: str) -> None:
            await asyncio.sleep(0)
            socket.data["left"] = reason
            left.set()

    await nodes.start(prepare)
    client = new_client("websocket")
    await client.connect(nodes.urls[0])
    await nodes.here.emit("news", 1)
    await client.next_event("news")
    await client.cut()
    await left.wait()
    client.url = nodes.urls[1]
    await client.resume()
    assert client.recovered
    assert nodes.there.sockets[client.sid].data == {"left": "transport close"}


async def test_connect_handlers_wait_for_the_disconnect_handlers_at_the_other_node(
    nodes: Nodes, new_client: NewClient
) -> None:
    happened: list[str] = []
    leaving, may_go = asyncio.Event(), asyncio.Event()
    asked = asyncio.Event()

    def prepare(hub: Hub) -> None:
        @hub.on("connect")
        async def connect(socket: Socket) -> None:
            happened.append("connect")

        @hub.on("disconnect")
        async def disconnect(socket: Socket, reason: str) -> None:
            leaving.set()
            await may_go.wait()
            happened.append("disconnect")

    await nodes.start(prepare)
    first, second = new_client("websocket"), new_client("websocket")
    await first.connect(nodes.urls[0], session="k" * 20)
    await nodes.here.emit("news", 1)
    offset = (await first.next_event("news")).offset
    hear = nodes.here._core.cluster._departed

    async def noted(message: Departing) -> bytes:
        asked.set()
        return await hear(message)

    nodes.here._core.cluster._departed = noted  # type: ignore[method-assign]
    await second.connect(nodes.urls[1], session="k" * 20, offset=offset)
    # It is welcomed, and only its handlers wait.
    assert second.recovered
    await leaving.wait()
    await asked.wait()
    assert happened == ["connect"]
    may_go.set()
    assert await second.call("rooms") == []
    assert happened == ["connect", "disconnect", "connect"]


def with_a_name(hub: Hub) -> None:
    @hub.on("remember")
    async def remember(socket: Socket, name: str) -> None:
        socket.data.setdefault("names", []).append(name)

    @hub.on("name")
    async def name(socket: Socket) -> Any:
        return socket.data["names"][-1]


async def call_her_ada(client: Client) -> None:
    """Change a client's data in a way that only the node that has it knows of."""
    await client.call("remember", "Grace")
    # In the list that is there already, which is not noticed.
    await client.call("remember", "Ada")


@pytest.mark.parametrize("where", [1, 2], ids=["same node", "third node"])
async def test_of_two_that_take_a_session_at_once_the_later_gets_all_that_was_known(
    where: int, far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(MemoryBroker(), seed=3)
    far.brokers = [engine.node(), engine.node(), engine.node()]
    await far.start(with_a_name)
    first, earlier, later = (new_client("websocket") for _ in range(3))
    await first.connect(far.urls[0], session="k" * 20)
    await far.here.emit("news", 1)
    offset = (await first.next_event("news")).offset
    await call_her_ada(first)
    slow = far.brokers[0].bus
    real, asked = slow.received, asyncio.Event()

    def late(data: bytes) -> None:
        asyncio.get_running_loop().call_later(0.2, real, data)
        asked.set()

    monkeypatch.setattr(slow, "received", late)
    attempt = asyncio.create_task(earlier.connect(far.urls[1], session="k" * 20, offset=offset))
    await asked.wait()
    await later.connect(far.urls[where], session="k" * 20, offset=offset)
    assert far.here.sockets == {}
    assert later.recovered
    assert await later.call("name") == "Ada"
    await attempt
    assert not earlier.recovered
    assert earlier.sid != later.sid


@pytest.mark.parametrize("away", ["a moment", "too long"])
async def test_node_that_missed_a_hand_over_ends_the_client_later(
    away: str, far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.cluster.HEARTBEAT", 0.02)
    monkeypatch.setattr("crossband.hub.others.ask.__kwdefaults__", {"to": None, "timeout": 0.1})
    if away == "too long":
        monkeypatch.setattr("crossband.hub.cluster.SILENCE", 0.2)
        # What it is told meanwhile, and again, it never hears.
        monkeypatch.setattr("crossband.hub.cluster.Cluster.hear", lambda *_: None)
    await far.start()
    first, second, bystander = (new_client("websocket") for _ in range(3))
    await first.connect(far.urls[0], session="k" * 20)
    await bystander.connect(far.urls[0])
    await far.here.emit("news", 1)
    offset = (await first.next_event("news")).offset
    cut_off = far.brokers[0]
    assert isinstance(cut_off, FarBroker)
    cut_off.cut(0.5)
    await second.connect(far.urls[1], session="k" * 20, offset=offset)
    assert second.recovered
    async with asyncio.timeout(WAIT):
        await first.gone.wait()
    assert "4001" in first.farewell
    assert not second.gone.is_set()
    assert not bystander.gone.is_set()


async def test_clients_of_a_node_that_was_killed_come_back_elsewhere(
    far: Nodes, new_client: NewClient
) -> None:
    await far.start()
    one, other = await two(far, new_client)
    await far.there.to("both").emit("news", 0)
    assert (await one.next_event("news")).data == 0
    broker = far.brokers[0]
    assert isinstance(broker, FarBroker)
    await one.cut()
    await broker.kill()
    await far.there.to("both").emit("news", 1)
    one.url = far.urls[1]
    await one.resume()
    assert one.recovered
    assert (await one.next_event("news")).data == 1
    assert [event.data for event in other.log] == [0, 1]


@pytest.mark.node
@pytest.mark.parametrize("heard", [True, False], ids=["heard here too", "sent before"])
async def test_offset_of_another_node_loses_and_repeats_nothing(
    heard: bool, nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    client, other = new_client("socket.io-client websocket"), new_client("websocket")
    async with Front(nodes.urls) as front:
        await client.connect(front.url)
        if heard:
            await other.connect(nodes.urls[1])
        await nodes.here.emit("number", 0)
        await client.next_event("number")
        # It takes this for its offset. Of the other node's clients nobody gets it.
        await nodes.here.volatile.to(client.sid).emit("text", "no cursor")
        await client.next_event("text")
        if heard:
            await nodes.there.emit("last", 1)
            await other.next_event("last")
        await client.cut()
        front.target = 1
        await client.resume()
        assert client.recovered
        await nodes.there.emit("number", 1)
        assert (await client.next_event("number")).data == 1
        assert client.data_of("number") == [0, 1]
        assert len(nodes.there.sockets) == 1 + heard


async def test_resume_ahead_of_this_node_neither_misses_nor_doubles(
    far: Nodes, new_client: NewClient
) -> None:
    await far.start()
    one, other = await two(far, new_client)
    behind = far.brokers[1]
    assert isinstance(behind, FarBroker)
    await far.here.emit("number", 0)
    await one.next_event("number")
    await other.next_event("number")
    await one.cut()
    one.url = far.urls[1]
    for _ in range(20):
        # Not connected to the broker while it is published: this node hears of it later.
        behind.cut(0.05)
        numbers = range(len(one.data_of("number")), len(one.data_of("number")) + 10)
        for number in numbers:
            await far.here.emit("number", number)
        await one.resume()
        assert one.recovered
        for number in numbers:
            assert (await one.next_event("number")).data == number
        await one.cut()
    assert one.data_of("number") == list(range(201))
    while len(other.log) < 201:
        await other.next_event("number")
    assert other.data_of("number") == list(range(201))


# What is emitted.


async def test_unawaited_emissions_are_published_in_order(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    one, other = await two(nodes, new_client)
    for number in range(200):
        nodes.here.to("both").emit("number", number)
    await nodes.here.to("both").emit("number", 200)
    for client in (one, other):
        for number in range(201):
            assert (await client.next_event("number")).data == number


async def test_emissions_of_another_thread_keep_their_order(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    one, other = await two(nodes, new_client)
    cursors: list[str | None] = []

    def work() -> None:
        for number in range(50):
            nodes.here.emit("number", number)
        cursors.append(nodes.here.emit("number", 50).result(WAIT))

    thread = threading.Thread(target=work)
    thread.start()
    for client in (one, other):
        for number in range(51):
            event = await client.next_event("number")
            assert event.data == number
    await asyncio.to_thread(thread.join)
    assert cursors == [event.offset]


async def test_emission_goes_on_when_nobody_waits_any_more(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    _, other = await two(nodes, new_client)

    async def emit() -> None:
        await nodes.here.emit("news", 1)

    task = asyncio.create_task(emit())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (await other.next_event("news")).data == 1


@pytest.mark.parametrize("how", ["async", "plain", "concurrent", "failing"])
async def test_what_a_handler_emits_goes_out_before_its_acknowledgement(
    how: str, nodes: Nodes, serve: Serve
) -> None:
    def prepare(hub: Hub) -> None:
        if how == "plain":

            @hub.on("work")
            def work(socket: Socket) -> str:
                for number in range(5):
                    socket.emit("number", number)
                return "done"

        else:

            @hub.on("work", concurrent=how == "concurrent")
            async def work_later(socket: Socket) -> str:
                await socket.join("mine")
                for number in range(5):
                    hub.to("mine").emit("number", number)
                if how == "failing":
                    raise EventError("as it was told")
                return "done"

    await nodes.start(prepare)
    client = WebSocketClient()
    frames: list[str] = []
    client.sink = lambda name, data: frames.append(name)
    await client.connect(nodes.urls[0])
    for _ in range(20):
        frames.clear()
        if how == "failing":
            with pytest.raises(EventFailed, match="as it was told"):
                await client.call("work")
        else:
            assert await client.call("work") == "done"
        # All have come by the time of the answer.
        assert frames == ["number"] * 5
    await client.close()


async def test_what_a_handler_emits_from_a_thread_goes_out_before_its_acknowledgement(
    nodes: Nodes,
) -> None:
    def prepare(hub: Hub) -> None:
        @hub.on("work")
        async def work(socket: Socket) -> None:
            def compute() -> None:
                socket.emit("number", 1)

            await asyncio.to_thread(compute)

        @hub.on("two ways")
        async def two_ways(socket: Socket) -> None:
            socket.emit("number", 1)
            # Not recorded, and perhaps published sooner than that is heard here.
            hub.volatile.emit("hint")

    await nodes.start(prepare)
    client = WebSocketClient()
    frames: list[str] = []
    client.sink = lambda name, data: frames.append(name)
    await client.connect(nodes.urls[0])
    for _ in range(20):
        for event in ("work", "two ways"):
            frames.clear()
            await client.call(event)
            assert "number" in frames
    await client.close()


async def test_emission_of_a_stopped_hub_reaches_nobody_from_any_thread(nodes: Nodes) -> None:
    await nodes.start()
    for hub in nodes.hubs:
        await hub.stop()
    nodes.here.emit("news", 1)

    def emit() -> None:
        nodes.here.emit("news", 1).result(WAIT)

    await asyncio.to_thread(emit)


async def test_broker_out_of_reach_is_told_to_who_awaits(
    far: Nodes, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    failing = False

    class Failing(FarBroker):
        def publish(
            self, publication: Publication, *, record: bool = True
        ) -> asyncio.Future[str | None]:
            if not failing:
                return super().publish(publication, record=record)
            lost: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(
                lost.set_exception, BrokerUnavailable("no broker since a while")
            )
            return lost

    def prepare(hub: Hub) -> None:
        @hub.on("publish")
        async def publish(socket: Socket) -> None:
            await hub.emit("news", 1)

    engine = Engine(MemoryBroker())
    far.brokers = [Failing(engine), engine.node()]
    await far.start(prepare, api_keys=["key-of-16-letters"])
    one, _ = await two(far, new_client)
    failing = True
    with pytest.raises(BrokerUnavailable, match="no broker since a while"):
        await far.here.emit("news", 1)
    with pytest.raises(BrokerUnavailable):
        await asyncio.to_thread(lambda: far.here.emit("news", 1).result(WAIT))
    with pytest.raises(EventFailed, match="no broker since a while") as failure:
        await one.call("publish")
    assert failure.value.code == "unavailable"
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.post(
            f"{far.urls[0]}/api/broadcast",
            json={"event": "news"},
            headers={"Authorization": "Bearer key-of-16-letters"},
        )
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert not [line for line in caplog.messages if "are not published" in line]
    # Who does not wait is told in the log, once, and it is counted.
    for _ in range(10):
        far.here.emit("news", 1)
    await until(lambda: far.here._core.traffic.lost == 10)
    lines = [line for line in caplog.messages if "are not published" in line]
    assert lines == [
        "events emitted in namespace '/' are not published (1 so far): no broker since a while"
    ]
    failing = False
    await far.here.emit("news", 2)
    assert (await one.next_event("news")).data == 2


@pytest.mark.parametrize("what", ["attach", "find", "take", "history"])
async def test_clients_are_refused_while_the_broker_is_out_of_reach(
    what: str, far: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.start()
    client, stream = new_client("websocket"), new_client("sse")
    await stream.connect(far.urls[1])
    await client.connect(far.urls[0], session="k" * 20)
    await far.here.emit("news", 1)
    await client.next_event("news")
    await client.cut()
    broker = far.brokers[0]
    target: Any = broker.sessions if what in ("find", "take") else broker
    if what == "attach":
        broker.detach("/")

    async def unavailable(*args: Any, **kwargs: Any) -> Any:
        raise BrokerUnavailable("the broker is out of reach")

    with monkeypatch.context() as patch:
        patch.setattr(target, what, unavailable)
        for _ in range(2):
            with pytest.raises(Refused, match="out of reach") as refusal:
                await client.resume()
            assert refusal.value.status == 503
    # It lost nothing by it: neither its session nor its place.
    await far.there.emit("news", 2)
    await client.resume()
    assert client.recovered
    assert (await client.next_event("news")).data == 2


@pytest.mark.node
@pytest.mark.parametrize("kind", ["socket.io-client websocket", "socket.io-client polling"])
async def test_official_client_comes_back_by_itself_once_the_broker_is_in_reach_again(
    kind: str, far: Nodes, node: NodeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await far.start()
    sessions = far.brokers[0].sessions
    find, tried = sessions.find, 0

    async def unavailable(namespace: str, key: str) -> Any:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise BrokerUnavailable("the broker is out of reach")
        return await find(namespace, key)

    target = NodeTarget(node, kind, Random(0), far.urls[0])
    async with target:
        await target.start()
        await far.there.emit("number", 0)
        monkeypatch.setattr(sessions, "find", unavailable)
        await node.ask("cut", client=target._client, torn=False)
        await far.there.emit("number", 1)
        await target.reach(1)
    assert target.heard == [0, 1]
    assert tried == 3


async def test_live_clients_are_told_what_is_lost(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start()
    client, outside = new_client("websocket"), new_client("sse")
    await client.connect(nodes.urls[0])
    await outside.connect(nodes.urls[0])
    cursor = await nodes.here.emit("news", 1)
    for each in (client, outside):
        await each.next_event("news")
    nodes.here._core.directory.lost("/")
    nodes.here._core.directory.lost("/nowhere")
    for each in (client, outside):
        assert await each.next_gap() == {"reason": "lost", "offset": cursor}
    assert nodes.here.status()["gaps"]["lost"] == 2
    await nodes.here.emit("news", 2)
    assert (await client.next_event("news")).data == 2


async def test_client_that_is_being_let_in_is_told_what_is_lost(
    nodes: Nodes, new_client: NewClient
) -> None:
    examined, go_on = asyncio.Event(), asyncio.Event()

    def prepare(hub: Hub) -> None:
        @hub.use
        async def examine(socket: Socket) -> None:
            if socket.recovered:
                examined.set()
                await go_on.wait()

    await nodes.start(prepare)
    client = new_client("websocket")
    await client.connect(nodes.urls[0])
    cursor = await nodes.here.emit("news", 1)
    await client.next_event("news")
    await client.cut()
    back = asyncio.create_task(client.resume())
    await examined.wait()
    # What it is to be caught up with was read before.
    nodes.here._core.directory.lost("/")
    await nodes.here.emit("news", 2)
    go_on.set()
    await back
    assert (await client.next_event("news")).data == 2
    assert client.gaps == [{"reason": "lost", "offset": cursor}]
    assert client.unread("gap") == 1


async def test_namespaces_of_a_pattern_are_detached_with_their_last_client(
    far: Nodes, new_client: NewClient
) -> None:
    def prepare(hub: Hub) -> None:
        hub.of(re.compile(r"/game-\d+"))

    await far.start(prepare)
    broker = far.brokers[0]
    assert isinstance(broker, FarBroker)
    client = new_client("websocket")
    for number in range(5):
        await client.connect(far.urls[0], f"/game-{number}")
        assert f"/game-{number}" in broker._delivered
        await client.close()
        # Only that of `/`, if anything, is left.
        await until(lambda: broker._delivered.keys() <= {"/"})
    refused = new_client("websocket")
    with pytest.raises(Refused):
        await refused.connect(far.urls[0], "/nowhere")
    assert broker._delivered.keys() <= {"/"}


# What a node hears.


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "shout"}),
        msgspec.msgpack.encode({"type": "fetch"}),
        msgspec.msgpack.encode({"type": "fetch", "choice": ["/", "all", []]}),
        msgspec.msgpack.encode({"type": "join", "choice": ["/", [], []], "names": [7]}),
        msgspec.msgpack.encode({"type": "revoked", "user": 7, "time": "now"}),
        msgspec.msgpack.encode({"type": "gather", "choice": ["/", [], []], "event": "x"}),
        b"\x91" * 10_000,
    ],
    ids=repr,
)
async def test_messages_that_do_not_fit_are_dropped(
    nodes: Nodes, new_client: NewClient, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await nodes.start()
    one, other = await two(nodes, new_client)
    caplog.clear()
    answers = await nodes.brokers[0].bus.ask(body, timeout=WAIT)
    assert answers.given == {}
    assert len([line for line in caplog.messages if "dropped a message" in line]) == 1
    assert len(await nodes.here.fetch_sockets()) == 2
    await nodes.here.emit("news", 1)
    for client in (one, other):
        await client.next_event("news")


async def test_names_that_no_client_has_reach_nobody(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start()
    one, _ = await two(nodes, new_client)
    hub = nodes.there
    hear = hub._core.cluster.hear
    for body in (
        {"type": "join", "choice": ["/nowhere", [], []], "names": ["x"]},
        {"type": "join", "choice": ["/", [], []], "names": ["a\nb"]},
        {"type": "disconnect", "choice": ["/nowhere", [], []]},
        {"type": "hand", "namespace": "/nowhere", "key": "k", "take": 1},
        {"type": "hand", "namespace": "/", "key": "k", "take": 1},
        {"type": "count user", "user": "nobody", "namespace": "/nowhere"},
        {
            "type": "gather",
            "choice": ["/nowhere", [], []],
            "event": "x",
            "timeout": 1,
            "payload": {"json": b"[]", "attachments": []},
        },
    ):
        answer = hear("somebody", msgspec.msgpack.encode(body))
        if answer is not None and not isinstance(answer, bytes):
            await asyncio.wait([asyncio.ensure_future(answer)])
    assert len(await nodes.here.fetch_sockets()) == 2
    assert await one.call("rooms") == ["both"]


async def test_node_that_does_not_answer_is_left_out(
    nodes: Nodes,
    new_client: NewClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("crossband.hub.others.ask.__kwdefaults__", {"to": None, "timeout": 0.1})
    await nodes.start()
    one, _ = await two(nodes, new_client)
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    nodes.brokers[1].bus._hear = lambda sender, body: never
    assert [socket.id for socket in await nodes.here.fetch_sockets()] == [one.sid]
    silent = nodes.brokers[1].bus.node
    assert f"no answer from {silent} to 'fetch'" in caplog.text


# What is kept with a client.


async def test_what_cannot_be_kept_is_told_where_it_is_set(
    nodes: Nodes, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def prepare(hub: Hub) -> None:
        @hub.on("set")
        async def set_(socket: Socket) -> None:
            ways: list[Callable[[], object]] = [
                lambda: socket.data.__setitem__("lock", threading.Lock()),
                lambda: socket.data.update(lock=threading.Lock()),
                lambda: socket.data.setdefault("lock", {1, 2}),
                lambda: socket.data.__setitem__(1, 2),  # type: ignore[index]
            ]
            for way in ways:
                with pytest.raises((TypeError, ValueError)) as error:
                    way()
                told.append(str(error.value))
            socket.data["good"] = 1
            data = socket.data
            data |= {"better": [2]}
            socket.data.setdefault("good", 7)
            socket.data["bad"] = object()

    await nodes.start(prepare)
    client = new_client("websocket")
    await client.connect(nodes.urls[0])
    with caplog.at_level(logging.CRITICAL), pytest.raises(EventFailed, match="Internal"):
        await client.call("set")
    assert told[0].startswith("socket.data['lock'] cannot be kept: _thread.lock is not plain data")
    assert "Keep such objects in a dict of your own, by socket.id" in told[0]
    assert told[3].startswith("socket.data has the key 1: keys are text")
    (socket,) = nodes.here.sockets.values()
    assert socket.data == {"good": 1, "better": [2]}


async def test_what_became_unfit_since_it_was_set_hides_no_client(
    nodes: Nodes, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(hub: Hub) -> None:
        @hub.on("spoil")
        async def spoil(socket: Socket) -> None:
            socket.data["good"] = 1
            socket.data["list"] = []
            socket.data["list"].append(threading.Lock())

    await nodes.start(prepare)
    one, other = await two(nodes, new_client)
    await other.call("spoil")
    found = {socket.id: socket.data for socket in await nodes.here.fetch_sockets()}
    assert found == {one.sid: {}, other.sid: {"good": 1}}
    assert "socket.data['list'][0] cannot be kept" in caplog.text
    # Nor does it keep the client from coming back elsewhere.
    await nodes.here.emit("news", 1)
    await other.next_event("news")
    back = new_client("websocket")
    await back.connect(nodes.urls[0], session=other.session, offset=other.offset)
    assert back.recovered


async def test_acknowledgement_without_a_form_between_nodes_spoils_no_other(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start()
    one, other = await two(nodes, new_client)
    third = new_client("websocket")
    await third.connect(nodes.urls[1])
    await third.call("join", "both")
    one.answer("who", lambda data: "one")
    other.answer("who", lambda data: 10**30)
    third.answer("who", lambda data: "third")
    with pytest.raises(AckTimeout) as failure:
        await nodes.here.to("both").timeout(1).emit_with_ack("who")
    assert sorted(failure.value.responses) == ["one", "third"]
