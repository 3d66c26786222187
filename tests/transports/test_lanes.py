"""The two kinds of lane, the server's and the one over ASGI, carry the same to a client.

Two clients of one door hear the same events, are stalled and closed together, and must have got
the same at the end. Both are without a network: what one of them has is exact at every step.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from crossband import Hub, Limits, Socket
from crossband.connection import Connection
from crossband.lane.stream import StreamLane
from crossband.lane.websocket import WebSocketLane
from crossband.transports.asgi import ASGIFrameLane, ASGILane
from crossband.transports.lane import EXTENSION, FramePeer, Peer
from tests.clients.raw import CLOSE, TEXT, frame
from tests.waiting import until

# Bytes. Over ASGI a quarter of it is taken at once: what is emitted in one tick is less.
OUTBOX = 8_000
MOST = 600
# Events that wait for a handler; then nothing is read.
INBOX = 3
STEPS = 60
SEEDS = range(12)

DOORS = {
    "websocket": ("websocket", "/ws", b"token=x"),
    "socket.io": ("websocket", "/socket.io/", b"EIO=4&transport=websocket"),
    "sse": ("http", "/events", b"token=x"),
}


class Client(ABC):
    """A client without a network: it takes what it is sent, unless it is stalled."""

    def __init__(self, door: str) -> None:
        kind, path, query = DOORS[door]
        self.scope: Scope = {
            "type": kind,
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "query_string": query,
            "headers": [(b"host", b"x")],
            "client": ("127.0.0.1", 1),
        }
        # What it has got, how it was closed, and what handlers have got of it.
        self.got = ""
        self.end: object = None
        self.handled: list[int] = []
        # Set by the test as soon as it is let in.
        self.socket: Socket
        self.connection: Connection
        self.task: asyncio.Task[None]

    async def connect(self, hub: Hub) -> None:
        before = set(hub.sockets)
        self.task = asyncio.create_task(hub(self.scope, self.receive, self.send))
        if self.scope["path"] == "/socket.io/":
            await until(lambda: "maxPayload" in self.got)
            self.say("40")
        await until(lambda: len(hub.sockets) > len(before))
        (sid,) = set(hub.sockets) - before
        self.socket = hub.sockets[sid]
        self.connection = self.socket.connection
        await until(lambda: f'"{sid}"' in self.got)

    @property
    def numbers(self) -> list[int]:
        """The events it has got."""
        return [int(number) for number in re.findall(r'"n":(\d+)', self.got)]

    async def receive(self) -> Message:
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        raise NotImplementedError

    @abstractmethod
    def say(self, text: str) -> None:
        """Send a text."""

    @abstractmethod
    def stall(self) -> None:
        """Take nothing more."""

    @abstractmethod
    def go_on(self) -> None:
        """Take what waits, and what comes."""

    @property
    @abstractmethod
    def quiet(self) -> bool:
        """Whether it has all that the hub has written so far, or is stalled."""

    @abstractmethod
    def leave(self) -> None:
        """Hang up."""


class ASGIClient(Client):
    """A client of a server that exchanges ASGI messages."""

    def __init__(self, door: str) -> None:
        super().__init__(door)
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._free = asyncio.Event()
        self._free.set()
        # A message is on its way to a client that is stalled.
        self._blocked = False
        # The next message of the client is waited for.
        self._asked = False
        if self.scope["type"] == "websocket":
            self._said.put_nowait({"type": "websocket.connect"})

    async def receive(self) -> Message:
        self._asked = True
        message = await self._said.get()
        self._asked = False
        return message

    async def send(self, message: Message) -> None:
        self._blocked = not self._free.is_set()
        await self._free.wait()
        self._blocked = False
        match message["type"]:
            case "websocket.send":
                self.got += message["text"]
            case "websocket.close":
                self.end = int(message["code"])
                self.leave()
            case "http.response.body":
                self.got += message["body"].decode()
                if not message["more_body"]:
                    self.end = "whole"

    def say(self, text: str) -> None:
        self._said.put_nowait({"type": "websocket.receive", "text": text})

    def stall(self) -> None:
        self._free.clear()

    def go_on(self) -> None:
        self._blocked = False
        self._free.set()

    @property
    def quiet(self) -> bool:
        lane = getattr(self.connection, "_lane")  # noqa: B009 - of subclasses
        assert isinstance(lane, ASGILane)
        idle = lane._idle is not None and not lane._idle.done()
        return self.task.done() or self._blocked or idle

    @property
    def heard(self) -> bool:
        """Whether the hub has read all that it will for now."""
        lane = getattr(self.connection, "_lane")  # noqa: B009 - of subclasses
        assert isinstance(lane, ASGIFrameLane)
        return self._said.empty() if self._asked else lane._held is not None

    def leave(self) -> None:
        self._said.put_nowait({"type": f"{self.scope['type']}.disconnect"})


class Transport(asyncio.Transport):
    """The transport to a client, whose buffer is full as soon as something waits in it."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        super().__init__()
        self._take = take
        self.protocol: Any = None
        self.stalled = False
        self._waits = b""
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.stalled:
            self._take(bytes(data))
            return
        first = not self._waits
        self._waits += data
        if first:
            self.protocol.pause_writing()

    def go_on(self) -> None:
        self.stalled = False
        waits, self._waits = self._waits, b""
        if waits:
            self._take(waits)
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._waits)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return False


class LaneClient(Client):
    """A client of a server that lends its connections."""

    def __init__(self, door: str) -> None:
        super().__init__(door)
        self.scope["extensions"] = {EXTENSION: self}
        self._transport = Transport(self._take)
        # Bytes that are no whole frame or chunk yet.
        self._rest = b""

    # As the server's offer.

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        pass

    def take(
        self,
        receive: Receive,
        send: Send,
        peer: Any,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        limit: int = 0,
        subprotocol: str | None = None,
    ) -> WebSocketLane | StreamLane:
        lane: WebSocketLane | StreamLane
        if self.scope["type"] == "websocket":
            lane = self._frames(peer, limit)
        else:
            lane = self._body(peer)
        self._transport.protocol = lane
        return lane

    def _frames(self, peer: FramePeer, limit: int) -> WebSocketLane:
        return WebSocketLane(
            self._transport, peer, set(), limit=limit, fragments=1, extension=None, paused=False
        )

    def _body(self, peer: Peer) -> StreamLane:
        return StreamLane(self._transport, peer, set(), paused=False)

    # As the client.

    def _take(self, data: bytes) -> None:
        self._rest += data
        take = self._take_frame if self.scope["type"] == "websocket" else self._take_chunk
        while self._rest:
            take()

    def _take_frame(self) -> None:
        opcode, size, start = self._rest[0] & 15, self._rest[1], 2
        if size == 126:
            (size,) = struct.unpack_from("!H", self._rest, 2)
            start = 4
        payload, self._rest = self._rest[start : start + size], self._rest[start + size :]
        if opcode == TEXT:
            self.got += payload.decode()
        elif opcode == CLOSE:
            (self.end,) = struct.unpack_from("!H", payload)
            self.leave()

    def _take_chunk(self) -> None:
        length, _, rest = self._rest.partition(b"\r\n")
        size = int(length, 16)
        self.got += rest[:size].decode()
        self._rest = rest[size + 2 :]
        if not size:
            self.end = "whole"

    def say(self, text: str) -> None:
        self._transport.protocol.data_received(frame(TEXT, text.encode()))

    def stall(self) -> None:
        self._transport.stalled = True

    def go_on(self) -> None:
        self._transport.go_on()

    @property
    def quiet(self) -> bool:
        return True

    def leave(self) -> None:
        self._transport.abort()


@asynccontextmanager
async def two_clients(hub: Hub, door: str) -> AsyncIterator[tuple[LaneClient, ASGIClient]]:
    await hub.start()
    lane, asgi = LaneClient(door), ASGIClient(door)
    try:
        await lane.connect(hub)
        await asgi.connect(hub)
        yield lane, asgi
    finally:
        lane.leave()
        asgi.go_on()
        asgi.leave()
        await asyncio.gather(lane.task, asgi.task)
        await hub.stop()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("seed", SEEDS)
async def test_both_lanes_carry_the_same(door: str, seed: int) -> None:
    chance = random.Random(seed)
    # In every third scene nothing may be dropped: a client that is stalled for long is cut.
    events = ["newest", "any", "all"] if seed % 3 else ["all"]
    hub = Hub(limits=Limits(outbox=OUTBOX))
    hub.policy("newest", "latest", key=lambda data: data["n"] % 3)
    hub.policy("any", "drop_oldest")
    async with two_clients(hub, door) as (lane, asgi):
        clients = (lane, asgi)
        number = 0

        async def settle() -> None:
            await until(lambda: all(c.quiet and not c.connection.dirty for c in clients))

        for _ in range(STEPS):
            match chance.choices(["emit", "stall", "go on", "close"], [30, 3, 2, 0.2])[0]:
                case "emit":
                    for _ in range(chance.randint(1, 3)):
                        number += 1
                        pad = "x" * chance.randrange(MOST)
                        await hub.emit(chance.choice(events), {"n": number, "pad": pad})
                case "stall":
                    for client in clients:
                        client.stall()
                case "go on":
                    for client in clients:
                        client.go_on()
                case "close":
                    for client in clients:
                        await client.socket.disconnect(close=True)
            await settle()
            assert lane.connection.closed == asgi.connection.closed
            assert lane.connection.queued == asgi.connection.queued
        for client in clients:
            client.go_on()
        evictions = [c.connection.evicted for c in clients if c.connection.evicted is not None]
        cut = [(eviction.reason, eviction.backlog) for eviction in evictions]
        if cut:
            # What was on its way may be lost with the connection.
            assert cut == [cut[0]] * 2
            shorter, longer = sorted([lane.numbers, asgi.numbers], key=len)
            assert longer[: len(shorter)] == shorter
            return
        await settle()
        assert lane.numbers == asgi.numbers
        if lane.connection.closed:
            await until(lambda: asgi.end is not None)
        assert lane.end == asgi.end


@pytest.mark.parametrize("door", ["websocket", "socket.io"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_both_lanes_hold_a_client_back(door: str, seed: int) -> None:
    chance = random.Random(seed)
    form = '{"type":"said","data":%d}' if door == "websocket" else '42["said",%d]'
    hub = Hub(limits=Limits(inbox=INBOX))
    # Handlers go on while it is set.
    gate = asyncio.Event()

    @hub.on("said")
    async def said(socket: Socket, number: int) -> None:
        await gate.wait()
        (client,) = (each for each in clients if each.socket is socket)
        client.handled.append(number)

    async with two_clients(hub, door) as (lane, asgi):
        clients = (lane, asgi)
        said_so_far = 0

        async def all_handled() -> None:
            gate.set()
            await until(lambda: all(len(c.handled) == said_so_far for c in clients))

        for _ in range(STEPS):
            match chance.choices(["say", "hold", "go on"], [10, 2, 1])[0]:
                case "say":
                    for _ in range(chance.randint(1, 3)):
                        said_so_far += 1
                        for client in clients:
                            client.say(form % said_so_far)
                case "hold":
                    gate.clear()
                case "go on":
                    await all_handled()
            await until(lambda: asgi.heard)
            assert lane.socket.inbox.waiting <= INBOX
            assert lane.handled == asgi.handled
            assert lane.socket.inbox.waiting == asgi.socket.inbox.waiting
        await all_handled()
        for client in clients:
            assert client.handled == list(range(1, said_so_far + 1))
