"""The Server-Sent Events door: a stream per client, and its back-channel by POST."""

from __future__ import annotations

import asyncio
import hmac
import random
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from crossband.auth import bearer_token
from crossband.codecs import SSE, SSE_PLAIN, Wire
from crossband.connection import OpenConnections
from crossband.errors import (
    CloseCode,
    ConnectionRefused,
    EventError,
    InvalidMessage,
    RateLimited,
    Unauthorized,
)
from crossband.hub import messages
from crossband.hub.attempt import Resume
from crossband.hub.core import Core
from crossband.hub.messages import Seek
from crossband.hub.others import ask
from crossband.names import is_socket_id
from crossband.protocol import envelope, payload, sse
from crossband.protocol.payload import Payload
from crossband.timers import Deadlines
from crossband.transports.asgi import take_body
from crossband.transports.carried import CarriedConnection
from crossband.transports.exchanges import Exchanges
from crossband.transports.forwarding import Forwarding
from crossband.transports.http import ClientGone, HeaderList, Request, retry_after
from crossband.transports.lane import BodyLane
from crossband.transports.messages import answer_envelope, plain_message

if TYPE_CHECKING:
    from crossband.hub.namespace import Socket

_FAREWELL = sse.encode_event('{"message":"Server shutting down"}', event="server:shutdown")
_KEEPALIVE = Wire(sse.encode_comment())
# A client that the server disconnected for good is answered 204, which stops EventSource. This
# many are remembered; the oldest is forgotten first.
MAX_ENDED = 10_000
# Clients of other nodes whose node is remembered.
MAX_ELSEWHERE = 10_000
# Nodes that are asked to answer one request: a client may change its node meanwhile.
MOST_TRIES = 3
# After a temporary refusal a client comes back after 3 to 7 times the setting `retry`, at random,
# so that clients refused together do not come back together.
_LATER = (3, 7)
# Temporary statuses: not in time, too much. Also 5xx, the server's own fault.
_PASSING = frozenset({408, 425, 429})


_STREAM_HEADERS: HeaderList = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class StreamConnection(CarriedConnection[BodyLane]):
    """One event stream and its one socket."""

    __slots__ = ("_door", "socket")

    def __init__(self, hub: Core, door: StreamDoor) -> None:
        super().__init__(hub, limit=hub.settings.limits.outbox)
        self._door = door
        # None until opened.
        self.socket: Socket | None = None

    @property
    def transport(self) -> str:
        return "sse"

    def refused_for(self, now: float) -> float:
        """Return for how many seconds the client has read nothing of what waits."""
        return 0.0 if self._lane is None else self._lane.refused_for(now)

    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        if now:
            self.discard_queue()
        if self._lane is not None:
            self._lane.close(code, reason, self, now=now)

    def end_socket(
        self, namespace: str, code: CloseCode, reason: str, *, close: bool = False
    ) -> None:
        if code in (CloseCode.DISCONNECTED, CloseCode.REVOKED) and self.socket is not None:
            self._door.forbid(namespace, self.socket.session)
        self.close(code, reason)

    def attach(self, lane: BodyLane) -> None:
        self._door.opened(self)
        super().attach(lane)

    # As the lane's peer.

    def connection_lost(self) -> None:
        self._door.lost(self)


class StreamDoor:
    """Admits event streams, and handles what their clients post."""

    def __init__(self, hub: Core, exchanges: Exchanges, forwarding: Forwarding) -> None:
        self._hub = hub
        self._exchanges = exchanges
        self._forwarding = forwarding
        forwarding.doors["events"] = self._serve_post
        exchanges.on(Seek, self._tell_having)
        # Clients of other nodes and where they are, as far as they posted here: the most recently
        # used last. A client that changed its node is looked for again.
        self._elsewhere: OrderedDict[str, str] = OrderedDict()
        self._connections = OpenConnections[StreamConnection]()
        self.emptied: Final = self._connections.emptied
        # By socket id, for what clients post.
        self._by_id: dict[str, StreamConnection] = {}
        self._keepalive = Deadlines[StreamConnection](
            asyncio.get_running_loop(), hub.settings.keepalive_interval, self._keep_alive
        )
        # Starts with a comment, so that every proxy flushes the headers.
        self._preamble = Wire(_preamble(hub.settings.retry))
        # Sessions the server ended: (namespace, key), oldest first.
        self._ended: dict[tuple[str, str], None] = {}

    async def serve(self, request: Request, rest: str) -> None:
        """Serve a request: `rest` is the path below the door, a namespace or a client id."""
        try:
            cors = request.cors(self._hub.settings.cors_origins)
        except EventError as error:
            await request.refuse(error)
            return
        try:
            if request.method in ("GET", "HEAD"):
                await self._stream(request, rest or "/", cors)
            elif request.method == "POST":
                await self._post(request, rest.removeprefix("/"), cors)
            elif request.method == "OPTIONS":
                await request.preflight(cors, "GET, POST, OPTIONS")
            else:
                raise EventError(code="method_not_allowed")
        except ClientGone:
            return
        except EventError as error:
            if request.method == "GET" and _passes(error) and _is_event_source(request):
                await self._send_away(request, cors, _encode_problem(error), error)
                return
            if error.status == 405:
                cors = [*cors, (b"allow", self._methods(rest))]
            await request.refuse(error, cors)

    def _methods(self, rest: str) -> bytes:
        # Streams are at the door and the namespaces below it; any other path is a client.
        stream = rest in ("", "/") or rest in self._hub.directory.namespaces
        return b"GET, HEAD, OPTIONS" if stream else b"GET, HEAD, POST, OPTIONS"

    async def _stream(self, request: Request, name: str, cors: HeaderList) -> None:
        hub = self._hub
        headers = [*cors, *_STREAM_HEADERS]
        key = request.first("session")
        if request.method == "HEAD":
            with request.while_connected():
                await hub.access.identify(request.handshake("sse"))
            if hub.find(name) is None:
                raise EventError(code="invalid_namespace")
            await request.send({"type": "http.response.start", "status": 200, "headers": headers})
            await request.send({"type": "http.response.body", "body": b""})
            return
        if key is not None and (name, key) in self._ended:
            await request.respond(204, headers=cors)
            return
        if hub.stopping:
            await self._say_goodbye(request, cors)
            return
        # EventSource sends the header when it reconnects by itself; it is newer than the query.
        cursor = _utf8(request.headers.get("last-event-id", "")) or request.first("lastEventId")
        connection = StreamConnection(hub, self)
        try:
            hub.take_slot(connection, request.address)
            namespace = hub.find(name)
            codec = SSE_PLAIN if namespace is not None and namespace.plain else SSE
            with request.while_connected():
                admission = await hub.admit(
                    connection,
                    name,
                    request.handshake("sse"),
                    codec,
                    resume=Resume(key, cursor or None),
                    rooms=request.query.get("room", ()),
                )
            connection.socket = admission.socket
            await connection.open(take_body(request, connection, headers), admission)
        except ConnectionRefused as error:
            if error.code != "shutting_down":
                raise
            await self._say_goodbye(request, cors)
        finally:
            if not connection.on_lane:
                connection.free_slot()

    async def _say_goodbye(self, request: Request, cors: HeaderList) -> None:
        """Ask a new client of a stopping hub to come back later."""
        await self._send_away(request, cors, _FAREWELL)

    async def _send_away(
        self,
        request: Request,
        cors: HeaderList,
        farewell: bytes,
        error: EventError | None = None,
    ) -> None:
        """Answer with a stream that ends, so that the client comes back later.

        To EventSource any status except 200 means that it must not come back.
        """
        retry = self._hub.settings.retry
        if error is not None:
            retry *= random.uniform(*_LATER)  # noqa: S311
            retry = max(retry, retry_after(error))
        body = _preamble(retry) + farewell
        headers = [*cors, *_STREAM_HEADERS, (b"content-length", b"%d" % len(body))]
        await request.send({"type": "http.response.start", "status": 200, "headers": headers})
        await request.send({"type": "http.response.body", "body": body})

    def opened(self, connection: StreamConnection) -> None:
        """Keep a connection, whose lane reports its end."""
        assert connection.socket is not None
        self._connections.add(connection)
        self._by_id[connection.socket.id] = connection
        self._keepalive.add(connection)
        connection.push(self._preamble)

    def lost(self, connection: StreamConnection) -> None:
        """Clean up after a connection whose lane ended."""
        # For a client that takes nothing, the kernel and our server have the same time as the
        # door, which looks now and then: they cut it first. Their clocks are not quite ours.
        if self._stalls(connection, share=0.9):
            connection.overflow("stalled")
        reason = "forced close" if connection.closed else "transport close"
        connection.closed = True
        connection.discard_queue()
        connection.free_slot()
        self._keepalive.discard(connection)
        self._connections.discard(connection)
        socket = connection.socket
        if socket is not None:
            if self._by_id.get(socket.id) is connection:
                del self._by_id[socket.id]
            self._hub.leave(socket, reason)

    async def _post(self, request: Request, sid: str, cors: HeaderList) -> None:
        connection = self._by_id.get(sid)
        if connection is None:
            if not sid or f"/{sid}" in self._hub.directory.namespaces:
                raise EventError(
                    "A stream is read by GET; its client's messages go to POST /events/<sid>",
                    code="method_not_allowed",
                )
            await self._post_elsewhere(request, sid)
            return
        await self._take_post(connection, request, cors)

    async def _post_elsewhere(self, request: Request, sid: str) -> None:
        """Have the node that streams to a client answer its request."""
        if not self._exchanges.bus.members or not is_socket_id(sid):
            raise EventError(code="unknown_client")
        # Not only once: the client may have changed its node since it posted here.
        for _ in range(MOST_TRIES):
            node = self._elsewhere.get(sid) or await self._seek(sid)
            if node is None:
                break
            self._elsewhere[sid] = node
            self._elsewhere.move_to_end(sid)
            if len(self._elsewhere) > MAX_ELSEWHERE:
                self._elsewhere.popitem(last=False)
            served = await self._forwarding.forward(request, "events", node)
            if served is not None and served.status:
                return
            self._elsewhere.pop(sid, None)
            if served is None and node in self._exchanges.bus.members:
                raise EventError(code="unavailable")
        raise EventError(code="unknown_client")

    async def _seek(self, sid: str) -> str | None:
        """Return the node that streams to a client; of several answers the first yes counts."""
        bus = self._exchanges.bus
        asking = [
            asyncio.ensure_future(ask(bus, Seek(sid), bool, to=[node])) for node in bus.members
        ]
        try:
            for answer in asyncio.as_completed(asking):
                for node, has in (await answer)[0]:
                    if has:
                        return node
        finally:
            for each in asking:
                each.cancel()
        return None

    def _tell_having(self, _: str, seek: Seek) -> bytes:
        return messages.encode(seek.sid in self._by_id)

    async def _serve_post(self, request: Request) -> None:
        """Answer a client's request that reached another node; nothing if it is not here."""
        connection = self._by_id.get(request.path.rpartition("/")[2])
        if connection is None:
            return
        cors = request.cors(self._hub.settings.cors_origins)
        try:
            await self._take_post(connection, request, cors)
        except EventError as error:
            await request.refuse(error, cors)

    async def _take_post(
        self, connection: StreamConnection, request: Request, cors: HeaderList
    ) -> None:
        socket = connection.socket
        if socket is None:
            raise EventError(code="unknown_client")
        key = request.headers.get("x-crossband-session") or request.first("session") or ""
        # The id is public; only the client itself knows its session.
        if not hmac.compare_digest(key.encode(), socket.session.encode()):
            raise EventError(
                "Show the client's session, from its welcome, as ?session= or X-Crossband-Session",
                code="unauthorized",
            )
        meter = connection.meter
        if meter is not None and (wait := meter.take(monotonic())):
            if not connection.borrow(wait):
                self._refuse_rate(connection, wait)
            await asyncio.sleep(wait)
        if self._hub.access.authenticate is not None:
            with request.while_connected():
                await self._check_token(request, socket)
        limits = self._hub.settings.limits
        body = await request.body(limits.message_size, time=limits.body_time)
        if meter is not None and (wait := meter.take_bytes(monotonic(), len(body))):
            if not connection.borrow(wait, len(body), messages=0):
                self._refuse_rate(connection, wait)
            await asyncio.sleep(wait)
        bare = _bare(request, body) if socket.codec is SSE_PLAIN else None
        message = envelope.decode(body) if bare is None else None
        outcome: asyncio.Future[Payload | EventError] = asyncio.get_running_loop().create_future()

        def settle(answer: Payload | EventError) -> None:
            if not outcome.done():
                outcome.set_result(answer)

        if socket.inbox.crowded(socket):
            await socket.inbox.wait_for_space(socket)
        if not socket.connected:
            # The client left while its body was on the way.
            raise EventError(code="unknown_client")
        settled = False
        if message is not None:
            settled = answer_envelope(socket, message, settle)
        elif bare is not None:
            socket.inbox.receive(socket, plain_message(bare, settle))
        ack_id = message.id if message is not None else None
        answer: Payload | EventError = payload.EMPTY
        if not settled:
            with request.while_connected():
                answer = await outcome
        if isinstance(answer, EventError):
            if ack_id is not None:
                answer.details["id"] = ack_id
            await request.refuse(answer, cors)
            return
        result: dict[str, Any] = {"type": "ack"}
        if ack_id is not None:
            result["id"] = ack_id
        result["data"] = msgspec.Raw(payload.to_data(answer))
        await request.respond_json(200, result, cors)

    async def _check_token(self, request: Request, socket: Socket) -> None:
        """Raise Unauthorized for a token that is not a valid one of the same user.

        The session would be enough, but a client that sends a token means it.
        """
        handshake = request.handshake("sse")
        if bearer_token(handshake) is None:
            return
        identity = await self._hub.access.identify(handshake)
        if (identity and identity.user) != (socket.identity and socket.identity.user):
            raise Unauthorized("The token is another user's", reason="user")

    def _refuse_rate(self, connection: StreamConnection, wait: float) -> NoReturn:
        error = RateLimited(wait)
        if self._hub.floods(connection) and not connection.closed:
            connection.push(SSE.problem("", error.to_dict(), None))
            connection.evict("rate_limited", CloseCode.POLICY_VIOLATION, error.message)
        raise error

    def _keep_alive(self, connection: StreamConnection) -> None:
        # There are no pings: a client that has gone shows by reading nothing.
        if self._stalls(connection):
            # After a pause of the process timers come first: let what it read meanwhile count.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._cut, connection)
        connection.push(_KEEPALIVE)
        self._keepalive.add(connection)

    def _stalls(self, connection: StreamConnection, *, share: float = 1.0) -> bool:
        allowed = self._hub.settings.limits.send_time * share
        return connection.refused_for(monotonic()) >= allowed

    def _cut(self, connection: StreamConnection) -> None:
        if self._stalls(connection):
            connection.overflow("stalled")

    def forbid(self, namespace: str, key: str) -> None:
        """Answer 204 when this session's EventSource comes back."""
        self._ended[(namespace, key)] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def close(self, code: CloseCode, reason: str) -> None:
        """End all streams."""
        self._keepalive.close()
        for connection in self._connections:
            connection.close(code, reason)


def _bare(request: Request, body: bytes) -> str | bytes | None:
    """Return what was posted to a plain namespace, unchanged; None for an envelope.

    Raises InvalidMessage for text that is not UTF-8.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/octet-stream":
        return body
    if kind != "text/plain":
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidMessage("Not UTF-8") from None


def _preamble(retry: float) -> bytes:
    """Return the start of a stream; `retry` is in seconds."""
    return sse.encode_comment("ok") + sse.encode_retry(min(round(retry * 1000), sse.MAX_RETRY))


def _encode_problem(error: EventError) -> bytes:
    return sse.encode_event(msgspec.json.encode(error.to_dict()).decode(), event="error")


def _passes(error: EventError) -> bool:
    return error.status >= 500 or error.status in _PASSING


def _is_event_source(request: Request) -> bool:
    # A client that also accepts JSON can tell statuses apart, as our own clients do.
    accepted = request.headers.get("accept", "").lower()
    return "text/event-stream" in accepted and "application/json" not in accepted


def _utf8(header: str) -> str:
    # Header values arrive as latin-1; browsers send this one as UTF-8.
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header
