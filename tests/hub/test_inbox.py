"""What becomes of a client's events is the same whichever way they take to their handlers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.broker import Publication
from crossband.broker.memory import MemoryBroker
from crossband.codecs import ENVELOPE, SOCKETIO_PLAIN, Codec
from crossband.errors import EventError
from crossband.hub.incoming import Incoming
from crossband.hub.namespace import Socket
from crossband.protocol.payload import Payload
from tests.bare import BareHub
from tests.link import Link, join


class FarBroker(MemoryBroker):
    """A broker that publishes in the next tick: a handler's answer waits for what it emitted."""

    publishes_at_once = False

    def publish(self, publication: Publication, *, record: bool = True) -> Any:
        loop = asyncio.get_running_loop()
        published: asyncio.Future[str | None] = loop.create_future()

        def publish() -> None:
            published.set_result(super(FarBroker, self).publish(publication, record=record))

        loop.call_soon(publish)
        return published


class Later:
    """An awaitable of no kind that is known."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self._value


# Handlers, by the event they are for.


def value(socket: Socket, *args: Any) -> Any:
    return list(args)


def several(socket: Socket) -> Any:
    return 1, "b"


def typed(socket: Socket, number: int, text: str = "") -> Any:
    return {"number": number, "text": text}


def nothing(socket: Socket) -> None:
    socket.emit("seen")


def unencodable(socket: Socket, data: Any) -> Any:
    return object() if data else {1: [data]}


def refuses(socket: Socket, data: Any) -> None:
    raise EventError("no", code="refused", data=data)


def misnamed(socket: Socket) -> None:
    socket.emit("a\nb")


def fails(socket: Socket, data: Any) -> None:
    raise {0: RuntimeError, 1: StopIteration, 2: asyncio.CancelledError}.get(data, KeyError)()


def future(socket: Socket, data: Any) -> Awaitable[Any]:
    made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    if data:
        made.set_result(data)
    else:
        asyncio.get_running_loop().call_soon(made.set_exception, EventError(code="late"))
    return made


def later(socket: Socket, data: Any) -> Awaitable[Any]:
    return Later(data)


async def at_once(socket: Socket, data: Any) -> Any:
    socket.emit("before", data)
    return data


async def waits(socket: Socket, ticks: int) -> Any:
    for tick in range(ticks % 4):
        socket.emit("tick", tick)
        await asyncio.sleep(0)
    return ticks


async def waits_and_refuses(socket: Socket, data: Any) -> Any:
    await socket.emit("before", data)
    await asyncio.sleep(0)
    raise EventError(code="refused", data=data)


async def waits_for_what_is_cancelled(socket: Socket) -> None:
    made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(made.cancel)
    await made


HANDLERS: list[Callable[..., Any]] = [
    *(value, several, typed, nothing, unencodable, refuses, misnamed, fails, future, later),
    *(at_once, waits, waits_and_refuses, waits_for_what_is_cancelled),
]


# Arguments, also some that only a handler that takes them refuses.
READABLE = ["0", "1", "2", '"a"', "null", "[]", "[1]", '[1,"a"]', '{"a":1}']
UNREADABLE = ["1e999", '"\\ud800"']


class Event(NamedTuple):
    """An event of the client; it is answered under an id, by a call, or not."""

    name: str
    raws: list[str]
    answered: str
    single: bool


events = st.lists(
    st.builds(
        Event,
        st.sampled_from(
            [*(handler.__name__ for handler in HANDLERS), "unknown", "7", "connect", "a\nb", ""]
        ),
        st.lists(
            st.sampled_from([*READABLE, *READABLE, *UNREADABLE]),
            max_size=2,
        ),
        st.sampled_from(["by id", "by id", "by a call", "not"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


async def outcome(way: str, codec: Codec, events: list[Event]) -> tuple[list[Any], list[Any]]:
    """Return what a client got that sent these, and what those got who are called back."""
    hub = BareHub(FarBroker() if way == "far" else None)
    for handler in HANDLERS:
        hub.on(handler.__name__, handler, concurrent=way == "beside")
    if way == "examined":
        hub.use_event(lambda socket, event, args: None)
    opened = asyncio.Event()
    hub.on("hold", lambda socket: opened.wait())
    await hub.start()
    link = Link(hub.ticker, stalled=False)
    socket = await join(hub, link, codec=codec)
    await asyncio.sleep(0)
    link.taken.clear()
    if way == "behind":
        socket.inbox.receive(socket, Incoming("hold", []))
    called: list[Any] = []
    for number, event in enumerate(events):

        def reply(answer: Payload | EventError, number: int = number) -> None:
            got = answer.to_dict() if isinstance(answer, EventError) else answer.json
            called.append((number, got))

        raws = [msgspec.Raw(raw.encode()) for raw in event.raws[: 1 if event.single else None]]
        ack_id = number if event.answered == "by id" else None
        call = reply if event.answered == "by a call" else None
        socket.inbox.receive(socket, Incoming(event.name, raws, (), ack_id, call, event.single))
    opened.set()
    while socket.inbox._turn is not None or socket.inbox.waiting or hub.node._tasks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    got = [read(message) for message in link.taken]
    await hub.stop()
    return got, called


def read(message: str | bytes) -> Any:
    """Read a message, without the cursors, of which each hub has its own."""
    if not isinstance(message, str):
        return message
    if message.startswith("4"):
        return message
    fields = json.loads(message)
    fields.pop("offset", None)
    return fields


@settings(max_examples=40, deadline=None, database=None)
@given(st.sampled_from([ENVELOPE, SOCKETIO_PLAIN]), events)
def test_events_come_to_the_same_by_every_way(codec: Codec, events: list[Event]) -> None:
    async def every() -> None:
        direct = await outcome("direct", codec, events)
        ways = ["far", "behind"]
        # A middleware is given the arguments of every event, so all must be readable.
        if not any(raw in UNREADABLE for event in events for raw in event.raws):
            ways.append("examined")
        for way in ways:
            assert (way, await outcome(way, codec, events)) == (way, direct)
        # In whatever order.
        beside = await outcome("beside", codec, events)
        assert [sorted(map(repr, part)) for part in beside] == [
            sorted(map(repr, part)) for part in direct
        ]

    logging.disable()
    try:
        asyncio.run(every())
    finally:
        logging.disable(logging.NOTSET)
