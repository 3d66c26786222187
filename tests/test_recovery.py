"""Coming back: across doors, across a restart, and when it is too late."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from crossband import Hub, Socket
from crossband.server import Server
from tests.clients import CLIENTS, NewClient, OfficialClient
from tests.conftest import Serve
from tests.lanes import PlainASGI

# (the door left, the door come back by); both with the session, hence the same socket.
CROSSINGS = [
    *itertools.permutations(["websocket", "sse", "python-socketio"], 2),
    ("socket.io-client websocket", "websocket"),
    ("socket.io-client polling", "sse"),
    ("socket.io-client upgrading", "websocket"),
]
# Those that start no process of their own: one for each kind of door.
PYTHON_CLIENTS = ["websocket", "sse", "python-socketio"]
# Why a restarted server cannot resume: a new epoch, or the session gone with the old one.
RESTARTED = {"unknown", "session"}


def numbers_hub(kind: type[Hub] = Hub, **settings: Any) -> Hub:
    """Return a hub whose clients join the room `numbers`; events are sent from the test."""
    hub = kind(**settings)

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        if not socket.recovered:
            socket.data["door"] = socket.transport

    @hub.on("join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)

    return hub


@pytest.mark.node
@pytest.mark.parametrize(("left", "back"), CROSSINGS)
async def test_client_leaves_by_one_door_and_comes_back_by_another(
    left: str, back: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    first = new_client(left)
    await first.connect(server.url)
    await first.call("join", "numbers")
    for number in range(5):
        await hub.to("numbers").emit("number", number)
    for number in range(5):
        assert (await first.next_event("number")).data == number
    if isinstance(first, OfficialClient):
        # The official client keeps its cursor private; here another client takes over.
        first.offset = first.log[-1].offset
    door = hub.sockets[first.sid].data["door"]
    await first.cut()
    for number in range(5, 10):
        await hub.to("numbers").emit("number", number)
    await hub.to("elsewhere").emit("number", -1)

    second = new_client(back)
    await second.connect(server.url, session=first.session, offset=first.offset)
    await hub.to("numbers").emit("number", 10)
    for number in range(5, 11):
        assert (await second.next_event("number")).data == number
    assert first.data_of("number") + second.data_of("number") == list(range(11))
    assert not second.gaps
    assert second.sid == first.sid
    assert second.recovered or not second.tells_recovered
    assert hub.sockets[second.sid].data == {"door": door}
    assert list(hub.sockets) == [first.sid]


@pytest.mark.parametrize(("left", "back"), [("websocket", "sse"), ("sse", "websocket")])
async def test_cursor_alone_catches_up_by_another_door(
    left: str, back: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    first = new_client(left)
    await first.connect(server.url, rooms=["numbers"])
    for number in range(3):
        await hub.to("numbers").emit("number", number)
        assert (await first.next_event("number")).data == number
    await first.cut()
    await hub.to("numbers").emit("number", 3)
    await hub.to("elsewhere").emit("number", -1)
    await hub.emit("number", 4)

    second = new_client(back)
    await second.connect(server.url, rooms=["numbers"], offset=first.offset)
    await hub.to("numbers").emit("number", 5)
    for number in range(3, 6):
        assert (await second.next_event("number")).data == number
    assert second.data_of("number") == [3, 4, 5]
    assert not second.gaps
    # A socket of its own: the session was not asked for.
    assert second.sid != first.sid


@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_slow_connect_handler_loses_nothing(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    looked_up = asyncio.Event()

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        # With a cursor and no session its rooms are known only after this.
        await looked_up.wait()
        await socket.join("numbers")

    server = await serve(hub)
    cursor = await hub.emit("number", 0)
    await hub.to("numbers").emit("number", 1)
    client = new_client(kind)
    await client.connect(server.url, offset=cursor)
    await hub.to("numbers").emit("number", 2)
    await hub.emit("number", 3)
    looked_up.set()
    await client.next_event("number")
    await hub.to("numbers").emit("number", 4)
    for _ in range(3):
        await client.next_event("number")
    assert client.data_of("number") == [1, 2, 3, 4]
    assert not client.gaps


@pytest.mark.node
# python-socketio has neither a cursor before its first event nor a pid.
@pytest.mark.parametrize(
    "kind", [kind for kind in CLIENTS if not kind.startswith("python-socketio")]
)
async def test_client_that_received_nothing_yet_misses_nothing(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url)
    await client.cut()
    await hub.emit("number", 1)
    await client.resume()
    assert (await client.next_event("number")).data == 1
    assert client.recovered
    assert not client.gaps


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_client_comes_back_again_and_again(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url)
    await client.call("join", "numbers")
    sid = client.sid
    for number in range(0, 10, 2):
        await hub.to("numbers").emit("number", number)
        assert (await client.next_event("number")).data == number
        await client.cut()
        await hub.to("numbers").emit("number", number + 1)
        await client.resume()
        assert (await client.next_event("number")).data == number + 1
        assert client.sid == sid
    assert client.data_of("number") == list(range(10))
    assert not client.gaps


@pytest.mark.node
@pytest.mark.parametrize("received", [True, False], ids=["with a cursor", "with none"])
async def test_restarted_server_tells_every_client_of_the_gap(
    received: bool, new_client: NewClient
) -> None:
    hub = numbers_hub()
    async with Server(hub) as server:
        url, port = server.url, server.port
        clients = [
            new_client(kind)
            for kind in CLIENTS
            if received or not kind.startswith("python-socketio")
        ]
        for client in clients:
            await client.connect(url)
            await client.call("join", "numbers")
            await client.settled()
        if received:
            await hub.to("numbers").emit("number", 1)
            for client in clients:
                assert (await client.next_event("number")).data == 1
        old = {client.sid for client in clients}
        assert len(old) == len(clients)
    for client in clients:
        shutdown = await client.next_event("server:shutdown")
        assert shutdown.data["message"]

    # As another process: a new epoch, no sessions. Events passed in between.
    hub = numbers_hub()
    async with Server(hub, port=port):
        await hub.emit("number", 2)
        for client in clients:
            await client.resume()
            gap = await client.next_gap()
            assert gap["reason"] in RESTARTED, client.kind
            assert not client.recovered
            assert client.sid in hub.sockets
            assert client.sid not in old
        # Told once, and then they live.
        await hub.emit("number", 3)
        for client in clients:
            assert (await client.next_event("number")).data == 3
            assert len(client.gaps) == 1
            assert client.data_of("number") == ([1, 3] if received else [3])
        # And can come back again, with no second gap.
        for client in clients:
            await client.cut()
        await hub.emit("number", 4)
        for client in clients:
            await client.resume()
            assert (await client.next_event("number")).data == 4
            assert len(client.gaps) == 1, client.kind
        for client in clients:
            await client.close()


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_evicted_history_is_told_as_a_gap(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub(history_size=5)
    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url)
    await hub.emit("number", 0)
    assert (await client.next_event("number")).data == 0
    await client.cut()
    for number in range(1, 11):
        await hub.emit("number", number)
    await client.resume()
    gap = await client.next_gap()
    assert gap["reason"] == "expired"
    assert not client.recovered
    await hub.emit("number", 11)
    assert (await client.next_event("number")).data == 11
    assert client.data_of("number") == [0, 11]


@pytest.mark.node
@pytest.mark.parametrize(
    ("door", "kind"),
    [*((door, Hub) for door in CLIENTS), *((door, PlainASGI) for door in PYTHON_CLIENTS)],
)
async def test_own_events_come_back_in_their_places_whatever_others_are_sent(
    door: str, kind: type[Hub], serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub(kind, history_size=5)
    server = await serve(hub)
    client, neighbour = new_client(door), new_client("websocket")
    await client.connect(server.url)
    await neighbour.connect(server.url)
    await hub.to(client.sid).emit("number", 0)
    assert (await client.next_event("number")).data == 0
    await client.cut()
    for number in range(1, 6, 2):
        await hub.emit("number", number)
        # As `socket.emit` does, and `socket.to(sid)`, which leaves its own client out.
        await hub.to(client.sid).except_(neighbour.sid).emit("number", number + 1)
        for _ in range(10):
            await hub.to(neighbour.sid).emit("row", "for the neighbour")
    await client.resume()
    for number in range(1, 7):
        assert (await client.next_event("number")).data == number
    await hub.to(client.sid).emit("number", 7)
    assert (await client.next_event("number")).data == 7
    assert client.data_of("number") == list(range(8))
    assert client.data_of("row") == []
    assert client.recovered or not client.tells_recovered
    assert not client.gaps


@pytest.mark.parametrize("kind", PYTHON_CLIENTS)
async def test_too_many_events_of_its_own_are_a_gap_for_that_client_alone(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub(history_size=5)
    server = await serve(hub)
    client, other = new_client(kind), new_client("websocket")
    for each in (client, other):
        await each.connect(server.url)
        await hub.to(each.sid).emit("number", 0)
        assert (await each.next_event("number")).data == 0
        await each.cut()
    for number in range(1, 7):
        await hub.to(client.sid).emit("number", number)
    await hub.emit("number", 7)
    await client.resume()
    assert (await client.next_gap())["reason"] == "expired"
    assert not client.recovered
    await other.resume()
    assert (await other.next_event("number")).data == 7
    assert other.recovered
    assert client.data_of("number") == [0]


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_cut_right_after_a_gap_is_no_second_gap(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub(history_size=5)
    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url)
    await hub.emit("number", 0)
    assert (await client.next_event("number")).data == 0
    await client.cut()
    for number in range(1, 11):
        await hub.emit("number", number)
    await client.resume()
    await client.next_gap()
    await client.cut()
    await hub.emit("number", 11)
    await client.resume()
    assert (await client.next_event("number")).data == 11
    assert len(client.gaps) == 1


@pytest.mark.parametrize("kind", ["websocket", "sse", "python-socketio"])
@pytest.mark.parametrize("cursor", ["nonsense", "0", "-1", "1-1", "x" * 128, "a b", ""])
async def test_unknown_cursor_is_told_as_a_gap(
    kind: str, cursor: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    await hub.emit("number", 0)
    client = new_client(kind)
    await client.connect(server.url, offset=cursor)
    if cursor:
        assert (await client.next_gap())["reason"] == "unknown"
    assert not client.recovered
    await hub.emit("number", 1)
    assert (await client.next_event("number")).data == 1
    assert client.data_of("number") == [1]
    assert len(client.gaps) == (1 if cursor else 0)


@pytest.mark.parametrize("kind", ["websocket", "sse", "python-socketio"])
async def test_unknown_session_is_told_as_a_gap(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    reader = new_client("websocket")
    await reader.connect(server.url)
    await hub.emit("number", 0)
    offset = (await reader.next_event("number")).offset
    client = new_client(kind)
    # The cursor is fine, but the rooms of that session are not known any more.
    await client.connect(server.url, session="never-seen-before-0001", offset=offset)
    assert (await client.next_gap())["reason"] == "session"
    assert not client.recovered
    await hub.emit("number", 1)
    assert (await client.next_event("number")).data == 1


@pytest.mark.parametrize(("left", "back"), [("websocket", "sse"), ("sse", "websocket")])
async def test_cursor_of_another_namespace_is_a_gap(
    left: str, back: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    admin = hub.of("/admin")
    server = await serve(hub)
    first = new_client(left)
    await first.connect(server.url, "/admin")
    for number in range(3):
        await admin.emit("number", number)
        await first.next_event("number")
    second = new_client(back)
    await second.connect(server.url, offset=first.offset)
    assert (await second.next_gap())["reason"] == "unknown"


@pytest.mark.parametrize("kind", ["websocket", "sse"])
async def test_second_client_with_a_session_takes_it_over(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = numbers_hub()
    server = await serve(hub)
    first = new_client("websocket")
    await first.connect(server.url)
    await first.call("join", "numbers")
    # The first is still connected, as after a cut only the client has noticed.
    second = new_client(kind)
    await second.connect(server.url, session=first.session, offset=first.offset)
    assert second.sid == first.sid
    await first.gone.wait()
    await hub.to("numbers").emit("number", 1)
    assert (await second.next_event("number")).data == 1
    assert second.recovered
    assert list(hub.sockets) == [second.sid]
    assert first.data_of("number") == []
