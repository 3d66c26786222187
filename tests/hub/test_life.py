"""What an application runs at the start of a hub, at its stop, and in the background."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect

import crossband
from crossband import Hub, Socket
from crossband.server import Server, StartError
from tests.clients.base import WAIT
from tests.clients.websocket import WebSocketClient
from tests.conftest import Serve


async def for_ever(beat: asyncio.Event | None = None) -> None:
    while True:
        if beat is not None:
            beat.set()
        await asyncio.sleep(60)


async def test_start_functions_run_in_order_before_the_first_client(serve: Serve) -> None:
    hub = Hub()
    said: list[str] = []

    @hub.on_start
    def first() -> None:
        said.append(f"plain, started: {hub.started}")

    @hub.on_start
    async def second() -> None:
        await asyncio.sleep(0)
        said.append("async")

    @hub.on("connect")
    def connected(socket: Socket) -> None:
        said.append("client")

    server = await serve(hub)
    assert said == ["plain, started: True", "async"]
    client = WebSocketClient()
    await client.connect(server.url)
    await client.close()
    assert said[2] == "client"


async def test_request_waits_for_the_start_functions_where_there_is_no_lifespan() -> None:
    hub = Hub()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @hub.on_start
    async def slow() -> None:
        begun.set()
        await go_on.wait()

    transport = httpx.ASGITransport(app=hub)
    async with httpx.AsyncClient(transport=transport, base_url="http://hub") as http:
        first = asyncio.create_task(http.get("/api/status"))
        await begun.wait()
        second = asyncio.create_task(http.get("/api/status"))
        # A request that did not wait would be answered by now.
        for _ in range(20):
            await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        go_on.set()
        assert (await first).status_code == (await second).status_code == 200
    await hub.stop()


@pytest.mark.parametrize("mounted", [False, True])
async def test_start_function_that_fails_fails_the_start(
    mounted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    ended = []

    @hub.on_start
    async def load_rooms() -> None:
        hub.spawn(for_ever()).add_done_callback(lambda task: ended.append(task.cancelled()))
        raise LookupError("no database")

    @hub.on_stop
    def never() -> None:
        raise AssertionError

    app: Any = hub
    if mounted:
        app = Starlette(routes=[Mount("/", hub)], lifespan=hub.lifespan)
    with pytest.raises(StartError, match="on_start function load_rooms failed: LookupError: no da"):
        await Server(app).start()
    assert not hub.started
    assert ended == [True]
    assert "Traceback" in caplog.text


async def test_stop_functions_run_backwards_while_clients_are_connected(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    said: list[str] = []

    @hub.on_stop
    async def last() -> None:
        said.append(f"{len(hub.sockets)} client")
        await hub.emit("goodbye", "see you")

    @hub.on_stop
    def failing() -> None:
        said.append("failing")
        raise LookupError("nothing to save")

    @hub.on("disconnect")
    def left(socket: Socket, reason: str) -> None:
        said.append(reason)

    server = await serve(hub)
    client = WebSocketClient()
    await client.connect(server.url)
    await server.stop()
    assert (await client.next_event("goodbye")).data == "see you"
    assert [event.name for event in client.log] == ["goodbye", "server:shutdown"]
    assert said == ["failing", "1 client", "server shutting down"]
    assert "the on_stop function" in caplog.text
    assert "nothing to save" in caplog.text
    await client.close()


async def test_stop_function_that_hangs_does_not_keep_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(shutdown_timeout=0.1)
    hub.on_stop(for_ever)
    async with asyncio.timeout(WAIT):
        async with hub.lifespan():
            pass
    assert "the on_stop function for_ever takes too long" in caplog.text


async def test_background_task_ends_with_the_hub(serve: Serve) -> None:
    hub = Hub()
    beat = asyncio.Event()
    tasks = []

    @hub.on_start
    def start() -> None:
        tasks.append(hub.spawn(for_ever(beat), name="ticker"))

    server = await serve(hub)
    async with asyncio.timeout(WAIT):
        await beat.wait()
        # It sleeps for a minute.
        await server.stop()
    assert tasks[0].cancelled()
    assert tasks[0].get_name() == "ticker"
    # Started again, it ticks again.
    beat.clear()
    async with asyncio.timeout(WAIT), hub.lifespan():
        await beat.wait()
    assert [task.cancelled() for task in tasks] == [True, True]


async def test_task_spawned_while_the_hub_stops_ends_too(serve: Serve) -> None:
    hub = Hub()
    tasks = []

    @hub.on("disconnect")
    def left(socket: Socket, reason: str) -> None:
        tasks.append(hub.spawn(for_ever()))

    server = await serve(hub)
    client = WebSocketClient()
    await client.connect(server.url)
    async with asyncio.timeout(WAIT):
        await server.stop()
    assert [task.cancelled() for task in tasks] == [True]
    await client.close()


async def test_task_may_stop_its_own_hub() -> None:
    hub = Hub()
    async with asyncio.timeout(WAIT), hub.lifespan():
        await hub.spawn(hub.stop())
        assert not hub.started


async def test_background_task_that_fails_is_logged_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()

    async def poll_prices() -> None:
        raise LookupError("no prices")

    async with hub.lifespan():
        await asyncio.wait([hub.spawn(poll_prices())])
    assert "poll_prices failed" in caplog.text
    assert "no prices" in caplog.text


def test_hub_finishes_its_own_tasks() -> None:
    """What is being handled goes to `run_to_end`: `spawn` is cancelled at the stop."""
    package = Path(crossband.__file__).parent
    for folder in ("hub", "transports"):
        for path in package.joinpath(folder).glob("*.py"):
            assert "hub.spawn(" not in path.read_text(encoding="utf-8"), path


async def test_spawn_tells_what_it_takes_and_when() -> None:
    hub = Hub()
    unfit: Any = for_ever
    with pytest.raises(RuntimeError, match="not running: spawn tasks in an on_start function"):
        hub.spawn(for_ever())
    async with hub.lifespan():
        with pytest.raises(TypeError, match=r"takes a coroutine, such as tick\(\), not function"):
            hub.spawn(unfit)


@pytest.mark.parametrize("register", ["on_start", "on_stop"])
def test_function_that_could_not_be_called_is_refused(register: str) -> None:
    hub = Hub()
    with pytest.raises(TypeError, match=rf"{register}\(\) takes a function \(\), plain or async"):
        getattr(hub, register)(lambda socket: None)


@pytest.mark.parametrize("event", ["start", "stop", "on_start", "on_stop"])
async def test_client_cannot_call_them_by_an_event(event: str, serve: Serve) -> None:
    hub = Hub()
    called = []
    hub.on_start(lambda: called.append("start"))
    hub.on_stop(lambda: called.append("stop"))
    server = await serve(hub)
    async with connect(server.url.replace("http", "ws", 1) + "/ws", proxy=None) as websocket:
        await websocket.recv()
        await websocket.send(json.dumps({"type": event, "id": 1}))
        assert json.loads(await websocket.recv())["code"] == "unknown_event"
    assert called == ["start"]
    assert hub.started
    # An event of that name is like any other.
    hub.on(event, lambda socket: "mine")
    client = WebSocketClient()
    await client.connect(server.url)
    assert await client.call(event) == "mine"
    await client.close()
