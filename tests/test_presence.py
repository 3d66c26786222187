"""Presence as applications and clients see it: on one node, on two, behind a slow broker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from crossband import EncodeError, Hub, Identity, Member, MemoryBroker, Socket
from crossband.auth import Action
from crossband.broker import Broker
from crossband.broker.redis import RedisBroker
from crossband.handshake import Handshake
from crossband.names import new_id
from tests.census import census, returns_to
from tests.clients import CLIENTS, Client, Event, EventFailed, NewClient
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import shared
from tests.far import Engine
from tests.waiting import until

KEY = "the-only-key"


def authenticate(handshake: Handshake) -> Identity | None:
    """The token is the user's name."""
    token = handshake.auth.get("token") or handshake.query.get("token", [""])[0]
    return Identity(token) if token else None


def authorize(identity: Identity | None, action: Action, room: str | None) -> bool:
    return room != "secret"


def room_hub(broker: Broker | None = None, **options: Any) -> Hub:
    hub = Hub(broker, **options)

    @hub.on("join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)

    @hub.on("leave")
    async def leave(socket: Socket, room: str) -> None:
        await socket.leave(room)

    return hub


class Nodes:
    """Hubs that share a broker, served, and what their rooms are told."""

    def __init__(self, serve: Serve, kind: str) -> None:
        self._serve = serve
        self.kind = kind
        self.hubs: list[Hub] = []
        self.urls: list[str] = []

    async def start(self, prepare: Callable[[Hub], None], count: int = 2, **options: Any) -> Nodes:
        brokers: Sequence[Broker]
        if self.kind == "memory":
            memory = MemoryBroker()
            brokers = [memory, *(memory.peer() for _ in range(count - 1))]
        elif self.kind == "redis":
            url = f"{shared('redis').url}?prefix={new_id()}"
            brokers = [RedisBroker(url) for _ in range(count)]
        else:
            engine = Engine(MemoryBroker(), seed=7)
            brokers = [engine.node() for _ in range(count)]
        for broker in brokers:
            hub = room_hub(broker, **options)
            prepare(hub)
            self.hubs.append(hub)
            self.urls.append((await self._serve(hub)).url)
        return self

    async def ids(self, room: str = "room") -> list[str]:
        # Each node sees what it has queued itself; then all of them see all of it.
        for hub in self.hubs:
            await hub.members(room)
        found = [(await hub.members(room)) for hub in self.hubs]
        ids = [[member.id for member in each.members] for each in found]
        assert all(each == ids[0] for each in ids)
        assert all(each.count == len(ids[0]) for each in found)
        return ids[0]


@pytest.fixture(params=["memory", "elsewhere", "redis"])
def nodes(request: pytest.FixtureRequest, serve: Serve) -> Nodes:
    return Nodes(serve, request.param)


def shows_room(hub: Hub) -> None:
    hub.presence("room")


async def told(client: Client) -> tuple[str, str, int]:
    """Return the next event about a member: what, who, and how many there are now."""
    news: list[Event] = []

    def arrived() -> bool:
        news[:] = [each for each in client.log if each.name.startswith("presence:")]
        return bool(news)

    await until(arrived)
    event = news[0]
    client.log.remove(event)
    assert event.offset is not None or "pythonsocketio" in client.kind
    return event.name.removeprefix("presence:"), event.data["member"]["id"], event.data["count"]


# Doors.


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_clients_of_every_door_see_who_is_in_their_room(
    kind: str, nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(shows_room)
    one, other = new_client(kind), new_client("websocket")
    await one.connect(nodes.urls[0])
    await one.call("join", "room")
    assert await told(one) == ("join", one.sid, 1)
    await other.connect(nodes.urls[1])
    await other.call("join", "room")
    assert await told(one) == ("join", other.sid, 2)
    answer = await one.call("presence:members", {"room": "room"})
    offset = answer.pop("offset")
    assert answer == {
        "room": "room",
        "members": [{"id": one.sid, "info": None}, {"id": other.sid, "info": None}],
        "count": 2,
        "next": None,
    }
    assert offset == (await nodes.hubs[1].members("room")).cursor
    await other.call("leave", "room")
    assert await told(one) == ("leave", other.sid, 1)
    # Its name alone will do.
    assert (await one.call("presence:members", "room"))["count"] == 1
    # Who has left is not told of itself.
    assert [event.name for event in other.log] == ["presence:join"]


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_client_that_comes_back_on_another_node_never_left(
    kind: str, nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(shows_room)
    watcher, client = new_client("websocket"), new_client(kind)
    await watcher.connect(nodes.urls[0], rooms=["room"])
    await client.connect(nodes.urls[0])
    await client.call("join", "room")
    assert await told(watcher) == ("join", watcher.sid, 1)
    assert await told(watcher) == ("join", client.sid, 2)
    sid = client.sid
    for url in (nodes.urls[1], nodes.urls[0]):
        await client.cut()
        client.url = url
        await client.resume()
        # It is still in the room.
        await client.call("presence:members", "room")
    if client.tells_recovered:
        assert client.recovered
    assert client.sid == sid
    await nodes.hubs[0].to("room").emit("news", 1)
    await watcher.next_event("news")
    await client.next_event("news")
    assert [each.name for each in watcher.log if each.name.startswith("presence")] == []
    assert await nodes.ids() == [watcher.sid, client.sid]


async def test_rooms_asked_for_in_the_request_show_their_clients(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(shows_room)
    client = new_client("sse")
    await client.connect(nodes.urls[0], rooms=["room", "other"])
    # After its welcome.
    assert await told(client) == ("join", client.sid, 1)
    assert await nodes.ids() == [client.sid]


# Members.


async def test_user_on_two_doors_and_nodes_is_one_member(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(shows_room, authenticate=authenticate)
    watcher = new_client("websocket")
    await watcher.connect(nodes.urls[0], rooms=["room"])
    assert await told(watcher) == ("join", watcher.sid, 1)
    tabs = []
    for kind, url in zip(("websocket", "sse", "sse"), (*nodes.urls, nodes.urls[0]), strict=True):
        client = new_client(kind)
        await client.connect(url, auth={"token": "ada"}, rooms=["room"])
        tabs.append(client)
    assert await told(watcher) == ("join", "ada", 2)
    assert await nodes.ids() == [watcher.sid, "ada"]
    for tab in tabs[:2]:
        await tab.call("leave", "room")
    assert await nodes.ids() == [watcher.sid, "ada"]
    await tabs[2].call("leave", "room")
    assert await told(watcher) == ("leave", "ada", 1)


async def test_info_is_the_applications_and_can_be_updated(
    nodes: Nodes, new_client: NewClient
) -> None:
    def prepare(hub: Hub) -> None:
        def member(socket: Socket) -> Member | None:
            name = socket.data.get("name")
            if name is None:
                return None
            return Member(f"user:{name}", {"name": name, "away": "away" in socket.data})

        hub.presence(re.compile("room:.*"), member=member)

        @hub.on("name")
        async def name(socket: Socket, name: str) -> None:
            socket.data["name"] = name
            await socket.update_presence()

        @hub.on("away")
        async def away(socket: Socket) -> None:
            socket.data["away"] = True
            await socket.update_presence()

    await nodes.start(prepare)
    watcher, client = new_client("websocket"), new_client("websocket")
    await watcher.connect(nodes.urls[0], rooms=["room:1"])
    await client.connect(nodes.urls[1], rooms=["room:1", "elsewhere"])
    assert await nodes.ids("room:1") == []
    await client.call("name", "ada")
    assert await told(watcher) == ("join", "user:ada", 1)
    await client.call("away")
    await client.call("away")
    event = await watcher.next_event("presence:update")
    assert event.data == {
        "room": "room:1",
        "member": {"id": "user:ada", "info": {"name": "ada", "away": True}},
        "count": 1,
    }
    found = await nodes.hubs[0].members("room:1")
    assert found.members == [Member("user:ada", {"name": "ada", "away": True})]
    # It comes back as it was.
    await client.cut()
    client.url = nodes.urls[0]
    await client.resume()
    await nodes.hubs[0].to("room:1").emit("news")
    await watcher.next_event("news")
    names = [each.name for each in watcher.log]
    assert names == ["presence:update", "news"]


async def test_client_that_is_cut_leaves_after_its_grace(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(lambda hub: hub.presence("room", grace=0.05))
    watcher, client = new_client("websocket"), new_client("websocket")
    await watcher.connect(nodes.urls[0], rooms=["room"])
    await client.connect(nodes.urls[1], rooms=["room"])
    assert await told(watcher) == ("join", watcher.sid, 1)
    assert await told(watcher) == ("join", client.sid, 2)
    await client.cut()
    assert await told(watcher) == ("leave", client.sid, 1)
    # Its session is still kept, and it joins again with it.
    await client.resume()
    assert client.recovered
    assert await told(watcher) == ("join", client.sid, 2)


@pytest.mark.parametrize("how", ["disconnect", "revoke", "refused"])
async def test_client_that_is_ended_leaves_at_once(
    nodes: Nodes, new_client: NewClient, how: str
) -> None:
    await nodes.start(shows_room, authenticate=authenticate)
    watcher, client, cut = (new_client("websocket") for _ in range(3))
    await watcher.connect(nodes.urls[0], rooms=["room"])
    await client.connect(nodes.urls[1], auth={"token": "ada"}, rooms=["room"])
    assert await told(watcher) == ("join", watcher.sid, 1)
    assert await told(watcher) == ("join", "ada", 2)
    if how == "disconnect":
        await nodes.hubs[0].to(client.sid).disconnect_sockets()
    else:
        # Also one that could still come back.
        await cut.connect(nodes.urls[0], auth={"token": "ada"}, rooms=["room"])
        socket = nodes.hubs[0].sockets[cut.sid]
        await cut.cut()
        await until(lambda: not socket.connected)
        await nodes.hubs[0].revoke("ada")
    assert await told(watcher) == ("leave", "ada", 1)


async def test_client_that_starts_afresh_leaves_nobody_behind(
    nodes: Nodes, new_client: NewClient
) -> None:
    await nodes.start(shows_room)
    watcher, client = new_client("websocket"), new_client("websocket")
    await watcher.connect(nodes.urls[0], rooms=["room"])
    await client.connect(nodes.urls[1], rooms=["room"], session="k" * 20)
    before = client.sid
    await client.cut()
    client.offset = "unknown-1"
    await client.resume()
    assert client.sid != before
    assert await nodes.ids() == [watcher.sid, client.sid]
    events = [await told(watcher) for _ in range(4)]
    assert events[2:] == [("join", client.sid, 3), ("leave", before, 2)]


# Nodes that die.


async def test_clients_of_a_killed_node_that_come_back_never_left(
    serve: Serve, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that its lease ends within the test.
    monkeypatch.setattr("crossband.hub.cluster.HEARTBEAT", 0.05)
    monkeypatch.setattr("crossband.broker.memory_presence.LEASE", 0.5)
    engine = Engine(MemoryBroker(), seed=3)
    brokers = [engine.node() for _ in range(3)]
    hubs = [room_hub(broker) for broker in brokers]
    for hub in hubs:
        hub.presence("room", grace=1.0)
    urls = [(await serve(hub)).url for hub in hubs]
    watcher = new_client("websocket")
    await watcher.connect(urls[0], rooms=["room"])
    clients = [new_client("websocket") for _ in range(6)]
    for client in clients:
        await client.connect(urls[1], rooms=["room"])
    for _ in range(7):
        assert (await told(watcher))[0] == "join"
    # Long enough for the lease to be renewed.
    await until(lambda: engine.presence._connected.get(("/", brokers[1].id)))
    await brokers[1].kill()
    for number, client in enumerate(clients[:4]):
        await client.cut()
        client.url = urls[number % 2 * 2]
        await client.resume()
        assert client.recovered
    left = {(await told(watcher))[:2] for _ in range(2)}
    assert left == {("leave", client.sid) for client in clients[4:]}
    await hubs[2].to("room").emit("news")
    await watcher.next_event("news")
    assert [each.name for each in watcher.log] == ["news"]
    found = await hubs[2].members("room")
    assert {member.id for member in found.members} == {
        watcher.sid,
        *(client.sid for client in clients[:4]),
    }


async def test_settings_declare_rooms_in_every_namespace(
    nodes: Nodes, new_client: NewClient
) -> None:
    def prepare(hub: Hub) -> None:
        hub.of("/other")
        hub.presence("team-b", member=lambda socket: None)

    await nodes.start(prepare, presence=["team-*"], presence_grace=0.05)
    watcher = new_client("websocket")
    await watcher.connect(nodes.urls[0], "/other", rooms=["team-a", "room"])
    assert await told(watcher) == ("join", watcher.sid, 1)
    client = new_client("websocket")
    await client.connect(nodes.urls[1], "/other", rooms=["team-a"])
    assert await told(watcher) == ("join", client.sid, 2)
    await client.cut()
    assert await told(watcher) == ("leave", client.sid, 1)
    # What code declares comes first.
    hidden = new_client("websocket")
    await hidden.connect(nodes.urls[0], rooms=["team-b", "team-c"])
    assert await nodes.ids("team-b") == []
    assert await nodes.ids("team-c") == [hidden.sid]


# What cannot be.


async def test_members_of_other_rooms_are_refused(serve: Serve, new_client: NewClient) -> None:
    hub = room_hub()
    shows_room(hub)
    client = new_client("websocket")
    await client.connect((await serve(hub)).url, rooms=["other"])
    for asked, code in [
        ("room", "forbidden"),
        ("other", "not_found"),
        (client.sid, "not_found"),
        ({"room": "room", "after": -1}, "invalid_message"),
        ({"rooms": "room"}, "invalid_message"),
        (7, "invalid_message"),
    ]:
        with pytest.raises(EventFailed) as failure:
            await client.call("presence:members", asked)
        assert failure.value.code == code, asked
    with pytest.raises(ValueError, match=r"declare it with presence\(\)"):
        await hub.members("other")
    with pytest.raises(EncodeError):
        await hub.members("")


@pytest.mark.parametrize(
    ("member", "error", "text"),
    [
        (lambda socket: "ada", TypeError, "returns a Member or None, not str"),
        (lambda socket: Member(""), EncodeError, "1 to 256 characters"),
        (
            lambda socket: Member("a", "é" * 600),
            EncodeError,
            "at most 1024 bytes as JSON, not 1202",
        ),
        (lambda socket: Member("a", object()), EncodeError, "object"),
    ],
)
async def test_member_that_cannot_be_told_raises_where_it_is_shown(
    serve: Serve,
    new_client: NewClient,
    member: Any,
    error: type[Exception],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    hub.presence(lambda room: room.startswith("room"), member=member)
    raised = asyncio.get_running_loop().create_future()

    @hub.on("join")
    async def join(socket: Socket) -> None:
        try:
            await socket.join("room:2")
        except Exception as failure:
            raised.set_result(failure)

    client = new_client("websocket")
    # It is admitted all the same.
    await client.connect((await serve(hub)).url, rooms=["room:1"])
    assert "does not show in its rooms" in caplog.text
    await client.call("join")
    assert isinstance(raised.result(), error)
    assert text in str(raised.result())
    assert (await hub.members("room:1")).count == 0


async def async_member(socket: Socket) -> Member:
    return Member("a")


@pytest.mark.parametrize(
    ("rooms", "options", "error", "text"),
    [
        (7, {}, TypeError, "takes a room, a compiled pattern or a function, not 7"),
        ("", {}, EncodeError, "1 to 256 characters"),
        (async_member, {}, TypeError, "which is not async"),
        ("room", {"member": async_member}, TypeError, "which is not async"),
        ("room", {"member": lambda: None}, TypeError, "member"),
        ("room", {"grace": -1}, ValueError, "grace is 0 or more seconds, not -1"),
        ("room", {"grace": "5"}, TypeError, "grace is a number of seconds, not '5'"),
    ],
)
def test_declaration_that_cannot_be_used_is_refused(
    rooms: Any, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Hub().presence(rooms, **options)


# HTTP.


async def test_members_over_http(nodes: Nodes, new_client: NewClient) -> None:
    await nodes.start(
        lambda hub: hub.presence(lambda room: True),
        api_keys=[KEY],
        authenticate=authenticate,
        authorize=authorize,
    )
    client = new_client("websocket")
    await client.connect(nodes.urls[0], auth={"token": "ada"}, rooms=["room"])
    await nodes.ids()
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:

        async def get(query: str, **headers: str) -> httpx.Response:
            return await http.get(f"{nodes.urls[1]}/api/presence?{query}", headers=headers)

        for answer in (
            await get("room=room", authorization=f"Bearer {KEY}"),
            await get("room=room&token=bob"),
            await get("room=room&namespace=/&after=0&token=bob"),
        ):
            assert answer.status_code == 200
            found = answer.json()
            offset = found.pop("offset")
            assert found == {
                "room": "room",
                "members": [{"id": "ada", "info": None}],
                "count": 1,
                "next": None,
            }
        # From there, a stream has what follows and nothing twice.
        stream = new_client("sse")
        await stream.connect(
            nodes.urls[1], auth={"token": "bob"}, rooms=["room"], session="s" * 20, offset=offset
        )
        assert await told(stream) == ("join", "bob", 2)
        for query, key, status, code in [
            ("room=room", "wrong", 401, "unauthorized"),
            ("room=secret&token=bob", "", 403, "forbidden"),
            ("token=bob", "", 422, "invalid_message"),
            ("room=&token=bob", "", 422, "invalid_message"),
            ("room=room&after=x&token=bob", "", 422, "invalid_message"),
            ("room=room&namespace=/nowhere&token=bob", "", 404, "invalid_namespace"),
        ]:
            answer = await get(query, **({"x-api-key": key} if key else {}))
            assert (answer.status_code, answer.json()["code"]) == (status, code), query
        answer = await http.post(f"{nodes.urls[1]}/api/presence?room=room")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, OPTIONS")


async def test_rooms_without_presence_are_not_found_over_http(serve: Serve) -> None:
    server = await serve(Hub(api_keys=[KEY]))
    keyless = await serve(Hub())
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        answer = await http.get(f"{server.url}/api/presence?room=room", headers={"x-api-key": KEY})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        answer = await http.get(f"{keyless.url}/api/presence?room=room")
        assert (answer.status_code, answer.json()["code"]) == (403, "refused")


async def test_large_room_is_read_in_pages(
    nodes: Nodes, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(hub: Hub) -> None:
        hub.presence("room", member=lambda socket: Member(socket.data["name"]))

        @hub.use
        def name(socket: Socket) -> None:
            socket.data["name"] = socket.handshake.query["name"][0]

    await nodes.start(prepare)
    # A memory broker's nodes share their store.
    for kind in {type(hub.broker.presence) for hub in nodes.hubs}:
        real = kind.members

        async def members(*args: Any, after: int = 0, real: Any = real, **_: Any) -> Any:
            return await real(*args, after=after, limit=2)

        monkeypatch.setattr(kind, "members", members)
    clients = []
    for number in range(5):
        client = new_client("websocket")
        await client.connect(nodes.urls[number % 2], auth={"name": f"m{number}"}, rooms=["room"])
        await nodes.hubs[number % 2].members("room")
        clients.append(client)
    assert await nodes.ids() == [f"m{number}" for number in range(5)]
    pages: list[list[str]] = []
    after: int | None = 0
    while after is not None:
        answer = await clients[0].call("presence:members", {"room": "room", "after": after})
        pages.append([member["id"] for member in answer["members"]])
        after = answer["next"]
    assert pages == [["m0", "m1"], ["m2", "m3"], ["m4"]]


async def test_nothing_is_left_of_clients_that_come_and_go(
    serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    rooms = hub.of(re.compile("/n.*"))
    rooms.presence(lambda room: True, grace=0.01)

    @rooms.on("join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)

    server = await serve(hub)
    start = census(hub)
    clients = [new_client(kind) for kind in ("websocket", "sse", "python-socketio") * 2]
    for number, client in enumerate(clients):
        await client.connect(server.url, f"/n{number}")
        for room in ("one", "two"):
            await client.call("join", room)
    assert census(hub)["rooms with members"] == 2 * len(clients)
    for number, client in enumerate(clients):
        await (client.cut() if number < 3 else client.close())
    await returns_to(start, lambda: census(hub))
