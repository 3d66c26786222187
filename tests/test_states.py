"""Every event in every state of a client, on every door: the table of `hub/states.py`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from crossband import Handshake, Hub, Identity, Socket, bearer_token
from crossband.hub.states import OUTCOMES, Event, Outcome, State
from crossband.server import Server
from crossband.transports.lane import EXTENSION
from tests.clients.base import WAIT, Client, Refused
from tests.clients.engine import EnginePollingClient, EngineWebSocketClient
from tests.clients.eventstream import EventStreamClient
from tests.clients.websocket import WebSocketClient
from tests.waiting import until

DOORS: dict[str, type[Client]] = {
    client.kind: client
    for client in (WebSocketClient, EventStreamClient, EngineWebSocketClient, EnginePollingClient)
}
# More than the hub sends in one go here: the client is still catching up when its connect handler
# runs.
TURN, MISSED = 100, 150
Act = Callable[[Socket | None], Awaitable[None]]


class Stage:
    """A hub, one client of it, and what is done when that client is in some state."""

    def __init__(self, kind: str, *, lane: bool) -> None:
        self.kind = kind
        self.lane = lane
        self.hub = Hub(authenticate=authenticate, history_size=10 * MISSED, drain_time=0)
        # What the handlers of all clients did, in order: (what, socket id).
        self.log: list[tuple[str, str]] = []
        self.sockets: list[Socket] = []
        # Done once, at the state's place in the code; None where nothing is to be done there.
        self.hooks: dict[State, Act | None] = dict.fromkeys(State)
        self.server = Server(self._serve if not lane else self.hub)
        self.clients: list[Client] = []
        self.hub.use(self._examine)
        self.hub.on("connect", self._connect)
        self.hub.on("disconnect", self._disconnect)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Without the lane, there is a moment between the hub's yes and the answer.
        scope.get("extensions", {}).pop(EXTENSION, None)

        async def answer(message: Any) -> None:
            if message["type"] in ("websocket.accept", "http.response.start"):
                await self._at(State.ADMITTED, None)
            await send(message)

        await self.hub(scope, receive, answer)

    async def _at(self, state: State, socket: Socket | None) -> None:
        act, self.hooks[state] = self.hooks[state], None
        if act is not None:
            await act(socket)

    async def _examine(self, socket: Socket) -> None:
        self.sockets.append(socket)
        assert socket.state is State.CONNECTING
        await self._at(State.CONNECTING, socket)

    async def _connect(self, socket: Socket) -> None:
        state = socket.state
        await self._at(state, socket)
        self.log.append(("connect", socket.id))

    async def _disconnect(self, socket: Socket, reason: str) -> None:
        assert socket.state is State.LEAVING
        await self._at(State.LEAVING, socket)
        self.log.append(("disconnect", socket.id))

    def client(self) -> Client:
        client = DOORS[self.kind]()
        self.clients.append(client)
        return client

    async def connect(self, client: Client, *, like: Client | None = None) -> None:
        """Connect a client, as another one that comes back if there is one."""
        url = f"http://127.0.0.1:{self.server.port}"
        session = None if like is None else like.session
        offset = None if like is None else like.offset
        await client.connect(url, auth={"token": "ada"}, session=session, offset=offset)

    async def visitor(self) -> Client:
        """Return a client that has a session, and has been cut."""
        client = self.client()
        await self.connect(client)
        await self.hub.emit("old", 0)
        await client.next_event("old")
        await self.cut(client)
        return client

    async def cut(self, client: Client) -> None:
        socket = self.sockets[-1]
        await client.cut()
        async with asyncio.timeout(WAIT):
            await until(lambda: socket.state is State.GONE)

    async def back(self, like: Client) -> Client:
        """Let a client come back."""
        client = self.client()
        await self.connect(client, like=like)
        return client

    def socket_of(self, client: Client) -> Socket:
        return self.hub.sockets[client.sid]


async def authenticate(handshake: Handshake) -> Identity:
    shown = bearer_token(handshake)
    assert shown is not None
    # Each token lives longer than the one before.
    return Identity("ada", expires=time.time() + 1_000 * len(shown))


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossband.hub.replays.TURN", TURN)


@contextlib.asynccontextmanager
async def staged(kind: str, *, lane: bool) -> AsyncIterator[Stage]:
    stage = Stage(kind, lane=lane)
    await stage.hub.start()
    async with stage.server:
        try:
            yield stage
        finally:
            for client in stage.clients:
                await client.close()
    await stage.hub.stop()


async def in_state(stage: Stage, state: State, act: Act) -> tuple[Client, asyncio.Task[None]]:
    """Bring a client into a state, act there, and return it with the task that connected it."""
    done = asyncio.Event()

    async def once(socket: Socket | None) -> None:
        if socket is not None:
            assert socket.state is state
        try:
            await act(socket)
        finally:
            done.set()

    if state in (State.CONNECTING, State.ADMITTED, State.WELCOMED):
        client = stage.client()
        stage.hooks[state] = once
        coming = asyncio.create_task(stage.connect(client))
    elif state is State.CATCHING_UP:
        visitor = await stage.visitor()
        for number in range(1, MISSED):
            stage.hub.emit("old", number)
        client = stage.client()
        stage.hooks[state] = once
        coming = asyncio.create_task(stage.connect(client, like=visitor))
    else:
        client = stage.client()
        coming = asyncio.create_task(stage.connect(client))
        await coming
        await stage.hub.emit("old", 0)
        await client.next_event("old")
        socket = stage.socket_of(client)
        async with asyncio.timeout(WAIT):
            await until(lambda: ("connect", client.sid) in stage.log)
        if state is State.LIVE:
            assert socket.state is State.LIVE
            await act(socket)
            done.set()
        elif state is State.LEAVING:
            stage.hooks[state] = once
            await stage.cut(client)
        else:
            await stage.cut(client)
            await once(socket)
    async with asyncio.timeout(WAIT):
        await done.wait()
    return client, coming


async def heard(stage: Stage, client: Client, name: str) -> bool:
    """Tell whether a client got an event that was published before now."""
    await stage.hub.emit("end", name)
    async with asyncio.timeout(WAIT):
        while (await client.next_event("end")).data != name:
            pass
    return name in [event.name for event in client.log]


def departures(state: State) -> int:
    """Return how often a client in this state will have left when it has left once more."""
    return 2 if state is State.CATCHING_UP else 1


CELLS = [
    pytest.param(event, state, kind, lane, id=f"{event.name}-{state.name}-{kind}-{name}".lower())
    for event in Event
    for state in State
    for kind in DOORS
    for lane, name in ((True, "lane"), (False, "asgi"))
    # On a lane, and on Socket.IO, a client is answered in the moment it is admitted.
    if state is not State.ADMITTED or (not lane and not kind.startswith("engine"))
    if OUTCOMES[event, state] is not Outcome.IMPOSSIBLE
]


@pytest.mark.parametrize(("event", "state", "kind", "lane"), CELLS)
async def test_event_in_state(event: Event, state: State, kind: str, lane: bool) -> None:
    async with asyncio.timeout(2 * WAIT), staged(kind, lane=lane) as stage:
        await TRIALS[event](stage, state, OUTCOMES[event, state])


def test_the_table_is_whole() -> None:
    assert set(OUTCOMES) == {(event, state) for event in Event for state in State}


async def emit(stage: Stage, state: State, outcome: Outcome) -> None:
    async def act(socket: Socket | None) -> None:
        socket = socket or stage.sockets[-1]
        socket.emit("note", 1)

    client, coming = await in_state(stage, state, act)
    if outcome is Outcome.KEPT:
        client = await stage.back(client)
    else:
        await coming
    await client.next_event("note")
    assert await heard(stage, client, "note")
    names = [item.name for item in client.log]
    assert names.count("note") == 1
    if state is State.CATCHING_UP:
        assert client.data_of("old") == list(range(1, MISSED))
        assert names.index("note") == MISSED - 1


async def join(stage: Stage, state: State, outcome: Outcome) -> None:
    async def act(socket: Socket | None) -> None:
        await (socket or stage.sockets[-1]).join("red")

    client, coming = await in_state(stage, state, act)
    if outcome is Outcome.KEPT:
        client = await stage.back(client)
    await coming
    await stage.hub.to("red").emit("in red")
    await stage.hub.to("blue").emit("in blue")
    assert await heard(stage, client, "in red")
    assert not await heard(stage, client, "in blue")


async def leave(stage: Stage, state: State, outcome: Outcome) -> None:
    async def act(socket: Socket | None) -> None:
        socket = socket or stage.sockets[-1]
        await socket.join("red", "blue")
        await socket.leave("blue")

    client, coming = await in_state(stage, state, act)
    if outcome is Outcome.KEPT:
        client = await stage.back(client)
    await coming
    await stage.hub.to("blue").emit("in blue")
    await stage.hub.to("red").emit("in red")
    assert await heard(stage, client, "in red")
    assert not await heard(stage, client, "in blue")


async def disconnect(stage: Stage, state: State, outcome: Outcome) -> None:
    async def act(socket: Socket | None) -> None:
        await (socket or stage.sockets[-1]).disconnect()

    client, coming = await in_state(stage, state, act)
    if outcome is Outcome.REFUSED:
        with pytest.raises(Refused):
            await coming
        assert stage.log == []
        return
    await coming
    session = client.sid
    async with asyncio.timeout(WAIT):
        await client.gone.wait()
        await until(lambda: ("disconnect", session) in stage.log)
    if stage.kind == "sse" and outcome is Outcome.ENDED:
        # Told by 204 that it is not to come back.
        return
    again = await stage.back(client)
    assert again.sid != client.sid
    assert stage.log.count(("disconnect", client.sid)) == departures(state)


async def refresh(stage: Stage, state: State, outcome: Outcome) -> None:
    shown: list[float | None] = []

    async def act(socket: Socket | None) -> None:
        assert socket is not None
        assert socket.identity is not None
        shown.append(socket.identity.expires)

    client, coming = await in_state(stage, state, act)
    await coming
    answer = await client.call("token:refresh", {"token": "a longer token"})
    identity = stage.socket_of(client).identity
    assert identity is not None
    assert shown[0] is not None
    assert identity.expires == answer["expires"]
    assert answer["expires"] > shown[0] + 1_000


async def second_connect(stage: Stage, state: State, outcome: Outcome) -> None:
    second = stage.client()
    coming_second: list[asyncio.Task[None]] = []

    if outcome is Outcome.SECOND_WINS:
        visitor = await stage.visitor()

        async def compete(socket: Socket | None) -> None:
            await stage.connect(second, like=visitor)
            assert second.sid == visitor.sid

        stage.hooks[state] = compete
        first = stage.client()
        await stage.connect(first, like=visitor)
        assert first.sid != second.sid
        assert list(stage.hub.sockets) == [second.sid, first.sid]
        assert not second.gone.is_set()
        return

    known: list[Client] = []

    async def act(socket: Socket | None) -> None:
        async def come() -> None:
            (first,) = known or stage.clients[-1:]
            assert socket is not None
            # Its client may not have read its welcome yet.
            first.session, first.offset = socket.session, first.offset or socket.record.cursor
            await stage.connect(second, like=first)

        coming_second.append(asyncio.create_task(come()))
        if outcome in (Outcome.REPLACED, Outcome.QUEUED):
            if state is State.LIVE:
                return
            # Until the second has been let in.
            async with asyncio.timeout(WAIT):
                await until(lambda: len(stage.sockets) > before[0] and stage.sockets[-1].connected)
            # It is greeted when the departure of the first is over.
            greeted = 1 if state is State.LEAVING else 0
            assert [what for what, _ in stage.log[start[0] :]] == ["connect"] * greeted

    # The visitor of CATCHING_UP comes and goes before.
    before, start = [2 if state is State.CATCHING_UP else 1], [0]
    if state is State.CATCHING_UP:
        start[0] = 2
    stage.clients.remove(second)
    first, coming = await in_state(stage, state, act)
    stage.clients.append(second)
    await coming
    async with asyncio.timeout(WAIT):
        await coming_second[0]
    assert second.sid == first.sid
    await until(lambda: len(stage.log) == start[0] + 3)
    assert [what for what, _ in stage.log[start[0] :]] == ["connect", "disconnect", "connect"]
    if outcome is Outcome.REPLACED:
        async with asyncio.timeout(WAIT):
            await first.gone.wait()
    assert await heard(stage, second, "end")


async def cut(stage: Stage, state: State, outcome: Outcome) -> None:
    if outcome is Outcome.WITHDRAWN:
        visitor = await stage.visitor()
        log = list(stage.log)
        inside, hung_up = asyncio.Event(), asyncio.Event()

        async def wait(socket: Socket | None) -> None:
            inside.set()
            await hung_up.wait()

        stage.hooks[state] = wait
        client = stage.client()
        coming = asyncio.create_task(stage.connect(client, like=visitor))
        await inside.wait()
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError, Refused):
            await coming
        if state is State.ADMITTED:
            # Nobody looks at the client while it is answered: it may be let in for a moment.
            hung_up.set()
        core = stage.hub._core
        await until(lambda: not core.quotas.slots.taken and not core.root.replays.count)

        def later() -> list[str]:
            return [what for what, _ in stage.log[len(log) :]]

        # The disconnect handlers run in a task of their own.
        await until(lambda: later().count("connect") == later().count("disconnect"))
        if state is State.CONNECTING:
            assert later() == []
        again = await stage.back(visitor)
        assert again.sid == visitor.sid
        return

    async def act(socket: Socket | None) -> None:
        return

    client, coming = await in_state(stage, state, act)
    await coming
    if outcome is Outcome.DEPARTS:
        await stage.cut(client)
    else:
        await client.cut()
    assert stage.log.count(("disconnect", client.sid)) == departures(state)
    again = await stage.back(client)
    assert again.sid == client.sid


async def stop(stage: Stage, state: State, outcome: Outcome) -> None:
    stopping: list[asyncio.Task[None]] = []

    async def act(socket: Socket | None) -> None:
        stopping.append(asyncio.create_task(stage.hub.stop()))
        async with asyncio.timeout(WAIT):
            await until(lambda: stage.hub.stopping)

    client, coming = await in_state(stage, state, act)
    if outcome is Outcome.REFUSED and stage.kind == "sse":
        # EventSource is told to come back: a stream that says so, and ends.
        async with asyncio.timeout(WAIT):
            await client.gone.wait()
        coming.cancel()
        assert [event.name for event in client.log] == ["server:shutdown"]
    elif outcome is Outcome.REFUSED:
        with pytest.raises(Refused):
            await coming
    else:
        await coming
    async with asyncio.timeout(WAIT):
        await stopping[0]
        await client.gone.wait()
    handlers = [what for what, _ in stage.log]
    assert handlers.count("connect") == handlers.count("disconnect")
    assert bool(handlers) is (outcome is not Outcome.REFUSED)


TRIALS: dict[Event, Callable[[Stage, State, Outcome], Awaitable[None]]] = {
    Event.EMIT: emit,
    Event.JOIN: join,
    Event.LEAVE: leave,
    Event.DISCONNECT: disconnect,
    Event.REFRESH: refresh,
    Event.SECOND_CONNECT: second_connect,
    Event.CUT: cut,
    Event.STOP: stop,
}
