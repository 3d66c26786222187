"""How clients come and go: admitted, refused, taken over, gone before their welcome."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator

import pytest

from crossband.broker import Page
from crossband.broker.memory import MemoryBroker
from crossband.codecs import ENVELOPE
from crossband.errors import CloseCode, ConnectionRefused, EventError
from crossband.hub.attempt import Admission, Resume
from crossband.hub.namespace import Socket
from tests.bare import BareHub
from tests.link import Link, handshake, join

KEY = "k" * 20


@pytest.fixture
async def broker() -> MemoryBroker:
    return MemoryBroker(history_size=1_000)


@pytest.fixture
async def hub(broker: MemoryBroker) -> AsyncIterator[BareHub]:
    hub = BareHub(broker)
    await hub.start()
    yield hub
    await hub.stop()


def link(hub: BareHub) -> Link:
    return Link(hub.ticker, stalled=False)


async def test_client_that_comes_back_to_a_matched_namespace_still_receives(hub: BareHub) -> None:
    hub.of(re.compile(r"/game-\d+"))
    await join(hub, link(hub), "/game-1", resume=Resume(KEY))
    # Its old connection is not known to be dead, and was the only one there.
    again = link(hub)
    await join(hub, again, "/game-1", resume=Resume(KEY))
    hub.of("/game-1").emit("move", 1)
    assert [message["type"] for message in await again.messages(2)] == ["welcome", "move"]
    assert list(hub.namespaces) == ["/", "/game-1"]


async def test_namespace_that_empties_during_an_admission_stays_the_same(hub: BareHub) -> None:
    gate, waiting = asyncio.Event(), asyncio.Event()
    pattern = hub.of(re.compile(r"/game-\d+"))

    @pattern.use
    async def wait(socket: Socket) -> None:
        if socket.handshake.query:
            waiting.set()
            await gate.wait()

    slow = link(hub)
    slow_handshake = handshake(slow=["1"])
    admitting = asyncio.create_task(
        hub.admit(slow, "/game-1", slow_handshake, ENVELOPE, resume=Resume())
    )
    await waiting.wait()
    hub.leave(await join(hub, link(hub), "/game-1"), "transport close")
    assert "/game-1" not in hub.namespaces
    other = link(hub)
    await join(hub, other, "/game-1")
    gate.set()
    (await admitting).open()
    hub.of("/game-1").emit("move", 1)
    for one in (slow, other):
        assert (await one.messages(2))[1]["type"] == "move"


async def test_event_published_during_an_admission_is_not_missed(hub: BareHub) -> None:
    gate, waiting = asyncio.Event(), asyncio.Event()
    pattern = hub.of(re.compile(r"/game-\d+"))

    @pattern.use
    async def wait(socket: Socket) -> None:
        waiting.set()
        await gate.wait()

    cursor = await hub.of("/game-1").emit("move", 1)
    slow = link(hub)
    admitting = asyncio.create_task(
        hub.admit(slow, "/game-1", handshake(), ENVELOPE, resume=Resume(None, cursor))
    )
    await waiting.wait()
    # Nobody is connected there.
    hub.of("/game-1").emit("move", 2)
    gate.set()
    (await admitting).open()
    assert [message.get("data") for message in await slow.messages(2)] == [None, 2]


@pytest.mark.parametrize(
    ("resume", "rooms"),
    [
        pytest.param(Resume("short"), (), id="session"),
        pytest.param(Resume(), ("bad\x00room",), id="room"),
        pytest.param(Resume(KEY, "no.such-cursor"), (), id="middleware"),
    ],
)
async def test_refused_client_leaves_no_namespace(
    resume: Resume, rooms: tuple[str, ...], hub: BareHub
) -> None:
    pattern = hub.of(re.compile(r"/game-\d+"))

    @pattern.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused("no")

    with pytest.raises(ConnectionRefused):
        await hub.admit(link(hub), "/game-1", handshake(), ENVELOPE, resume=resume, rooms=rooms)
    assert list(hub.namespaces) == ["/"]
    assert hub.find("/game-1") is not None
    assert list(hub.namespaces) == ["/"]


@pytest.mark.parametrize("name", ["/a\x00b", "/" + "x" * 256, "/line\n", "/\ud800"])
async def test_no_pattern_takes_an_unusable_name(name: str, hub: BareHub) -> None:
    hub.of(lambda name: True)
    with pytest.raises(ConnectionRefused, match="Invalid namespace"):
        await join(hub, link(hub), name)


async def test_failing_pattern_matches_nothing(hub: BareHub) -> None:
    def broken(name: str) -> bool:
        raise RuntimeError("boom")

    hub.of(broken)
    hub.of(lambda name: name == "/good")
    await join(hub, link(hub), "/good")
    with pytest.raises(ConnectionRefused, match="Invalid namespace"):
        await join(hub, link(hub), "/bad")


async def test_withdrawn_admission_leaves_the_session_to_who_took_it_since(
    hub: BareHub, broker: MemoryBroker
) -> None:
    first = await join(hub, link(hub), resume=Resume(KEY))
    pending = await hub.admit(
        link(hub), "/", handshake(), ENVELOPE, resume=Resume(KEY, broker.head("/"))
    )
    second = await join(hub, link(hub), resume=Resume(KEY))
    assert not first.connected
    pending.withdraw()
    kept = await broker.sessions.find("/", KEY)
    assert kept is not None
    assert kept.sid == second.id


async def test_withdrawn_admission_puts_the_session_back(
    hub: BareHub, broker: MemoryBroker
) -> None:
    first = await join(hub, link(hub), resume=Resume(KEY))
    hub.leave(first, "transport close")
    cursor = broker.head("/")
    (await hub.admit(link(hub), "/", handshake(), ENVELOPE, resume=Resume(KEY, cursor))).withdraw()
    assert hub.catching_up == 0
    again = await join(hub, link(hub), resume=Resume(KEY, cursor))
    assert again.recovered
    assert again.id == first.id


async def test_failing_broker_loses_no_session(hub: BareHub, broker: MemoryBroker) -> None:
    first = await join(hub, link(hub), resume=Resume(KEY))
    hub.leave(first, "transport close")

    async def history(
        namespace: str, after: str, sid: str | None = None, *, limit: int = 0
    ) -> Page:
        raise OSError("the log is away")

    cursor = broker.head("/")
    broker.history = history  # type: ignore[method-assign]
    with pytest.raises(OSError, match="away"):
        await join(hub, link(hub), resume=Resume(KEY, cursor))
    del broker.history
    assert hub.catching_up == 0
    assert (await join(hub, link(hub), resume=Resume(KEY, cursor))).recovered


async def test_rooms_joined_and_left_during_a_takeover_count(
    hub: BareHub, broker: MemoryBroker
) -> None:
    first = await join(hub, link(hub), resume=Resume(KEY))
    await first.join("left", "kept")

    @hub.use
    async def joins(socket: Socket) -> None:
        await socket.join("middleware")

    pending = await hub.admit(
        link(hub), "/", handshake(), ENVELOPE, resume=Resume(KEY, broker.head("/"))
    )
    await first.leave("left")
    await first.join("late")
    pending.open()
    assert pending.socket.recovered
    assert pending.socket.rooms == {first.id, "kept", "late", "middleware"}
    assert set(hub.rooms) == pending.socket.rooms


async def test_session_that_was_replaced_is_forgotten(hub: BareHub, broker: MemoryBroker) -> None:
    cursor = await hub.emit("first")
    for _ in range(1_001):
        hub.emit("more")
    first = await join(hub, link(hub), resume=Resume(KEY))
    # It cannot be caught up, so it gets a new key.
    pending = await hub.admit(
        link(hub), "/", handshake(), ENVELOPE, resume=Resume(KEY, cursor, returning=True)
    )
    await first.join("late")
    pending.open()
    assert not first.connected
    assert pending.gap == "expired"
    assert pending.socket.session != KEY
    assert await broker.sessions.find("/", KEY) is None


async def test_client_admitted_while_the_hub_stops_is_refused(hub: BareHub) -> None:
    gate, waiting = asyncio.Event(), asyncio.Event()

    @hub.use
    async def wait(socket: Socket) -> None:
        waiting.set()
        await gate.wait()

    joining = asyncio.create_task(join(hub, link(hub)))
    await waiting.wait()
    await hub.stop()
    gate.set()
    with pytest.raises(ConnectionRefused) as refusal:
        await joining
    assert refusal.value.code == "shutting_down"
    assert not hub.sockets


async def test_client_opened_while_the_hub_stops_is_closed(hub: BareHub) -> None:
    late = link(hub)
    admission = await hub.admit(late, "/", handshake(), ENVELOPE, resume=Resume())
    await hub.stop()
    admission.open()
    assert late.code is CloseCode.GOING_AWAY
    hub.leave(admission.socket, "server shutting down")


async def test_middleware_that_awaited_a_cancelled_task_refuses(hub: BareHub) -> None:
    @hub.use
    async def bad(socket: Socket) -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    with pytest.raises(ConnectionRefused) as refusal:
        await join(hub, link(hub))
    assert refusal.value.code == "internal_error"


async def test_refusal_keeps_its_details(hub: BareHub) -> None:
    @hub.use
    def too_many(socket: Socket) -> None:
        raise EventError("no seat", code="refused", seats=0)

    with pytest.raises(ConnectionRefused) as refusal:
        await join(hub, link(hub))
    assert refusal.value.to_dict() == {"code": "refused", "error": "no seat", "seats": 0}


async def test_middleware_that_uses_a_bad_name_refuses_the_client(hub: BareHub) -> None:
    @hub.use
    async def follow(socket: Socket) -> None:
        await socket.join("")

    with pytest.raises(ConnectionRefused) as refusal:
        await join(hub, link(hub))
    assert (refusal.value.code, refusal.value.status) == ("invalid_request", 400)


async def test_cancelled_admission_is_withdrawn(hub: BareHub, broker: MemoryBroker) -> None:
    first = await join(hub, link(hub), resume=Resume(KEY))
    hub.leave(first, "transport close")
    waiting = asyncio.Event()

    @hub.use
    async def hang(socket: Socket) -> None:
        waiting.set()
        await asyncio.Event().wait()

    joining = asyncio.create_task(join(hub, link(hub), resume=Resume(KEY, broker.head("/"))))
    await waiting.wait()
    assert hub.catching_up == 1
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert hub.catching_up == 0
    assert await broker.sessions.find("/", KEY) is not None


async def test_failed_task_of_the_hub_is_logged(
    hub: BareHub, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("boom")

    await asyncio.wait({hub.run_to_end(fail())})
    assert "a task of the hub failed" in caplog.text


async def test_emission_nobody_waits_for_any_more_is_still_published(hub: BareHub) -> None:
    loop = asyncio.get_running_loop()
    unhandled: list[object] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    receiver = link(hub)
    await join(hub, receiver)

    def publish() -> None:
        async def give_up() -> None:
            emission = hub.emit("news", 1)
            waiting = asyncio.ensure_future(emission)
            await asyncio.sleep(0)
            waiting.cancel()

        asyncio.run(give_up())

    # Blocks the hub's loop, so that the waiting is over before the event is published.
    thread = threading.Thread(target=publish)
    thread.start()
    thread.join()
    assert (await receiver.messages(2))[1]["type"] == "news"
    assert not unhandled


async def test_welcome_before_a_gap_carries_no_cursor(hub: BareHub) -> None:
    """Cut between the two, the client must come back with the cursor it had."""
    returned = link(hub)
    await join(hub, returned, resume=Resume(KEY, "unknown-0"))
    welcome, gap = await returned.messages(2)
    assert welcome["offset"] is None
    assert gap["type"] == "gap"
    assert gap["offset"]


async def test_known_key_without_a_cursor_continues_where_there_was_none_to_give(
    hub: BareHub,
) -> None:
    resume = Resume(KEY, unreceived=True)
    first = await join(hub, link(hub), resume=resume)
    assert not first.recovered
    hub.leave(first, "transport close")
    hub.emit("missed", 6)
    again = link(hub)
    second = await join(hub, again, resume=resume)
    assert second.recovered
    assert second.id == first.id
    assert [message["type"] for message in await again.messages(2)] == ["welcome", "missed"]


async def test_gap_is_told_again_to_who_was_cut_before_it() -> None:
    """A client that shows its own key and no cursor: nothing says that it heard of the gap."""
    hub = BareHub(broker=MemoryBroker(history_size=2))
    await hub.start()
    first = await join(hub, link(hub), resume=Resume(KEY))
    hub.leave(first, "transport close")
    for number in range(5):
        await hub.emit("number", number)
    for _ in range(2):
        connection = link(hub)
        again = await join(hub, connection, resume=Resume(KEY, unreceived=True))
        told = await connection.messages(2)
        assert [message["type"] for message in told] == ["welcome", "gap"]
        hub.leave(again, "transport close")
    connection = link(hub)
    await join(hub, connection, resume=Resume(KEY, told[1]["offset"], unreceived=True))
    (welcome,) = await connection.messages(1)
    assert welcome["recovered"]
    await hub.stop()


async def test_admission_ends_once(hub: BareHub) -> None:
    async def admitted() -> Admission:
        return await hub.admit(link(hub), "/", handshake(), ENVELOPE, resume=Resume())

    with await admitted() as opened:
        opened.open()
    assert opened.socket.connected
    with await admitted() as left:
        pass
    assert not left.socket.connected
    with pytest.raises(ZeroDivisionError), await admitted() as failed:
        raise ZeroDivisionError
    for ended in (opened, left, failed):
        for end in (ended.open, ended.withdraw):
            with pytest.raises(RuntimeError, match="already ended"):
                end()
    assert list(hub.sockets) == [opened.socket.id]
