"""The Socket.IO door by hand: one transport each, and every packet as it is on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import secrets
from abc import abstractmethod
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.clients.base import WAIT, Client, Refused, raise_failed
from tests.clients.raw import Polling, engine_url


class EngineClient(Client):
    """What both transports share: packets of the main namespace, without binary."""

    tells_recovered = False

    def __init__(self) -> None:
        super().__init__()
        self._acks: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0
        self._replies: set[asyncio.Task[None]] = set()
        # None until connected.
        self._reader: asyncio.Task[None] | None = None
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def _open(self) -> None:
        self._joined = asyncio.get_running_loop().create_future()
        self.session = self.session or secrets.token_urlsafe(24)
        auth = {**self.auth, "session": self.session}
        if self.offset is not None:
            auth["offset"] = self.offset
        await self._dial()
        self._reader = asyncio.create_task(self._read())
        try:
            await self._send("40" + json.dumps(auth))
            await self._joined
        except BaseException:
            await self.cut()
            raise

    def _take(self, packet: str) -> None:
        if packet == "2":
            return
        if packet.startswith("40"):
            self.sid = json.loads(packet[2:])["sid"]
            self._joined.set_result(None)
        elif packet.startswith("44"):
            refusal = json.loads(packet[2:])
            self._joined.set_exception(Refused(refusal["message"], data=refusal.get("data")))
        elif packet.startswith("42"):
            at = packet.index("[")
            name, *args = json.loads(packet[at:])
            if at > 2:
                self._receive(name, args[0] if args else None, None)
                if name in self._answers:
                    answer = self._answers[name](args[0] if args else None)
                    self._replies.add(asyncio.create_task(self._reply(packet[2:at], answer)))
            elif name == "error":
                self._receive(name, args[0], None)
            else:
                self._receive_args(name, args)
        elif packet.startswith("43"):
            at = packet.index("[")
            (answer,) = json.loads(packet[at:])
            self._acks.pop(int(packet[2:at])).set_result(answer)
        elif packet.startswith("41"):
            self._end("io server disconnect")

    async def _reply(self, ident: str, answer: Any) -> None:
        if inspect.isawaitable(answer):
            answer = await answer
        await self._send(f"43{ident}{json.dumps([answer])}")

    def _end(self, farewell: str) -> None:
        self.farewell = self.farewell or farewell
        self.gone.set()
        if not self._joined.done():
            self._joined.set_exception(Refused(farewell))
            # Nobody asks where the connection was cut.
            self._joined.exception()

    async def emit(self, event: str, *data: Any) -> None:
        await self._send("42" + json.dumps([event, *data]))

    async def call(self, event: str, *data: Any) -> Any:
        ident = self._next_id
        self._next_id += 1
        answer = self._acks[ident] = asyncio.get_running_loop().create_future()
        await self._send(f"42{ident}{json.dumps([event, *data])}")
        async with asyncio.timeout(WAIT):
            return raise_failed(await answer)

    async def close(self) -> None:
        await self.cut()

    async def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None

    @abstractmethod
    async def _dial(self) -> None:
        """Open an Engine.IO session."""

    @abstractmethod
    async def _send(self, packet: str) -> None:
        """Send a packet."""

    @abstractmethod
    async def _read(self) -> None:
        """Take packets until the session ends."""


class EngineWebSocketClient(EngineClient):
    kind = "engine-websocket"

    def __init__(self) -> None:
        super().__init__()
        # None until connected.
        self._connection: ClientConnection | None = None

    async def _dial(self) -> None:
        self._connection = await connect(engine_url(self.url), proxy=None, compression=None)
        await self._connection.recv()

    async def _send(self, packet: str) -> None:
        assert self._connection is not None
        await self._connection.send(packet)

    async def _read(self) -> None:
        assert self._connection is not None
        with contextlib.suppress(ConnectionClosed):
            async for packet in self._connection:
                assert isinstance(packet, str)
                self._take(packet)
        self._end(f"{self._connection.close_code}")

    async def cut(self) -> None:
        if self._connection is not None:
            self._connection.transport.abort()
            await self._stop_reading()
        self.gone.set()


class EnginePollingClient(EngineClient):
    kind = "engine-polling"

    def __init__(self) -> None:
        super().__init__()
        # None until connected.
        self._http: httpx.AsyncClient | None = None
        self._polling: Polling | None = None

    async def _dial(self) -> None:
        self._http = httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False)
        self._polling = Polling(self._http, self.url)
        await self._polling.open()

    async def _send(self, packet: str) -> None:
        assert self._polling is not None
        response = await self._polling.post(packet)
        assert response.status_code == 200, response.text

    async def _read(self) -> None:
        assert self._polling is not None
        while True:
            response = await self._polling.poll()
            packets = response.text.split("\x1e")
            if response.status_code != 200 or "1" in packets:
                self._end("transport close")
                return
            for packet in packets:
                self._take(packet)

    async def cut(self) -> None:
        await self._stop_reading()
        if self._http is not None:
            # Between two polls nothing tells of it but a close.
            if self._polling is not None and not self.gone.is_set():
                await self._polling.close()
            await self._http.aclose()
            self._http = None
        self.gone.set()
