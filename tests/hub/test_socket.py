"""One socket's inbox, its acknowledgements, and what its handlers may get wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from crossband.codecs import SOCKETIO
from crossband.errors import EncodeError, EventError
from crossband.hub.inbox import ACK_INBOX
from crossband.hub.incoming import Incoming
from crossband.hub.namespace import Socket
from crossband.limits import Limits
from crossband.protocol.payload import Payload
from tests.bare import BareHub
from tests.clients.base import WAIT
from tests.link import Link, join


@pytest.fixture
async def hub() -> AsyncIterator[BareHub]:
    hub = BareHub(limits=Limits(inbox=4), shutdown_timeout=0.2)
    await hub.start()
    yield hub
    await hub.stop()


def event(name: str, data: str = "null", ack_id: int | None = None) -> Incoming:
    return Incoming(name, [msgspec.Raw(data.encode())], (), ack_id, single=True)


async def test_handler_that_awaited_a_cancelled_task_answers_an_error(hub: BareHub) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    @hub.on("bad")
    async def bad(socket: Socket) -> None:
        task = asyncio.create_task(never())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    hub.on("good", lambda socket: "fine")
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    socket.inbox.receive(socket, event("bad", ack_id=1))
    socket.inbox.receive(socket, event("good", ack_id=2))
    _, failed, answer = await link.messages(3)
    assert (failed["code"], failed["id"]) == ("internal_error", 1)
    assert answer == {"type": "ack", "id": 2, "data": "fine"}


@pytest.mark.parametrize("room", ["", "a\nb", "x" * 300])
async def test_name_that_cannot_be_used_is_the_clients_mistake(
    room: str, hub: BareHub, caplog: pytest.LogCaptureFixture
) -> None:
    @hub.on("say")
    async def say(socket: Socket, room: str) -> None:
        await hub.to(room).emit("said")

    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    socket.inbox.receive(socket, event("say", data=json.dumps(room), ack_id=1))
    _, failed = await link.messages(2)
    assert (failed["code"], failed["error"]) == ("invalid_message", "Invalid message format")
    assert failed["reason"].startswith("a room name must")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.exc_info is None


@pytest.mark.parametrize("ack_id", [None, 1])
async def test_error_details_without_json_form_become_an_internal_error(
    ack_id: int | None, hub: BareHub
) -> None:
    @hub.on("bad")
    def bad(socket: Socket) -> None:
        raise EventError("no", code="refused", when=object())

    hub.on("good", lambda socket: "fine")
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    socket.inbox.receive(socket, event("bad", ack_id=ack_id))
    socket.inbox.receive(socket, event("good", ack_id=2))
    _, failed, answer = await link.messages(3)
    assert failed["code"] == "internal_error"
    assert failed["event"] == "bad"
    assert answer["data"] == "fine"


async def test_failing_disconnect_handler_lets_the_next_run(hub: BareHub) -> None:
    ran = asyncio.Event()

    @hub.on("disconnect")
    def first(socket: Socket, reason: str) -> None:
        raise EventError("no", when=object())

    @hub.on("disconnect")
    async def second(socket: Socket, reason: str) -> None:
        ran.set()

    socket = await join(hub, Link(hub.ticker))
    hub.leave(socket, "transport close")
    async with asyncio.timeout(WAIT):
        await ran.wait()


async def test_event_name_in_an_error_is_bounded(hub: BareHub) -> None:
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    socket.inbox.receive(socket, event("x" * 60_000))
    _, failed = await link.messages(2)
    assert failed["code"] == "invalid_message"
    assert failed["path"] == "$.type"
    assert len(link.taken[-1]) < 1_000


@pytest.mark.parametrize("name", ["a\x00b", "line\nbreak", "", "x" * 257])
async def test_event_names_of_clients_follow_the_same_rules(name: str, hub: BareHub) -> None:
    heard: list[str] = []
    hub.on_any(lambda socket, event, args: heard.append(event))
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    socket.inbox.receive(socket, event(name, ack_id=1))
    _, failed = await link.messages(2)
    assert failed["code"] == "invalid_message"
    assert not heard


async def test_unencodable_acknowledged_event_leaves_nothing_owed(hub: BareHub) -> None:
    socket = await join(hub, Link(hub.ticker))
    with pytest.raises(EncodeError):
        await socket.emit_with_ack("question", object())
    assert socket.owed == 0


async def test_handler_that_waits_for_its_own_client_does_not_stop_the_reading(
    hub: BareHub,
) -> None:
    """The answer stands behind more events than the inbox holds."""
    answered = asyncio.Event()

    @hub.on("ask")
    async def ask(socket: Socket) -> None:
        assert await socket.emit_with_ack("question", timeout=WAIT) == "yes"
        answered.set()

    hub.on("filler", lambda socket: None)
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)

    async def read() -> None:
        # As the doors do it: the client's first event, many more, then its answer.
        for message in [event("ask"), *[event("filler") for _ in range(4 * ACK_INBOX - 1)]]:
            socket.inbox.receive(socket, message)
            if socket.inbox.crowded(socket):
                await socket.inbox.wait_for_space(socket)
        _, question = await link.messages(2)
        assert socket.acknowledge(question["id"], "yes")

    reading = asyncio.create_task(read())
    async with asyncio.timeout(WAIT):
        await answered.wait()
        await reading


async def test_inbox_stays_bounded_while_an_answer_is_owed(hub: BareHub) -> None:
    hub.on("ask", lambda socket: socket.emit_with_ack("question", timeout=WAIT))
    socket = await join(hub, Link(hub.ticker))
    socket.inbox.receive(socket, event("ask"))
    room = 0
    while not socket.inbox.crowded(socket):
        socket.inbox.receive(socket, event("ask"))
        room += 1
        if room == 1:
            link = socket.connection
            assert isinstance(link, Link)
            await link.flushed.wait()
        assert room < 1_000
    assert room <= 4 * ACK_INBOX + 1


def fill(socket: Socket, message: Incoming) -> int:
    """Return how often a socket takes a message until it has no room."""
    count = 0
    while not socket.inbox.crowded(socket):
        socket.inbox.receive(socket, message)
        count += 1
    return count


async def test_inbox_has_more_room_for_bytes_while_an_answer_is_owed() -> None:
    hub = BareHub(limits=Limits(inbox_size=1_000))
    await hub.start()
    gate = asyncio.Event()
    hub.on("wait", lambda socket: gate.wait())
    socket = await join(hub, Link(hub.ticker))
    raw = msgspec.Raw(b'"%b"' % (b"x" * 98))
    socket.inbox.receive(socket, event("wait"))
    assert fill(socket, Incoming("wait", [raw])) == 10
    answer = socket.expect_ack(1)
    assert fill(socket, Incoming("wait", [], [b"x" * 100])) == 10 * ACK_INBOX - 10
    gate.set()
    async with asyncio.timeout(WAIT):
        await socket.inbox.wait_for_space(socket)
    assert socket.acknowledge(1, None)
    await answer
    await hub.stop()


async def test_crowd_at_the_back_channel_enters_one_by_one(hub: BareHub) -> None:
    gate = asyncio.Event()
    longest = 0

    @hub.on("slow")
    async def slow(socket: Socket) -> None:
        await gate.wait()

    socket = await join(hub, Link(hub.ticker))

    async def post() -> None:
        nonlocal longest
        if socket.inbox.crowded(socket):
            await socket.inbox.wait_for_space(socket)
        socket.inbox.receive(socket, event("slow"))
        longest = max(longest, socket.waiting)

    posts = [asyncio.create_task(post()) for _ in range(40)]
    gate.set()
    async with asyncio.timeout(WAIT):
        await asyncio.gather(*posts)
    assert longest <= 4


async def test_handler_the_application_cancels_holds_up_nobody(
    hub: BareHub, caplog: pytest.LogCaptureFixture
) -> None:
    running: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

    async def hang(socket: Socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        running.put_nowait(task)
        await asyncio.Event().wait()

    hub.on("connect", hang)
    hub.on("hang", hang)
    hub.on("count", lambda socket, number: number)
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    outcome: list[Payload | EventError] = []
    socket.inbox.receive(socket, event("hang", ack_id=1))
    socket.inbox.receive(socket, event("hang", ack_id=2))
    socket.inbox.receive(socket, Incoming("hang", [], reply=outcome.append))
    socket.inbox.receive(socket, event("count", data="3", ack_id=3))
    for _ in range(4):
        async with asyncio.timeout(WAIT):
            (await running.get()).cancel()
    _, first, second, third = await link.messages(4)
    assert (first["code"], first["id"]) == (second["code"], 1) == ("internal_error", 1)
    assert (second["event"], second["id"]) == ("hang", 2)
    assert third == {"type": "ack", "id": 3, "data": 3}
    (posted,) = outcome
    assert isinstance(posted, EventError)
    assert posted.code == "internal_error"
    assert caplog.messages == [f"the handler of 'hang' was cancelled for {socket}"] * 3
    socket.inbox.receive(socket, event("count", data="4", ack_id=4))
    assert (await link.messages(5))[-1]["data"] == 4


async def test_event_behind_a_cancelled_handler_is_handled_before_the_hub_has_stopped(
    hub: BareHub,
) -> None:
    running: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()
    handled: list[str] = []

    @hub.on("hang")
    async def hang(socket: Socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.put_nowait(task)
        await asyncio.Event().wait()

    @hub.on("disconnect")
    async def disconnect(socket: Socket, reason: str) -> None:
        await asyncio.sleep(0)
        handled.append(reason)

    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    socket.inbox.receive(socket, event("hang"))
    hanging = await running.get()
    hub.node.settings = msgspec.structs.replace(hub.settings, shutdown_timeout=600)
    stopping = asyncio.create_task(hub.stop())
    assert (await link.messages(2))[1]["type"] == "server:shutdown"
    hanging.cancel()
    async with asyncio.timeout(WAIT):
        await stopping
    assert handled == ["server shutting down"]


async def test_poster_is_answered_when_the_hub_stops_its_handler(hub: BareHub) -> None:
    outcome: list[Payload | EventError] = []

    @hub.on("hang")
    async def hang(socket: Socket) -> None:
        await asyncio.Event().wait()

    socket = await join(hub, Link(hub.ticker))
    socket.inbox.receive(socket, Incoming("hang", [], reply=outcome.append))
    hub.node.settings = msgspec.structs.replace(hub.settings, shutdown_timeout=0.05)
    await hub.stop()
    (answer,) = outcome
    assert isinstance(answer, EventError)
    assert answer.code == "shutting_down"


async def test_acknowledgement_without_json_form_is_an_internal_error(hub: BareHub) -> None:
    def bad(socket: Socket) -> Any:
        return {"when": object()}

    hub.on("bad", bad)
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link, codec=SOCKETIO)
    link.taken.clear()
    socket.inbox.receive(socket, Incoming("bad", [], (), 7))
    async with asyncio.timeout(WAIT):
        while not any(str(message).startswith("437") for message in link.taken):
            link.flushed.clear()
            await link.flushed.wait()
    assert "internal_error" in str(link.taken[-1])


async def test_client_that_leaves_without_its_answer_is_no_error(
    hub: BareHub, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    @hub.on("ask")
    async def ask(socket: Socket) -> None:
        await socket.emit_with_ack("question")

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        ended.set()

    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link)
    outcome: list[Payload | EventError] = []
    socket.inbox.receive(socket, Incoming("ask", [], reply=outcome.append))
    await link.messages(2)
    hub.leave(socket, "transport close")
    async with asyncio.timeout(WAIT):
        await ended.wait()
    assert not caplog.records
    (answer,) = outcome
    assert isinstance(answer, EventError)
    assert answer.code == "unknown_client"


@pytest.mark.parametrize("later", [False, True])
async def test_plain_handler_that_met_a_cancelled_future_answers_an_error(
    later: bool, hub: BareHub
) -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()

    @hub.on("bad")
    def bad(socket: Socket) -> Any:
        return cancelled if later else cancelled.result()

    outcome: list[Payload | EventError] = []
    answered = asyncio.Event()

    def reply(answer: Payload | EventError) -> None:
        outcome.append(answer)
        answered.set()

    socket = await join(hub, Link(hub.ticker))
    socket.inbox.receive(socket, Incoming("bad", [], reply=reply))
    async with asyncio.timeout(WAIT):
        await answered.wait()
    (answer,) = outcome
    assert isinstance(answer, EventError)
    assert answer.code == "internal_error"
