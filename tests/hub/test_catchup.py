"""The hand-over from history to live: long histories, slow clients, clients cut in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from crossband.broker import HISTORY_PAGE, Page, Publication
from crossband.broker.memory import MemoryBroker
from crossband.codecs import ENVELOPE, SOCKETIO, EnvelopeCodec, Wire
from crossband.errors import CloseCode
from crossband.hub.attempt import Resume
from crossband.hub.catchup import TURN
from crossband.hub.namespace import Socket
from tests.bare import BareHub
from tests.clients.base import WAIT
from tests.link import Link, handshake, join

SIZE = 50


@pytest.fixture
async def hub() -> AsyncIterator[BareHub]:
    hub = BareHub(history_size=SIZE)
    await hub.start()
    yield hub
    await hub.stop()


async def start_of(hub: BareHub) -> str:
    cursor = await hub.emit("first")
    assert cursor is not None
    return cursor


def numbers(link: Link) -> list[int]:
    messages = [json.loads(message) for message in link.taken]
    return [message["data"] for message in messages if message["type"] == "n"]


@pytest.mark.parametrize("session", [None, "k" * 20])
async def test_history_bigger_than_the_outbox_arrives_once_and_in_order(
    session: str | None, hub: BareHub
) -> None:
    cursor = await start_of(hub)
    if session is not None:
        hub.leave(await join(hub, Link(hub.ticker), resume=Resume(session)), "transport close")
    for n in range(SIZE - 1):
        hub.emit("n", n)
    # About five messages.
    link = Link(hub.ticker, limit=400)
    socket = await join(hub, link, resume=Resume(session, cursor))
    n = SIZE - 1
    async with asyncio.timeout(WAIT):
        while socket.catching is not None:
            link.take()
            assert not link.closed
            hub.emit("n", n)
            n += 1
            await asyncio.sleep(0)
    hub.emit("n", n)
    link.take()
    assert numbers(link) == list(range(n + 1))
    assert hub.catching_up == 0


async def test_client_that_stops_reading_in_its_replay_is_disconnected(hub: BareHub) -> None:
    cursor = await start_of(hub)
    for n in range(SIZE - 1):
        hub.emit("n", n)
    link = Link(hub.ticker, limit=400)
    socket = await join(hub, link, resume=Resume(None, cursor))
    assert socket.catching is not None
    hold = socket.catching.buffer
    for n in range(3 * SIZE):
        # Not even for this client.
        hub.to("elsewhere").emit("n", n)
    assert link.code is CloseCode.SLOW_CLIENT
    assert len(hold) <= 2 * SIZE + 1
    hub.leave(socket, "transport close")
    assert hub.catching_up == 0


async def test_what_may_be_dropped_comes_in_its_place_and_fills_no_hold(hub: BareHub) -> None:
    hub.policy("price", "latest", key=lambda symbol: symbol)
    hub.policy("line", "drop_oldest")
    cursor = await start_of(hub)
    for n in range(SIZE - 1):
        hub.emit("n", n)
    link = Link(hub.ticker, limit=400)
    socket = await join(hub, link, resume=Resume(None, cursor))
    assert socket.catching is not None
    hold = socket.catching.buffer
    for n in range(10 * SIZE):
        assert await hub.emit("line", n) is None
        hub.emit("price", n % 2)
        assert len(hold) <= 2 * SIZE
    hub.emit("n", SIZE - 1)
    async with asyncio.timeout(WAIT):
        while hub.catching_up:
            link.take()
            await asyncio.sleep(0)
    link.take()
    assert not link.closed
    assert numbers(link) == list(range(SIZE))
    messages = [json.loads(message) for message in link.taken]
    assert messages[-1]["type"] == "n"
    assert all("offset" not in message for message in messages if message["type"] == "price")
    prices = [message["data"] for message in messages if message["type"] == "price"]
    lines = [message["data"] for message in messages if message["type"] == "line"]
    assert sorted(prices[-2:]) == [0, 1]
    assert lines[-1] == 10 * SIZE - 1
    assert lines == list(range(lines[0], 10 * SIZE))


async def test_unrecorded_event_in_a_replay_is_found_in_its_place(
    hub: BareHub,
) -> None:
    hub.policy("status", "latest")
    cursor = await start_of(hub)
    cursors = [await hub.emit("n", n) for n in range(5)]
    link = Link(hub.ticker, limit=200)
    socket = await join(hub, link, codec=SOCKETIO, resume=Resume(None, cursor))
    assert socket.catching is not None
    # The client takes this text for an offset.
    hub.emit("status", "busy")
    cursors += [await hub.emit("n", n) for n in range(5, 10)]
    async with asyncio.timeout(WAIT):
        while hub.catching_up:
            link.take()
            await asyncio.sleep(0)
    link.take()
    (status,) = (str(message) for message in link.taken if "status" in str(message))
    assert json.loads(status[2:]) == ["status", "busy"]
    (place,) = hub.root.fanout.places.of("busy", socket.rooms)
    assert place.cursor == cursors[4]


async def test_own_events_and_those_for_all_come_back_in_one_order(hub: BareHub) -> None:
    away = await join(hub, Link(hub.ticker), resume=Resume("k" * 20))
    other = await join(hub, Link(hub.ticker))
    cursor = await start_of(hub)
    hub.leave(away, "transport close")
    for n in range(0, 12, 3):
        hub.emit("n", n)
        hub.to(away.id).emit("n", n + 1)
        hub.to(other.id, away.id).emit("n", n + 2)
        for _ in range(SIZE):
            hub.to(other.id).emit("n", -1)
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link, resume=Resume(away.session, cursor))
    assert socket.recovered
    await link.messages(13)
    hub.to(socket.id).emit("n", 12)
    await link.messages(14)
    assert numbers(link) == list(range(13))
    # Who shows a cursor and no session has another id, and gets what was for all.
    anew = Link(hub.ticker, stalled=False)
    await join(hub, anew, resume=Resume(None, cursor))
    await anew.messages(5)
    assert numbers(anew) == [0, 3, 6, 9]


class Slow(MemoryBroker):
    """A broker whose history is read some time after it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> Page:
        self.asked.set()
        await self.gate.wait()
        return await super().history(namespace, after, sid, limit=limit)


@pytest.mark.parametrize("last", ["for all", "its own", "for another"])
async def test_what_both_history_and_hold_have_is_sent_once(last: str) -> None:
    broker = Slow()
    hub = BareHub(broker)
    hub.policy("status", "latest")
    await hub.start()
    away = await join(hub, Link(hub.ticker), resume=Resume("k" * 20))
    other = await join(hub, Link(hub.ticker))
    cursor = await start_of(hub)
    hub.leave(away, "transport close")
    hub.emit("n", 0)
    link = Link(hub.ticker, stalled=False)
    joining = asyncio.create_task(join(hub, link, resume=Resume(away.session, cursor)))
    await broker.asked.wait()
    hub.emit("n", 1)
    hub.emit("status", "busy")
    hub.to(away.id).emit("n", 2)
    hub.to(other.id).emit("n", -1)
    count = 3
    if last == "for all":
        hub.emit("n", 3)
    elif last == "its own":
        hub.to(away.id).emit("n", 3)
    if last != "for another":
        count = 4
    broker.gate.set()
    await joining
    hub.emit("n", count)
    await link.messages(count + 3)
    assert numbers(link) == list(range(count + 1))
    assert [json.loads(message)["type"] for message in link.taken].count("status") == 1
    assert hub.catching_up == 0
    await hub.stop()


async def test_long_history_is_looked_through_between_other_work() -> None:
    hub = BareHub()
    await hub.start()
    cursor = await start_of(hub)
    for _ in range(5 * TURN):
        hub.to("elsewhere").emit("n", -1)
    hub.emit("n", 0)
    ticks = 0
    links = [Link(hub.ticker, stalled=False) for _ in range(3)]
    sockets = [await join(hub, link, resume=Resume(None, cursor)) for link in links]
    async with asyncio.timeout(WAIT):
        while any(socket.catching is not None for socket in sockets):
            ticks += 1
            if ticks < 5:
                hub.emit("n", ticks)
            await asyncio.sleep(0)
    # One of them at a time.
    assert ticks >= 3 * 5
    hub.emit("n", 5)
    for link in links:
        await link.messages(7)
        assert numbers(link) == list(range(6))
    assert hub.catching_up == 0
    await hub.stop()


async def test_client_that_leaves_between_two_turns_leaves_nothing_behind() -> None:
    hub = BareHub()
    await hub.start()
    cursor = await start_of(hub)
    for _ in range(3 * TURN):
        hub.to("elsewhere").emit("n", -1)
    sockets = [
        await join(hub, Link(hub.ticker, stalled=False), resume=Resume(None, cursor))
        for _ in range(2)
    ]
    hub.leave(sockets[0], "transport close")
    async with asyncio.timeout(WAIT):
        for _ in range(10):
            await asyncio.sleep(0)
    assert sockets[1].catching is None
    assert hub.catching_up == 0
    await hub.stop()


async def test_events_that_did_not_fit_the_outbox_come_back(hub: BareHub) -> None:
    slow = Link(hub.ticker, limit=400)
    away = await join(hub, slow, resume=Resume("k" * 20))
    cursor = hub.broker.head("/")
    for n in range(SIZE):
        hub.to(away.id).emit("n", n)
    assert slow.code is CloseCode.SLOW_CLIENT
    hub.leave(away, "transport close")
    link = Link(hub.ticker, stalled=False, limit=400)
    await join(hub, link, resume=Resume(away.session, cursor))
    await link.messages(SIZE + 1)
    assert numbers(link) == list(range(SIZE))


async def test_what_is_for_others_alone_fills_no_hold(hub: BareHub) -> None:
    away = await join(hub, Link(hub.ticker), resume=Resume("k" * 20))
    other = await join(hub, Link(hub.ticker))
    cursor = await start_of(hub)
    hub.leave(away, "transport close")
    waiting, gate = asyncio.Event(), asyncio.Event()

    @hub.use
    async def hang(socket: Socket) -> None:
        waiting.set()
        await gate.wait()

    link = Link(hub.ticker, stalled=False)
    joining = asyncio.create_task(join(hub, link, resume=Resume(away.session, cursor)))
    await waiting.wait()
    for n in range(10):
        hub.to(away.id).emit("n", n)
        for _ in range(SIZE):
            hub.to(other.id).emit("n", -1)
    gate.set()
    await joining
    await link.messages(11)
    assert numbers(link) == list(range(10))


async def test_hold_is_bounded_by_bytes() -> None:
    hub = BareHub(history_bytes=10_000, limits={"outbox": 10_000})
    hub.policy("status", "drop_oldest")
    await hub.start()
    cursor = await start_of(hub)
    for _ in range(9):
        hub.emit("n", "x" * 1_000)
    link = Link(hub.ticker, limit=4_000)
    socket = await join(hub, link, resume=Resume(None, cursor))
    assert socket.catching is not None
    hold = socket.catching.buffer
    for _ in range(100):
        hub.emit("status", "x" * 1_000)
        assert sum(publication.size for publication in hold) <= 20_000
    assert not link.closed
    for _ in range(21):
        hub.emit("n", "x" * 1_000)
    assert link.code is CloseCode.SLOW_CLIENT
    hub.leave(socket, "transport close")
    await hub.stop()


async def test_hold_of_a_long_admission_is_bounded(hub: BareHub) -> None:
    cursor = await start_of(hub)
    waiting = asyncio.Event()

    @hub.use
    async def hang(socket: Socket) -> None:
        waiting.set()
        await asyncio.Event().wait()

    link = Link(hub.ticker)
    admitting = asyncio.create_task(
        hub.admit(link, "/", handshake(), ENVELOPE, resume=Resume(None, cursor))
    )
    await waiting.wait()
    for n in range(3 * SIZE):
        hub.emit("n", n)
    assert link.code is CloseCode.SLOW_CLIENT
    admitting.cancel()
    await asyncio.wait({admitting})
    assert hub.catching_up == 0


async def test_event_during_an_admission_is_held_where_there_is_no_history() -> None:
    hub = BareHub(history_size=0)
    await hub.start()
    cursor = await start_of(hub)
    waiting, gate = asyncio.Event(), asyncio.Event()

    @hub.use
    async def examine(socket: Socket) -> None:
        waiting.set()
        await gate.wait()

    link = Link(hub.ticker, stalled=False)
    joining = asyncio.create_task(join(hub, link, resume=Resume(None, cursor)))
    await waiting.wait()
    hub.emit("n", 1)
    gate.set()
    await joining
    await link.messages(2)
    assert numbers(link) == [1]
    await hub.stop()


async def test_client_cut_in_its_replay_leaves_nothing_behind(hub: BareHub) -> None:
    cursor = await start_of(hub)
    for n in range(SIZE - 1):
        hub.emit("n", n)
    link = Link(hub.ticker, limit=400)
    tasks = asyncio.all_tasks()
    socket = await join(hub, link, resume=Resume(None, cursor))
    # Closing: what is queued is still written, and the socket leaves later.
    link.close(CloseCode.GOING_AWAY, "")
    (waiting,) = asyncio.all_tasks() - tasks
    async with asyncio.timeout(WAIT):
        await waiting
    # It must not go round and round until then.
    assert asyncio.all_tasks() == tasks
    hub.leave(socket, "transport close")
    assert hub.catching_up == 0
    assert asyncio.all_tasks() == tasks


async def test_slow_connect_handler_loses_nothing(hub: BareHub) -> None:
    cursor = await start_of(hub)
    gate = asyncio.Event()

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await gate.wait()
        await socket.join("late")

    hub.to("late").emit("n", 0)
    link = Link(hub.ticker, stalled=False)
    await join(hub, link, resume=Resume(None, cursor))
    hub.to("late").emit("n", 1)
    hub.emit("n", 2)
    gate.set()
    await link.messages(4)
    hub.emit("n", 3)
    await link.messages(5)
    assert numbers(link) == [0, 1, 2, 3]


async def test_too_slow_connect_handler_is_a_gap(
    hub: BareHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.hub.welcome.CONNECT_HANDLER_TIME", 0.01)
    cursor = await start_of(hub)
    gate = asyncio.Event()

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await gate.wait()
        await socket.join("late")

    hub.to("late").emit("n", 0)
    link = Link(hub.ticker, stalled=False)
    await join(hub, link, resume=Resume(None, cursor))
    welcome, gap = await link.messages(2)
    assert welcome["type"] == "welcome"
    assert gap == {"type": "gap", "reason": "timeout", "offset": hub.broker.head("/")}
    assert hub.catching_up == 0
    # From there on it is live.
    hub.emit("n", 1)
    await link.messages(3)
    assert numbers(link) == [1]
    gate.set()


class Picky(EnvelopeCodec):
    """A door that cannot carry some event."""

    def event(self, publication: Publication, *, ack_id: int | None = None) -> Wire:
        if publication.event == "odd":
            raise ValueError("no form for it")
        return super().event(publication, ack_id=ack_id)


async def test_event_one_door_cannot_carry_is_a_gap_there_and_reaches_the_others(
    hub: BareHub, caplog: pytest.LogCaptureFixture
) -> None:
    cursor = await start_of(hub)
    picky = Picky()
    first = Link(hub.ticker, stalled=False)
    await join(hub, first, codec=picky)
    second = Link(hub.ticker, stalled=False)
    await join(hub, second)
    missed = await hub.emit("odd")
    hub.volatile.emit("odd")
    hub.emit("even")
    third = Link(hub.ticker, stalled=False)
    await join(hub, third, codec=picky, resume=Resume(None, cursor))
    gap = {"type": "gap", "reason": "unencodable", "offset": missed}
    for link in (first, third):
        _, told, even = await link.messages(3)
        assert (told, even["type"]) == (gap, "even")
    heard = [message["type"] for message in await second.messages(4)]
    assert heard == ["welcome", "odd", "odd", "even"]
    for record in caplog.records:
        assert record.getMessage() == "'odd' of namespace '/' has no form for Picky: no form for it"
        # Who can cause one traceback can cause thousands.
        assert record.exc_info is None
    assert len(caplog.records) == 3
