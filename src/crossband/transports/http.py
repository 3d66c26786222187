"""ASGI requests and responses as the doors need them: bounded bodies, origins, JSON errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from crossband.auth import BEARER_PROTOCOL, SUBPROTOCOL
from crossband.errors import (
    CloseCode,
    ConnectionRefused,
    EncodeError,
    EventError,
    MessageTooLarge,
)
from crossband.handshake import Handshake
from crossband.hub.traffic import Traffic
from crossband.protocol.payload import to_json
from crossband.transports.lane import Offer, offer_of

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

logger: Final = logging.getLogger("crossband")

HeaderList = list[tuple[bytes, bytes]]

# RFC 9110 §11.6.1: a 401 says what would be accepted.
_CHALLENGE = (b"www-authenticate", b"Bearer")
# Fields in a query string besides the rooms; no legitimate client sends more.
MAX_QUERY_FIELDS = 64
# Bytes of messages that are kept while a client is only watched: a server says that it has gone
# after what it sent.
_MAX_EARLY = 65_536
# The form of a WebSocket subprotocol (RFC 6455 §4.1, RFC 9110 §5.6.2).
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class ClientGone(Exception):
    """The client closed before its request was complete or answered."""


class WhileConnected:
    """The body of a `with` block, which is cancelled when its client hangs up."""

    __slots__ = ("_gone", "_offer", "_request", "_task", "_watcher")

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._request = request
        self._task = task
        # Reports the client's end. None if messages are watched instead.
        self._offer: Offer | None = offer_of(request.scope)
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        if self._offer is not None:
            self._offer.on_gone(self._leave)
        else:
            loop = asyncio.get_running_loop()
            self._watcher = loop.create_task(self._request.watch(self._leave))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._offer is not None:
            self._offer.on_gone(None)
        elif self._watcher is not None:
            self._watcher.cancel()
        if not self._gone or (kind is not None and kind is not asyncio.CancelledError):
            return
        # Without an error whoever was cancelled has gone on.
        if not self._task.uncancel() or error is None:
            raise ClientGone from None

    def _leave(self) -> None:
        self._gone = True
        self._task.cancel()


class Request:
    """One HTTP request or WebSocket handshake, and what is known about its client."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: str,
        *,
        traffic: Traffic,
        max_rooms: int = 64,
    ) -> None:
        self.scope = scope
        # As they were given: a lane checks where they come from. Messages come from `read`.
        self.receive = receive
        self.send = send
        # Messages that came while the client was only being watched.
        self._early: deque[Message] = deque()
        # Below the mount point.
        self.path = path
        # Notes what is refused.
        self._traffic = traffic
        # Set for a page whose origin is allowed by "*" alone: its cookies do not count.
        self._any_origin = False
        # Most `room` fields of the query, plus one, so that too many can be reported.
        self._max_rooms = max_rooms
        # Whether its answer has reached the client, once that is known. None for a client of this
        # node, whose connection ends where it has not.
        self.delivered: asyncio.Future[bool] | None = None
        # The "websocket.connect" message was received.
        self._connect_seen = False

    @property
    def method(self) -> str:
        return str(self.scope.get("method", "GET"))

    @cached_property
    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        # Joined once: other servers let a client send 100,000 lines of one name.
        lists: dict[str, list[str]] = {}
        for name, value in self.scope["headers"]:
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1")
            if key in headers:
                lists.setdefault(key, [headers[key]]).append(text)
            else:
                headers[key] = text
        for key, values in lists.items():
            headers[key] = ", ".join(values)
        return headers

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query's fields. Raises EventError if it cannot be read."""
        try:
            fields = parse_qs(
                self.scope.get("query_string", b"").decode("ascii"),
                keep_blank_values=True,
                max_num_fields=MAX_QUERY_FIELDS + self._max_rooms + 1,
                errors="strict",
            )
            if sum(map(len, fields.values())) - len(fields.get("room", ())) > MAX_QUERY_FIELDS:
                raise ValueError("too many fields")
        except ValueError:
            raise EventError("Invalid query string", code="invalid_request") from None
        return fields

    def first(self, name: str) -> str | None:
        """Return a query field's first value."""
        values = self.query.get(name)
        return values[0] if values else None

    @property
    def address(self) -> str | None:
        """The client's address; None over a unix socket."""
        client = self.scope.get("client")
        return client[0] if client else None

    def handshake(self, transport: str) -> Handshake:
        headers = self.headers
        if self._any_origin and "cookie" in headers:
            # Browsers send them with WebSockets to any site, whatever CORS says.
            headers = {name: value for name, value in headers.items() if name != "cookie"}
        return Handshake(
            transport=transport,
            headers=headers,
            query=self.query,
            address=self.address,
            time=time.time(),
            path=self.path,
            secure=self.scope.get("scheme") in ("https", "wss"),
        )

    async def read(self) -> Message:
        """Return the next ASGI message."""
        return self._early.popleft() if self._early else await self.receive()

    def put_back(self, body: bytes) -> None:
        """Let the whole body be read again."""
        self._early.append({"type": "http.request", "body": body, "more_body": False})

    def while_connected(self) -> WhileConnected:
        """Cancel the body of this block when the client hangs up. Raises ClientGone."""
        return WhileConnected(self)

    async def watch(self, leave: Callable[[], None]) -> None:
        """Call back when the client has gone; keep what it sent before for `read`."""
        if self.headers.get("expect", "").lower() == "100-continue":
            # Asking for the body would tell the client to send it.
            return
        with contextlib.suppress(Exception):
            if self.scope["type"] == "websocket":
                await self._see_connect()
            kept = 0
            while kept < _MAX_EARLY:
                message = await self.receive()
                if message["type"].endswith(".disconnect"):
                    leave()
                    return
                self._early.append(message)
                content = message.get("body") or message.get("text") or message.get("bytes")
                kept += len(content or b"")

    async def body(self, limit: int, *, time: float) -> bytes:
        """Read the body; refuse it once it is over `limit` bytes or takes `time` seconds.

        Raises MessageTooLarge, ClientGone, EventError.
        """
        length = self.headers.get("content-length", "")
        # Longer than any allowed number is too large, and not worth int().
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise MessageTooLarge(limit)
        try:
            async with asyncio.timeout(time):
                return await self._read_body(limit)
        except TimeoutError:
            raise EventError("The request's body took too long", code="request_timeout") from None

    async def _read_body(self, limit: int) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self.read()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise MessageTooLarge(limit)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def respond(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send a whole response."""
        lines: HeaderList = [*headers]
        if status != 204:
            lines.append((b"content-type", content_type.encode("latin-1")))
            lines.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": lines})
        if self.method == "HEAD":
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def respond_json(
        self, status: int, value: Any, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        await self.respond(status, msgspec.json.encode(value), headers=headers)

    @property
    def subprotocol(self) -> str | None:
        """The WebSocket subprotocol to answer with: ours, else the first one offered.

        Browsers give up if the answer has none. Node's `ws` takes the first, too. Never the one
        that contains a token: answers are logged, also by proxies.
        """
        offered = self.scope.get("subprotocols") or ()
        if SUBPROTOCOL in offered:
            return SUBPROTOCOL
        for name in offered:
            if _TOKEN.fullmatch(name) and not name.startswith(BEARER_PROTOCOL):
                return str(name)
        return None

    async def refuse(self, error: EventError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer with an error: its status, and JSON that says what is wrong."""
        if error.status == 401:
            headers = [*headers, _CHALLENGE]
        if wait := retry_after(error):
            # Whole seconds (RFC 9110 §10.2.3).
            headers = [*headers, (b"retry-after", b"%d" % math.ceil(wait))]
        # The rest of the body is not read, as its length is unknown.
        if error.status in (408, 413) and self.scope.get("http_version", "1.1").startswith("1"):
            headers = [*headers, (b"connection", b"close")]
        await self.respond(error.status, _body(error), headers=headers)

    async def accept(self) -> None:
        """Accept a WebSocket handshake, over ASGI."""
        await self._see_connect()
        await self.send({"type": "websocket.accept", "subprotocol": self.subprotocol})

    async def _see_connect(self) -> None:
        if not self._connect_seen:
            await self.receive()
            self._connect_seen = True

    async def deny(self, error: EventError) -> None:
        """Refuse a WebSocket handshake over HTTP if the server can, else close it."""
        await self._see_connect()
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self.send({"type": "websocket.close", "code": 4000 + error.status})
            return
        body = _body(error)
        await self.send(
            {
                "type": "websocket.http.response.start",
                "status": error.status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()),
                    *([_CHALLENGE] if error.status == 401 else ()),
                ],
            }
        )
        await self.send({"type": "websocket.http.response.body", "body": body})

    async def turn_away(self, error: EventError, code: CloseCode, *, tell: bool = True) -> None:
        """Accept a WebSocket only to say why it is refused, and close it.

        A page cannot read an HTTP answer to a handshake, but it can read this. Without `tell`
        only the close frame says it, because the protocol has no message for it.
        """
        await self.accept()
        if tell:
            await self.send({"type": "websocket.send", "text": _body(error).decode()})
        await self.send({"type": "websocket.close", "code": code, "reason": error.message})

    def cors(self, allowed: tuple[str, ...]) -> HeaderList:
        """Return the CORS headers of the answer.

        Raises ConnectionRefused for a browser origin that is neither ours nor in `allowed`. A
        request without Origin is not a browser's cross-site request, and passes.
        """
        origin = self.headers.get("origin")
        if origin is None:
            # A cache must not give this answer to a page of another origin.
            return [(b"vary", b"Origin")] if allowed and "*" not in allowed else []
        if origin in allowed and origin != "*":
            return [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-allow-credentials", b"true"),
                (b"vary", b"Origin"),
            ]
        if self._same_origin(origin):
            return [(b"vary", b"Origin")]
        if "*" in allowed:
            self._any_origin = True
            return [(b"access-control-allow-origin", b"*")]
        self._traffic.refused_origin(origin[:128], self.address)
        raise ConnectionRefused(
            f"Origin not allowed: {origin[:128]}", code="origin_not_allowed", status=403
        )

    def _same_origin(self, origin: str) -> bool:
        # The scheme is not compared: behind a proxy that ends TLS it is not known here.
        try:
            parts = urlsplit(origin)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return False
        # Scheme, host and port is all there is (RFC 6454 §6.2); no user, no path.
        if origin != f"{parts.scheme}://{parts.netloc}" or "@" in parts.netloc:
            return False
        default = 443 if parts.scheme == "https" else 80
        try:
            host = urlsplit("//" + self.headers.get("host", ""))
            host_port = host.port
        except ValueError:
            return False
        return parts.hostname == host.hostname and (port or default) == (host_port or default)

    async def preflight(self, cors: HeaderList, methods: str) -> None:
        """Answer OPTIONS."""
        wanted = self.headers.get("access-control-request-headers", "")
        headers = [
            *cors,
            (b"access-control-allow-methods", methods.encode("ascii")),
            (b"access-control-max-age", b"600"),
            (b"vary", b"Access-Control-Request-Headers"),
        ]
        if wanted and all(c.isalnum() or c in "-_, " for c in wanted) and wanted.isascii():
            headers.append((b"access-control-allow-headers", wanted.encode("ascii")))
        await self.respond(204, headers=headers)


def retry_after(error: EventError) -> float:
    """Return after how many seconds a client may try again; 0 if unknown."""
    wait = error.details.get("retryAfter")
    return float(wait) if isinstance(wait, (int, float)) and 0 < wait < math.inf else 0.0


def host_of(scope: Scope) -> str:
    """Return the host a request is for, in lower case and without its port.

    "" for none, or several (RFC 9112 §3.2). An IPv6 address has no brackets.
    """
    values = [value for name, value in scope["headers"] if name == b"host"]
    if len(values) != 1:
        return ""
    host: str = values[0].decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _body(error: EventError) -> bytes:
    try:
        return to_json({"type": "error", **error.to_dict()})
    except EncodeError:
        logger.exception("the details of a refusal have no JSON form")
        return to_json({"type": "error", "code": error.code, "error": error.message})
