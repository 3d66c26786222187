"""HTTP long-polling: the waiting GET, and a queue of POSTs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from crossband.codecs import Wire
from crossband.errors import CloseCode, EventError, ProtocolError
from crossband.protocol import engineio
from crossband.protocol.engineio import PacketType
from crossband.transports.engineio.responses import respond_packets, respond_problem
from crossband.transports.engineio.session import EngineConnection, State
from crossband.transports.forwarding import HURRY
from crossband.transports.http import ClientGone, HeaderList, Request

# POSTs of one session that may wait for those before them. Their bodies are not read meanwhile;
# the server holds some 64 KiB of each. Official clients send one at a time.
WAITING_POSTS: Final = 64
# Packets of one body that are handled in one tick of the event loop.
TURN: Final = 64
# Packets that python-engineio reads from one polling response; it gives up on more.
PYTHON_PACKETS: Final = 16


class Polling:
    """Carries a session over its client's HTTP requests.

    Each call gets the session as an argument: a reference would make a cycle.
    """

    __slots__ = ("_get", "_last", "_line", "_posts")

    def __init__(self) -> None:
        # None unless a GET waits; resolved when there is something to answer.
        self._get: asyncio.Future[None] | None = None
        # Whether the client has the last answer, if that went through another node.
        self._last: asyncio.Future[bool] | None = None
        # Lets POSTs through one by one. None before the first.
        self._line: asyncio.Lock | None = None
        # POSTs that are not answered yet.
        self._posts = 0

    @property
    def busy(self) -> bool:
        """Whether no GET waits for what is queued."""
        return self._get is None

    @property
    def posting(self) -> bool:
        """Whether something the client posted is still to be handled."""
        return self._posts > 0

    def wake(self) -> None:
        """Answer the GET that waits."""
        if self._get is not None and not self._get.done():
            self._get.set_result(None)

    async def poll(self, connection: EngineConnection, request: Request, cors: HeaderList) -> None:
        """Answer a GET with what is queued, as soon as something is."""
        if self._get is not None:
            # Two polls at once: one of them is not the client's.
            connection.end("transport error")
            await respond_problem(request, "request", cors, reason="two polls at once")
            return
        if not await self._has_last():
            # A balancer repeats a poll at the next node: what was answered before is lost.
            connection.end("transport error")
            await respond_problem(request, "sid", cors)
            return
        if connection.behind:
            connection.drop()
        if not connection.queue and connection.state is State.OPEN:
            loop = asyncio.get_running_loop()
            self._get = loop.create_future()
            gone = loop.create_task(_watch(connection, request, self._get))
            try:
                await self._get
            finally:
                self._get = None
                gone.cancel()
        # If upgraded meanwhile, what is queued belongs to the WebSocket.
        upgraded = connection.polling is not self
        content = engineio.NOOP if upgraded else _take_payload(connection)
        self._last = request.delivered
        await respond_packets(request, content, cors)

    async def _has_last(self) -> bool:
        """Return whether the client has the last answer, as far as anybody knows."""
        if self._last is None:
            return True
        # Two polls at once are refused also while this one waits.
        self._get = asyncio.get_running_loop().create_future()
        try:
            return await asyncio.shield(self._last)
        finally:
            self._get = self._last = None

    async def post(self, connection: EngineConnection, request: Request, cors: HeaderList) -> None:
        """Handle a POST's packets, after those of earlier POSTs.

        It is answered when there is room for more; until then no other body is read, just as
        a WebSocket would not be.
        """
        if self._posts > WAITING_POSTS:
            connection.end("transport error")
            await respond_problem(request, "request", cors, reason="too many POSTs at once")
            return
        if self._line is None:
            self._line = asyncio.Lock()
        self._posts += 1
        try:
            async with self._line:
                await _take_post(connection, request, cors)
        finally:
            self._posts -= 1


async def _watch(connection: EngineConnection, request: Request, get: asyncio.Future[None]) -> None:
    with contextlib.suppress(Exception):
        while (kind := (await request.read())["type"]) != "http.disconnect":
            if kind == HURRY and not get.done():
                get.set_result(None)
    if not get.done():
        connection.end("transport error")


def _take_payload(connection: EngineConnection) -> str:
    queue = connection.queue
    count = _first_few(queue) if _reads_few(connection) else len(queue)
    packets = [wire.polling for wire in connection.take_first(count)]
    if connection.queue:
        return engineio.encode_payload(packets)
    # A close is sent alone: the official client holds back what comes with it until it has
    # reconnected.
    if connection.closed and not (packets and connection.lingers):
        packets.append(engineio.NOOP if connection.client_closed else engineio.CLOSE)
        connection.told()
    return engineio.encode_payload(packets) if packets else engineio.NOOP


def _reads_few(connection: EngineConnection) -> bool:
    agent = connection.handshake.headers.get("user-agent", "")
    return agent.startswith(("Python/", "python-requests/"))


def _first_few(queue: list[Wire]) -> int:
    """Return how many messages of the queue python-engineio reads at once."""
    count = 0
    for number, wire in enumerate(queue):
        count += len(wire.messages)
        if number and count > PYTHON_PACKETS:
            return number
    return len(queue)


async def _take_post(connection: EngineConnection, request: Request, cors: HeaderList) -> None:
    limits = connection.limits
    try:
        body = await request.body(limits.max_http_buffer_size, time=limits.body_time)
        if connection.closed:
            await respond_problem(request, "sid", cors)
            return
        await _take_body(connection, body.decode(), limits.packets_per_payload)
    except ClientGone:
        # Part of what the client sent is lost.
        connection.end("transport error")
        return
    except EventError as error:
        connection.end("parse error", CloseCode.MESSAGE_TOO_BIG)
        await request.refuse(error, cors)
        return
    except (ProtocolError, UnicodeDecodeError) as error:
        connection.end("parse error", CloseCode.PROTOCOL_ERROR)
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        await respond_problem(request, "request", cors, reason=reason)
        return
    await request.respond(200, b"ok", content_type="text/html", headers=cors)


async def _take_body(connection: EngineConnection, body: str, max_packets: int) -> None:
    """Handle a body's packets, no faster than rates allow and handlers keep up."""
    packets = engineio.decode_payload(body, max_packets=max_packets)
    for number, packet in enumerate(packets, 1):
        if packet.type is PacketType.MESSAGE:
            connection.message_received(packet.data)
        elif packet.type is PacketType.NOOP:
            raise ProtocolError("unexpected NOOP packet (Engine.IO 4)")
        else:
            connection.control_received(packet)
        if connection.closed:
            return
        if connection.held:
            await connection.rested()
            await connection.wait_for_space()
        elif number % TURN == 0:
            await asyncio.sleep(0)
