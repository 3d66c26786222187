"""Handlers that begin outside of any task: asyncio must look to them as it always does."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import pytest

from crossband import Hub
from crossband.errors import EventError
from crossband.hub.incoming import Incoming
from crossband.hub.namespace import Socket
from crossband.hub.runner import SPARE
from tests.bare import BareHub
from tests.clients import NewClient
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.lanes import HUBS
from tests.link import Link, join

name: ContextVar[str] = ContextVar("name", default="nobody")


@pytest.fixture
async def hub() -> AsyncIterator[BareHub]:
    hub = BareHub(shutdown_timeout=0.2)
    await hub.start()
    yield hub
    await hub.stop()


@contextlib.contextmanager
def outside_tasks() -> Iterator[None]:
    """Call the body as a transport's callback does: in no task."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    asyncio.tasks._leave_task(loop, task)
    try:
        yield
    finally:
        asyncio.tasks._enter_task(loop, task)


def event(name: str, data: Any = None, ack_id: int | None = None) -> Incoming:
    return Incoming(name, [msgspec.Raw(msgspec.json.encode(data))], (), ack_id, single=True)


async def welcomed(hub: BareHub) -> tuple[Link, Socket]:
    link = Link(hub.ticker, stalled=False)
    return link, await join(hub, link)


@pytest.mark.parametrize("within", [False, True], ids=["in no task", "in a task"])
async def test_handler_that_does_not_wait_costs_no_task(within: bool, hub: BareHub) -> None:
    seen: list[str] = []

    @hub.on("now")
    async def now(socket: Socket) -> str:
        seen.append("handled")
        return "done"

    link, socket = await welcomed(hub)
    with contextlib.nullcontext() if within else outside_tasks():
        socket.inbox.receive(socket, event("now", ack_id=1))
        # Not at the next tick: already.
        assert seen == ["handled"]
    assert (await link.messages(2))[1] == {"type": "ack", "id": 1, "data": "done"}
    before = asyncio.all_tasks()
    for _ in range(100):
        socket.inbox.receive(socket, event("now"))
    assert asyncio.all_tasks() == before
    assert len(seen) == 101


async def test_current_task_is_the_same_before_and_after_waiting(hub: BareHub) -> None:
    tasks: list[asyncio.Task[Any] | None] = []
    done = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())
        done.set()

    _, socket = await welcomed(hub)
    mine = asyncio.current_task()
    socket.inbox.receive(socket, event("wait"))
    assert asyncio.current_task() is mine
    async with asyncio.timeout(WAIT):
        await done.wait()
    assert tasks[0] is not None
    assert tasks[0] is tasks[1] is not mine


async def test_timeout_that_began_in_the_first_step_ends_the_handler(hub: BareHub) -> None:
    @hub.on("slow")
    async def slow(socket: Socket) -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "too slow"
        return "never"

    @hub.on("at once")
    async def at_once(socket: Socket) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return "over"

    link, socket = await welcomed(hub)
    for number, what in enumerate(("slow", "at once", "slow")):
        socket.inbox.receive(socket, event(what, ack_id=number))
    answers = [message["data"] for message in (await link.messages(4))[1:]]
    assert answers == ["too slow", "over", "too slow"]


@pytest.mark.parametrize("first", [True, False], ids=["a fresh runner", "a used runner"])
@pytest.mark.parametrize("what", ["a tick", "a future that is done by then"])
async def test_timeout_that_is_over_after_a_tick_ends_the_handler(
    what: str, first: bool, hub: BareHub
) -> None:
    @hub.on("wait")
    async def wait(socket: Socket) -> str:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_soon(done.set_result, None)
        try:
            async with asyncio.timeout(0):
                await (asyncio.sleep(0) if what == "a tick" else done)
                await asyncio.Event().wait()
        except TimeoutError:
            # Once: who goes on may wait again.
            await asyncio.sleep(0)
            return "timed out"
        return "never"

    hub.on("fine", _fine)
    link, socket = await welcomed(hub)
    if not first:
        socket.inbox.receive(socket, event("fine", ack_id=0))
        # Its runner's task begins, and waits in reserve.
        await asyncio.sleep(0)
    for number in (1, 2):
        with outside_tasks():
            socket.inbox.receive(socket, event("wait", ack_id=number))
        answer = (await link.messages(number + (1 if first else 2)))[-1]
        assert (answer["id"], answer["data"]) == (number, "timed out")


async def test_task_group_that_began_in_the_first_step_gathers(hub: BareHub) -> None:
    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    async def fail() -> None:
        raise KeyError("no")

    @hub.on("group")
    async def group(socket: Socket, values: list[int]) -> list[int]:
        async with asyncio.TaskGroup() as tasks:
            made = [tasks.create_task(double(value)) for value in values]
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                await asyncio.Event().wait()
        except* KeyError:
            made.append(asyncio.create_task(double(0)))
            await made[-1]
        return [task.result() for task in made]

    link, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("group", [1, 2], ack_id=1))
    assert (await link.messages(2))[1]["data"] == [2, 4, 0]


async def test_context_variables_are_those_of_one_event(hub: BareHub) -> None:
    @hub.on("call me")
    async def call_me(socket: Socket, mine: str) -> list[str]:
        before = name.get()
        name.set(mine)
        await asyncio.sleep(0)
        return [before, name.get()]

    @hub.on("who")
    async def who(socket: Socket) -> str:
        return name.get()

    link, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("call me", "ada", ack_id=1))
    _, first = await link.messages(2)
    socket.inbox.receive(socket, event("who", ack_id=2))
    socket.inbox.receive(socket, event("call me", "bob", ack_id=3))
    _, _, second, third = await link.messages(4)
    assert [first["data"], second["data"], third["data"]] == [
        ["nobody", "ada"],
        "nobody",
        ["nobody", "bob"],
    ]
    assert name.get() == "nobody"


@pytest.mark.parametrize("first", [True, False], ids=["a fresh runner", "a used runner"])
async def test_handler_that_cancels_itself_is_cancelled_where_it_waits(
    first: bool, hub: BareHub
) -> None:
    @hub.on("cancel")
    async def cancel(socket: Socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "cancelled"
        return "never"

    hub.on("fine", _fine)
    link, socket = await welcomed(hub)
    if not first:
        socket.inbox.receive(socket, event("fine", ack_id=0))
        # Its runner's task begins, and waits in reserve.
        await asyncio.sleep(0)
    socket.inbox.receive(socket, event("cancel", ack_id=1))
    socket.inbox.receive(socket, event("fine", ack_id=2))
    *_, answer, after = await link.messages(3 if first else 4)
    assert (answer["data"], after["data"]) == ("cancelled", "fine")
    # Its runner serves nobody else.
    socket.inbox.receive(socket, event("fine", ack_id=3))
    assert (await link.messages(4 if first else 5))[-1]["data"] == "fine"


async def _fine(socket: Socket) -> str:
    return "fine"


async def test_handler_that_cancels_itself_and_ends_serves_no_other(hub: BareHub) -> None:
    @hub.on("cancel")
    async def cancel(socket: Socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return "ended"

    @hub.on("wait")
    async def wait(socket: Socket) -> str:
        await asyncio.sleep(0)
        return "waited"

    link, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("cancel", ack_id=1))
    socket.inbox.receive(socket, event("wait", ack_id=2))
    _, first, second = await link.messages(3)
    assert (first["data"], second["data"]) == ("ended", "waited")


async def test_events_of_a_socket_are_in_order_whether_they_wait_or_not(hub: BareHub) -> None:
    release = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket, number: int) -> int:
        await release.wait()
        return number

    @hub.on("now")
    async def now(socket: Socket, number: int) -> int:
        return number

    hub.on("plain", lambda socket, number: number)
    link, socket = await welcomed(hub)
    other_link, other = await welcomed(hub)
    for number, what in enumerate(("now", "wait", "now", "plain", "wait", "plain")):
        socket.inbox.receive(socket, event(what, number, ack_id=number))
    # Another socket does not wait for this one.
    other.inbox.receive(other, event("now", 7, ack_id=7))
    assert (await other_link.messages(2))[1]["data"] == 7
    assert len(await link.messages(2)) == 2
    release.set()
    answers = [message["data"] for message in (await link.messages(7))[1:]]
    assert answers == [0, 1, 2, 3, 4, 5]


async def test_handlers_that_begin_others_leave_a_bounded_reserve(hub: BareHub) -> None:
    made = [await welcomed(hub) for _ in range(2 * SPARE)]

    @hub.on("pass on")
    async def pass_on(socket: Socket, to: int) -> int:
        if to < len(made):
            made[to][1].inbox.receive(made[to][1], event("pass on", to + 1, ack_id=to))
        return to

    made[0][1].inbox.receive(made[0][1], event("pass on", 1, ack_id=0))
    for number, (link, _) in enumerate(made):
        assert (await link.messages(2))[1] == {"type": "ack", "id": number, "data": number + 1}
    assert 1 <= len(hub.node.spare_runners.tasks) <= SPARE


async def test_handlers_that_wait_leave_nothing_in_reserve(hub: BareHub) -> None:
    release = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        await release.wait()

    made = [await welcomed(hub) for _ in range(10)]
    for _, socket in made:
        socket.inbox.receive(socket, event("wait", ack_id=1))
    release.set()
    for link, _ in made:
        await link.messages(2)
    assert hub.node.spare_runners.tasks == set()


# What a handler does beside keeping its task, by name.
ENDS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}


def _ends(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    ENDS[function.__name__.replace("_", " ").strip()] = function


@_ends
async def _at_once() -> None:
    pass


@_ends
async def _after_a_wait() -> None:
    await asyncio.sleep(0)


@_ends
async def _with_an_error() -> None:
    raise EventError(code="no")


@_ends
async def _with_a_failure() -> None:
    raise KeyError("no")


@_ends
async def _with_an_error_after_a_wait() -> None:
    await asyncio.sleep(0)
    raise EventError(code="no")


@_ends
async def _within_scopes() -> None:
    async with asyncio.timeout(WAIT), asyncio.TaskGroup():
        pass


@_ends
async def _within_scopes_after_a_wait() -> None:
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))


@pytest.mark.parametrize("what", ["event", "event middleware", "listener", "connect", "disconnect"])
@pytest.mark.parametrize("how", ENDS)
async def test_task_of_a_handler_that_ended_is_nobody_elses(
    how: str, what: str, hub: BareHub
) -> None:
    kept: list[asyncio.Task[Any]] = []
    ended: list[asyncio.Task[Any]] = []

    async def keep(*_: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not kept:
            kept.append(task)
            task.add_done_callback(ended.append)
            task.set_name("mine")
            await ENDS[how]()

    @hub.on("keep")
    async def handle(socket: Socket) -> None:
        if what == "event":
            await keep()

    if what == "event middleware":
        hub.use_event(keep)
    elif what == "listener":
        hub.on_any(keep)
    elif what == "connect":
        hub.on("connect")(keep)
    elif what == "disconnect":
        hub.on("disconnect")(keep)
    release = asyncio.Event()
    names: list[str] = []

    @hub.on("wait")
    async def wait(socket: Socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        names.append(task.get_name())
        await release.wait()
        return "waited"

    _, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("keep", ack_id=1))
    if what == "disconnect":
        hub.leave(socket, "transport close")
        # It begins at the next tick.
        await asyncio.sleep(0)
    (task,) = kept
    others = [await welcomed(hub) for _ in range(3)]
    for _, other in others:
        with outside_tasks():
            other.inbox.receive(other, event("wait", ack_id=1))
    async with asyncio.timeout(WAIT):
        assert await task is None
    # Callbacks come in the tick after its end.
    await asyncio.sleep(0)
    assert ended == [task]
    assert task.done()
    assert not task.cancelled()
    assert not task.cancel()
    release.set()
    for link, _ in others:
        assert (await link.messages(2))[1]["data"] == "waited"
    assert "mine" not in names
    assert ended == [task]


@HUBS
@pytest.mark.parametrize("door", ["websocket", "sse", "python-socketio"])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "after a wait"])
async def test_client_that_cancels_its_finished_handler_ends_no_other(
    waits: bool, door: str, kind: type[Hub], serve: Serve, new_client: NewClient
) -> None:
    hub = kind()
    tasks: dict[str, asyncio.Task[Any]] = {}
    begun, release = asyncio.Event(), asyncio.Event()

    @hub.on("work")
    async def work(socket: Socket) -> str:
        task = tasks[socket.id] = asyncio.current_task()  # type: ignore[assignment]
        assert task is not None
        if waits:
            await asyncio.sleep(0)
        return "worked"

    @hub.on("wait")
    async def wait(socket: Socket) -> str:
        begun.set()
        await release.wait()
        return "waited"

    @hub.on("stop")
    async def stop(socket: Socket) -> bool:
        return tasks[socket.id].cancel()

    server = await serve(hub)
    first, second = new_client(door), new_client(door)
    for client in (first, second):
        await client.connect(server.url)
        assert await client.call("work") == "worked"
    waiting = asyncio.create_task(second.call("wait"))
    await begun.wait()
    assert await first.call("stop") is False
    release.set()
    assert await waiting == "waited"
    for task in tasks.values():
        assert await task is None


async def test_next_event_of_a_client_has_a_task_of_its_own(hub: BareHub) -> None:
    tasks: list[asyncio.Task[Any] | None] = []
    release = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket) -> str:
        tasks.append(asyncio.current_task())
        await release.wait()
        await asyncio.sleep(0)
        return "waited"

    @hub.on("stop")
    async def stop(socket: Socket) -> list[bool]:
        return [outcome for task in tasks if task for outcome in (task.done(), task.cancel())]

    link, socket = await welcomed(hub)
    for number, name in enumerate(("wait", "stop", "wait", "stop", "wait")):
        socket.inbox.receive(socket, event(name, ack_id=number))
    release.set()
    answers = [message["data"] for message in (await link.messages(6))[1:]]
    assert answers == ["waited", [True, False], "waited", [True, False] * 2, "waited"]
    assert len(set(tasks)) == 3
    for task in tasks:
        assert task is not None
        assert await task is None


async def test_cancelling_a_handler_that_just_ended_does_nothing(hub: BareHub) -> None:
    kept: list[asyncio.Task[Any]] = []

    @hub.on("keep")
    async def keep(socket: Socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        kept.append(task)
        return "kept"

    hub.on("fine", _fine)
    link, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("fine"))
    # Its runner's task begins, and waits in reserve.
    await asyncio.sleep(0)
    for number in (1, 2):
        with outside_tasks():
            socket.inbox.receive(socket, event("keep", ack_id=number))
            # In the same tick, as another client's handler may.
            kept[0].cancel()
    assert kept[0] is not kept[1]
    async with asyncio.timeout(WAIT):
        assert await kept[0] is None
    assert not kept[0].cancelled()
    assert len(await link.messages(3)) == 3


# Ways to keep something by a task without keeping the task.
TRACES: dict[str, Callable[[asyncio.Task[Any]], Any]] = {
    "a dictionary by task": lambda task: WeakKeyDictionary({task: "mine"}),
    "a weak reference": weakref.ref,
    "a name": lambda task: task.set_name("mine"),
    "a callback": lambda task: task.add_done_callback(lambda _: None),
    "an attribute of something kept": lambda task: functools.partial(print, task),
    "a cancellation that was taken back": lambda task: (task.cancel(), task.uncancel()),
}


@pytest.mark.parametrize("begun", [False, True], ids=["a fresh runner", "a used runner"])
@pytest.mark.parametrize("trace", TRACES)
async def test_what_a_handler_leaves_on_its_task_finds_no_other(
    trace: str, begun: bool, hub: BareHub
) -> None:
    left: list[Any] = []
    seen: list[tuple[str, Any]] = []
    identities: list[int] = []

    @hub.on("leave")
    async def leave(socket: Socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        identities.append(id(task))
        left.append(TRACES[trace](task))
        return "left"

    @hub.on("look")
    async def look(socket: Socket) -> str:
        task = asyncio.current_task()
        assert task is not None
        # While the other is not gone, so that none has its place in memory.
        identities.append(id(task))
        seen.append((task.get_name(), task._callbacks))
        if isinstance(left[0], WeakKeyDictionary):
            assert task not in left[0]
        await asyncio.sleep(0)
        return "looked"

    hub.on("fine", _fine)
    link, socket = await welcomed(hub)
    if begun:
        socket.inbox.receive(socket, event("fine"))
        await asyncio.sleep(0)
    with outside_tasks():
        socket.inbox.receive(socket, event("leave", ack_id=1))
        socket.inbox.receive(socket, event("look", ack_id=2))
    # Since Python 3.13 a cancellation that is taken back before the task begins leaves nothing.
    if begun or trace != "a cancellation that was taken back" or sys.version_info < (3, 13):
        assert len(set(identities)) == 2
    ((name, callbacks),) = seen
    assert name != "mine"
    assert not callbacks
    answers = [message["data"] for message in (await link.messages(3))[1:]]
    assert answers == ["left", "looked"]


async def test_handler_that_failed_leaves_its_task_to_whoever_keeps_the_error(
    hub: BareHub, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: set[int] = set()

    @hub.on("fail")
    async def fail(socket: Socket) -> None:
        task = asyncio.current_task()
        tasks.add(id(task))
        raise KeyError("no")

    _, socket = await welcomed(hub)
    with outside_tasks():
        socket.inbox.receive(socket, event("fail"))
        socket.inbox.receive(socket, event("fail"))
    # The tracebacks in the log refer to both.
    assert len([record for record in caplog.records if record.exc_info]) == 2
    assert len(tasks) == 2


async def test_who_cancels_all_tasks_of_the_loop_ends_no_later_handler(hub: BareHub) -> None:
    hub.on("fine", _fine)

    @hub.on("wait")
    async def wait(socket: Socket) -> str:
        await asyncio.sleep(0)
        return "waited"

    link, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("fine", ack_id=1))
    (spare,) = hub.node.spare_runners.tasks
    for ticks in (0, 1, 3):
        for task in hub.node.spare_runners.tasks:
            task.cancel()
        for _ in range(ticks):
            await asyncio.sleep(0)
        with outside_tasks():
            socket.inbox.receive(socket, event("wait", ack_id=2))
        assert (await link.messages(3 + 2 * (ticks > 0) + 2 * (ticks > 1)))[-1]["data"] == "waited"
        socket.inbox.receive(socket, event("fine", ack_id=3))
    assert spare.cancelled()


async def test_stop_waits_for_a_handler_and_no_longer(hub: BareHub) -> None:
    release = asyncio.Event()
    ended: list[str] = []

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        await release.wait()
        ended.append("handler")

    hub.node.settings = msgspec.structs.replace(hub.settings, shutdown_timeout=600)
    link, socket = await welcomed(hub)
    socket.inbox.receive(socket, event("wait"))
    stopping = asyncio.create_task(hub.stop())
    assert (await link.messages(2))[1]["type"] == "server:shutdown"
    release.set()
    async with asyncio.timeout(WAIT):
        await stopping
    assert ended == ["handler"]


async def test_stop_ends_handlers_that_wait_and_runners_that_do_not(hub: BareHub) -> None:
    ended: list[str] = []

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")

    hub.on("fine", _fine)
    before = asyncio.all_tasks()
    _, waiting = await welcomed(hub)
    link, ready = await welcomed(hub)
    ready.inbox.receive(ready, event("fine", ack_id=1))
    waiting.inbox.receive(waiting, event("wait"))
    ready.inbox.receive(ready, event("fine", ack_id=2))
    await link.messages(3)
    await hub.stop()
    assert ended == ["waiting"]
    assert asyncio.all_tasks() == before
