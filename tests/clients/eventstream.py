"""The SSE door and its POST back-channel, by httpx and httpx-sse."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import socket
import struct
from typing import Any

import httpx
from httpx_sse import EventSource

from tests.clients.base import WAIT, Client, EventFailed, Refused, envelope
from tests.clients.websocket import door_url

# With a zero linger, close() sends RST and drops what was not yet sent.
RESET = struct.pack("ii", 1, 0)


class EventStreamClient(Client):
    kind = "sse"

    def __init__(self) -> None:
        super().__init__()
        # None until connected.
        self._http: httpx.AsyncClient | None = None
        self._response: httpx.Response | None = None
        self._reader: asyncio.Task[None] | None = None
        self._replies: set[asyncio.Task[None]] = set()
        self._welcomed: asyncio.Future[None] | None = None

    async def _open(self) -> None:
        if self._http is None:
            # No TLS here: loading the certificates costs 30 ms a client.
            self._http = httpx.AsyncClient(
                timeout=httpx.Timeout(WAIT, read=None), trust_env=False, verify=False
            )
        # A native EventSource sends its cursor in the header.
        # JSON too, as a program that wants a refusal's status.
        headers = {"Accept": "text/event-stream, application/json"}
        if self.offset is not None:
            headers["Last-Event-ID"] = self.offset
        url = door_url(
            self.url,
            "/events",
            self.namespace,
            query=self.auth,
            rooms=self.rooms,
            session=self.session,
        )
        response = await self._http.send(
            self._http.build_request("GET", url, headers=headers), stream=True
        )
        if response.status_code != 200:
            body = json.loads(await response.aread())
            raise Refused(body["error"], data=body.get("data"), status=response.status_code)
        self._response = response
        self._welcomed = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(response))
        try:
            await self._welcomed
        except BaseException:
            # Given up in the midst of it.
            await self._stop_reading()
            raise

    async def _read(self, response: httpx.Response) -> None:
        try:
            async with contextlib.aclosing(EventSource(response).aiter_sse()) as events:
                async for event in events:
                    if event.data or event.event != "message":
                        self._on_event(event.event, event.data, event.id)
            self.farewell = "end of stream"
        except httpx.HTTPError as error:
            self.farewell = repr(error)
        finally:
            self.gone.set()
            # A server that stops says so in a stream that ends.
            if self._welcomed is not None and not self._welcomed.done():
                self._welcomed.set_exception(Refused(self.farewell))
            await response.aclose()

    def _on_event(self, name: str, text: str, last_id: str) -> None:
        # The last id persists over events that carry none; both read the same here.
        data: Any
        try:
            data = json.loads(text)
        except ValueError:
            # In a plain namespace a text is itself.
            data = text
        if name == "welcome":
            self.sid, self.session = data["sid"], data["session"]
            self.recovered = data["recovered"]
            # None when a gap follows, which has it: cut in between, this client asks once more.
            self.offset = data["offset"] or self.offset
            assert self._welcomed is not None
            self._welcomed.set_result(None)
        elif name == "ack:request":
            self._receive(data["type"], data["data"], None)
            if data["type"] in self._answers:
                answer = self._answers[data["type"]](data["data"])
                reply = asyncio.create_task(self._reply(data["id"], answer))
                self._replies.add(reply)
                reply.add_done_callback(self._replies.discard)
        elif name in ("error", "gap"):
            self._receive(name, data, None)
        else:
            self._receive(name, data, last_id or None)

    async def _reply(self, ident: int, answer: Any) -> None:
        if inspect.isawaitable(answer):
            answer = await answer
        response = await self.post({"type": "ack", "id": ident, "data": answer})
        assert response.status_code == 200, response.text

    async def post(self, message: Any) -> httpx.Response:
        """Send one envelope by the back-channel and return the raw answer."""
        return await self.post_body(json.dumps(message).encode())

    async def post_body(self, body: bytes) -> httpx.Response:
        """Send these bytes by the back-channel, as the client that was welcomed."""
        assert self._http is not None
        assert self.session is not None
        return await self._http.post(
            f"{self.url}/events/{self.sid}",
            content=body,
            headers={"Content-Type": "application/json", "X-Crossband-Session": self.session},
            timeout=WAIT,
        )

    async def emit(self, event: str, *data: Any) -> None:
        response = await self.post(envelope(event, data))
        if response.status_code != 200:
            body = response.json()
            self._receive("error", {key: body[key] for key in body if key != "type"}, None)

    async def call(self, event: str, *data: Any) -> Any:
        response = await self.post({**envelope(event, data), "id": 7})
        body = response.json()
        if response.status_code != 200:
            assert body["type"] == "error", body
            raise EventFailed({key: body[key] for key in body if key not in ("type", "id")})
        assert body["type"] == "ack", body
        assert body["id"] == 7, body
        return body.get("data")

    async def cut(self) -> None:
        assert self._response is not None
        if self._reader is None or self._reader.done():
            # It was ended already.
            return
        stream = self._response.extensions["network_stream"]
        connection: socket.socket = stream.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await self._stop_reading()

    async def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._reader = None

    async def close(self) -> None:
        await self._stop_reading()
        for reply in tuple(self._replies):
            await reply
        if self._http is not None:
            await self._http.aclose()
            self._http = None
