"""Events between servers: `server_emit` and `on_server`, over the bus of every broker."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from crossband import AckTimeout, EncodeError, Hub, MemoryBroker, Socket
from crossband.broker.bus import MAX_MESSAGE
from crossband.broker.redis import RedisBroker
from crossband.names import new_id
from tests.clients import EventFailed, NewClient
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import shared
from tests.far import Engine
from tests.test_cluster import Nodes


class Three(Nodes):
    """Three hubs, not served, each with its name among what its handlers see."""

    def __init__(self, serve: Serve, kind: str) -> None:
        super().__init__(serve, kind)
        if kind == "memory":
            memory = MemoryBroker()
            self.brokers = [memory, memory.peer(), memory.peer()]
        elif kind == "redis":
            url = f"{shared().url}?prefix={new_id()}"
            self.brokers = [RedisBroker(url) for _ in range(3)]
        else:
            engine = Engine(MemoryBroker(), seed=5)
            self.brokers = [engine.node() for _ in range(3)]
        # What each hub heard.
        self.heard: list[list[Any]] = [[], [], []]
        self.came = asyncio.Condition()

    async def begin(self, prepare: Callable[[Hub, int], None]) -> Three:
        for number, broker in enumerate(self.brokers):
            hub = Hub(broker)
            prepare(hub, number)
            self.hubs.append(hub)
            await hub.start()
        return self

    async def end(self) -> None:
        for hub in self.hubs:
            await hub.stop()

    async def note(self, number: int, what: Any) -> None:
        async with self.came:
            self.heard[number].append(what)
            self.came.notify_all()

    async def hears(self, number: int, *all_of: Any) -> None:
        """Wait until a hub has heard exactly this."""
        async with asyncio.timeout(WAIT), self.came:
            await self.came.wait_for(lambda: self.heard[number] == list(all_of))


@pytest.fixture(params=["memory", "elsewhere", "redis"])
async def three(request: pytest.FixtureRequest, serve: Serve) -> Any:
    nodes = Three(serve, request.param)
    yield nodes
    await nodes.end()


class Change(msgspec.Struct):
    key: str
    version: int = 1


async def test_event_reaches_the_handlers_of_all_other_servers_in_order(three: Three) -> None:
    def prepare(hub: Hub, number: int) -> None:
        @hub.on_server("changed")
        async def changed(change: Change, data: bytes = b"") -> None:
            await three.note(number, (change, data))

    await three.begin(prepare)
    for version in range(20):
        three.here.server_emit("changed", {"key": "a", "version": version})
    three.here.server_emit("changed", Change("b"), b"\x00\xff")
    expected = [(Change("a", version), b"") for version in range(20)]
    expected.append((Change("b"), b"\x00\xff"))
    for number in (1, 2):
        await three.hears(number, *expected)
    # The server itself does not get it, as in Node.
    assert three.heard[0] == []


async def test_servers_answer(three: Three) -> None:
    def prepare(hub: Hub, number: int) -> None:
        @hub.on_server("load")
        def load(unit: str) -> Any:
            return {"node": number, "unit": unit}

        @hub.on_server("nothing")
        def nothing() -> None:
            pass

        @hub.on_server("pair")
        async def pair() -> tuple[int, bytes]:
            return number, b"\x01"

    await three.begin(prepare)
    answers = await three.here.server_emit_with_ack("load", "ms")
    assert sorted(answer["node"] for answer in answers) == [1, 2]
    assert {answer["unit"] for answer in answers} == {"ms"}
    assert await three.here.server_emit_with_ack("nothing") == [None, None]
    assert sorted(await three.there.server_emit_with_ack("pair")) == [[0, b"\x01"], [2, b"\x01"]]


async def test_who_does_not_answer_is_named(three: Three, caplog: pytest.LogCaptureFixture) -> None:
    never = asyncio.Event()

    def prepare(hub: Hub, number: int) -> None:
        if number == 1:

            @hub.on_server("ping")
            async def ping() -> str:
                return "pong"

            @hub.on_server("hang")
            async def hang() -> None:
                await never.wait()

        @hub.on_server("fails")
        async def fails(count: int) -> int:
            if number == 1:
                raise KeyError("no")
            return count

    await three.begin(prepare)
    third = three.brokers[2].bus.node
    # Without a handler, at once: the timeout is not waited for.
    with pytest.raises(AckTimeout, match=f"1 of 2 servers answered 'ping'.*not {third}") as late:
        await three.here.server_emit_with_ack("ping", timeout=600)
    assert late.value.responses == ["pong"]
    with pytest.raises(AckTimeout, match="1 of 2") as late:
        await three.here.server_emit_with_ack("fails", 7, timeout=600)
    assert late.value.responses == [7]
    with pytest.raises(AckTimeout, match="0 of 2") as late:
        await three.here.server_emit_with_ack("fails", "many", timeout=600)
    assert late.value.responses == []
    with pytest.raises(AckTimeout, match="0 of 2"):
        await three.here.server_emit_with_ack("hang", timeout=0.05)
    never.set()
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "the handler of the server event 'fails' failed" in logged
    assert any("'fails' is refused: " in line for line in logged)


async def test_alone_nobody_answers() -> None:
    hub = Hub()
    await hub.start()
    hub.server_emit("ping")
    assert await hub.server_emit_with_ack("ping") == []
    await hub.stop()
    hub.server_emit("ping")


async def test_each_namespace_has_its_own(three: Three) -> None:
    def prepare(hub: Hub, number: int) -> None:
        for name in ("/", "/admin"):

            @hub.of(name).on_server("tick")
            async def tick(name: str = name) -> None:
                await three.note(number, name)

        @hub.of(re.compile(r"/room-\d+")).on_server("tick")
        async def room(name: str) -> None:
            await three.note(number, name)

    await three.begin(prepare)
    three.here.of("/admin").server_emit("tick")
    three.here.server_emit("tick")
    # Here it exists; there it has no clients, but its pattern has handlers.
    three.here.of("/room-7").server_emit("tick", "room")
    # Elsewhere nobody knows it.
    three.here.of("/other").server_emit("tick")
    three.here.server_emit("tick", "last")
    for number in (1, 2):
        await three.hears(number, "/admin", "/", "room", "last")


async def test_events_of_servers_are_not_for_clients(
    serve: Serve, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()

    @hub.on_server("wipe")
    def wipe() -> None:
        raise AssertionError

    client = new_client("websocket")
    await client.connect((await serve(hub)).url)
    with pytest.raises(EventFailed, match="Unknown event") as failure:
        await client.call("wipe")
    assert failure.value.code == "unknown_event"
    assert "wipe" not in hub.events


async def test_thread_may_emit_to_servers(three: Three) -> None:
    def prepare(hub: Hub, number: int) -> None:
        @hub.on_server("step")
        async def step(count: int) -> None:
            await three.note(number, count)

    await three.begin(prepare)

    def work() -> None:
        for count in range(5):
            three.here.server_emit("step", count)

    await asyncio.to_thread(work)
    for number in (1, 2):
        await three.hears(number, *range(5))


async def test_what_a_server_handler_emits_goes_out_before_its_answer(three: Three) -> None:
    def prepare(hub: Hub, number: int) -> None:
        @hub.on_server("announce")
        def announce() -> str:
            hub.emit("news", number)
            return hub.broker.head("/")

    await three.begin(prepare)
    for broker in three.brokers:
        attaching = broker.attach("/")
        if attaching is not None:
            await attaching
    before = three.brokers[1].head("/")
    await three.here.server_emit_with_ack("announce")
    page = await three.brokers[0].history("/", before)
    assert len(page.publications) == 2


async def test_stop_waits_for_the_handlers_of_servers(three: Three) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    ended: list[int] = []

    def prepare(hub: Hub, number: int) -> None:
        @hub.on_server("work")
        async def work() -> None:
            began.set()
            await go_on.wait()
            ended.append(number)

    await three.begin(prepare)
    three.here.server_emit("work")
    await began.wait()
    stopping = asyncio.create_task(three.there.stop())
    await asyncio.sleep(0)
    go_on.set()
    await stopping
    assert 1 in ended


def test_what_is_wrong_is_told_at_once() -> None:
    hub = Hub()
    with pytest.raises(RuntimeError, match="the hub has not started"):
        hub.server_emit("ping")
    with pytest.raises(EncodeError, match="1 to 256 characters"):
        hub.server_emit("")
    with pytest.raises(EncodeError, match=f"at most {MAX_MESSAGE} bytes"):
        hub.server_emit("big", "x" * MAX_MESSAGE)

    @hub.on_server("ping")
    def ping(count: int) -> None:
        pass

    with pytest.raises(ValueError, match="'ping' has a handler for servers already"):
        hub.on_server("ping")(ping)
    with pytest.raises(TypeError, match=r"cannot take `socket: .*Socket`"):

        @hub.on_server("takes a client")
        def takes(socket: Socket) -> None:
            pass

    with pytest.raises(TypeError, match="event's name"):
        hub.on_server(ping)  # type: ignore[arg-type]
