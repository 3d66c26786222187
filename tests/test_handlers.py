"""Handlers and their clients, on every door: turns, departures, refusals, and who may write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crossband import ConnectionRefused, Hub, Socket
from tests.clients.base import WAIT, Client
from tests.clients.engine import EnginePollingClient, EngineWebSocketClient
from tests.clients.eventstream import EventStreamClient
from tests.clients.websocket import WebSocketClient
from tests.conftest import Serve
from tests.lanes import PlainASGI
from tests.waiting import until

DOORS: dict[str, type[Client]] = {
    client.kind: client
    for client in (WebSocketClient, EventStreamClient, EngineWebSocketClient, EnginePollingClient)
}
every_door = pytest.mark.parametrize("kind", DOORS)
both_servers = pytest.mark.parametrize("hub_class", [Hub, PlainASGI], ids=["lane", "asgi"])


async def connected(server: Any, kind: str, **how: Any) -> Client:
    client = DOORS[kind]()
    await client.connect(server.url, **how)
    return client


# Departures.


@every_door
@both_servers
async def test_departure_is_known_while_a_handler_runs(
    hub_class: type[Hub], kind: str, serve: Serve
) -> None:
    hub = hub_class()
    began, left, let_go = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[bool] = []

    @hub.on("generate")
    async def generate(socket: Socket) -> None:
        began.set()
        await left.wait()
        seen.append(socket.connected)
        let_go.set()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        left.set()

    client = await connected(await serve(hub), kind)
    sending = asyncio.create_task(client.emit("generate"))
    async with asyncio.timeout(WAIT):
        await began.wait()
        sending.cancel()
        await client.cut()
        await let_go.wait()
    assert seen == [False]
    await client.close()


@every_door
async def test_handler_that_asks_for_it_is_cancelled_when_its_client_leaves(
    kind: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    began, ended = asyncio.Event(), asyncio.Event()

    @hub.on("generate", cancel_on_disconnect=True)
    async def generate(socket: Socket) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    client = await connected(await serve(hub), kind)
    sending = asyncio.create_task(client.emit("generate"))
    async with asyncio.timeout(WAIT):
        await began.wait()
        sending.cancel()
        await client.cut()
        await ended.wait()
    await client.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_only_async_handlers_can_be_cancelled() -> None:
    with pytest.raises(TypeError, match="'x' is not async: it cannot be cancelled"):
        Hub().on("x", lambda socket: None, cancel_on_disconnect=True)
    with pytest.raises(ValueError, match="'connect' is not sent by clients"):
        Hub().on("connect", cancel_on_disconnect=True)(lambda socket: None)


async def test_disconnect_handler_waits_for_the_connect_handler(serve: Serve) -> None:
    hub = Hub()
    log: list[str] = []
    entered, gate, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        entered.set()
        await gate.wait()
        log.append("connect")

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        log.append("disconnect")
        done.set()

    client = await connected(await serve(hub), "websocket")
    async with asyncio.timeout(WAIT):
        await entered.wait()
        (socket,) = hub.sockets.values()
        await client.cut()
        await until(lambda: not socket.connected)
        assert log == []
        gate.set()
        await done.wait()
    assert log == ["connect", "disconnect"]


# Refused by a connect handler.


@pytest.mark.parametrize("status", [403, 503])
@every_door
@both_servers
async def test_connect_handler_that_refuses_ends_the_client(
    hub_class: type[Hub], kind: str, status: int, serve: Serve
) -> None:
    hub = hub_class()
    ran: list[str] = []

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await asyncio.sleep(0)
        raise ConnectionRefused("Members only", code="members_only", status=status)

    @hub.on("connect")
    def second(socket: Socket) -> None:
        ran.append(socket.id)

    client = await connected(await serve(hub), kind)
    error = await client.next_error()
    async with asyncio.timeout(WAIT):
        await client.gone.wait()
        await until(lambda: not hub.sockets)
    assert (error["code"], error["error"]) == ("members_only", "Members only")
    assert ran == []
    if kind == "websocket":
        # 4000: not to come back. 1013: to come back later.
        assert client.farewell.startswith("4000" if status == 403 else "1013")
    await client.close()


# Turns.


@every_door
@both_servers
async def test_client_may_ask_before_it_acknowledges(
    hub_class: type[Hub], kind: str, serve: Serve
) -> None:
    """A handler waits for its client, and its client for the next handler."""
    hub = hub_class()
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @hub.on("order")
    async def order(socket: Socket) -> None:
        # Also in a task that the handler starts, and as one of many recipients.
        first = await asyncio.wait_for(socket.emit_with_ack("confirm", 1), WAIT)
        (second,) = await hub.to(socket.id).emit_with_ack("confirm", 2)
        done.set_result([first, second])

    @hub.on("price")
    async def price(socket: Socket, number: int) -> int:
        return 10 * number

    async def confirm(number: int) -> Any:
        return await client.call("price", number)

    client = DOORS[kind]()
    client.answer("confirm", confirm)
    await client.connect((await serve(hub)).url)
    ordering = asyncio.create_task(client.emit("order"))
    async with asyncio.timeout(WAIT):
        assert await done == [10, 20]
        await ordering
    await client.close()


@every_door
async def test_connect_handler_may_ask_a_client_that_asks_first(kind: str, serve: Serve) -> None:
    hub = Hub()
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        done.set_result(await socket.emit_with_ack("confirm", 1))

    @hub.on("price")
    def price(socket: Socket, number: int) -> int:
        return 10 * number

    async def confirm(number: int) -> Any:
        return await client.call("price", number)

    client = DOORS[kind]()
    client.answer("confirm", confirm)
    await client.connect((await serve(hub)).url)
    async with asyncio.timeout(WAIT):
        assert await done == 10
    await client.close()


async def test_task_that_outlives_its_handler_is_not_its_handler(serve: Serve) -> None:
    """It waits for its client's answer, and the events of that client stay in order."""
    hub = Hub()
    gate, asked = asyncio.Event(), asyncio.Event()
    log: list[Any] = []
    tasks: list[asyncio.Task[None]] = []

    async def ask(socket: Socket) -> None:
        await asked.wait()
        log.append(await socket.emit_with_ack("confirm"))

    @hub.on("begin")
    async def begin(socket: Socket) -> None:
        tasks.append(hub.spawn(ask(socket)))

    @hub.on("slow")
    async def slow(socket: Socket) -> None:
        asked.set()
        await gate.wait()
        log.append("slow")

    @hub.on("next")
    def after(socket: Socket) -> None:
        log.append("next")

    client = await connected(await serve(hub), "websocket")
    client.answer("confirm", lambda _: "confirmed")
    for event in ("begin", "slow", "next"):
        await client.emit(event)
    async with asyncio.timeout(WAIT):
        await asyncio.wait([await anext_of(tasks)])
        assert log == ["confirmed"]
        gate.set()
        await until(lambda: len(log) == 3)
    assert log == ["confirmed", "slow", "next"]
    await client.close()


async def anext_of(tasks: list[asyncio.Task[None]]) -> asyncio.Task[None]:
    await until(lambda: tasks)
    return tasks[0]


@pytest.mark.parametrize("kind", ["websocket", "engine-websocket"])
async def test_events_stay_in_order_unless_the_handler_is_concurrent(
    kind: str, serve: Serve
) -> None:
    hub = Hub()
    gates = {name: asyncio.Event() for name in ("slow", "beside")}
    log: list[str] = []

    @hub.on("slow")
    async def slow(socket: Socket) -> None:
        await gates["slow"].wait()
        log.append("slow")

    @hub.on("beside", concurrent=True)
    async def beside(socket: Socket, number: int) -> int:
        if number == 1:
            await gates["beside"].wait()
        log.append(f"beside {number}")
        return number

    @hub.on("next")
    def after(socket: Socket) -> None:
        log.append("next")

    client = await connected(await serve(hub), kind)
    await client.emit("slow")
    await client.emit("next")
    first = asyncio.create_task(client.call("beside", 1))
    assert await client.call("beside", 2) == 2
    assert log == ["beside 2"]
    gates["beside"].set()
    assert await first == 1
    gates["slow"].set()
    async with asyncio.timeout(WAIT):
        await until(lambda: len(log) == 4)
    assert log == ["beside 2", "beside 1", "slow", "next"]
    await client.close()


async def test_token_is_renewed_while_a_handler_runs(serve: Serve) -> None:
    import time

    from crossband import Handshake, Identity

    def authenticate(handshake: Handshake) -> Identity:
        return Identity("ada", expires=time.time() + 60)

    hub = Hub(authenticate=authenticate)
    gate = asyncio.Event()

    @hub.on("work")
    async def work(socket: Socket) -> None:
        await gate.wait()

    client = await connected(await serve(hub), "websocket")
    await client.emit("work")
    answer = await client.call("token:refresh", {"token": "new"})
    assert answer["expires"] > time.time()
    gate.set()
    await client.close()


# Who writes waits.


@every_door
@both_servers
async def test_writer_that_waits_is_never_too_fast(
    hub_class: type[Hub], kind: str, serve: Serve
) -> None:
    """As `drain` does: 6 MB for a client that may have 1 MiB waiting."""
    hub = hub_class()
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @hub.on("download")
    async def download(socket: Socket) -> int:
        for number in range(96):
            await socket.emit("chunk", [number, "x" * 64_000])
        done.set_result(None)
        return 96

    client = await connected(await serve(hub), kind)
    await client.emit("download")
    for number in range(96):
        assert (await client.next_event("chunk")).data[0] == number
    await done
    assert not client.gone.is_set()
    await client.close()


async def test_one_large_event_fits_beside_what_waits(serve: Serve) -> None:
    hub = Hub()

    @hub.on("download")
    async def download(socket: Socket) -> None:
        for number in range(20):
            await socket.emit("chunk", [number, "x" * 900_000])
            hub.emit("small", number)

    client = await connected(await serve(hub), "engine-polling")
    await client.emit("download")
    for number in range(20):
        assert (await client.next_event("chunk")).data[0] == number
    assert not client.gone.is_set()
    await client.close()


async def test_writer_goes_on_when_its_client_has_left(serve: Serve) -> None:
    hub = Hub()
    ended = asyncio.Event()

    @hub.on("download")
    async def download(socket: Socket) -> None:
        while socket.connected:
            await socket.emit("chunk", "x" * 64_000)
        ended.set()

    client = await connected(await serve(hub), "websocket")
    assert isinstance(client, WebSocketClient)
    await client.emit("download")
    await client.next_event("chunk")
    await client.cut()
    async with asyncio.timeout(WAIT):
        await ended.wait()
