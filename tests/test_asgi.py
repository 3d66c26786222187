"""The hub as an ASGI application: the examples on real servers, and its start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import httpx
import pytest
import socketio
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from crossband import Handshake, Hub, MemoryBroker
from crossband.broker import Receiver
from tests.children import Child
from tests.clients import (
    Client,
    EventFailed,
    EventStreamClient,
    NewClient,
    PythonSocketIOClient,
    Refused,
    WebSocketClient,
)
from tests.clients.base import WAIT
from tests.conftest import Serve

with_and_without_lane = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
EXAMPLES = Path(__file__).parents[1] / "examples"

# How each server is run; all print the address that port 0 became.
SERVERS = {
    "uvicorn": ("uvicorn", "--port", "0"),
    "uvicorn-wsproto": ("uvicorn", "--port", "0", "--ws", "wsproto"),
    # One worker, in a process of its own, which gets no signal.
    "hypercorn": ("hypercorn", "--bind", "127.0.0.1:0"),
    "hypercorn-inline": ("hypercorn", "--bind", "127.0.0.1:0", "--workers", "0"),
}
LIFESPANS = {
    "fastapi_app": ("FastAPI(lifespan=hub.lifespan)", "FastAPI()"),
    "starlette_app": ("    lifespan=lifespan,\n", ""),
}


class MountedSocketIOClient(PythonSocketIOClient):
    """Socket.IO below a mount point, which a client gives as the path, not in the address."""

    transports: ClassVar[Sequence[str] | None]

    async def _open(self) -> None:
        self._http = aiohttp.ClientSession(trust_env=False)
        self._client = client = socketio.AsyncClient(
            reconnection=False, http_session=self._http, handle_sigint=False
        )
        client.on("disconnect", self._on_disconnect)
        client.on("*", self._on_event)
        try:
            await client.connect(
                self.url,
                auth={"session": secrets.token_urlsafe(24)},
                socketio_path="realtime/socket.io",
                transports=self.transports,
                wait_timeout=int(WAIT),
            )
        except BaseException:
            await self._http.close()
            raise
        self.sid = client.get_sid()


class PollingClient(MountedSocketIOClient):
    kind = "polling"
    transports = ("polling",)


class UpgradingClient(MountedSocketIOClient):
    kind = "upgrading"
    transports = ("polling", "websocket")


@contextlib.asynccontextmanager
async def running(server: str, app: str, directory: Path) -> AsyncIterator[tuple[Child, str]]:
    """Run an application of a directory on a server; yield it with its URL."""
    module, *options = SERVERS[server]
    async with Child(
        *(sys.executable, "-m", module, *options, f"{app}:app"),
        # hypercorn puts the application's folder on the path, uvicorn the current one.
        cwd=directory,
    ) as child:
        found = await child.says(r"[Rr]unning on (http://127\.0\.0\.1:\d+)")
        yield child, found[1]


def application(app: str, lifespan: str, directory: Path) -> Path:
    """Return the folder of an example, or of a copy whose framework forwards no lifespan."""
    if lifespan == "forwarded":
        return EXAMPLES
    source = (EXAMPLES / f"{app}.py").read_text()
    forwarded, bare = LIFESPANS[app]
    assert source.count(forwarded) == 1
    (directory / f"{app}.py").write_text(source.replace(forwarded, bare))
    return directory


CASES = [
    *itertools.product(("uvicorn", "hypercorn"), LIFESPANS, ("forwarded", "not-forwarded")),
    ("uvicorn-wsproto", "fastapi_app", "not-forwarded"),
    ("uvicorn-wsproto", "starlette_app", "forwarded"),
    ("hypercorn-inline", "fastapi_app", "forwarded"),
    ("hypercorn-inline", "starlette_app", "not-forwarded"),
]


@pytest.mark.parametrize(("server", "app", "lifespan"), CASES, ids=map("-".join, CASES))
async def test_mounted_hub_from_first_client_to_sigterm(
    server: str, app: str, lifespan: str, tmp_path: Path
) -> None:
    if "wsproto" in server and importlib.util.find_spec("wsproto") is None:
        pytest.skip("wsproto is not installed")
    directory = application(app, lifespan, tmp_path)
    async with (
        running(server, app, directory) as (program, address),
        contextlib.AsyncExitStack() as stack,
        httpx.AsyncClient(base_url=address, trust_env=False, verify=False) as http,
    ):
        realtime = f"{address}/realtime"
        clients: list[Client] = []
        for driver in (WebSocketClient, UpgradingClient, PollingClient, EventStreamClient):
            client: Client = driver()
            stack.push_async_callback(client.close)
            url = address if isinstance(client, MountedSocketIOClient) else realtime
            await client.connect(url)
            clients.append(client)

        # What any client sends reaches all, and is acknowledged to it.
        for client in clients:
            text = f"from {client.kind}"
            assert await client.call("chat:message", {"text": text}) == {"status": "received"}
            for other in clients:
                event = await other.next_event("chat:message")
                assert event.data == {"from": client.sid, "text": text}

        # So does what an ordinary route publishes.
        response = await http.post("/messages", json={"text": "from a route"})
        assert response.status_code == 200, response.text
        for client in clients:
            event = await client.next_event("chat:message")
            assert event.data == {"from": "http", "text": "from a route"}
            assert event.offset == response.json()["offset"]

        # Refused with an HTTP status, before any upgrade; and what does not fit is told.
        stranger = WebSocketClient()
        with pytest.raises(Refused) as refused:
            await stranger.connect(realtime, "/nowhere")
        assert refused.value.status == 404
        response = await http.get("/realtime/events", headers={"Origin": "http://other.example"})
        assert (response.status_code, response.json()["code"]) == (403, "origin_not_allowed")
        for client in clients:
            with pytest.raises(EventFailed) as failed:
                await client.call("chat:message", {"text": ""})
            assert (failed.value.code, failed.value.error["path"]) == ("invalid_message", "$.text")

        # A WebSocket, an upgraded one, a poll and an event stream are open.
        status = (await http.get("/realtime/api/status")).json()
        assert status["clients"] == {"total": 4, "websocket": 2, "polling": 1, "sse": 1}

        program.send_signal(signal.SIGTERM)
        code = await program.exit_code()
        # uvicorn, once it has stopped gracefully, dies of the signal it was sent (since 0.29).
        assert code in ({0, -signal.SIGTERM} if "uvicorn" in server else {0})
        for client in clients:
            event = await client.next_event("server:shutdown")
            assert event.data == {"message": "Server shutting down"}
            await client.gone.wait()
        websocket = clients[0]
        assert isinstance(websocket, WebSocketClient)
        assert websocket.connection is not None
        assert websocket.connection.close_code == 1001
    for bad in ("Traceback", "did not end in time"):
        assert bad not in program.output, program.output


# Start.


def mounted(hub: Hub) -> Starlette:
    """Mount a hub in a Starlette application that does not forward the lifespan."""
    return Starlette(routes=[Mount("/outer", routes=[Mount("/inner", hub)])])


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub")


class SlowBroker(MemoryBroker):
    """Starts when it is allowed to, and fails as often as it is told to."""

    def __init__(self, *, failures: int = 0) -> None:
        super().__init__()
        self.starts = 0
        self.starting = asyncio.Event()
        self.allowed = asyncio.Event()
        self._failures = failures

    async def start(self, receiver: Receiver) -> None:
        self.starts += 1
        self.starting.set()
        await self.allowed.wait()
        if self._failures:
            self._failures -= 1
            raise ConnectionError("no broker")
        await super().start(receiver)


async def test_first_request_starts_the_hub() -> None:
    hub = Hub()
    async with client_of(mounted(hub)) as http:
        response = await http.get("/outer/inner/api/status")
        assert response.json()["clients"]["total"] == 0
    assert hub.started
    await hub.stop()


async def test_first_requests_at_once_start_the_hub_once() -> None:
    broker = SlowBroker()
    hub = Hub(broker)
    async with client_of(hub) as http, asyncio.TaskGroup() as group:
        answers = [group.create_task(http.get("/readyz")) for _ in range(3)]
        await broker.starting.wait()
        broker.allowed.set()
    assert [answer.result().status_code for answer in answers] == [200] * 3
    assert broker.starts == 1
    await hub.stop()


async def test_start_that_failed_is_tried_again_by_the_next_request() -> None:
    broker = SlowBroker(failures=1)
    broker.allowed.set()
    hub = Hub(broker)
    async with client_of(hub) as http:
        with pytest.raises(ConnectionError, match="no broker"):
            await http.get("/readyz")
        assert (await http.get("/readyz")).status_code == 200
    assert broker.starts == 2
    await hub.stop()


async def test_lifespan_starts_and_stops_the_hub() -> None:
    hub = Hub()
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(hub({"type": "lifespan"}, received.get, sent.put))
    received.put_nowait({"type": "lifespan.startup"})
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    assert hub.started
    received.put_nowait({"type": "lifespan.shutdown"})
    assert (await sent.get())["type"] == "lifespan.shutdown.complete"
    await task
    assert not hub.started


async def test_lifespan_tells_why_the_hub_cannot_start() -> None:
    broker = SlowBroker(failures=1)
    broker.allowed.set()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    await Hub(broker)({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "lifespan.startup.failed", "message": "no broker"}]


def test_hub_serves_one_event_loop_after_another() -> None:
    hub = Hub()

    async def serve_once(*, forwarded: bool) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if forwarded:
                await stack.enter_async_context(hub.lifespan())
            http = await stack.enter_async_context(client_of(hub))
            assert (await http.get("/api/status")).status_code == 200
            await hub.emit("news")

    asyncio.run(serve_once(forwarded=True))
    # A test client that forgets the lifespan, and never stops the hub.
    asyncio.run(serve_once(forwarded=False))
    asyncio.run(serve_once(forwarded=False))
    asyncio.run(serve_once(forwarded=True))


# Stop.


async def test_stopped_hub_answers_503_until_it_is_started_again() -> None:
    hub = Hub()
    async with client_of(hub) as http:
        assert (await http.get("/api/status")).status_code == 200
        await hub.stop()
        response = await http.get("/api/status")
        assert (response.status_code, response.json()["code"]) == (503, "shutting_down")
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
        await hub.start()
        assert (await http.get("/api/status")).status_code == 200
    await hub.stop()


class Ear:
    """The server's own handler of SIGTERM."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self._called = asyncio.Event()

    def __call__(self, number: int, frame: object) -> None:
        self.calls.append(number)
        self._called.set()

    async def called(self) -> None:
        async with asyncio.timeout(WAIT):
            await self._called.wait()


@pytest.fixture
def ear() -> Iterator[Ear]:
    """Be the server that hears SIGTERM."""
    ear = Ear()
    before = signal.signal(signal.SIGTERM, ear)
    yield ear
    signal.signal(signal.SIGTERM, before)


async def test_server_hears_a_signal_after_the_clients(ear: Ear, serve: Serve) -> None:
    hub = Hub()
    server = await serve(mounted(hub))
    client = WebSocketClient()
    await client.connect(f"{server.url}/outer/inner")
    signal.raise_signal(signal.SIGTERM)
    assert not ear.calls
    await client.next_event("server:shutdown")
    await ear.called()
    assert ear.calls == [signal.SIGTERM]
    await client.gone.wait()
    await client.close()
    # The handler is as it was.
    signal.raise_signal(signal.SIGTERM)
    assert ear.calls == [signal.SIGTERM] * 2


async def test_second_signal_reaches_the_server_at_once(ear: Ear) -> None:
    hub = Hub()
    waiting = asyncio.Event()
    await hub.start()
    hub._core.run_to_end(stubborn(waiting))
    signal.raise_signal(signal.SIGTERM)
    assert not ear.calls
    signal.raise_signal(signal.SIGTERM)
    assert ear.calls == [signal.SIGTERM] * 2
    waiting.set()
    await hub.stop()
    assert ear.calls == [signal.SIGTERM] * 2


async def stubborn(until: asyncio.Event) -> None:
    await until.wait()


async def test_signal_does_not_wait_long_for_what_is_being_handled(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossband.signals.FAREWELL_TIME", 0.01)
    hub = Hub()
    waiting = asyncio.Event()
    await hub.start()
    hub._core.run_to_end(stubborn(waiting))
    signal.raise_signal(signal.SIGTERM)
    await ear.called()
    assert hub.started
    waiting.set()
    await hub.stop()
    assert not hub.started


@pytest.mark.parametrize("order", [1, -1])
async def test_signal_stops_every_hub_of_an_application(ear: Ear, order: int) -> None:
    hubs = [Hub(), Hub()]
    for hub in hubs:
        await hub.start()
    signal.raise_signal(signal.SIGTERM)
    await ear.called()
    assert ear.calls == [signal.SIGTERM]
    assert not any(hub.started for hub in hubs)
    # Stopped in any order, they leave the server's handler in its place.
    for hub in hubs:
        await hub.start()
    for hub in hubs[::order]:
        await hub.stop()
    signal.raise_signal(signal.SIGTERM)
    assert ear.calls == [signal.SIGTERM] * 2


# Paths.


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/outer/inner/nothing", 404, "not_found"),
        ("/outer/inner/", 404, "not_found"),
        ("/outer/inner/wsx", 404, "not_found"),
        ("/outer/inner/ws", 400, "invalid_request"),
        ("/outer/inner/events/nowhere", 404, "invalid_namespace"),
    ],
)
async def test_wrong_path_is_told_where_the_doors_are(path: str, status: int, code: str) -> None:
    hub = Hub()
    async with client_of(mounted(hub)) as http:
        response = await http.get(path)
        assert (response.status_code, response.json()["code"]) == (status, code)
        if code == "not_found":
            assert "/outer/inner/socket.io/, /outer/inner/ws" in response.json()["error"]
    await hub.stop()


async def test_websocket_to_a_wrong_path_is_refused(serve: Serve) -> None:
    server = await serve(mounted(Hub()))
    client = WebSocketClient()
    with pytest.raises(Refused, match="/outer/inner/ws") as refused:
        await client.connect(f"{server.url}/outer/inner/nothing")
    assert refused.value.status == 404


async def test_paths_of_the_doors_can_be_set() -> None:
    hub = Hub(events_path="/stream", api_path="/v1/api", websocket_path="/socket")
    async with client_of(mounted(hub)) as http:
        assert (await http.get("/outer/inner/v1/api/status")).status_code == 200
        assert (await http.get("/outer/inner/api/status")).status_code == 404
        assert (await http.head("/outer/inner/stream")).status_code == 200
        assert (await http.get("/outer/inner/socket/x")).json()["code"] == "invalid_request"
    await hub.stop()


def told_doors(answer: httpx.Response) -> str:
    """Return the doors that a 404 names."""
    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] == "not_found"
    return str(answer.json()["error"]).rpartition(": ")[2]


@with_and_without_lane
async def test_websockets_may_be_at_the_root_beside_the_other_doors(
    lane: bool, serve: Serve, new_client: NewClient
) -> None:
    hub = Hub(websocket_path="/")
    hub.of("/admin")
    hub.on("echo", lambda socket, data: data)
    server = await serve(hub, lane=lane)
    for address in (server.url, f"{server.url}/"):
        async with connect(address.replace("http", "ws", 1), proxy=None) as websocket:
            assert json.loads(await websocket.recv())["type"] == "welcome"
    async with connect(server.url.replace("http", "ws", 1) + "/admin", proxy=None) as websocket:
        assert json.loads(await websocket.recv())["type"] == "welcome"
    # Other doors' paths stay theirs.
    for path in ("/events", "/api/status"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url.replace("http", "ws", 1) + path, proxy=None)
        assert refused.value.response.status_code == 404
    for kind in ("sse", "python-socketio"):
        client = new_client(kind)
        await client.connect(server.url)
        assert await client.call("echo", kind) == kind
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        assert (await http.get("/api/status")).json()["clients"]["total"] == 2
        assert (await http.get("/readyz")).status_code == 200
        front = await http.get("/")
        assert (front.status_code, front.json()["code"]) == (400, "invalid_request")
        assert "connect with ws://" in front.json()["error"]
        assert told_doors(await http.get("/favicon.ico")).startswith("there is /socket.io/, /, ")


@with_and_without_lane
async def test_event_streams_may_be_at_the_root(lane: bool, serve: Serve) -> None:
    hub = Hub(events_path="/")
    server = await serve(hub, lane=lane)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        async with http.stream("GET", "/") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
        assert (await http.get("/api/status")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/nowhere")).json()["code"] == "invalid_namespace"
        assert (await http.get("/ws")).json()["code"] == "invalid_request"


async def test_socketio_may_be_at_the_root(serve: Serve) -> None:
    server = await serve(Hub(socketio_path="/"))
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        opened = await http.get("/", params={"EIO": "4", "transport": "polling"})
        assert opened.text.startswith('0{"sid"')
        assert told_doors(await http.get("/nowhere")).startswith("there is /, /ws")


@with_and_without_lane
async def test_doors_may_lie_below_the_api(lane: bool, serve: Serve) -> None:
    hub = Hub(events_path="/api/events", websocket_path="/api/ws", socketio_path="/api/socket.io")
    hub.of("/admin")
    server = await serve(hub, lane=lane)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        for path in ("/api/events", "/api/events/admin"):
            async with http.stream("GET", path) as stream:
                assert stream.status_code == 200
        for path in ("/api/ws", "/api/ws/admin"):
            url = server.url.replace("http", "ws", 1) + path
            async with connect(url, proxy=None) as websocket:
                assert json.loads(await websocket.recv())["type"] == "welcome"
        opened = await http.get("/api/socket.io/", params={"EIO": "4", "transport": "polling"})
        assert opened.text.startswith('0{"sid"')
        assert (await http.get("/api/status")).status_code == 200
        assert (await http.get("/api/other")).status_code == 404


@pytest.mark.parametrize("off", [None, ""])
@pytest.mark.parametrize(
    ("door", "path", "others"),
    [
        ("socketio_path", "/socket.io/", "there is /ws, /events, /api/status"),
        ("websocket_path", "/ws", "there is /socket.io/, /events, /api/status"),
        ("events_path", "/events", "there is /socket.io/, /ws, /api/status"),
        ("api_path", "/api/status", "there is /socket.io/, /ws, /events"),
    ],
)
async def test_door_that_is_switched_off_is_not_there(
    door: str, path: str, others: str, off: str | None, serve: Serve
) -> None:
    settings: dict[str, Any] = {door: off}
    server = await serve(Hub(**settings))
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        assert told_doors(await http.get(path)) == others
        assert told_doors(await http.post(path)) == others
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.url.replace("http", "ws", 1) + path, proxy=None)
    assert refused.value.response.status_code == 404


async def test_hub_without_doors_says_so(serve: Serve) -> None:
    server = await serve(
        Hub(socketio_path=None, websocket_path=None, events_path=None, api_path=None)
    )
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http:
        assert told_doors(await http.get("/")) == "every door is switched off"
        assert (await http.get("/readyz")).status_code == 200


async def test_header_lines_cost_what_reading_them_costs() -> None:
    # As uvicorn hands them on, which bounds a head by its bytes alone.
    costs = [await cost_of_header_lines(count) for count in (20_000, 320_000)]
    # Sixteen times as many take sixteen times as long; joined one by one, 256 times.
    assert costs[1] < 64 * costs[0]


async def cost_of_header_lines(count: int) -> float:
    """Return the seconds of processor time that a request with so many lines takes."""
    seen: list[str] = []

    def authenticate(handshake: Handshake) -> None:
        seen.append(handshake.headers["a"])

    hub = Hub(authenticate=authenticate)
    lines = [(b"a", b"%d" % number) for number in range(count)]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/events/nope",
        "query_string": b"",
        "headers": [(b"host", b"x"), *lines, (b"A", b"last")],
        "extensions": {},
    }
    started = time.thread_time()
    await hub(scope, receive, send)
    cost = time.thread_time() - started
    assert sent[0]["status"] == 404
    assert seen == [", ".join([*map(str, range(count)), "last"])]
    await hub.stop()
    return cost
