"""Many rounds of connect, talk and leave over every door, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import socket as sockets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from crossband import Handshake, Hub, Socket
from crossband.broker.memory import MemoryBroker
from crossband.server import Server
from tests.bare import BareHub
from tests.census import census, returns_to, survivors
from tests.clients import Client, EventStreamClient, PythonSocketIOClient, WebSocketClient
from tests.clients.base import WAIT
from tests.clients.raw import (
    Polling,
    RawWebSocket,
    dialled,
    engine_url,
    frame,
    http,
    upgrade,
)
from tests.conftest import Serve
from tests.link import Link, join

ROUNDS = 20
TEXT, CLOSE = 0x1, 0x8
KEY = "k" * 20


@pytest.fixture(autouse=True)
def only_what_the_test_makes() -> Iterator[None]:
    """Leave what was there before out of every search: that takes half a second."""
    gc.freeze()
    yield
    gc.unfreeze()


def talking_hub() -> Hub:
    hub = Hub(history_size=100)
    hub.of(re.compile(r"/game-\d+"))

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("everybody", f"client {socket.id}")

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        await socket.join("talked")
        return data

    @hub.on("ask")
    async def ask(socket: Socket) -> Any:
        return await socket.emit_with_ack("question")

    return hub


async def talk(client: Client, hub: Hub, number: int) -> None:
    assert await client.call("echo", number) == number
    await hub.to("talked").emit("news", number)
    assert (await client.next_event("news")).data == number


async def client_leaves(client: Client, url: str, hub: Hub, number: int) -> None:
    await client.connect(url)
    await talk(client, hub, number)
    await client.close()


async def client_is_cut(client: Client, url: str, hub: Hub, number: int) -> None:
    await client.connect(url)
    await talk(client, hub, number)
    await client.cut()
    await client.close()


async def client_resumes(client: Client, url: str, hub: Hub, number: int) -> None:
    await client.connect(url)
    await talk(client, hub, number)
    await client.cut()
    await hub.emit("missed", number)
    await client.resume()
    assert (await client.next_event("missed")).data == number
    await client.close()


async def client_is_disconnected(client: Client, url: str, hub: Hub, number: int) -> None:
    await client.connect(url)
    await talk(client, hub, number)
    await hub.to("talked").disconnect_sockets(close=True)
    async with asyncio.timeout(WAIT):
        await client.gone.wait()
    await client.close()


async def client_is_asked_and_gone(client: Client, url: str, hub: Hub, number: int) -> None:
    await client.connect(url)
    client.answer("other", lambda data: data)
    asking = asyncio.create_task(client.call("ask"))
    await client.next_event("question")
    await client.cut()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await asking
    await client.close()


Life = Callable[[Client, str, Hub, int], Awaitable[None]]
LIVES: list[Life] = [
    client_leaves,
    client_is_cut,
    client_resumes,
    client_is_disconnected,
    client_is_asked_and_gone,
]


KINDS: list[type[Client]] = [WebSocketClient, EventStreamClient, PythonSocketIOClient]


async def test_nothing_is_left_of_clients(serve: Serve) -> None:
    hub = talking_hub()
    server = await serve(hub)
    start = census(hub)
    for number in range(ROUNDS):
        # Every kind lives every life.
        life = LIVES[number % len(LIVES)]
        for kind in KINDS:
            try:
                await life(kind(), server.url, hub, number)
            except BaseException as error:
                error.add_note(f"{kind.kind}: {life.__name__}")
                raise
    await nothing_is_left(hub, start)


async def nothing_is_left(hub: Hub, start: Counter[str]) -> None:
    await returns_to(start, lambda: census(hub))
    # A closed transport is kept for its last seconds, and its connection with it.
    for _ in range(20):
        if not survivors():
            return
        await asyncio.sleep(0.2)
    assert not survivors()


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as client:
        yield client


async def polls_and_closes(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    polling = Polling(browser, url)
    await polling.connect()
    await polling.post('421["echo","a"]')
    assert await polling.packet() == '431["a"]'
    await polling.post("1")


async def polls_and_is_silent(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    polling = Polling(browser, url)
    await polling.connect()
    await hub.disconnect_sockets(close=True)


async def polls_twice(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    polling = Polling(browser, url)
    await polling.connect()
    pending = await polling.pending_poll()
    assert (await polling.poll()).status_code == 400
    await pending


async def leaves_its_namespace(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    polling = Polling(browser, url)
    await polling.connect()
    await polling.post("40/game-1,")
    assert (await polling.packet()).startswith("40/game-1,")
    await polling.post("41/game-1,\x1e41")
    await polling.post("1")


async def upgrades_and_vanishes(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    polling = Polling(browser, url)
    await polling.connect()
    raw = await RawWebSocket.open(engine_url(url, sid=polling.params["sid"]))
    raw.send(frame(TEXT, b"2probe"))
    assert (await raw.receive())[1] == b"3probe"
    raw.send(frame(TEXT, b"5") + frame(TEXT, b'421["echo","a"]'))
    assert (await raw.receive())[1] == b'431["a"]'
    await raw.close()


async def probes_and_vanishes(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    polling = Polling(browser, url)
    await polling.connect()
    raw = await RawWebSocket.open(engine_url(url, sid=polling.params["sid"]))
    raw.send(frame(TEXT, b"2probe"))
    assert (await raw.receive())[1] == b"3probe"
    await raw.close()
    await polling.post("1")


async def breaks_the_protocol(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    raw = await RawWebSocket.open(engine_url(url))
    raw.send(frame(TEXT, b"40/game-2,") + frame(TEXT, b'451-/game-2,["echo"]') + frame(TEXT, b"4"))
    await raw.close_code()
    await raw.close()


async def is_refused(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    for path in ("/events/nope", "/events/game-1?session=x", "/events/game-1?room="):
        assert (await browser.get(url + path)).status_code >= 400
    for path in ("/ws/nope", "/ws/game-1?session=x", "/ws/game-1?room="):
        raw = await RawWebSocket.open(url.replace("http", "ws", 1) + path)
        assert raw.status >= 400
        await raw.close()
    raw = await RawWebSocket.open(engine_url(url))
    raw.send(frame(TEXT, b"40/nope,") + frame(TEXT, b'40/game-3,{"pid":"x"}'))
    for _ in range(3):
        await raw.receive()
    await raw.close()


async def is_taken_over(browser: httpx.AsyncClient, url: str, hub: Hub) -> None:
    address = f"{url.replace('http', 'ws', 1)}/ws/game-4?session={KEY}"
    first = await RawWebSocket.open(address)
    assert (await first.text())["type"] == "welcome"
    second = await RawWebSocket.open(address)
    assert (await second.text())["type"] == "welcome"
    assert await first.close_code() == 4001
    await first.close()
    second.send(frame(CLOSE))
    await second.close()


Misery = Callable[[httpx.AsyncClient, str, Hub], Awaitable[None]]
MISERIES: list[Misery] = [
    polls_and_closes,
    polls_and_is_silent,
    polls_twice,
    leaves_its_namespace,
    upgrades_and_vanishes,
    probes_and_vanishes,
    breaks_the_protocol,
    is_refused,
    is_taken_over,
]


async def test_nothing_is_left_of_odd_ends(
    serve: Serve, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long an ended session is kept so that its client hears of it at its next poll.
    monkeypatch.setattr("crossband.transports.engineio.registry.LINGER_TIME", 0.1)
    hub = talking_hub()
    server = await serve(hub)
    start = census(hub)
    for _ in range(10):
        for misery in MISERIES:
            try:
                await misery(browser, server.url, hub)
            except BaseException as error:
                error.add_note(misery.__name__)
                raise
    await browser.aclose()
    await nothing_is_left(hub, start)


async def test_sessions_expire() -> None:
    now = 0.0
    broker = MemoryBroker(history_age=10, clock=lambda: now)
    hub = BareHub(broker)
    await hub.start()
    for _ in range(10):
        hub.leave(await join(hub, Link(hub.ticker)), "transport close")
    assert len(broker._memory.sessions._waiting) == 10
    now = 11.0
    hub.leave(await join(hub, Link(hub.ticker)), "transport close")
    assert len(broker._memory.sessions._waiting) == 1
    assert not broker._memory.sessions._connected
    await hub.stop()


# Clients that hang up while they are let in.


class Waiting:
    """An application that takes its time to let a client in, and hears when it need not."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def forever(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def authenticate(self, handshake: Handshake) -> None:
        if handshake.query.get("token") == ["slow"] or "token" in handshake.auth:
            await self.forever()

    async def middleware(self, socket: Socket) -> None:
        if socket.handshake.query.get("middleware") == ["slow"]:
            await self.forever()


@contextlib.asynccontextmanager
async def served(hub: Hub, kind: str) -> AsyncIterator[str]:
    """Serve a hub in this loop, by our own server or another."""
    if kind in ("lane", "asgi"):
        async with Server(hub, lane=kind == "lane") as server:
            yield server.url
        return
    with sockets.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop = asyncio.Event()
        if kind == "uvicorn":
            other = uvicorn.Server(uvicorn.Config(hub, log_config=None, lifespan="on"))
            other.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
            serving = asyncio.create_task(other.serve([listener]))
        else:
            import hypercorn.asyncio  # 0.2 s, for these alone

            config = hypercorn.Config()
            config.bind = [f"fd://{listener.detach()}"]
            serving = asyncio.create_task(
                hypercorn.asyncio.serve(
                    hub,  # type: ignore[arg-type]
                    config,
                    shutdown_trigger=stop.wait,
                )
            )
        try:
            async with httpx.AsyncClient(trust_env=False, verify=False) as client:
                # The listener takes it, whenever the server begins to.
                assert (await client.get(url + "/healthz")).status_code == 200
            yield url
        finally:
            stop.set()
            if kind == "uvicorn":
                other.should_exit = True
            await serving


SLOW_CONNECTS = {
    "websocket": upgrade("/ws?token=slow"),
    "websocket middleware": upgrade("/ws?middleware=slow"),
    "events": http("/events?token=slow"),
    "events middleware": http("/events?middleware=slow"),
    "events, HEAD": http("/events?token=slow", method="HEAD"),
    "broadcast": http("/api/broadcast?token=slow", method="POST", body=b'{"event":"x"}'),
    "broadcast, more of the body to come": http(
        "/api/broadcast?token=slow", "Content-Length: 50", method="POST"
    ),
}


@pytest.mark.parametrize("door", SLOW_CONNECTS)
@pytest.mark.parametrize(
    ("kind", "reset"),
    [("lane", True), ("lane", False), ("asgi", False), ("uvicorn", True), ("hypercorn", True)],
)
async def test_client_that_hangs_up_while_it_is_let_in_leaves_nothing(
    kind: str, door: str, reset: bool
) -> None:
    waiting = Waiting()
    hub = Hub(authenticate=waiting.authenticate, authorize=lambda *_: True)
    hub.use(waiting.middleware)
    async with served(hub, kind) as url, asyncio.timeout(WAIT), dialled(url) as tcp:
        # Whatever the server makes for its first client, it has.
        tcp.send(http("/healthz"))
        await tcp.answer()
        start = census(hub)
        async with dialled(url) as other:
            other.send(SLOW_CONNECTS[door])
            await waiting.begun.wait()
            assert census(hub) != start
            if reset:
                other.writer.transport.abort()
        await waiting.ended.wait()
        await returns_to(start, lambda: census(hub))


@pytest.mark.parametrize("kind", ["lane", "asgi", "uvicorn", "hypercorn"])
@pytest.mark.parametrize("event", ["slow event", "slow token"])
async def test_client_that_hangs_up_on_the_back_channel_leaves_nothing(
    event: str, kind: str
) -> None:
    waiting = Waiting()
    hub = Hub(authenticate=waiting.authenticate)
    over = asyncio.Event()

    @hub.on("wait")
    async def wait(socket: Socket) -> None:
        waiting.begun.set()
        await over.wait()

    async with served(hub, kind) as url, dialled(url) as stream, asyncio.timeout(WAIT):
        stream.send(http("/events"))
        await stream.reader.readuntil(b"data: ")
        welcome = json.loads(await stream.reader.readuntil(b"\n"))
        start = census(hub)
        # On a lane it has no request any more.
        streams = survivors()["Request"]
        token = "&token=slow" if event == "slow token" else ""
        target = f"/events/{welcome['sid']}?session={welcome['session']}{token}"
        async with dialled(url) as other:
            other.send(http(target, method="POST", body=b'{"type":"wait","id":1}'))
            await waiting.begun.wait()
        if event == "slow token":
            await waiting.ended.wait()
            await returns_to(start, lambda: census(hub))
        else:
            # The event was received, and is handled to its end; the request is over before.
            await returns_to(Counter(), lambda: +Counter(posts=survivors()["Request"] - streams))
            over.set()
            await returns_to(start, lambda: census(hub))


@pytest.mark.parametrize("kind", ["lane", "asgi"])
@pytest.mark.parametrize("slow", ["token", "middleware"])
async def test_socketio_client_that_hangs_up_while_it_is_let_in_leaves_nothing(
    slow: str, kind: str
) -> None:
    waiting = Waiting()
    hub = Hub(authenticate=waiting.authenticate)
    hub.use(waiting.middleware)
    async with served(hub, kind) as url, asyncio.timeout(WAIT):
        start = census(hub)
        target = engine_url(url, transport="websocket", middleware="slow")
        raw = await RawWebSocket.open(target)
        assert (await raw.receive())[1].startswith(b"0{")
        raw.send(frame(TEXT, b'40{"token":"slow"}' if slow == "token" else b"40"))
        await waiting.begun.wait()
        await raw.close()
        await waiting.ended.wait()
        await returns_to(start, lambda: census(hub))
