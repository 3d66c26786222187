"""Bytes without a client library: Engine.IO sessions by hand, WebSocket frames by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.clients.base import WAIT

SEPARATOR = "\x1e"


class Polling:
    """One Engine.IO session over HTTP long-polling; packets are text, as on the wire."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = f"{url}/socket.io/"
        self.params = {"EIO": "4", "transport": "polling"}
        # Sent with every request.
        self.headers: dict[str, str] = {}
        # Received and not yet asked for.
        self._packets: list[str] = []

    def move(self, url: str) -> None:
        """Send what follows to another node."""
        self._url = f"{url}/socket.io/"

    async def open(self) -> dict[str, Any]:
        """Open the session and return the server's handshake."""
        response = await self.poll()
        assert response.status_code == 200, response.text
        assert response.text.startswith("0"), response.text
        handshake = json.loads(response.text[1:])
        assert isinstance(handshake, dict)
        return handshake

    async def poll(self) -> httpx.Response:
        response = await self._http.get(self._url, params=self.params, headers=self.headers)
        if "sid" not in self.params and response.text.startswith("0"):
            self.params["sid"] = json.loads(response.text[1:])["sid"]
        return response

    async def pending_poll(self) -> asyncio.Task[httpx.Response]:
        """Start a poll and return it once its request is on the wire."""
        sent = asyncio.Event()

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "http11.send_request_body.complete":
                sent.set()

        poll = asyncio.create_task(
            self._http.get(self._url, params=self.params, extensions={"trace": trace})
        )
        async with asyncio.timeout(WAIT):
            await sent.wait()
        return poll

    async def post(self, *packets: str) -> httpx.Response:
        return await self.post_body(SEPARATOR.join(packets).encode())

    async def post_body(self, body: bytes) -> httpx.Response:
        return await self._http.post(
            self._url,
            params=self.params,
            content=body,
            headers={**self.headers, "Content-Type": "text/plain;charset=UTF-8"},
        )

    async def close(self) -> None:
        """End the session by a close packet, if it was opened."""
        if "sid" in self.params:
            await self.post("1")

    async def packet(self) -> str:
        """Return the next packet, polling as often as it takes."""
        async with asyncio.timeout(WAIT):
            while not self._packets:
                response = await self.poll()
                assert response.status_code == 200, response.text
                self._packets = response.text.split(SEPARATOR)
        return self._packets.pop(0)

    async def connect(self, auth: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Open the session, join the main namespace, return its answer."""
        await self.open()
        body = "40" if auth is None else "40" + json.dumps(auth)
        assert (await self.post(body)).text == "ok"
        return answer_of(await self.packet())


def answer_of(packet: str) -> dict[str, Any]:
    """Return the object in the answer to a CONNECT to the main namespace."""
    assert packet.startswith("40{"), packet
    answer = json.loads(packet[2:])
    assert isinstance(answer, dict)
    return answer


def engine_url(url: str, **params: str) -> str:
    """Return the address of the Socket.IO door for a WebSocket."""
    query = {"EIO": "4", "transport": "websocket", **params}
    return str(httpx.URL(url.replace("http", "ws", 1) + "/socket.io/", params=query))


async def engine_websocket(
    url: str, auth: Mapping[str, Any] | None = None
) -> tuple[ClientConnection, dict[str, Any]]:
    """Open an Engine.IO WebSocket, join the main namespace, return its answer."""
    connection = await connect(engine_url(url), proxy=None)
    opening = await text(connection)
    assert opening.startswith("0{"), opening
    await connection.send("40" if auth is None else "40" + json.dumps(auth))
    return connection, answer_of(await text(connection))


async def text(connection: ClientConnection) -> str:
    """Return the next text message."""
    async with asyncio.timeout(WAIT):
        message = await connection.recv()
    assert isinstance(message, str), message
    return message


async def close_code(connection: ClientConnection) -> int | None:
    """Wait until the server has closed, reading on, and return its code."""
    async with asyncio.timeout(WAIT):
        await connection.wait_closed()
    return connection.close_code


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """Build one client frame (RFC 6455 §5.2); `length` announces another size than it has."""
    size = len(payload) if length is None else length
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    flag = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, flag | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, flag | 126, size)
    else:
        head = struct.pack("!BBQ", first, flag | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    # As numbers: byte by byte, a megabyte took a third of a second.
    masked_payload = int.from_bytes(payload) ^ int.from_bytes(key)
    return head + mask + masked_payload.to_bytes(len(payload))


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return a server's next frame, its opcode and payload; raise EOFError at the end."""
    first, second = await reader.readexactly(2)
    assert not second & 0x80, "a server frame is not masked (RFC 6455 §5.1)"
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await reader.readexactly(8))
    return first & 0x0F, await reader.readexactly(size)


@dataclass(slots=True)
class RawWebSocket:
    """A WebSocket whose frames are written by hand; answers no ping by itself."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None,
    ) -> RawWebSocket:
        """Connect and send the opening handshake; `status` holds its outcome."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        if streams is None:
            streams = await asyncio.open_connection(parts.hostname, parts.port)
        reader, writer = streams
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in headers),
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(WAIT):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.split(": ", 1) for line in head[1:] if line)
        found = {name.lower(): value for name, value in fields}
        return cls(reader, writer, int(head[0].split(" ")[1]), found)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self) -> tuple[int, bytes]:
        """Return the next frame's opcode and payload; raise EOFError at the end."""
        async with asyncio.timeout(WAIT):
            return await read_frame(self.reader)

    async def text(self) -> Any:
        """Return the next text frame, as the JSON it holds."""
        opcode, payload = await self.receive()
        assert opcode == TEXT, (opcode, payload)
        return json.loads(payload)

    async def close_code(self) -> int | None:
        """Read up to the server's close frame; return its code, None when there is none."""
        try:
            while True:
                opcode, payload = await self.receive()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big") if payload else 1005
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return None

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionResetError:
            return


@dataclass(slots=True)
class Tcp:
    """One TCP connection, and HTTP as the bytes it is."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str, *, address: str | None = None) -> Tcp:
        """Connect, from one of this machine's addresses if that is given."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        local = None if address is None else (address, 0)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, local_addr=local))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read a response: its status, headers and body; only the headers of a stream."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        body = b""
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, body

    async def ended(self) -> None:
        """Wait until the server has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def dialled(url: str) -> AsyncIterator[Tcp]:
    """Hold a TCP connection to a server."""
    tcp = await Tcp.open(url)
    try:
        yield tcp
    finally:
        await tcp.close()


def http(
    target: str | bytes,
    *lines: str | bytes,
    method: str = "GET",
    body: bytes | None = None,
) -> bytes:
    """Build a request."""
    head = [method.encode() + b" " + _bytes(target) + b" HTTP/1.1", b"Host: crossband.test"]
    head += map(_bytes, lines)
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + (body or b"")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def upgrade(target: str | bytes, *lines: str | bytes) -> bytes:
    """Build a WebSocket handshake."""
    return http(
        target,
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *lines,
    )
