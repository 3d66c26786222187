"""Who gets what: rooms, exceptions, volatile, acknowledgements, middlewares, namespaces."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from crossband import (
    AckTimeout,
    ConnectionRefused,
    Disconnected,
    EncodeError,
    EventError,
    Hub,
    Socket,
)
from crossband.codecs import PLAIN, SOCKETIO, Codec
from crossband.errors import CloseCode
from crossband.hub.incoming import Incoming
from tests.clients.base import WAIT
from tests.link import Link, join


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.start()
    yield hub
    await hub.stop()


class Peer:
    """A client whose every event is kept."""

    def __init__(self, hub: Hub) -> None:
        self.link = Link(hub._core.ticker, stalled=False)
        self.socket: Socket

    @property
    def id(self) -> str:
        return self.socket.id

    async def events(self, count: int) -> list[tuple[str, Any]]:
        """Wait for this many events after the welcome; return all there are."""
        messages = await self.link.messages(1 + count)
        return [(message["type"], message.get("data")) for message in messages[1:]]

    def send(self, event: str, data: str = "null", ack_id: int | None = None) -> None:
        raw = msgspec.Raw(data.encode())
        self.socket.inbox.receive(self.socket, Incoming(event, [raw], (), ack_id, single=True))


async def peer(hub: Hub, *rooms: str, namespace: str = "/", codec: Codec | None = None) -> Peer:
    made = Peer(hub)
    if codec is None:
        made.socket = await join(hub, made.link, namespace)
    else:
        made.socket = await join(hub, made.link, namespace, codec=codec)
    await made.socket.join(*rooms)
    return made


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


async def received(hub: Hub, *peers: Peer) -> list[list[Any]]:
    """Return the data each peer got, up to an event that closes the round."""
    await hub.emit("end")
    got = []
    for one in peers:
        events: list[tuple[str, Any]] = []
        while not events or events[-1][0] != "end":
            events = await one.events(len(events) + 1)
        got.append([data for name, data in events if name != "end"])
    return got


async def test_rooms_and_exceptions_choose_the_recipients(hub: Hub) -> None:
    a, b, c = await peer(hub, "red"), await peer(hub, "red", "blue"), await peer(hub)
    await hub.emit("x", "all")
    await hub.to("red").emit("x", "red")
    await hub.to("red", "blue").emit("x", "red or blue, once")
    await hub.to("red").to("blue").emit("x", "the same")
    await hub.in_("red").except_("blue").emit("x", "red but blue")
    await hub.except_("red").emit("x", "not red")
    await hub.to(c.id).emit("x", "c by id")
    await hub.except_(a.id, c.id).emit("x", "b alone")
    await hub.to("empty").emit("x", "nobody")
    assert await received(hub, a, b, c) == [
        ["all", "red", "red or blue, once", "the same", "red but blue"],
        ["all", "red", "red or blue, once", "the same", "b alone"],
        ["all", "not red", "c by id"],
    ]


async def test_socket_chooses_others_by_default(hub: Hub) -> None:
    a, b, c = await peer(hub, "red"), await peer(hub, "red"), await peer(hub)
    await a.socket.emit("x", "to me")
    await a.socket.broadcast.emit("x", "all others")
    await a.socket.to("red").emit("x", "others in red")
    await a.socket.except_("red").emit("x", "others not in red")
    assert await received(hub, a, b, c) == [
        ["to me"],
        ["all others", "others in red"],
        ["all others", "others not in red"],
    ]


async def test_left_rooms_and_gone_sockets_receive_nothing(hub: Hub) -> None:
    a, b = await peer(hub, "red"), await peer(hub, "red")
    await a.socket.leave("red", "never joined")
    await hub.to("red").emit("x", 1)
    hub._core.leave(b.socket, "transport close")
    await hub.to("red").emit("x", 2)
    assert await received(hub, a) == [[]]
    assert "red" not in hub.rooms
    assert not hub.sockets.get(b.id)


async def test_emit_gives_the_cursor_and_volatile_none(hub: Hub) -> None:
    a = await peer(hub)
    cursor = await hub.emit("x", 1)
    assert cursor == hub.broker.head("/")
    assert await hub.volatile.emit("x", 2) is None
    assert hub.broker.head("/") == cursor
    assert hub.emit("x", 3).result() == hub.broker.head("/")
    assert await received(hub, a) == [[1, 2, 3]]


async def test_volatile_skips_who_is_behind(hub: Hub) -> None:
    slow = await peer(hub)
    slow.link.stalled = True
    await hub.emit("x", 1)
    await hub.volatile.emit("x", 2)
    await hub.emit("x", 3)
    slow.link.stalled = False
    assert await received(hub, slow) == [[1, 3]]


async def full(hub: Hub, *rooms: str) -> Peer:
    """Return a client that does not read, with room for some twenty events."""
    made = await peer(hub, *rooms)
    made.link.limit = 1_000
    made.link.stalled = True
    return made


async def test_latest_of_each_key_and_room_waits_for_who_is_behind(hub: Hub) -> None:
    hub.policy("move", "latest", key=lambda who, place: who)
    slow = await full(hub, "a", "b")
    for place in range(50):
        for who in ("ann", "bob"):
            assert await hub.to("a").emit("move", who, place) is None
        if place == 0:
            hub.to("b").emit("move", "ann", 0)
    assert not slow.link.closed
    assert slow.link.queued <= 1_000
    slow.link.drop()
    slow.link.stalled = False
    events = await slow.events(3)
    assert [data for _, data in events] == [["ann", 0], ["ann", 49], ["bob", 49]]


async def test_dropping_makes_room_for_what_must_not_be_lost(hub: Hub) -> None:
    hub.policy("line", "drop_oldest")
    slow = await full(hub)
    for n in range(4):
        hub.emit("x", n)
        for _ in range(20):
            hub.emit("line", n)
    assert not slow.link.closed
    # As before: what has no policy disconnects.
    for n in range(20):
        hub.emit("x", n)
    assert slow.link.code is CloseCode.SLOW_CLIENT


async def test_policy_of_a_pattern_holds_in_each_of_its_namespaces(hub: Hub) -> None:
    games = hub.of(re.compile(r"/game-\d"))
    games.policy("score", "latest")
    slow = await peer(hub, namespace="/game-1")
    slow.link.limit = 400
    slow.link.stalled = True
    for n in range(50):
        games.emit("score", n)
    assert not slow.link.closed
    slow.link.stalled = False
    assert (await slow.events(1))[-1] == ("score", 49)
    # The same name elsewhere has none.
    assert await hub.emit("score", 1) is not None


async def test_volatile_event_with_a_policy_skips_who_is_behind(hub: Hub) -> None:
    hub.policy("x", "latest")
    slow = await peer(hub)
    slow.link.stalled = True
    await hub.emit("x", 1)
    await hub.volatile.emit("x", 2)
    slow.link.stalled = False
    assert (await slow.events(1)) == [("x", 1)]


async def test_what_is_emitted_is_frozen_at_once(hub: Hub) -> None:
    a = await peer(hub)
    data = {"list": [1]}
    await hub.emit("x", data)
    data["list"].append(2)
    assert await received(hub, a) == [[{"list": [1]}]]


async def test_emit_from_other_threads_is_safe(hub: Hub) -> None:
    a = await peer(hub)
    cursors: list[str | None] = []

    def work() -> None:
        cursors.extend(hub.to(a.id).emit("x", number).result(5) for number in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    (got,) = await received(hub, a)
    assert sorted(got) == sorted([*range(50)] * 4)
    assert len(set(cursors)) == 200


async def test_emit_in_another_loop_can_be_awaited(hub: Hub) -> None:
    a = await peer(hub)

    async def elsewhere() -> str | None:
        return await hub.emit("x", 1)

    cursor = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert cursor == hub.broker.head("/")
    assert await received(hub, a) == [[1]]


@pytest.mark.parametrize(
    ("emit", "complaint"),
    [
        (lambda hub: hub.emit("connect"), "'connect' is a reserved event name"),
        (lambda hub: hub.emit("event:named"), "'event:named' is a reserved event name"),
        (lambda hub: hub.emit(""), "an event name must have 1 to 256 characters, not 0"),
        (lambda hub: hub.emit("a\nb"), "must not contain control characters"),
        (lambda hub: hub.emit("\ud800"), "must be valid Unicode"),
        (lambda hub: hub.emit(7), "an event name must be a string, not int"),
        (lambda hub: hub.emit("x", object()), "object is not JSON serialisable"),
        (lambda hub: hub.emit("x", "\ud800"), "cannot encode the event's data"),
        (lambda hub: hub.emit("x", nested(10_000)), "nested too deeply"),
        (lambda hub: hub.emit("x", nested(129)), "nested too deeply"),
        (lambda hub: hub.emit("x", [nested(128), b""]), "nested too deeply"),
        (lambda hub: hub.emit("x", cycle()), "nested too deeply"),
        (lambda hub: hub.emit("x", *[b"x"] * 11), "at most 10 binary values, not 11"),
        (lambda hub: hub.to("a\x00").emit("x"), "a room name must not contain control"),
        (lambda hub: hub.to("r" * 257), "a room name must have 1 to 256 characters, not 257"),
        (lambda hub: hub.to(), "needs at least one room"),
        (lambda hub: hub.of("/a\nb"), "a namespace name must not contain control"),
    ],
)
async def test_what_cannot_be_sent_is_refused_at_once(hub: Hub, emit: Any, complaint: str) -> None:
    head = hub.broker.head("/")
    with pytest.raises(ValueError, match=re.escape(complaint)):
        emit(hub)
    assert hub.broker.head("/") == head


async def test_nested_as_deeply_as_may_be_is_sent(hub: Hub) -> None:
    a = await peer(hub)
    await hub.emit("x", nested(128))
    await hub.emit("x", [nested(127), b"binary"])
    assert await received(hub, a) == [[nested(128), [nested(127), "YmluYXJ5"]]]


async def test_acknowledgement_of_one_socket(hub: Hub) -> None:
    a = await peer(hub)
    asked = asyncio.create_task(a.socket.emit_with_ack("question", 1))
    ((name, data),) = await a.events(1)
    assert (name, data) == ("question", 1)
    request = (await a.link.messages(2))[1]
    assert "offset" not in request
    assert a.socket.acknowledge(request["id"], "answer")
    assert await asked == "answer"
    assert not a.socket.acknowledge(request["id"], "again")


async def test_acknowledgement_that_does_not_come(hub: Hub) -> None:
    a = await peer(hub)
    with pytest.raises(AckTimeout, match=r"'question' within 0\.01 s"):
        await a.socket.timeout(0.01).emit_with_ack("question")
    asked = asyncio.create_task(a.socket.emit_with_ack("question"))
    await a.events(2)
    hub._core.leave(a.socket, "transport close")
    with pytest.raises(Disconnected, match="left before"):
        await asked
    with pytest.raises(Disconnected, match="has left"):
        await a.socket.emit_with_ack("question")


@pytest.mark.parametrize(
    ("seconds", "error"),
    [("x", TypeError), (None, TypeError), (True, TypeError), (-1, ValueError)]
    + [(float(name), ValueError) for name in ("nan", "inf")],
)
async def test_timeout_that_is_no_time_is_refused(
    hub: Hub, seconds: Any, error: type[Exception]
) -> None:
    for target in (hub, hub.to("a"), (await peer(hub)).socket):
        with pytest.raises(error, match=re.escape(f"seconds, not {seconds!r}")):
            target.timeout(seconds)


async def test_broadcast_gathers_the_acknowledgements(hub: Hub) -> None:
    peers = [await peer(hub, "red") for _ in range(3)]
    await peer(hub)
    asked = asyncio.create_task(hub.to("red").timeout(WAIT).emit_with_ack("question"))
    for number, one in enumerate(peers):
        await one.events(1)
        one.socket.acknowledge((await one.link.messages(2))[1]["id"], number)
    assert await asked == [0, 1, 2]
    assert await hub.to("nobody").emit_with_ack("question") == []


async def test_broadcast_that_some_do_not_acknowledge(hub: Hub) -> None:
    a, b, c = [await peer(hub) for _ in range(3)]
    asked = asyncio.create_task(hub.timeout(1.0).emit_with_ack("question"))
    for one in (a, b):
        await one.events(1)
    a.socket.acknowledge((await a.link.messages(2))[1]["id"], "yes")
    hub._core.leave(b.socket, "transport close")
    with pytest.raises(AckTimeout, match="1 of 3 clients acknowledged 'question'") as caught:
        await asked
    assert caught.value.responses == ["yes"]
    # Nothing is left waiting.
    assert c.socket.owed == 0


async def test_plain_sockets_are_not_asked(hub: Hub) -> None:
    plain = hub.of("/plain", plain=True)
    one = await peer(hub, namespace="/plain", codec=PLAIN)
    assert await plain.emit_with_ack("question") == []
    with pytest.raises(ValueError, match="reserved"):
        await one.socket.emit_with_ack("connect")


async def test_sockets_can_be_fetched_moved_and_disconnected(hub: Hub) -> None:
    a, b, c = await peer(hub, "red"), await peer(hub, "red"), await peer(hub)
    assert await hub.to("red").fetch_sockets() == [a.socket, b.socket]
    assert await hub.except_("red").fetch_sockets() == [c.socket]
    await hub.to("red").sockets_join("blue", "green")
    assert b.socket.rooms == {b.id, "red", "blue", "green"}
    await hub.except_(a.id).sockets_leave("blue")
    assert await hub.to("blue").fetch_sockets() == [a.socket]
    assert set(hub.rooms["green"]) == {a.id, b.id}
    await hub.to("green").disconnect_sockets()
    assert list(hub.sockets) == [c.id]
    assert not a.socket.connected
    await hub.disconnect_sockets(close=True)
    assert not hub.sockets
    assert set(hub.rooms) == set()


async def test_one_sockets_events_run_in_order_and_others_at_once(hub: Hub) -> None:
    log: list[tuple[str, int]] = []
    gate = asyncio.Event()
    half, done = asyncio.Event(), asyncio.Event()

    @hub.on("work")
    async def work(socket: Socket, number: int) -> None:
        if number == 0 and socket is a.socket:
            await gate.wait()
        log.append((socket.id, number))
        if len(log) == 3:
            half.set()
        if len(log) == 6:
            done.set()

    a, b = await peer(hub), await peer(hub)
    for number in range(3):
        a.send("work", str(number))
    for number in range(3):
        b.send("work", str(number))
    # b does not wait for a, whose first event does not end.
    async with asyncio.timeout(WAIT):
        await half.wait()
        assert [sid for sid, _ in log] == [b.id] * 3
        gate.set()
        await done.wait()
    assert [number for sid, number in log if sid == a.id] == [0, 1, 2]


async def test_disconnect_handler_does_not_wait_for_what_was_sent_before_it(hub: Hub) -> None:
    log: list[str] = []
    left, worked = asyncio.Event(), asyncio.Event()

    @hub.on("work")
    async def work(socket: Socket) -> None:
        await left.wait()
        log.append("work")
        if log.count("work") == 2:
            worked.set()

    @hub.on("disconnect")
    async def disconnect(socket: Socket, reason: str) -> None:
        log.append(f"{reason}, was in {sorted(socket.rooms - {socket.id})}")
        left.set()

    a = await peer(hub, "red")
    a.send("work")
    a.send("work")
    hub._core.leave(a.socket, "transport close")
    await worked.wait()
    assert log == ["transport close, was in ['red']", "work", "work"]


async def test_failing_handler_answers_its_client_and_harms_nobody(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    @hub.on("boom")
    def boom(socket: Socket) -> None:
        raise RuntimeError("secret detail")

    @hub.on("full")
    def full(socket: Socket) -> None:
        raise EventError("The room is full", code="room_full", size=3)

    a, b = await peer(hub), await peer(hub)
    a.send("boom", ack_id=1)
    a.send("full")
    messages = (await a.link.messages(3))[1:]
    assert messages == [
        {
            "type": "error",
            "code": "internal_error",
            "error": "Internal server error",
            "event": "boom",
            "id": 1,
        },
        {
            "type": "error",
            "code": "room_full",
            "error": "The room is full",
            "size": 3,
            "event": "full",
        },
    ]
    assert f"the handler of 'boom' failed for {a.socket.id} in '/'" in caplog.text
    assert await received(hub, b) == [[]]


async def test_event_middleware_and_listeners_see_every_event(hub: Hub) -> None:
    seen: list[Any] = []

    @hub.use_event
    async def guard(socket: Socket, event: str, args: list[Any]) -> None:
        if event == "forbidden":
            raise EventError("Not for you", code="refused")

    @hub.on_any
    def listen(socket: Socket, event: str, args: list[Any]) -> None:
        seen.append((event, args))

    @hub.on("allowed")
    def allowed(socket: Socket, number: int) -> int:
        return number + 1

    a = await peer(hub)
    a.send("allowed", "1", ack_id=1)
    a.send("forbidden", ack_id=2)
    a.send("unhandled", '"x"', ack_id=3)
    messages = (await a.link.messages(4))[1:]
    assert [(m["type"], m.get("data"), m.get("code")) for m in messages] == [
        ("ack", 2, None),
        ("error", None, "refused"),
        ("ack", None, None),
    ]
    assert seen == [("allowed", [1]), ("unhandled", ["x"])]


async def test_connect_middlewares_run_in_order_and_may_refuse(hub: Hub) -> None:
    calls: list[str] = []

    @hub.use
    def first(socket: Socket) -> None:
        calls.append("first")
        socket.data["user"] = "Ada"

    @hub.use
    async def second(socket: Socket) -> None:
        calls.append("second")
        if calls.count("second") == 2:
            raise ConnectionRefused("No more", data={"retry": False}, status=401)

    a = await peer(hub)
    assert a.socket.data == {"user": "Ada"}
    with pytest.raises(ConnectionRefused) as caught:
        await peer(hub)
    assert (caught.value.status, caught.value.data) == (401, {"retry": False})
    assert calls == ["first", "second"] * 2
    assert list(hub.sockets) == [a.id]


@pytest.mark.parametrize("status", [200, 101, 302, 600, "403", True, None])
async def test_refusal_that_would_not_refuse_is_an_internal_error(
    hub: Hub, status: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @hub.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused("No", status=status)

    with pytest.raises(ConnectionRefused, match="Internal server error") as caught:
        await peer(hub)
    assert caught.value.status == 500
    assert f"not {status!r}" in caplog.text


async def test_failing_middleware_refuses_without_telling_why(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    @hub.use
    def broken(socket: Socket) -> None:
        raise RuntimeError("secret detail")

    with pytest.raises(ConnectionRefused, match="Internal server error") as caught:
        await peer(hub)
    assert caught.value.status == 500
    assert "secret detail" in caplog.text


async def test_namespaces_are_apart(hub: Hub) -> None:
    admin = hub.of("/admin")
    assert hub.of("admin") is admin
    a, b = await peer(hub, "red"), await peer(hub, "red", namespace="/admin")
    await hub.to("red").emit("x", "root")
    await admin.to("red").emit("x", "admin")
    assert await b.events(1) == [("x", "admin")]
    assert await received(hub, a) == [["root"]]


async def test_undeclared_namespace_refuses(hub: Hub) -> None:
    with pytest.raises(ConnectionRefused, match="Invalid namespace"):
        await peer(hub, namespace="/nope")
    assert "/nope" not in hub.namespaces


async def test_namespaces_by_pattern_share_handlers_and_go_when_empty(hub: Hub) -> None:
    orders = hub.of(re.compile(r"/orders-\d+"))
    longs = hub.of(lambda name: len(name) > 30)

    @orders.on("which")
    def which(socket: Socket) -> str:
        return socket.namespace.name

    a, b = await peer(hub, namespace="/orders-1"), await peer(hub, namespace="/orders-22")
    a.send("which", ack_id=1)
    b.send("which", ack_id=1)
    assert (await a.link.messages(2))[1]["data"] == "/orders-1"
    assert (await b.link.messages(2))[1]["data"] == "/orders-22"
    orders.emit("x", "to all orders")
    assert (await a.events(2))[1] == (await b.events(2))[1] == ("x", "to all orders")
    with pytest.raises(ConnectionRefused):
        await peer(hub, namespace="/orders-1x")
    await peer(hub, namespace="/" + "n" * 40)
    assert dict(longs.events) == {}
    hub._core.leave(a.socket, "transport close")
    assert set(hub.namespaces) == {"/", "/orders-22", "/" + "n" * 40}


async def test_emitter_outlives_the_clients_of_its_namespace(hub: Hub) -> None:
    hub.of(re.compile(r"/orders-\d+"))
    first = await peer(hub, namespace="/orders-1")
    emitter = first.socket.broadcast
    hub._core.leave(first.socket, "transport close")
    del first
    assert "/orders-1" not in hub.namespaces
    second = await peer(hub, namespace="/orders-1")
    assert await emitter.fetch_sockets() == [second.socket]


async def test_room_limit_is_told(hub: Hub) -> None:
    limit = hub.settings.limits.rooms
    a = await peer(hub, *(f"room {number}" for number in range(limit - 1)))
    with pytest.raises(EventError, match="256 rooms"):
        await a.socket.join("one more")
    await a.socket.join("room 1", a.id)
    assert len(a.socket.rooms) == limit


async def test_string_that_the_official_client_takes_for_an_offset_is_a_place(hub: Hub) -> None:
    # Its rule: the last string of a packet, be it the event's own name, is its offset.
    one = await peer(hub, codec=SOCKETIO)
    head = hub.broker.head("/")
    await hub.volatile.emit("tick")
    await hub.volatile.emit("tick", "text")
    await hub.volatile.emit("tick", 1)
    cursor = await hub.emit("x", "text")
    await hub.volatile.emit("tick")
    while len(one.link.taken) < 6:
        one.link.flushed.clear()
        await one.link.flushed.wait()
    assert one.link.taken[1:] == [
        '42["tick"]',
        '42["tick","text"]',
        '42["tick",1]',
        f'42["x","text","{cursor}"]',
        '42["tick"]',
    ]
    rooms = one.socket.rooms
    places = hub._core.root.fanout.places
    assert [place.cursor for place in places.of("text", rooms)] == [head]
    assert [place.cursor for place in places.of("tick", rooms)] == [head, cursor]
    assert places.of("x", rooms) == []


@pytest.mark.parametrize("thread", [False, True])
async def test_emit_on_a_hub_that_never_started_is_told(thread: bool) -> None:
    hub = Hub()
    for sender in (hub, hub.of("/other"), hub.to("room"), hub.volatile):
        with pytest.raises(RuntimeError, match="has not started"):
            await asyncio.to_thread(sender.emit, "x") if thread else sender.emit("x")


def test_handler_registration_is_checked() -> None:
    hub = Hub()

    @hub.on("x")
    def handler(socket: Socket) -> None:
        """Say what x is."""

    assert hub.events["x"].doc == "Say what x is."
    with pytest.raises(ValueError, match="'x' has a handler already"):
        hub.on("x", handler)
    with pytest.raises(ValueError, match="'ack:request' is a reserved event name"):
        hub.on("ack:request", handler)
    with pytest.raises(ValueError, match="control characters"):
        hub.on("a\nb", handler)
    with pytest.raises(TypeError, match="on\\(\\) takes the event's name first"):
        hub.on(handler)  # type: ignore[call-overload]
    with pytest.raises(EncodeError):
        hub.on("", handler)
