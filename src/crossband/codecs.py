"""Turns what the hub sends into ready wire messages, one codec per door.

A codec encodes each publication once, plain and compressed, whatever the number of recipients;
every outbox then holds a reference to the same Wire. Knows formats, but no connections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64encode
from typing import Any, ClassVar

from crossband.broker import Publication
from crossband.policies import Tag
from crossband.protocol import engineio, envelope, payload, socketio, sse, websocket
from crossband.protocol.payload import Payload


class Wire:
    """One message ready to be written; shared by all its recipients."""

    __slots__ = ("_deflated", "_frames", "_messages", "_polling", "size", "tag")

    def __init__(self, *messages: str | bytes) -> None:
        # None while a message that was built as a frame has not been asked for.
        self._messages: tuple[str | bytes, ...] | None = messages
        # Bytes, or characters of a text, which is close enough to bound an outbox.
        self.size: int = len(messages[0]) if len(messages) == 1 else sum(map(len, messages))
        # Each form is built once, when the first recipient needs it.
        self._polling: str | None = None
        self._frames: bytes | None = None
        self._deflated: bytes | None = None
        # None: it is never dropped.
        self.tag: Tag | None = None

    @property
    def messages(self) -> tuple[str | bytes, ...]:
        """The messages to write: WebSocket's (text and binary parts), or stream bytes."""
        assert self._messages is not None
        return self._messages

    @property
    def frames(self) -> bytes:
        """The WebSocket frames of this message."""
        frames = self._frames
        if frames is None:
            frames = websocket.encode_frame(self.messages[0])
            if len(self.messages) > 1:
                frames += b"".join(map(websocket.encode_frame, self.messages[1:]))
            self._frames = frames
        return frames

    @property
    def deflated(self) -> bytes:
        """The same frames, each compressed by itself."""
        if self._deflated is None:
            self._deflated = b"".join(map(websocket.encode_deflated, self.messages))
        return self._deflated

    @property
    def chunk(self) -> bytes:
        """The stream bytes as a chunk of an HTTP/1.1 body (RFC 9112 §7.1)."""
        chunk = self._frames
        if chunk is None:
            (data,) = self.messages
            assert isinstance(data, bytes)
            chunk = self._frames = b"%x\r\n%b\r\n" % (len(data), data)
        return chunk

    @property
    def polling(self) -> str:
        """The Engine.IO packets of this message as text, binary parts in base64."""
        if self._polling is None:
            self._polling = engineio.encode_messages(self.messages)
        return self._polling


def tag_of(publication: Publication) -> Tag | None:
    """Return the tag of a publication's messages; None if they must not be dropped.

    With one key but different rooms, neither of two messages replaces the other.
    """
    policy = publication.policy
    if policy is None:
        return None
    of = (publication.namespace, publication.event)
    if policy == "latest":
        return Tag((*of, publication.rooms, publication.key), latest=True)
    return Tag(of, latest=False)


class Answer(Wire):
    """A UTF-8 text for one recipient. Most are sent as frames and never become a str."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text
        self.size: int = len(text)
        self._messages = self._polling = self._frames = self._deflated = None
        self.tag: Tag | None = None

    @property
    def messages(self) -> tuple[str | bytes, ...]:
        """The text."""
        return (self._text.decode(),)

    @property
    def frames(self) -> bytes:
        """The WebSocket frame of the text. Hot: once per acknowledgement."""
        return websocket.encode_text(self._text)


class Codec(ABC):
    """The wire format of one door."""

    # True if a failed event may stay unanswered, as in Node's Socket.IO server.
    like_node: ClassVar[bool] = False

    @abstractmethod
    def event(self, publication: Publication, *, ack_id: int | None = None) -> Wire:
        """Encode an event, with its cursor where it has one."""

    @abstractmethod
    def ack(self, namespace: str, ack_id: int, data: Payload) -> Wire:
        """Encode the acknowledgement of a client's event."""

    def answer(self, namespace: str, ack_id: int, result: Any) -> Wire:
        """Encode the acknowledgement that a handler returned. Raises EncodeError.

        A tuple means several values, None means no value.
        """
        return self.ack(namespace, ack_id, payload.encode_answer(result))

    @abstractmethod
    def problem(self, namespace: str, error: dict[str, Any], ack_id: int | None) -> Wire:
        """Encode the error answer to a client's event."""

    @abstractmethod
    def welcome(
        self, namespace: str, *, sid: str, session: str, recovered: bool, offset: str | None
    ) -> Wire | None:
        """Encode the first message of a socket.

        `offset` is None when a gap follows: if the connection is cut in between, the client's
        cursor must not already be past what it missed.
        """

    @abstractmethod
    def gap(self, namespace: str, *, reason: str, offset: str) -> Wire | None:
        """Encode that events were lost."""

    @abstractmethod
    def shutdown(self, namespace: str, message: str) -> Wire | None:
        """Encode that the server is going away."""


class SocketIOCodec(Codec):
    """Socket.IO 5 packets inside Engine.IO message packets."""

    like_node = True

    def __init__(self, *, recovery: bool) -> None:
        self._recovery = recovery

    def event(self, publication: Publication, *, ack_id: int | None = None) -> Wire:
        offset = None
        if self._recovery and ack_id is None:
            offset = publication.cursor
        text = socketio.encode_event(
            publication.namespace, publication.event, publication.payload, id=ack_id, offset=offset
        )
        return Wire(engineio.MESSAGE + text, *publication.payload.attachments)

    def ack(self, namespace: str, ack_id: int, data: Payload) -> Wire:
        return Wire(
            engineio.MESSAGE + socketio.encode_ack(namespace, ack_id, data), *data.attachments
        )

    def answer(self, namespace: str, ack_id: int, result: Any) -> Wire:
        data = payload.encode_value(result)
        if data is None or result is None or type(result) is tuple:
            return super().answer(namespace, ack_id, result)
        return Answer(engineio.MESSAGE_BYTES + socketio.ack_bytes(namespace, ack_id, data))

    def problem(self, namespace: str, error: dict[str, Any], ack_id: int | None) -> Wire:
        data = payload.encode([error])
        if ack_id is not None:
            return self.ack(namespace, ack_id, data)
        return Wire(
            engineio.MESSAGE + socketio.encode_event(namespace, "error", data),
            *data.attachments,
        )

    def welcome(
        self, namespace: str, *, sid: str, session: str, recovered: bool, offset: str | None
    ) -> Wire | None:
        pid = session if self._recovery else None
        return Wire(engineio.MESSAGE + socketio.encode_connect(namespace, sid, pid))

    def gap(self, namespace: str, *, reason: str, offset: str) -> Wire | None:
        data = payload.encode([{"reason": reason, "offset": offset}])
        # Also as the trailing offset: the client must not send its lost one again.
        trailing = offset if self._recovery else None
        return Wire(
            engineio.MESSAGE + socketio.encode_event(namespace, "gap", data, offset=trailing)
        )

    def shutdown(self, namespace: str, message: str) -> Wire | None:
        data = payload.encode([{"message": message}])
        return Wire(engineio.MESSAGE + socketio.encode_event(namespace, "server:shutdown", data))


class EnvelopeCodec(Codec):
    """JSON envelopes of the raw WebSocket door."""

    def event(self, publication: Publication, *, ack_id: int | None = None) -> Wire:
        data = payload.to_data(publication.payload)
        return Wire(
            envelope.encode_event(publication.event, data, offset=publication.cursor, id=ack_id)
        )

    def ack(self, namespace: str, ack_id: int, data: Payload) -> Wire:
        return Wire(envelope.encode_ack(ack_id, payload.to_data(data)))

    def answer(self, namespace: str, ack_id: int, result: Any) -> Wire:
        data = payload.encode_value(result)
        if data is None or type(result) is tuple:
            return super().answer(namespace, ack_id, result)
        return Answer(envelope.ack_bytes(ack_id, data))

    def problem(self, namespace: str, error: dict[str, Any], ack_id: int | None) -> Wire:
        return Wire(envelope.encode_error(error, ack_id))

    def welcome(
        self, namespace: str, *, sid: str, session: str, recovered: bool, offset: str | None
    ) -> Wire | None:
        return Wire(
            envelope.encode_welcome(sid=sid, session=session, recovered=recovered, offset=offset)
        )

    def gap(self, namespace: str, *, reason: str, offset: str) -> Wire | None:
        return Wire(envelope.encode_gap(reason, offset))

    def shutdown(self, namespace: str, message: str) -> Wire | None:
        return Wire(envelope.encode_shutdown(message))


class SSECodec(Codec):
    """Event stream blocks; whatever has no field of its own is JSON in `data`."""

    def event(self, publication: Publication, *, ack_id: int | None = None) -> Wire:
        if ack_id is not None:
            data = payload.to_data(publication.payload)
            request = envelope.encode_event(publication.event, data, id=ack_id)
            return Wire(sse.encode_event(request, event="ack:request"))
        if publication.event in envelope.CONTROL:
            named = envelope.encode_event(publication.event, payload.to_data(publication.payload))
            return Wire(sse.encode_event(named, event="event:named", id=publication.cursor))
        text = self._data(publication.payload)
        return Wire(sse.encode_event(text, event=publication.event, id=publication.cursor))

    def _data(self, data: Payload) -> str:
        return payload.to_data(data).decode()

    def ack(self, namespace: str, ack_id: int, data: Payload) -> Wire:
        return Wire(sse.encode_event(payload.to_data(data).decode(), event="ack"))

    def problem(self, namespace: str, error: dict[str, Any], ack_id: int | None) -> Wire:
        return self._control("error", error)

    def welcome(
        self, namespace: str, *, sid: str, session: str, recovered: bool, offset: str | None
    ) -> Wire | None:
        data = {"sid": sid, "session": session, "recovered": recovered, "offset": offset}
        return self._control("welcome", data, id=offset)

    def gap(self, namespace: str, *, reason: str, offset: str) -> Wire | None:
        return self._control("gap", {"reason": reason, "offset": offset}, id=offset)

    def shutdown(self, namespace: str, message: str) -> Wire | None:
        return self._control("server:shutdown", {"message": message})

    @staticmethod
    def _control(event: str, data: dict[str, Any], *, id: str | None = None) -> Wire:
        return Wire(sse.encode_event(payload.to_json(data).decode(), event=event, id=id))


class PlainSSECodec(SSECodec):
    """Event stream blocks of plain namespaces: strings as they are, bytes as base64.

    Crossband's own events stay JSON: clients need their id and session.
    """

    def _data(self, data: Payload) -> str:
        args = payload.decode(data)
        if len(args) == 1 and isinstance(args[0], str):
            return args[0]
        if len(args) == 1 and isinstance(args[0], bytes):
            return b64encode(args[0]).decode()
        return super()._data(data)


class PlainCodec(Codec):
    """Bare frames: strings as text frames, bytes as binary frames, the rest as JSON."""

    def event(self, publication: Publication, *, ack_id: int | None = None) -> Wire:
        args = payload.decode(publication.payload)
        value = args[0] if len(args) == 1 else args
        if isinstance(value, (str, bytes)):
            return Wire(value)
        return Wire(payload.to_data(publication.payload).decode())

    def ack(self, namespace: str, ack_id: int, data: Payload) -> Wire:
        raise AssertionError("a plain frame cannot ask for an acknowledgement")

    def problem(self, namespace: str, error: dict[str, Any], ack_id: int | None) -> Wire:
        return Wire(envelope.encode_error(error, None))

    def welcome(
        self, namespace: str, *, sid: str, session: str, recovered: bool, offset: str | None
    ) -> Wire | None:
        return None

    def gap(self, namespace: str, *, reason: str, offset: str) -> Wire | None:
        return None

    def shutdown(self, namespace: str, message: str) -> Wire | None:
        return Wire(envelope.encode_shutdown(message))


# Codecs hold no state: one of each serves every socket.
SOCKETIO = SocketIOCodec(recovery=True)
SOCKETIO_PLAIN = SocketIOCodec(recovery=False)
ENVELOPE = EnvelopeCodec()
SSE = SSECodec()
SSE_PLAIN = PlainSSECodec()
PLAIN = PlainCodec()
