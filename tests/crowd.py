"""Many light clients of every door, by hand: a test process can hold hundreds of them.

Each hears the numbered event `number`, calls `echo`, and notes how its connection ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from tests.clients.base import WAIT
from tests.clients.raw import CLOSE, PING, PONG, TEXT, Tcp, frame, http, read_frame, upgrade

# How a connection may end in good order, by door.
GOOD_ENDS = {"websocket": "1001", "socket.io": "1001", "polling": "closed", "sse": "end"}
_EVENT = re.compile(r"^(event|data): (.*)$", re.MULTILINE)


class Member(ABC):
    """One client of the crowd."""

    door: ClassVar[str]

    def __init__(self, url: str, *, address: str | None = None) -> None:
        self.url = url
        # The address of this machine it connects from; None for any.
        self.address = address
        # The data of every event `number`.
        self.numbers: list[Any] = []
        # Takes the data of an event `number` instead, when set.
        self.sink: Callable[[Any], None] | None = None
        # Whether it was told that the server shuts down.
        self.told = False
        # How the connection ended: a close code, "closed" by a packet, "end" of a stream,
        # "cut", or "left" by itself. "" while it has not.
        self.ended = ""
        # When, by the event loop's clock.
        self.ended_at = 0.0
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._links: list[Tcp] = []
        # None until connected.
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Connect, and wait for the server's welcome."""
        async with asyncio.timeout(WAIT):
            await self._open()
        self._reading = asyncio.create_task(self._read_to_the_end())

    async def echo(self, value: Any) -> Any:
        """Send a value and return the server's answer, which is the same."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._ask(number, value)
        async with asyncio.timeout(WAIT):
            return await answer

    async def gone(self) -> None:
        """Wait until the connection has ended."""
        assert self._reading is not None
        await asyncio.wait({self._reading})
        self._reading.result()

    async def close(self) -> None:
        """Hang up."""
        self.ended = self.ended or "left"
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        for link in self._links:
            await link.close()

    async def _link(self) -> Tcp:
        link = await Tcp.open(self.url, address=self.address)
        self._links.append(link)
        return link

    async def _read_to_the_end(self) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._read()
        finally:
            self.ended = self.ended or "cut"
            self.ended_at = asyncio.get_running_loop().time()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionError(f"{self.door}: {self.ended}"))
                    # Nobody need wait for it.
                    answer.exception()

    def _take(self, event: str, data: Any) -> None:
        if event == "number":
            if self.sink is not None:
                self.sink(data)
            else:
                self.numbers.append(data)
        elif event == "server:shutdown":
            assert data["message"]
            self.told = True

    def _settle(self, number: int, answer: Any) -> None:
        waiting = self._answers.pop(number)
        if not waiting.done():
            waiting.set_result(answer)

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _ask(self, number: int, value: Any) -> None: ...

    @abstractmethod
    async def _read(self) -> None: ...


class WebSocketMember(Member):
    door = "websocket"
    path = "/ws"

    async def _open(self) -> None:
        self._tcp = await self._link()
        self._tcp.send(upgrade(self.path))
        status, _, body = await self._tcp.answer()
        assert status == 101, (status, body)
        assert json.loads((await read_frame(self._tcp.reader))[1])["type"] == "welcome"

    async def _ask(self, number: int, value: Any) -> None:
        self._send(json.dumps({"type": "echo", "id": number, "data": value}))

    def _send(self, text: str) -> None:
        self._tcp.send(frame(TEXT, text.encode()))

    async def _read(self) -> None:
        while True:
            opcode, payload = await read_frame(self._tcp.reader)
            if opcode == TEXT:
                self._take_text(payload)
            elif opcode == PING:
                self._tcp.send(frame(PONG, payload))
            elif opcode == CLOSE:
                self.ended = str(int.from_bytes(payload[:2], "big"))
                self._tcp.send(frame(CLOSE, payload[:2]))

    def _take_text(self, text: bytes) -> None:
        message = json.loads(text)
        if message["type"] == "ack":
            self._settle(message["id"], message["data"])
        elif message["type"] == "server:shutdown":
            self._take("server:shutdown", message)
        else:
            self._take(message["type"], message.get("data"))


def _event_of(packet: str) -> tuple[str, Any]:
    """Return name and data of a Socket.IO event packet, without its offset."""
    name, *data = json.loads(packet[2:])
    return name, data[0] if data else None


class SocketIOMember(WebSocketMember):
    door = "socket.io"
    path = "/socket.io/?EIO=4&transport=websocket"

    async def _open(self) -> None:
        self._tcp = await self._link()
        self._tcp.send(upgrade(self.path))
        status, _, body = await self._tcp.answer()
        assert status == 101, (status, body)
        assert (await read_frame(self._tcp.reader))[1].startswith(b"0{")
        self._send("40")
        assert (await read_frame(self._tcp.reader))[1].startswith(b"40{")

    async def _ask(self, number: int, value: Any) -> None:
        self._send(f"42{number}{json.dumps(['echo', value])}")

    def _take_text(self, text: bytes) -> None:
        packet = text.decode()
        if packet == "2":
            self._send("3")
        elif packet.startswith("43"):
            number, _, rest = packet[2:].partition("[")
            self._settle(int(number), json.loads("[" + rest)[0])
        elif packet.startswith("42"):
            self._take(*_event_of(packet))


class PollingMember(Member):
    door = "polling"
    path = "/socket.io/?EIO=4&transport=polling"

    async def _open(self) -> None:
        # One connection for the polls, as browsers have it, and one for what is sent.
        self._polls, self._posts = await self._link(), await self._link()
        # Two posts at once are an error of Engine.IO's.
        self._posting = asyncio.Lock()
        opening = await self._poll()
        self.path += "&sid=" + json.loads(opening[1:])["sid"]
        await self._post("40")
        assert (await self._poll()).startswith("40{")

    async def _ask(self, number: int, value: Any) -> None:
        await self._post(f"42{number}{json.dumps(['echo', value])}")

    async def _poll(self) -> str:
        self._polls.send(http(self.path))
        status, _, body = await self._polls.answer()
        assert status == 200, (status, body)
        return body.decode()

    async def _post(self, packet: str) -> None:
        async with self._posting:
            self._posts.send(http(self.path, method="POST", body=packet.encode()))
            status, _, body = await self._posts.answer()
            assert (status, body) == (200, b"ok"), (status, body)

    async def _read(self) -> None:
        while not self.ended:
            for packet in (await self._poll()).split("\x1e"):
                if packet == "2":
                    await self._post("3")
                elif packet == "1":
                    self.ended = "closed"
                elif packet.startswith("43"):
                    number, _, rest = packet[2:].partition("[")
                    self._settle(int(number), json.loads("[" + rest)[0])
                elif packet.startswith("42"):
                    self._take(*_event_of(packet))


class StreamMember(Member):
    door = "sse"

    async def _open(self) -> None:
        self._stream, self._posts = await self._link(), await self._link()
        # Answers of HTTP/1.1 come in the order of the requests.
        self._posting = asyncio.Lock()
        self._stream.send(http("/events"))
        status, headers, _ = await self._stream.answer()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        self._text = ""
        while not (blocks := await self._blocks()):
            pass
        fields = dict(_EVENT.findall(blocks[0]))
        assert fields["event"] == "welcome", blocks
        welcome = json.loads(fields["data"])
        self._target = f"/events/{welcome['sid']}?session={welcome['session']}"
        self._rest = blocks[1:]

    async def _ask(self, number: int, value: Any) -> None:
        body = json.dumps({"type": "echo", "id": number, "data": value}).encode()
        async with self._posting:
            self._posts.send(http(self._target, method="POST", body=body))
            status, _, answer = await self._posts.answer()
        assert status == 200, (status, answer)
        self._settle(number, json.loads(answer)["data"])

    async def _blocks(self) -> list[str]:
        """Return the events in the next chunk that ends one; set `ended` at the last chunk."""
        reader = self._stream.reader
        size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
        chunk = (await reader.readexactly(size + 2))[:-2]
        if not size:
            self.ended = "end"
        *blocks, self._text = (self._text + chunk.decode()).split("\n\n")
        return [block for block in blocks if "event: " in block]

    async def _read(self) -> None:
        blocks = self._rest
        while True:
            for block in blocks:
                fields = dict(_EVENT.findall(block))
                self._take(fields["event"], json.loads(fields["data"]))
            if self.ended:
                return
            blocks = await self._blocks()


MEMBERS: tuple[type[Member], ...] = (WebSocketMember, SocketIOMember, PollingMember, StreamMember)


def crowd(url: str, count: int) -> list[Member]:
    """Make that many clients, of every door in turn; none is connected yet."""
    return [MEMBERS[number % len(MEMBERS)](url) for number in range(count)]


async def connect(members: list[Member], *, at_once: int = 20) -> None:
    """Connect them, so many at a time."""
    for start in range(0, len(members), at_once):
        await asyncio.gather(*(member.connect() for member in members[start : start + at_once]))
