"""The raw WebSocket door, by the `websockets` library."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.clients.base import WAIT, Client, EventFailed, Refused, envelope


def door_url(
    url: str,
    path: str,
    namespace: str,
    *,
    query: dict[str, Any],
    rooms: tuple[str, ...] = (),
    session: str | None = None,
    offset: str | None = None,
) -> str:
    """Return the address of a door that takes everything in its query."""
    pairs = [*query.items(), *(("room", room) for room in rooms)]
    if session is not None:
        pairs.append(("session", session))
    if offset is not None:
        pairs.append(("lastEventId", offset))
    return f"{url}{path}{namespace.rstrip('/')}" + (f"?{urlencode(pairs)}" if pairs else "")


class WebSocketClient(Client):
    kind = "websocket"

    def __init__(self, *, compressed: bool = True) -> None:
        super().__init__()
        # What `websockets` offers by default; "deflate" costs both ends half of their time.
        self._compression = "deflate" if compressed else None
        # None until connected.
        self.connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._acks: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0
        self._deserted: list[ClientConnection] = []
        self._replies: set[asyncio.Task[None]] = set()

    async def _open(self) -> None:
        url = door_url(
            self.url.replace("http", "ws", 1),
            "/ws",
            self.namespace,
            query=self.auth,
            rooms=self.rooms,
            session=self.session,
            offset=self.offset,
        )
        try:
            connection = await connect(url, proxy=None, compression=self._compression)
        except InvalidStatus as refusal:
            body = json.loads(refusal.response.body or b"{}")
            raise Refused(
                body["error"], data=body.get("data"), status=refusal.response.status_code
            ) from None
        try:
            welcome = json.loads(await connection.recv())
        except BaseException:
            # Given up in the midst of it.
            connection.transport.abort()
            raise
        assert welcome["type"] == "welcome", welcome
        self.sid, self.session = welcome["sid"], welcome["session"]
        self.recovered = welcome["recovered"]
        # None when a gap follows, which has it: cut in between, this client asks once more.
        self.offset = welcome["offset"] or self.offset
        self.connection = connection
        self._reader = asyncio.create_task(self._read(connection))

    async def _read(self, connection: ClientConnection) -> None:
        try:
            async for frame in connection:
                message = json.loads(frame)
                await self._on_message(connection, message)
        except ConnectionClosed:
            pass
        self.farewell = f"{connection.close_code} {connection.close_reason}"
        self.gone.set()

    async def _on_message(self, connection: ClientConnection, message: dict[str, Any]) -> None:
        name, ident = message["type"], message.get("id")
        if name == "ack":
            self._acks.pop(message["id"]).set_result(message.get("data"))
        elif name == "error":
            error = {key: message[key] for key in message if key not in ("type", "id")}
            if ident is None:
                self._receive("error", error, None)
            else:
                self._acks.pop(ident).set_exception(EventFailed(error))
        elif name in ("gap", "server:shutdown"):
            self._receive(name, {key: message[key] for key in message if key != "type"}, None)
        else:
            self._receive(name, message.get("data"), message.get("offset"))
            if ident is not None and name in self._answers:
                answer = self._answers[name](message.get("data"))
                if inspect.isawaitable(answer):
                    # Not here, where what it waits for is read.
                    self._replies.add(asyncio.create_task(self._reply(connection, ident, answer)))
                    return
                await connection.send(json.dumps({"type": "ack", "id": ident, "data": answer}))

    async def _reply(
        self, connection: ClientConnection, ident: int, answer: Awaitable[Any]
    ) -> None:
        data = await answer
        await connection.send(json.dumps({"type": "ack", "id": ident, "data": data}))

    async def emit(self, event: str, *data: Any) -> None:
        assert self.connection is not None
        await self.connection.send(json.dumps(envelope(event, data)))

    async def call(self, event: str, *data: Any) -> Any:
        assert self.connection is not None
        ident = self._next_id
        self._next_id += 1
        future = self._acks[ident] = asyncio.get_running_loop().create_future()
        await self.connection.send(json.dumps({**envelope(event, data), "id": ident}))
        async with asyncio.timeout(WAIT):
            return await future

    async def cut(self) -> None:
        assert self.connection is not None
        assert self._reader is not None
        self.connection.transport.abort()
        await self._reader

    async def desert(self) -> None:
        """Read no more, and leave the connection open: to the server, the client is there."""
        assert self.connection is not None
        assert self._reader is not None
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._deserted.append(self.connection)
        self.gone.set()

    async def close(self) -> None:
        for connection in self._deserted:
            connection.transport.abort()
        if self.connection is not None:
            await self.connection.close()
        if self._reader is not None and not self._reader.cancelled():
            await self._reader
