"""`crossband listen`, in this event loop, against real hubs on every door."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crossband import ConnectionRefused, Hub, Socket
from crossband.cli import listen
from crossband.cli.listen import Output
from crossband.client import following as client
from crossband.client.doors import Door, locate
from crossband.client.errors import Lost, Refused
from crossband.client.listener import Event, Listener, Notice
from crossband.server import Server
from crossband.standalone import create_hub
from tests.conftest import Serve

TLS = Path(__file__).parents[1] / "tls"

# Seconds any single wait may take.
WAIT = 30.0

Stop = Callable[[], Awaitable[None]]


class Watched(Output):
    """An output whose lines can be waited for."""

    def __init__(self, door: Door, *, json: bool = False, events: frozenset[str] = frozenset()):
        super().__init__(door, json, events)
        self.notices: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.seen: asyncio.Queue[Event] = asyncio.Queue()

    def event(self, event: Event) -> None:
        super().event(event)
        self.seen.put_nowait(event)

    def notice(self, kind: str, text: str) -> None:
        super().notice(kind, text)
        self.notices.put_nowait((kind, text))

    async def next_event(self) -> tuple[str, Any]:
        async with asyncio.timeout(WAIT):
            event = await self.seen.get()
        return event.name, msgspec.json.decode(event.data)

    async def next_notice(self, kind: str) -> str:
        """Return the text of the next notice of that kind."""
        async with asyncio.timeout(WAIT):
            while True:
                found, text = await self.notices.get()
                if found == kind:
                    return text


@contextlib.asynccontextmanager
async def following(listener: Listener, output: Watched) -> AsyncIterator[asyncio.Task[None]]:
    """Follow in the background, connected when the body begins."""
    task = asyncio.create_task(listen.show(listener, output))
    try:
        await output.next_notice("connected")
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Refused, Lost):
            await task


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)


@pytest.fixture(params=list(Door), ids=str)
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.param
    return found


def listener_of(door: Door, server: Server, **options: Any) -> Listener:
    _, url = locate(server.url, door, options.get("namespace", "/"))
    return Listener(door, url, **options)


def hub_with_rooms() -> tuple[Hub, asyncio.Queue[str]]:
    """Return a hub to join rooms of, and the rooms that were joined by event."""
    hub = Hub()
    joined: asyncio.Queue[str] = asyncio.Queue()

    @hub.on("room:join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)
        joined.put_nowait(room)

    return hub, joined


async def in_rooms(door: Door, joined: asyncio.Queue[str], count: int) -> None:
    """Wait until a listener is in its rooms: only Socket.IO joins them after the welcome."""
    for _ in range(count if door is Door.SOCKETIO else 0):
        async with asyncio.timeout(WAIT):
            await joined.get()


# What is followed.


async def test_events_are_shown_with_their_cursor(
    door: Door, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server), output):
        cursor = await hub.emit("news", {"n": 1})
        assert await output.next_event() == ("news", {"n": 1})
        await hub.volatile.emit("passing", "text")
        assert await output.next_event() == ("passing", "text")
        await hub.emit("bare")
        assert await output.next_event() == ("bare", None)
        await hub.emit("several", 1, "two")
        assert await output.next_event() == ("several", [1, "two"])
    shown = capsys.readouterr()
    first, second, *_ = shown.out.splitlines()
    assert re.fullmatch(
        rf'\d\d:\d\d:\d\d  {door.value:<9}  news              {{"n":1}}  {cursor}', first
    )
    assert second.endswith('  passing           "text"')
    assert shown.err == f"connected to {listener_of(door, server).url}\n"
    assert output.count == 4


@pytest.mark.parametrize("name", ["ack", "welcome", "gap", "error"])
async def test_events_named_like_words_of_the_protocol_are_shown(
    name: str, door: Door, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server), output):
        await hub.emit(name, {"reason": "mine"})
        assert await output.next_event() == (name, {"reason": "mine"})
        await hub.emit(name)
        assert await output.next_event() == (name, None)
    assert output.count == 2


async def test_json_lines(door: Door, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door, json=True)
    async with following(listener_of(door, server), output):
        cursor = await hub.emit("news", {"text": "zwei\nZeilen\u2028é", "blob": b"\x00\xff"})
        await output.next_event()
    line, rest = capsys.readouterr().out.split("\n")
    assert rest == ""
    found = msgspec.json.decode(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert found == {
        "door": door.value,
        "event": "news",
        "data": {"text": "zwei\nZeilen\u2028é", "blob": "AP8="},
        "offset": cursor,
    }


async def test_only_the_events_asked_for(
    door: Door, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door, events=frozenset({"wanted", "also"}))
    async with following(listener_of(door, server), output):
        for name in ("wanted", "other", "also"):
            await hub.emit(name, 1)
            await output.next_event()
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["wanted", "also"]
    assert output.count == 2


async def test_rooms(door: Door, serve: Serve) -> None:
    hub, joined = hub_with_rooms()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server, rooms=["a", "b é&"]), output):
        await in_rooms(door, joined, 2)
        await hub.to("other").emit("news", "not for us")
        await hub.to("b é&").emit("news", "for b")
        assert await output.next_event() == ("news", "for b")


async def test_namespace(door: Door, serve: Serve) -> None:
    hub = Hub()
    admin = hub.of("/admin")
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server, namespace="/admin"), output):
        await hub.emit("news", "for all")
        await admin.emit("news", "for admins")
        assert await output.next_event() == ("news", "for admins")


async def test_limit_ends_it(door: Door, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    task = asyncio.create_task(listen.show(listener_of(door, server), output, limit=2))
    await output.next_notice("connected")
    for number in range(3):
        await hub.emit("news", number)
    async with asyncio.timeout(WAIT):
        await task
    assert output.count == 2


async def test_binary_over_socketio(serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(Door.SOCKETIO)
    async with following(listener_of(Door.SOCKETIO, server), output):
        await hub.emit("blob", {"body": b"\x00\x01", "more": [b"\xff"]})
        assert await output.next_event() == ("blob", {"body": "AAE=", "more": ["/w=="]})


async def test_tls(door: Door, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub, ssl_certfile=TLS / "certificate.pem", ssl_keyfile=TLS / "key.pem")
    with pytest.raises(Lost, match=r"the certificate is not trusted .*--insecure"):
        await listen.show(listener_of(door, server), Watched(door))
    output = Watched(door)
    async with following(listener_of(door, server, verify=False), output):
        await hub.emit("news", 1)
        assert await output.next_event() == ("news", 1)


async def test_plain_namespace(serve: Serve) -> None:
    hub = Hub()
    echo = hub.of("/echo", plain=True)
    arrived = asyncio.Event()
    echo.on("connect", lambda socket: arrived.set())
    server = await serve(hub)
    output = Watched(Door.WEBSOCKET)
    task = asyncio.create_task(
        listen.show(listener_of(Door.WEBSOCKET, server, namespace="/echo"), output, limit=3)
    )
    async with asyncio.timeout(WAIT):
        await arrived.wait()
    for data in ("bare text", b"\x01\x02", {"n": 1}):
        await echo.emit("message", data)
    assert await output.next_event() == ("message", "bare text")
    assert await output.next_event() == ("message", "AQI=")
    assert await output.next_event() == ("message", {"n": 1})
    await task


async def test_heartbeats_are_answered(serve: Serve) -> None:
    hub = Hub(ping_interval=0.1, ping_timeout=1.0)
    server = await serve(hub)
    output = Watched(Door.SOCKETIO)
    async with following(listener_of(Door.SOCKETIO, server), output):
        (socket,) = hub.sockets.values()
        # Twice as long as a client that does not answer would live.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output.next_notice("lost"), 2.2)
        assert socket.connected
    assert output.notices.empty()


async def test_acknowledgement_requests_are_shown(door: Door, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server), output):
        asking = asyncio.create_task(hub.timeout(0.2).emit_with_ack("question", "why"))
        name, data = await output.next_event()
        if door is Door.SSE:
            assert name == "ack:request"
            assert (data["type"], data["data"]) == ("question", "why")
        else:
            assert (name, data) == ("question", "why")
        with contextlib.suppress(TimeoutError):
            await asking


async def test_nothing_published_drives_the_terminal(
    door: Door, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server), output):
        await hub.emit("a\u009b31m[red]", "\x1b]0;title\x07 \u009b2J [bold]x[/bold] \u202e")
        await output.next_event()
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert "[bold]x[/bold]" in out
    assert r"a\x9b31m[red]" in out


# Coming back.


async def test_missed_events_are_caught_up_with(door: Door, serve: Serve) -> None:
    hub, joined = hub_with_rooms()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server, rooms=["news"]), output):
        await hub.emit("n", 1)
        assert await output.next_event() == ("n", 1)
        await in_rooms(door, joined, 1)
        await server.stop()
        assert "stopping" in await output.next_notice("shutdown")
        assert "reconnecting" in await output.next_notice("lost")
        # The hub outlives its server here, with its history.
        await hub.emit("n", 2)
        await hub.to("news").emit("n", 3)
        await serve(hub, port=server.port)
        assert "resumed" in await output.next_notice("resumed")
        await hub.emit("n", 4)
        assert [await output.next_event() for _ in range(3)] == [("n", 2), ("n", 3), ("n", 4)]
    assert output.notices.empty()


async def test_client_that_received_nothing_yet_misses_nothing(door: Door, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server), output):
        await server.stop()
        await hub.emit("n", 1)
        await serve(hub, port=server.port)
        await output.next_notice("resumed")
        assert await output.next_event() == ("n", 1)


async def test_gap_is_told_when_the_server_was_restarted(door: Door, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(door)
    async with following(listener_of(door, server), output):
        await hub.emit("n", 1)
        await output.next_event()
        await server.stop()
        successor = Hub()
        server = await serve(successor, port=server.port)
        await output.next_notice("connected")
        assert (await output.next_notice("gap")).startswith("GAP: events were missed")
        await successor.emit("n", 2)
        assert await output.next_event() == ("n", 2)
        # From the gap's cursor on, nothing is missed any more.
        await server.stop()
        await successor.emit("n", 3)
        await serve(successor, port=server.port)
        await output.next_notice("resumed")
        assert await output.next_event() == ("n", 3)
    assert output.notices.empty()


async def test_begin_after_a_cursor(door: Door, serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    cursor = await hub.emit("n", 1)
    await hub.emit("n", 2)
    output = Watched(door)
    async with following(listener_of(door, server, offset=cursor), output):
        assert await output.next_event() == ("n", 2)
        await hub.emit("n", 3)
        assert await output.next_event() == ("n", 3)


async def test_unknown_cursor_is_a_gap(door: Door, serve: Serve) -> None:
    server = await serve(Hub())
    output = Watched(door)
    async with following(listener_of(door, server, offset="no.such-7"), output):
        assert "does not know the cursor" in await output.next_notice("gap")


async def test_outage_is_told_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_DELAY", 0.01)
    hub = Hub()
    server = await serve(hub)
    output = Watched(Door.WEBSOCKET)
    attempts = 0
    enough = asyncio.Event()
    stream = client.stream

    def counted(listener: Listener) -> AsyncIterator[Event | Notice]:
        nonlocal attempts
        attempts += 1
        if attempts == 10:
            enough.set()
        return stream(listener)

    monkeypatch.setattr(client, "stream", counted)
    async with following(listener_of(Door.WEBSOCKET, server), output):
        await server.stop()
        # While it stopped, an attempt may have been answered 503.
        attempts = 0
        enough.clear()
        async with asyncio.timeout(WAIT):
            await enough.wait()
    told = [output.notices.get_nowait()[1] for _ in range(output.notices.qsize())]
    assert ["refused" in text for text in told] == [False] * (len(told) - 1) + [True]


# What ends it.


async def test_server_that_is_not_there(door: Door) -> None:
    async with Server(Hub()) as server:
        pass
    with pytest.raises(Lost, match="connection refused"):
        await listen.show(listener_of(door, server), Watched(door))


async def test_unknown_namespace(door: Door, serve: Serve) -> None:
    server = await serve(Hub())
    with pytest.raises(Refused, match="Invalid namespace"):
        await listen.show(listener_of(door, server, namespace="/nowhere"), Watched(door))


async def test_refused_by_the_hub(door: Door, serve: Serve) -> None:
    hub = Hub()

    @hub.use
    def nobody(socket: Socket) -> None:
        raise ConnectionRefused("closed today", data={"until": "monday", "doors": ["a", None]})

    server = await serve(hub)
    with pytest.raises(Refused, match=r'closed today \(.*until: monday, doors: \["a",null\]\)'):
        await listen.show(listener_of(door, server), Watched(door))


async def test_disconnected_for_good(serve: Serve) -> None:
    hub = Hub()
    server = await serve(hub)
    output = Watched(Door.WEBSOCKET)
    async with following(listener_of(Door.WEBSOCKET, server), output) as task:
        await hub.disconnect_sockets(close=True)
        with pytest.raises(Refused, match="closed with 4000"):
            await task


async def test_rooms_of_a_hub_without_rooms(serve: Serve) -> None:
    server = await serve(Hub())
    output = Watched(Door.SOCKETIO)
    async with following(listener_of(Door.SOCKETIO, server, rooms=["news"]), output):
        notice = await output.next_notice("error")
        assert "Unknown event" in notice
        assert "event: room:join" in notice


@pytest.mark.parametrize("path", ["/", "/api/status", "/readyz"])
async def test_page_that_is_no_event_stream(path: str, serve: Serve) -> None:
    server = await serve(create_hub())
    listener = Listener(Door.SSE, f"{server.url}{path}")
    with pytest.raises(Refused, match=r"404|is not an event stream"):
        await listen.show(listener, Watched(Door.SSE))


async def test_server_that_speaks_something_else(serve: Serve) -> None:
    async def app(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello, this is not Engine.IO"})
        await receive()

    server = await serve(app)
    with pytest.raises(Refused, match="not what this door speaks"):
        await listen.show(listener_of(Door.SOCKETIO, server), Watched(Door.SOCKETIO))


async def test_event_stream_of_another_server(serve: Serve) -> None:
    async def app(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = b": hi\n\nretry: 5\n\nid: 7\ndata: plain\ndata: text\n\nevent: n\ndata: 5\n\n"
        await send({"type": "http.response.body", "body": body})

    server = await serve(app)
    output = Watched(Door.SSE)
    await listen.show(listener_of(Door.SSE, server), output, limit=2)
    assert await output.next_event() == ("message", "plain\ntext")
    assert await output.next_event() == ("n", 5)
