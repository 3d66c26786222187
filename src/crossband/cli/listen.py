"""`crossband listen`: follow a stream of any door in the terminal, across reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
import websockets
from rich.console import Console
from rich.text import Text
from websockets.asyncio.client import ClientConnection

from crossband.cli.doors import Door, reason_of
from crossband.errors import CrossbandError, ProtocolError
from crossband.protocol import engineio, socketio
from crossband.protocol.payload import Payload, reconstruct

# Seconds before the first and, doubled each time, at most before a later attempt.
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 10.0
CONNECT_TIMEOUT: Final = 10.0
# Without even a keep-alive comment or heartbeat for this long, the peer is gone.
SILENCE: Final = 90.0
# Bytes in one message; what a server may send is not what it accepts.
MAX_MESSAGE: Final = 64 * 1024 * 1024
# What the end of a Socket.IO event is taken for its cursor by: it may be a string of its own.
_CURSOR: Final = re.compile(r"[A-Za-z0-9.]+-[0-9]+")


class Event(NamedTuple):
    """One event as received; `data` is JSON text."""

    name: str
    data: bytes
    offset: str | None


class Notice(NamedTuple):
    """Something about the stream itself."""

    kind: Literal["connected", "resumed", "gap", "error", "shutdown"]
    text: str


class Refused(CrossbandError):
    """The server said no; coming back would not help."""


class OutputFailed(CrossbandError):
    """What was received could not be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Lost(CrossbandError):
    """The connection failed or ended; another attempt may work."""


@dataclass(slots=True)
class Listener:
    """What to follow, and where it stands: the state that a reconnect resumes from."""

    door: Door
    url: str
    rooms: list[str] = field(default_factory=list)
    namespace: str = "/"
    verify: bool = True
    # Who the server is told it is.
    token: str | None = None
    # The last event seen, or where to begin. None: begin with what is live.
    offset: str | None = None
    # The server's name for this client, a secret. None until the first welcome.
    session: str | None = None

    def stream(self) -> AsyncGenerator[Event | Notice, None]:
        """Connect once and follow until the connection ends.

        Raises Refused, or Lost.
        """
        doors = {Door.WEBSOCKET: _websocket, Door.SSE: _sse, Door.SOCKETIO: _socketio}
        return doors[self.door](self)

    def welcomed(self, welcome: dict[str, Any]) -> Notice:
        """Take in the first message of the WebSocket and SSE doors."""
        notice = self.connected(bool(welcome.get("recovered")))
        self.session = welcome.get("session") or self.session
        # A cursor of our own stays: missed events are still to come.
        if self.offset is None:
            self.offset = welcome.get("offset")
        return notice

    def connected(self, recovered: bool) -> Notice:
        if recovered and self.session is not None:
            return Notice("resumed", "resumed where it was cut")
        where = f"{self.url}, namespace {self.namespace}" if self.namespace != "/" else self.url
        return Notice("connected", f"connected to {where}")

    def missed(self, gap: dict[str, Any]) -> Notice:
        """Take in that events were lost."""
        self.offset = gap.get("offset") or self.offset
        reason = gap.get("reason")
        return Notice(
            "gap", f"GAP: events were missed ({_REASONS.get(str(reason), f'reason: {reason}')})"
        )

    def address(self, session: str, cursor: str) -> str:
        """Return the URL with rooms, and with session and cursor under their names."""
        url = urlsplit(self.url)
        query = parse_qsl(url.query, keep_blank_values=True)
        query += [("room", room) for room in self.rooms]
        if self.session is not None and session:
            query.append((session, self.session))
        if self.offset is not None and cursor:
            query.append((cursor, self.offset))
        return url._replace(query=urlencode(query)).geturl()

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def tls(self) -> ssl.SSLContext | None:
        if urlsplit(self.url).scheme not in ("https", "wss"):
            return None
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


_REASONS: Final = {
    "unknown": "the server does not know the cursor: it was restarted, or it is another server",
    "expired": "they are older than the server remembers",
    "session": "the server no longer knows the session",
}


# Doors.


async def _websocket(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    async with _connect(listener, listener.address("session", "lastEventId")) as connection:
        async for message in _messages(connection):
            if isinstance(message, bytes):
                yield Event("message", _encode(message), None)
                continue
            try:
                frame = _decode_object(message)
            except msgspec.DecodeError:
                # A plain namespace sends bare text.
                yield Event("message", _encode(message), None)
                continue
            kind = frame.get("type")
            if kind == "welcome":
                yield listener.welcomed(frame)
            elif kind == "gap":
                yield listener.missed(frame)
            elif kind == "error":
                yield Notice("error", _error_text(frame))
            elif kind == "server:shutdown":
                yield Notice("shutdown", f"the server is stopping: {frame.get('message')}")
            elif isinstance(kind, str):
                offset = frame.get("offset")
                listener.offset = offset or listener.offset
                # An event of a name that is a word of the envelope, such as "ack".
                named = frame.get("event") if kind == "event" else None
                yield Event(
                    named if isinstance(named, str) else kind, _encode(frame.get("data")), offset
                )
            else:
                yield Event("message", _encode(frame), None)
    raise Lost("the connection ended")


async def _sse(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    # Here, because httpx takes longer to import than all else that this command needs.
    import httpx
    import httpx_sse

    # With JSON, or a refusal would be a stream that ends.
    accepted = "text/event-stream, application/json"
    headers = {"Accept": accepted, "Cache-Control": "no-store", **listener.headers}
    if listener.offset is not None:
        headers["Last-Event-ID"] = listener.offset
    timeout = httpx.Timeout(CONNECT_TIMEOUT, read=SILENCE)
    # Without TLS, the machine's certificates need not be read: 30 ms at every attempt.
    verify = listener.tls() or False
    try:
        async with (
            httpx.AsyncClient(timeout=timeout, verify=verify) as client,
            client.stream("GET", listener.address("session", ""), headers=headers) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise _status_error(response.status_code, response.content, str(response.url))
            kind = response.headers.get("content-type", "no content type")
            if not kind.startswith("text/event-stream"):
                raise Refused(f"{response.url} is not an event stream ({kind}); is it {_HINT}?")
            welcomed = False
            async for sse in httpx_sse.EventSource(response).aiter_sse():
                if sse.event == "welcome" and not welcomed:
                    welcomed = True
                    yield listener.welcomed(_object(sse.data))
                elif sse.event == "gap":
                    yield listener.missed(_object(sse.data))
                elif sse.event == "error":
                    yield Notice("error", _error_text(_object(sse.data)))
                elif sse.event == "server:shutdown":
                    message = _object(sse.data).get("message")
                    yield Notice("shutdown", f"the server is stopping: {message}")
                # httpx-sse also reports blocks without data, such as a lone retry.
                elif sse.data:
                    if not welcomed:  # another server's stream
                        welcomed = True
                        yield listener.connected(False)
                    offset = sse.id if sse.id and sse.id != listener.offset else None
                    listener.offset = offset or listener.offset
                    if sse.event == "event:named":
                        named = _object(sse.data)
                        yield Event(str(named.get("event")), _encode(named.get("data")), offset)
                    else:
                        yield Event(sse.event or "message", _json_text(sse.data), offset)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as exc:
        raise Refused(f"{listener.url}: {exc}") from exc
    except httpx.ReadTimeout as exc:
        raise Lost(f"nothing was heard for {SILENCE:g} s") from exc
    except httpx.HTTPError as exc:
        raise Lost(reason_of(exc)) from exc
    raise Lost("the stream ended")


_HINT: Final = "http://HOST:PORT/events"


async def _socketio(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    url = urlsplit(listener.url)
    query = [
        *parse_qsl(url.query, keep_blank_values=True),
        ("EIO", engineio.VERSION),
        ("transport", "websocket"),
    ]
    decoder = socketio.Decoder(max_attachments=1_000, max_bytes=MAX_MESSAGE)
    auth: dict[str, Any] = {}
    if listener.session is not None:
        auth["pid"] = listener.session
    if listener.offset is not None:
        auth["offset"] = listener.offset
    async with _connect(listener, url._replace(query=urlencode(query)).geturl()) as connection:
        async for message in _messages(connection):
            packet: socketio.Packet | None
            if isinstance(message, str):
                engine = engineio.decode_packet(message)
                if engine.type is engineio.PacketType.OPEN:
                    await connection.send(
                        engineio.MESSAGE
                        + socketio.encode_connect_request(listener.namespace, auth or None)
                    )
                elif engine.type is engineio.PacketType.PING:
                    await connection.send(engineio.PONG + str(engine.data))
                elif engine.type is engineio.PacketType.CLOSE:
                    break
                if engine.type is not engineio.PacketType.MESSAGE:
                    continue
                packet = decoder.feed(engine.data)
            else:
                packet = decoder.feed(message)
            if packet is None:
                continue
            if packet.type is socketio.PacketType.CONNECT:
                pid = _object(packet.data).get("pid")
                recovered = pid is not None and pid == listener.session
                notice = listener.connected(recovered)
                listener.session = pid
                yield notice
                for room in listener.rooms if not recovered else ():
                    # Without an acknowledgement: what fails is told by an `error` event, also
                    # where the hub has no rooms to join.
                    payload = Payload(msgspec.json.encode([room]))
                    await connection.send(
                        engineio.MESSAGE
                        + socketio.encode_event(listener.namespace, "room:join", payload)
                    )
            elif packet.type is socketio.PacketType.CONNECT_ERROR:
                raise Refused(f"refused: {_error_text(_object(packet.data))}")
            elif packet.type is socketio.PacketType.DISCONNECT:
                raise Lost("the server disconnected this client")
            else:
                yield _socketio_event(listener, packet)
    raise Lost("the connection ended")


def _socketio_event(listener: Listener, packet: socketio.Packet) -> Event | Notice:
    name, raws = socketio.split_event(packet)
    args = _args(raws, packet.attachments)
    first = args[0] if args and isinstance(args[0], dict) else {}
    # An application has events of its own with these names.
    if name == "gap" and first.keys() == {"reason", "offset"}:
        return listener.missed(first)
    if name == "error" and "code" in first:
        return Notice("error", _error_text(first))
    if name == "server:shutdown":
        return Notice("shutdown", f"the server is stopping: {first.get('message')}")
    offset = None
    # With a pid, recorded events end with their cursor; others may end with a string of theirs.
    cursor = args[-1] if args and listener.session is not None and packet.id is None else None
    if isinstance(cursor, str) and _CURSOR.fullmatch(cursor):
        del args[-1]
        offset = cursor if cursor != listener.offset else None
        listener.offset = cursor
    data = None if not args else args[0] if len(args) == 1 else args
    return Event(name, _encode(data), offset)


# What the doors share.


@contextlib.asynccontextmanager
async def _connect(listener: Listener, url: str) -> AsyncIterator[ClientConnection]:
    try:
        connection = await websockets.connect(
            url,
            ssl=listener.tls(),
            additional_headers=listener.headers,
            open_timeout=CONNECT_TIMEOUT,
            max_size=MAX_MESSAGE,
            ping_interval=30,
            ping_timeout=30,
            close_timeout=1,
            proxy=None,
        )
    except websockets.InvalidStatus as exc:
        response = exc.response
        raise _status_error(response.status_code, response.body or b"", url) from exc
    except websockets.InvalidURI as exc:
        raise Refused(str(exc)) from exc
    except TimeoutError as exc:
        raise Lost("no answer in time") from exc
    except (OSError, websockets.WebSocketException) as exc:
        raise Lost(reason_of(exc)) from exc
    async with connection:
        yield connection


async def _messages(connection: ClientConnection) -> AsyncIterator[str | bytes]:
    """Yield messages until the connection ends. Raises Refused or Lost with its close code."""
    try:
        while True:
            yield await connection.recv()
    except websockets.ConnectionClosed as exc:
        close = exc.rcvd
        if close is None:
            raise Lost("the connection broke") from exc
        text = f"closed with {close.code}" + (f" ({close.reason})" if close.reason else "")
        # Codes after which a client should stay away.
        if close.code in (1002, 1003, 1007, 1008, 1009, 4000, 4001, 4403):
            raise Refused(text) from exc
        raise Lost(text) from exc


def _status_error(status: int, body: bytes | bytearray, url: str) -> Refused | Lost:
    """Return what an HTTP status other than success means here."""
    if status == 204:
        return Refused("the server has nothing (more) to send here (204)")
    text = f"HTTP {status}"
    error = _object(bytes(body))
    if error:
        text += f": {_error_text(error)}"
    elif status == 404:
        text += f": nothing at {urlsplit(url).path}"
    if status >= 500 or status in (408, 429):
        return Lost(text)
    return Refused(text)


def _error_text(error: dict[str, Any]) -> str:
    text = str(error.get("error") or error.get("message") or "unknown error")
    names = ("code", "path", "reason", "event", "maxSize", "data")
    found = {name: error[name] for name in names if error.get(name) is not None}
    # Socket.IO has there what is beside the text on the other doors.
    if isinstance(data := found.get("data"), dict):
        del found["data"]
        found.update((name, value) for name, value in data.items() if name != "error")
    details = [
        f"{name}: {value if isinstance(value, str) else _encode(value).decode()}"
        for name, value in found.items()
    ]
    return f"{text} ({', '.join(details)})" if details else text


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        return _decode_object(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _json_text(text: str) -> bytes:
    # Another server's stream may carry plain text.
    try:
        return _encode(msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError):
        return _encode(text)


def _args(raws: list[msgspec.Raw], attachments: tuple[bytes, ...]) -> list[Any]:
    args = [msgspec.json.decode(raw) for raw in raws]
    return reconstruct(args, attachments) if attachments else args


_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode  # bytes become base64 text


# The terminal.


@dataclass(slots=True)
class Output:
    """Writes events to standard output, and everything about the stream to standard error."""

    door: Door
    json: bool
    # Only these events; all when empty.
    events: frozenset[str] = frozenset()
    count: int = 0
    _out: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))
    _err: Console = field(
        default_factory=lambda: Console(soft_wrap=True, highlight=False, stderr=True)
    )

    def event(self, event: Event) -> None:
        """Write an event, unless it is filtered out. Raises OutputFailed."""
        if self.events and event.name not in self.events:
            return
        self.count += 1
        try:
            self._write(event)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputFailed(exc) from exc

    def _write(self, event: Event) -> None:
        now = datetime.now(UTC)
        if self.json:
            line = msgspec.json.encode(
                {
                    "time": now.isoformat(timespec="milliseconds"),
                    "door": self.door,
                    "event": event.name,
                    "data": msgspec.Raw(event.data),
                    "offset": event.offset,
                }
            )
            sys.stdout.write(line.decode() + "\n")
            sys.stdout.flush()
            return
        text = Text.assemble(
            (f"{now.astimezone():%H:%M:%S}", "dim"),
            "  ",
            (f"{self.door:<9}", "cyan"),
            "  ",
            (f"{printable(event.name):<16}", "bold green"),
            "  ",
            printable(event.data.decode()),
        )
        if event.offset is not None:
            text.append(f"  {printable(event.offset)}", "dim")
        self._out.print(text)
        self._out.file.flush()

    def notice(self, kind: str, text: str) -> None:
        """Write a line about the stream."""
        style = {"gap": "bold yellow", "error": "red", "connected": "dim", "resumed": "green"}
        self._err.print(Text(printable(text), style.get(kind, "yellow")))


def printable(text: str) -> str:
    """Escape control characters: what is published must not drive the reader's terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


async def follow(listener: Listener, output: Output, *, limit: int | None = None) -> None:
    """Follow a stream for ever, or for `limit` events, coming back whenever it is cut.

    Raises Refused, and Lost when not even the first attempt connected.
    """
    ever = False
    # Of the last failure, so that an outage is told once and not at every attempt.
    told = ""
    delay = FIRST_DELAY
    while True:
        try:
            async with contextlib.aclosing(listener.stream()) as stream:
                async for item in stream:
                    if isinstance(item, Notice):
                        output.notice(item.kind, item.text)
                        if item.kind in ("connected", "resumed"):
                            ever = True
                            told = ""
                            delay = FIRST_DELAY
                        continue
                    output.event(item)
                    if limit is not None and output.count >= limit:
                        return
        except ProtocolError as exc:
            raise Refused(f"not what this door speaks: {exc}") from exc
        except Lost as exc:
            if not ever:
                raise
            if str(exc) != told:
                told = str(exc)
                output.notice("lost", f"{told}; reconnecting…")
        # Spread over half the delay: a restarted server's clients do not all come at once.
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(delay * 2, MAX_DELAY)
