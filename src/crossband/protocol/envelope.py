"""The JSON envelope of raw WebSocket and of the event stream's back-channel.

Pure: turns text into messages and messages into text; knows no sockets.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from crossband.errors import EncodeError, InvalidMessage
from crossband.protocol import payload
from crossband.protocol.depth import FLAT, MESSAGE_DEPTH, is_deeper
from crossband.protocol.payload import MAX_ID

# Types with a meaning of their own. An event with such a name has the type "event", and its name
# in `event`.
CONTROL: Final = frozenset({"welcome", "ack", "gap", "error"})
# Types that clients never send.
_SERVERS: Final = CONTROL - {"ack"}
# Types that are not simply the event's name.
_SPECIAL: Final = CONTROL | {"event"}


class Message(msgspec.Struct):
    """One message from a client: `{"type", "data"?, "id"?}`.

    Or `{"type": "event", "event": …}`; then `type` becomes the event's name.
    """

    type: Annotated[str, msgspec.Meta(min_length=1)]
    # Raw JSON; UNSET when the key is absent.
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    # Repeated in the answer; None when the client wants no answer.
    id: Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)] | None = None
    # Unset unless the type is "event".
    event: Any = msgspec.UNSET

    @property
    def is_ack(self) -> bool:
        """Whether this is an acknowledgement, not an event of that name."""
        return self.type == "ack" and self.event is msgspec.UNSET


class _Reply(msgspec.Struct):
    id: Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)] | None = None


_decode: Final = msgspec.json.Decoder(Message).decode
_decode_reply: Final = msgspec.json.Decoder(_Reply).decode
_encode: Final = msgspec.json.Encoder().encode
# msgspec writes "<reason> - at `<path>`", without a path for the root and for syntax errors.
_PATH: Final = re.compile(r"(.*) - at `([^`]*)`", re.DOTALL)


def decode(text: str | bytes) -> Message:
    """Decode one message; keys it does not know are ignored.

    Raises InvalidMessage, with the path and the reason, for anything else. If the message could
    be read far enough to find a valid `id`, the error carries it too.
    """
    try:
        if not isinstance(text, str):
            text = text.decode()  # msgspec skips strings without checking their UTF-8
        if len(text) <= FLAT or not is_deeper(text, MESSAGE_DEPTH):
            message = _decode(text)
            if message.type in _SPECIAL:
                _read_name(message)
            elif message.event is not msgspec.UNSET:
                message.event = msgspec.UNSET
            return message
        reason, path = "Nested too deeply", "$"
    except UnicodeError:
        raise InvalidMessage("Not UTF-8") from None
    except ValueError as error:
        reason, path = str(error), "$"
        if match := _PATH.fullmatch(reason):
            reason, path = match.groups()
    id = _reply_id(text)
    if id is None:
        raise InvalidMessage(reason, path=path) from None
    raise InvalidMessage(reason, path=path, id=id) from None


def _read_name(message: Message) -> None:
    """Set `type` to the event's name. Raises ValueError if clients may not send it."""
    if message.type != "event":
        message.event = msgspec.UNSET
        if message.type in _SERVERS:
            raise ValueError("Reserved event name - at `$.type`")
    elif isinstance(message.event, str) and message.event:
        message.type = message.event
    elif message.event is not msgspec.UNSET:
        raise ValueError("Expected a name - at `$.event`")


def _reply_id(text: str | bytes) -> int | None:
    try:
        return _decode_reply(text).id
    except (ValueError, RecursionError):
        return None


def encode_event(
    event: str, data: bytes, *, offset: str | None = None, id: int | None = None
) -> str:
    """Encode an event; `data` is JSON text, `id` asks for an acknowledgement."""
    # Hot: once per publication. `data` is copied, never parsed.
    head = b'{"type":"event","event":' if event in CONTROL else b'{"type":'
    wire = head + _json(event) + b',"data":' + data
    if offset is not None:
        wire += b',"offset":' + _json(offset)
    if id is not None:
        wire += b',"id":%d' % id
    return _text(wire + b"}")


def encode_ack(id: int, data: bytes) -> str:
    """Encode an acknowledgement; `data` is JSON text."""
    return _text(ack_bytes(id, data))


def ack_bytes(id: int, data: bytes) -> bytes:
    """Encode an acknowledgement; `data` is known to be UTF-8. Hot."""
    return b'{"type":"ack","id":%d,"data":%b}' % (id, data)


def encode_error(error: dict[str, Any], id: int | None = None) -> str:
    """Encode an error: `code`, `error` and details; `id` is that of the message.

    Raises EncodeError if a detail has no JSON form.
    """
    wire = {"type": "error"} | {key: error[key] for key in error if key != "type"}
    if id is not None:
        wire["id"] = id
    return _text(payload.to_json(wire))


def encode_welcome(*, sid: str, session: str | None, recovered: bool, offset: str | None) -> str:
    """Encode the first frame of a connection."""
    return _text(
        _json(
            {
                "type": "welcome",
                "sid": sid,
                "session": session,
                "recovered": recovered,
                "offset": offset,
            }
        )
    )


def encode_gap(reason: str, offset: str | None) -> str:
    """Encode the notice that a client cannot resume from its cursor."""
    return _text(_json({"type": "gap", "reason": reason, "offset": offset}))


def encode_shutdown(message: str) -> str:
    """Encode the notice that the server is about to close."""
    return _text(_json({"type": "server:shutdown", "message": message}))


def _json(value: Any) -> bytes:
    try:
        return _encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise EncodeError(f"cannot be encoded as JSON: {error}") from error


def _text(wire: bytes) -> str:
    try:
        return wire.decode()
    except UnicodeDecodeError as error:
        raise EncodeError(f"data is not UTF-8: {error}") from error
