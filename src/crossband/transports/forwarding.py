"""HTTP requests that reached one node and are answered by another, as if they had reached that one.

Of a body that is not small, the answering node asks for one part after another, when it is ready
to read them: waiting requests cost it no more than its own do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from crossband.connection import OpenConnections
from crossband.errors import CloseCode, EventError
from crossband.hub import messages
from crossband.hub.core import Core
from crossband.hub.messages import Delivered, Head, HungUp, More, Part, Rest, Serve, Served
from crossband.hub.others import ask, ask_one
from crossband.transports.exchanges import PIECE, Exchanges
from crossband.transports.http import ClientGone, Request
from crossband.transports.lane import offer_of

if TYPE_CHECKING:
    from typing import Literal

    from starlette.types import Message

# Bytes of a body that go with the request itself: what a server holds of an unread one anyway.
SMALL: Final = 65_536
# Seconds that the rest of a large response is kept for the node that asked.
REST_TIME: Final = 10.0
# Seconds in which another node must say that it has passed an answer on.
DELIVERY_TIME: Final = 3.0
# Seconds that an answer may take. Polls and handlers have limits of their own, and a node that
# has gone or has forgotten the request is noticed: this never passes.
_EVER: Final = 86_400.0
# The server is stopping: answer a poll with what is there, even with nothing.
HURRY: Final = "crossband.hurry"


class Forwarding:
    """Has other nodes answer requests, and answers theirs."""

    def __init__(self, hub: Core, exchanges: Exchanges) -> None:
        self._hub = hub
        self._exchanges = exchanges
        self._bus = exchanges.bus
        # What answers the requests of others, by door.
        self.doors: Final[dict[str, Callable[[Request], Awaitable[None]]]] = {}
        # What is under way. A node that stops waits for it, as polls tell clients of the end.
        self._open = OpenConnections[Outgoing | Serving]()
        self.emptied: Final = self._open.emptied
        # Large responses of which other nodes fetch the rest, by node and number.
        self._rests: dict[tuple[str, int], bytes] = {}
        # Answers of which it is not known yet whether their clients have them, by node and number.
        self._passing: dict[tuple[str, int], asyncio.Future[bool]] = {}
        exchanges.on(Serve, self._serve)
        exchanges.on(Delivered, self._note_delivered)
        exchanges.on(More, self._send_more)
        exchanges.on(Rest, self._send_rest)
        exchanges.on(HungUp, self._hang_up)

    # For this node's clients.

    async def forward(
        self, request: Request, door: Literal["socketio", "events"], node: str
    ) -> Served | None:
        """Return a node's answer to a request; None if it has gone or does not answer.

        With status 0 it has not got the client, and another may be asked; otherwise the request
        is answered. Raises ClientGone.
        """
        if self._hub.node.broker.problem is not None:
            # It is this node that reaches nobody.
            return None
        outgoing = Outgoing(node, request)
        body, more = await outgoing.begin(self._hub.settings.limits.body_time)
        self._exchanges.begin(outgoing)
        self._open.add(outgoing)
        message = Serve(outgoing.number, door, head_of(request), body, more)
        # Over ASGI a body that is still being read says itself when its client has gone.
        watches = not more or offer_of(request.scope) is not None
        try:
            with request.while_connected() if watches else contextlib.nullcontext():
                served = await self._ask(outgoing, message)
            # A node that stops waits for this too, before it leaves the others.
            if served is not None and served.status:
                await _respond(request, served)
                if request.method == "GET":
                    self._exchanges.tell(Delivered(outgoing.number), node)
        except ClientGone:
            self._exchanges.tell(HungUp(outgoing.number), node)
            raise
        finally:
            self._open.discard(outgoing)
            self._exchanges.end(outgoing)
            outgoing.close()
        if served is not None and not served.status and not more:
            # For the next node that is asked.
            request.put_back(body)
        return served

    async def _ask(self, outgoing: Outgoing, message: Serve) -> Served | None:
        node = outgoing.node
        asking = asyncio.ensure_future(ask(self._bus, message, Served, to=[node], timeout=_EVER))
        try:
            either: list[asyncio.Future[Any]] = [asking, outgoing.over]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not asking.done():
                asking.cancel()
        if not asking.done() or not (given := asking.result()[0]):
            return None
        served = given[0][1]
        if not served.more:
            return served
        body, more = bytearray(served.body), True
        while more:
            part = await ask_one(self._bus, Rest(outgoing.number, len(body)), Part, node)
            if part is None:
                return None
            body += part.body
            more = part.more
        return Served(served.status, served.headers, bytes(body))

    async def _send_more(self, sender: str, message: More) -> bytes | None:
        outgoing = self._exchanges.begun(sender, message.number)
        if not isinstance(outgoing, Outgoing):
            return None
        return messages.encode(await outgoing.next_part())

    def close(self, code: CloseCode, reason: str) -> None:
        """Let polls that other nodes answer end soon: this node stops."""
        for end in self._open:
            if isinstance(end, Outgoing):
                self._exchanges.tell(HungUp(end.number, hurry=True), end.node)

    # For the clients of others.

    async def _serve(self, sender: str, message: Serve) -> bytes | None:
        serving = Serving(self._exchanges, sender, message)
        self._exchanges.take(serving)
        self._open.add(serving)
        hub = self._hub
        request = Request(
            serving.scope,
            serving.receive,
            serving.send,
            message.head.path,
            traffic=hub.traffic,
            max_rooms=hub.settings.limits.subscriptions,
        )
        place = (sender, message.number)
        loop = asyncio.get_running_loop()
        if request.method == "GET":
            # A balancer repeats it at another node if this one's is killed now.
            request.delivered = self._passing[place] = loop.create_future()
        try:
            await self.doors[message.door](request)
        except ClientGone:
            self._settle(place, delivered=False)
            return None
        finally:
            self._exchanges.end(serving)
            # When the answer is sent, which is as soon as this returns.
            loop.call_soon(self._open.discard, serving)
            loop.call_later(DELIVERY_TIME, self._settle, place, False)
        body = bytes(serving.body)
        more = len(body) > PIECE
        if more:
            self._rests[place] = body
            loop.call_later(REST_TIME, self._rests.pop, place)
        return messages.encode(Served(serving.status, serving.headers, body[:PIECE], more))

    def _send_rest(self, sender: str, message: Rest) -> bytes | None:
        body = self._rests.get((sender, message.number))
        if body is None:
            return None
        end = message.start + PIECE
        return messages.encode(Part(body[message.start : end], end < len(body)))

    def _note_delivered(self, sender: str, message: Delivered) -> None:
        self._settle((sender, message.number), delivered=True)

    def _settle(self, place: tuple[str, int], delivered: bool) -> None:
        passing = self._passing.pop(place, None)
        if passing is not None and not passing.done():
            passing.set_result(delivered)

    def _hang_up(self, sender: str, message: HungUp) -> None:
        serving = self._exchanges.taken(sender, message.number)
        if isinstance(serving, Serving):
            serving.tell(HURRY if message.hurry else "http.disconnect")


class Outgoing:
    """A request of this node's client that another node answers: this node's end."""

    __slots__ = (
        "_fault",
        "_read_ahead",
        "_reading",
        "_unread",
        "node",
        "number",
        "over",
        "received",
        "request",
        "sent",
    )

    def __init__(self, node: str, request: Request) -> None:
        self.node: str = node
        self.number: int = 0
        self.sent: int = 0
        self.received: int = 0
        self.request: Final = request
        # Resolved when there will be no answer.
        self.over: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        # How its body ended early, for the node that asks for it.
        self._fault: Part | None = None
        # What was read of it beyond the last part, as servers choose the size of what they give;
        # and whether there is more to read.
        self._read_ahead = bytearray()
        self._unread = True
        # Reads the next part. None while nobody asks for it.
        self._reading: asyncio.Task[Part] | None = None

    def lost(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    async def begin(self, time: float) -> tuple[bytes, bool]:
        """Return the body, and False, if it is small; else nothing, and True."""
        request = self.request
        if request.method in ("GET", "HEAD"):
            return b"", False
        length = request.headers.get("content-length", "")
        waits = request.headers.get("expect", "").lower() == "100-continue"
        if waits or not length.isdigit() or len(length) > 18 or int(length) > SMALL:
            return b"", True
        try:
            return await request.body(SMALL, time=time), False
        except ClientGone:
            self._fault = Part(b"", more=False, gone=True)
        except EventError:
            self._fault = Part(b"", more=False, late=True)
        return b"", True

    async def next_part(self) -> Part:
        """Read the next part of the body."""
        if self._fault is not None:
            return self._fault
        self._reading = asyncio.ensure_future(self._read())
        return await self._reading

    async def _read(self) -> Part:
        body = self._read_ahead
        while self._unread and len(body) < PIECE:
            message = await self.request.read()
            if message["type"] == "http.disconnect":
                self._fault = Part(b"", more=False, gone=True)
                return self._fault
            body += message.get("body", b"")
            self._unread = message.get("more_body", False)
        self._read_ahead = body[PIECE:]
        return Part(bytes(body[:PIECE]), self._unread or bool(self._read_ahead))

    def close(self) -> None:
        """Read nothing more: it is answered."""
        if self._reading is not None:
            self._reading.cancel()


class Serving:
    """A request that reached another node and is answered here: this node's end."""

    __slots__ = (
        "_bus",
        "_gone",
        "_more",
        "_news",
        "_start",
        "body",
        "headers",
        "node",
        "number",
        "received",
        "scope",
        "sent",
        "status",
    )

    def __init__(self, exchanges: Exchanges, node: str, message: Serve) -> None:
        self._bus = exchanges.bus
        self.node: str = node
        self.number: int = message.number
        self.sent: int = 0
        self.received: int = 0
        head = message.head
        self.scope: Final[dict[str, Any]] = {
            "type": "http",
            "http_version": head.http_version,
            "method": head.method,
            "path": head.path,
            "query_string": head.query,
            "headers": head.headers,
            "client": None if head.address is None else (head.address, 0),
            "scheme": head.scheme,
        }
        # What is here of the body. None once it was read.
        self._start: bytes | None = message.body
        self._more = message.more
        self._gone = False
        # Types of messages about the client.
        self._news: asyncio.Queue[str] = asyncio.Queue()
        # The answer; 0 while there is none.
        self.status: int = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: Final = bytearray()

    def lost(self) -> None:
        self.tell("http.disconnect")

    def tell(self, kind: str) -> None:
        """Pass a message about the client to who reads the request."""
        self._news.put_nowait(kind)

    async def receive(self) -> Message:
        """Return the next ASGI message."""
        start, self._start = self._start, None
        if start is not None and (start or not self._more):
            return {"type": "http.request", "body": start, "more_body": self._more}
        if self._more:
            given, _ = await ask(self._bus, More(self.number), Part, to=[self.node], timeout=_EVER)
            part = given[0][1] if given else Part(b"", more=False, gone=True)
            self._more = part.more
            if part.late:
                raise EventError("The request's body took too long", code="request_timeout")
            if not part.gone:
                return {"type": "http.request", "body": part.body, "more_body": part.more}
            self._gone = True
        kind = "http.disconnect" if self._gone else await self._news.get()
        self._gone = kind == "http.disconnect"
        return {"type": kind}

    async def send(self, message: Message) -> None:
        """Take a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(name), bytes(value)) for name, value in message["headers"]]
        else:
            self.body.extend(message.get("body", b""))


def head_of(request: Request) -> Head:
    """Return a request's head, for another node."""
    scope = request.scope
    return Head(
        request.method,
        request.path,
        scope.get("query_string", b""),
        [(bytes(name), bytes(value)) for name, value in scope["headers"]],
        request.address,
        scope.get("scheme", "http"),
        scope.get("http_version", "1.1"),
    )


async def _respond(request: Request, served: Served) -> None:
    """Answer a request as another node has."""
    await request.send(
        {"type": "http.response.start", "status": served.status, "headers": served.headers}
    )
    await request.send({"type": "http.response.body", "body": served.body})
