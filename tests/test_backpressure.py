"""Clients that stop reading, on every door: what is kept for them, and what they find after."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket as sockets
import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from crossband import Hub, Limits, Socket
from crossband.connection import Connection
from tests.clients.base import WAIT
from tests.clients.raw import TEXT, Polling, RawWebSocket, frame
from tests.conftest import Serve

# Bytes.
OUTBOX = 65_536
EVENT = 4_000
# Much more than the kernel takes here for a client that does not read (by itself up to 4 MB), and
# many times the outbox.
SEND_BUFFER = 65_536
FLOOD = 2_000_000
KEYS = 4

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Received:
    """An event as a client got it."""

    event: str
    data: Any
    cursor: str | None


async def reluctant(url: str) -> Streams:
    """Connect with the smallest of receive buffers, so that not reading shows soon."""
    parts = urlsplit(url)
    sock = sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM)
    sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return await asyncio.open_connection(sock=sock, limit=2 * EVENT)


class Reader(ABC):
    """A client that takes an event only when it is asked to."""

    def __init__(self) -> None:
        self.session: str | None = None
        self.cursor: str | None = None
        self.recovered = False
        self.streams: Streams | None = None

    async def open(self, url: str) -> None:
        """Connect; with what it knows of an earlier connection, resume."""
        self.streams = await reluctant(url)
        await self._open(url)

    @property
    def query(self) -> str:
        known = {"session": self.session, "lastEventId": self.cursor}
        return urlencode({"reader": "1", **{name: value for name, value in known.items() if value}})

    async def read(self) -> Received:
        """Return the next event; raise EOFError at the end of the connection."""
        async with asyncio.timeout(WAIT):
            received = await self._read()
        if received.cursor is not None:
            self.cursor = received.cursor
        return received

    async def read_until(self, event: str) -> list[Received]:
        """Return all events before one of this name."""
        before = []
        while (received := await self.read()).event != event:
            before.append(received)
        return before

    async def close(self) -> None:
        if self.streams is not None:
            self.streams[1].transport.abort()

    @abstractmethod
    async def _open(self, url: str) -> None: ...

    @abstractmethod
    async def _read(self) -> Received: ...


class WebSocketReader(Reader):
    async def _open(self, url: str) -> None:
        self._raw = await RawWebSocket.open(f"{url}/ws?{self.query}", streams=self.streams)
        welcome = await self._raw.text()
        self.session, self.recovered = welcome["session"], welcome["recovered"]
        self.cursor = welcome["offset"]

    async def _read(self) -> Received:
        message = await self._raw.text()
        return Received(message["type"], message.get("data"), message.get("offset"))


class StreamReader(Reader):
    async def _open(self, url: str) -> None:
        assert self.streams is not None
        self.streams[1].write(f"GET /events?{self.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(WAIT):
            await self.streams[0].readuntil(b"\r\n\r\n")
            welcome = await self._read()
        self.session, self.recovered = welcome.data["session"], welcome.data["recovered"]
        self.cursor = welcome.cursor

    async def _read(self) -> Received:
        assert self.streams is not None
        fields: dict[str, str] = {}
        while True:
            # Chunks end where events do: their heads are lines of their own.
            line = (await self.streams[0].readuntil(b"\n")).decode().rstrip("\r\n")
            if line == "0":
                raise EOFError
            name, colon, value = line.partition(": ")
            if colon and name:
                fields[name] = value
            elif not line and "data" in fields:
                return Received(fields["event"], json.loads(fields["data"]), fields.get("id"))


class SocketIOReader(Reader):
    async def _open(self, url: str) -> None:
        await self._connect(url)
        known = {"pid": self.session, "offset": self.cursor}
        await self._send("40" + (json.dumps(known) if self.session else ""))
        packet = await self._packet()
        assert packet.startswith("40"), packet
        pid = json.loads(packet[2:])["pid"]
        self.recovered, self.session = pid == self.session, pid

    async def _read(self) -> Received:
        packet = await self._packet()
        if packet == "1":
            raise EOFError
        assert packet.startswith("42"), packet
        event, *args = json.loads(packet[2:])
        data, cursor = args if len(args) == 2 else (args[0], None)
        return Received(event, data, cursor)

    async def _connect(self, url: str) -> None:
        url = f"{url}/socket.io/?EIO=4&transport=websocket&reader=1"
        self._raw = await RawWebSocket.open(url, streams=self.streams)
        assert (await self._packet()).startswith("0")

    async def _send(self, packet: str) -> None:
        self._raw.send(frame(TEXT, packet.encode()))

    async def _packet(self) -> str:
        opcode, payload = await self._raw.receive()
        if opcode != TEXT:
            raise EOFError
        return payload.decode()


class PollingReader(SocketIOReader):
    """Reads by polling: while it is not asked to read, there is no poll."""

    async def _connect(self, url: str) -> None:
        self._http = httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False)
        self._polling = Polling(self._http, url)
        self._polling.params["reader"] = "1"
        await self._polling.open()

    async def _send(self, packet: str) -> None:
        await self._polling.post(packet)

    async def _packet(self) -> str:
        return await self._polling.packet()

    async def close(self) -> None:
        await super().close()
        # Or the server would wait for one more poll.
        await self._polling.close()
        await self._http.aclose()


READERS: dict[str, type[Reader]] = {
    "websocket": WebSocketReader,
    "sse": StreamReader,
    "socket.io": SocketIOReader,
    "polling": PollingReader,
}

every_door = pytest.mark.parametrize("door", READERS)
with_and_without_lane = pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])


class Neighbour:
    """A client that reads all the time."""

    def __init__(self, raw: RawWebSocket) -> None:
        self._raw = raw
        self._more = asyncio.Event()
        self.count = 0
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message = await self._raw.text()
            if message["type"] == "tick":
                assert message["data"]["n"] == self.count
                self.count += 1
                self._more.set()

    async def has(self, count: int) -> None:
        """Wait until it got so many, each in its turn."""
        async with asyncio.timeout(WAIT):
            while self.count < count:
                assert not self.reading.done(), self.reading.exception()
                self._more.clear()
                await self._more.wait()


class Scene:
    """A hub, a client that stops reading, and a neighbour that does not."""

    def __init__(self, hub: Hub, url: str, reader: Reader, neighbour: Neighbour) -> None:
        self.hub = hub
        self.url = url
        self.reader = reader
        self.neighbour = neighbour
        self.published = 0

    @property
    def connection(self) -> Connection:
        """The connection of the client that stops."""
        (found,) = (
            socket.connection
            for socket in self.hub.sockets.values()
            if "reader" in socket.handshake.query
        )
        return found

    async def publish(self) -> None:
        """Publish some events, and wait until the neighbour has them."""
        for _ in range(4):
            self.hub.emit("tick", {"n": self.published, "pad": "x" * EVENT})
            self.published += 1
        await self.neighbour.has(self.published)


@contextlib.asynccontextmanager
async def scene(serve: Serve, hub: Hub, door: str, *, lane: bool) -> AsyncIterator[Scene]:
    server = await serve(hub, lane=lane)
    assert server._uvicorn is not None
    (listener,) = server._uvicorn.servers
    for kernel in listener.sockets:
        # Connections inherit it.
        kernel.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
    raw = await RawWebSocket.open(f"{server.url}/ws")
    assert (await raw.text())["type"] == "welcome"
    neighbour = Neighbour(raw)
    reader = READERS[door]()
    try:
        await reader.open(server.url)
        yield Scene(hub, server.url, reader, neighbour)
    finally:
        neighbour.reading.cancel()
        await reader.close()
        raw.writer.transport.abort()


async def flood(stage: Scene) -> None:
    """Publish until much was dropped; what is kept meanwhile must be bounded."""
    connection = stage.connection
    drops = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        queued = 0
        while drops < 3 or stage.published * EVENT < FLOOD:
            await stage.publish()
            assert not connection.closed
            assert connection.queued <= OUTBOX
            assert sum(wire.size for wire in connection.queue) <= connection.queued
            drops += connection.queued < queued
            queued = connection.queued
            assert stage.published * EVENT < 8 * FLOOD, "nothing was ever dropped"
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What waits is held as text and as frames, and the server has a buffer of 64 KiB.
    assert after - before < 8 * OUTBOX


@every_door
@with_and_without_lane
async def test_stalled_client_finds_the_end_of_a_stream(
    door: str, lane: bool, serve: Serve
) -> None:
    hub = Hub(limits=Limits(outbox=OUTBOX))
    hub.policy("tick", "drop_oldest")
    async with scene(serve, hub, door, lane=lane) as stage:
        await flood(stage)
        await hub.emit("end", 0)
        received = await stage.reader.read_until("end")
        assert all(message.cursor is None for message in received)
        numbers = [message.data["n"] for message in received]
        assert numbers[-1] == stage.published - 1
        assert len(numbers) < stage.published
        holes = [place for place, (a, b) in enumerate(pairwise(numbers)) if b != a + 1]
        assert all(b > a for a, b in pairwise(numbers))
        # Half an outbox is left when it was full.
        last = holes[-1] + 1 if holes else 0
        assert len(numbers) - last >= OUTBOX // 2 // EVENT - 1


@every_door
@with_and_without_lane
async def test_stalled_client_finds_the_newest_of_each_key(
    door: str, lane: bool, serve: Serve
) -> None:
    hub = Hub(limits=Limits(outbox=OUTBOX))
    hub.policy("tick", "latest", key=lambda data: data["n"] % KEYS)
    async with scene(serve, hub, door, lane=lane) as stage:
        await flood(stage)
        await hub.emit("end", 0)
        received = await stage.reader.read_until("end")
        assert all(message.cursor is None for message in received)
        numbers = [message.data["n"] for message in received]
        assert all(b > a for a, b in pairwise(numbers))
        newest = {n % KEYS: n for n in numbers}
        assert sorted(newest.values()) == list(range(stage.published - KEYS, stage.published))
        assert len(numbers) < stage.published


@every_door
@with_and_without_lane
async def test_stalled_client_is_disconnected_and_resumes_without_loss(
    door: str, lane: bool, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(limits=Limits(outbox=OUTBOX), history_size=100_000)
    # As without a policy.
    hub.policy("tick", "disconnect")
    ended = asyncio.Event()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        if "reader" in socket.handshake.query:
            ended.set()

    async with scene(serve, hub, door, lane=lane) as stage:
        await stage.publish()
        numbers = [(await stage.reader.read()).data["n"] for _ in range(4)]
        connection = stage.connection
        (sid,) = [each.id for each in hub.sockets.values() if each.connection is connection]
        while not connection.closed:
            await stage.publish()
            assert connection.queued <= OUTBOX
            assert stage.published * EVENT < 8 * FLOOD, "it was never disconnected"
        async with asyncio.timeout(WAIT):
            await ended.wait()
        assert not connection.queue
        assert hub.status()["evictions"]["slow_client"] == 1
        (line,) = [text for text in caplog.messages if text.startswith("cut ")]
        assert line.startswith(f"cut {sid} in '/', ")
        size = re.fullmatch(r".*: slow_client, with (\d+) bytes in its outbox", line)
        assert size is not None
        assert int(size[1]) > OUTBOX * 3 // 4
        # Events go on while it is away.
        await stage.publish()
        await hub.emit("end", 0)
        # What had left for it before it was cut.
        with contextlib.suppress(EOFError, ConnectionError, AssertionError):
            while True:
                numbers.append((await stage.reader.read()).data["n"])
        await stage.reader.close()
        await stage.reader.open(stage.url)
        assert stage.reader.recovered
        numbers += [message.data["n"] for message in await stage.reader.read_until("end")]
        assert numbers == list(range(stage.published))


@with_and_without_lane
async def test_event_stream_that_is_never_read_is_cut(lane: bool, serve: Serve) -> None:
    hub = Hub(limits=Limits(send_time=0.1, outbox=50_000_000), keepalive_interval=0.05)
    ended = asyncio.Event()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        ended.set()

    server = await serve(hub, lane=lane)
    reader, writer = await reluctant(server.url)
    try:
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"welcome")
        for number in range(10):
            hub.emit("news", [number, "x" * 1_000_000])
        async with asyncio.timeout(WAIT):
            await ended.wait()
        assert hub.status()["evictions"]["stalled"] == 1
    finally:
        writer.transport.abort()


@with_and_without_lane
@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
async def test_event_stream_that_ends_before_the_door_looks(
    lane: bool, leaves: bool, serve: Serve
) -> None:
    # The kernel, or the server, has the same time for it as the door, which looks later.
    if lane and not hasattr(sockets, "TCP_USER_TIMEOUT"):
        pytest.skip("Linux")
    hub = Hub(limits=Limits(send_time=0.5, outbox=50_000_000), keepalive_interval=600.0)
    ended = asyncio.Event()

    @hub.on("disconnect")
    def disconnect(socket: Socket, reason: str) -> None:
        ended.set()

    server = await serve(hub, lane=lane)
    reader, writer = await reluctant(server.url)
    try:
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"welcome")
        for number in range(10):
            await hub.emit("news", [number, "x" * 1_000_000])
        if leaves:
            writer.transport.abort()
        async with asyncio.timeout(WAIT):
            await ended.wait()
        assert hub.status()["evictions"]["stalled"] == (0 if leaves else 1)
    finally:
        writer.transport.abort()


@with_and_without_lane
async def test_event_stream_that_is_read_slowly_goes_on(lane: bool, serve: Serve) -> None:
    hub = Hub(limits=Limits(send_time=2.0, outbox=50_000_000), keepalive_interval=0.05)
    server = await serve(hub, lane=lane)
    reader, writer = await reluctant(server.url)
    try:
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"welcome")
        hub.emit("news", "x" * 30_000_000)
        loop = asyncio.get_running_loop()
        until, size = loop.time() + 4.5, 0
        while loop.time() < until:
            # A tenth of what it could.
            for _ in range(25):
                chunk = await reader.read(EVENT)
                assert chunk, size
                size += len(chunk)
            await asyncio.sleep(0.03)
        assert len(hub.sockets) == 1
        # Or this would show nothing.
        assert size < 25_000_000
    finally:
        writer.transport.abort()
