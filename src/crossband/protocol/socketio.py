"""Socket.IO 5 packets, both ways, with their binary attachments.

Payloads stay raw JSON: the hub decodes them straight into a handler's types, and sends its own
without encoding them again. Strings here do not include Engine.IO's leading `4`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from enum import IntEnum
from json import dumps, loads
from typing import TYPE_CHECKING, Any, Final

import msgspec

from crossband.errors import (
    CloseCode,
    EncodeError,
    InvalidMessage,
    MessageTooLarge,
    ProtocolError,
)
from crossband.protocol.depth import FLAT, MAX_DEPTH, MESSAGE_DEPTH, is_deeper
from crossband.protocol.payload import MAX_ID, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crossband.protocol.payload import Payload


class PacketType(IntEnum):
    """The seven packet types, by their digit on the wire."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


class Packet(msgspec.Struct, frozen=True, gc=False):
    """One packet, its attachments included."""

    # A Struct, because one is made per message received: 0.1 µs; a frozen dataclass takes 0.5.

    type: PacketType
    namespace: str = "/"
    # Of the event that the sender wants acknowledged, or acknowledges.
    id: int | None = None
    # JSON text as received, not yet checked; empty if absent.
    data: bytes = b""
    # In the order of `num` in their placeholders.
    attachments: tuple[bytes, ...] = ()


# The escape of a surrogate, lone or one of a pair.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

_TYPES: Final = {str(int(kind)): kind for kind in PacketType}
_BINARY: Final = frozenset({PacketType.BINARY_EVENT, PacketType.BINARY_ACK})
_ACKS: Final = frozenset({PacketType.ACK, PacketType.BINARY_ACK})
_MAY_HAVE_ID: Final = frozenset({PacketType.EVENT, PacketType.BINARY_EVENT}) | _ACKS
# What the data of each type may start with; "" if it may be absent.
_DATA_STARTS: Final = {
    PacketType.CONNECT: ("{", ""),
    PacketType.DISCONNECT: ("",),
    PacketType.EVENT: ("[",),
    PacketType.ACK: ("[",),
    PacketType.CONNECT_ERROR: ("{", '"'),
    PacketType.BINARY_EVENT: ("[",),
    PacketType.BINARY_ACK: ("[",),
}
# Bytes of a client's auth payload. A token has at most 8,192 characters. The payload is read
# before the client is authenticated, and kept as long as the client stays.
MAX_AUTH: Final = 16_384
# 16 digits hold 2^53; bounded so that int() is never given a megabyte of them.
_MAX_DIGITS: Final = 16
# The start of an event's array.
_NAME: Final = re.compile(rb'\[\s*("(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*)')
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?")
# ASCII only: str.isdigit() also takes "²" and "٣".
_DIGITS: Final = re.compile(r"[0-9]+")

_decode_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_name: Final = msgspec.json.Decoder(str).decode
_decode_number: Final = msgspec.json.Decoder(float).decode
_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
_encode: Final = msgspec.json.Encoder().encode


class Decoder:
    """Assembles packets from one connection's messages.

    `max_bytes` bounds one message: a packet's data, or one attachment. `max_total` bounds all
    messages of a packet together; it is never less. After a ProtocolError the decoder keeps
    nothing of the packet.
    """

    def __init__(self, *, max_attachments: int, max_bytes: int, max_total: int = 0) -> None:
        self._max_attachments = max_attachments
        self._max_bytes = max_bytes
        self._max_total = max(max_total, max_bytes)
        # The packet that still lacks attachments. None between packets.
        self._packet: Packet | None = None
        # How many it lacks; 0 between packets.
        self._awaited = 0
        # How many bytes they may have.
        self._room = 0
        self._attachments: list[bytes] = []

    @property
    def pending(self) -> bool:
        """Whether a packet still lacks attachments."""
        return self._packet is not None

    def feed(self, message: str | bytes) -> Packet | None:
        """Take one message; return the packet it completes.

        Returns None while attachments are missing. The JSON of `data` is not checked here; see
        `split_event`, `split_ack` and `connect_auth`.

        Raises ProtocolError for anything the protocol does not allow at this point.
        """
        try:
            if isinstance(message, str):
                return self._feed_text(message)
            return self._feed_binary(message)
        except ProtocolError:
            self._clear()
            raise

    def _feed_text(self, text: str) -> Packet | None:
        if self._packet is not None:
            raise ProtocolError(
                f"text while {self._awaited} attachments are awaited (Socket.IO 5, binary)"
            )
        if len(text) > self._max_bytes:  # characters; the bytes are counted below
            raise _too_large(self._max_bytes)
        packet, awaited = _parse(text, self._max_attachments)
        if len(packet.data) > self._max_bytes:
            raise _too_large(self._max_bytes)
        if not awaited:
            return packet
        self._packet, self._awaited = packet, awaited
        self._room = self._max_total - len(packet.data)
        return None

    def _feed_binary(self, data: bytes) -> Packet | None:
        packet = self._packet
        if packet is None:
            raise ProtocolError("unexpected attachment (Socket.IO 5, binary)")
        if len(data) > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._room -= len(data)
        if self._room < 0:
            raise _too_large(self._max_total)
        self._attachments.append(bytes(data))
        self._awaited -= 1
        if self._awaited:
            return None
        whole = msgspec.structs.replace(packet, attachments=tuple(self._attachments))
        self._clear()
        return whole

    def _clear(self) -> None:
        self._packet = None
        self._awaited = self._room = 0
        self._attachments = []


def _too_large(limit: int) -> ProtocolError:
    return ProtocolError(
        f"message or event over {limit} bytes", close_code=CloseCode.MESSAGE_TOO_BIG
    )


def _parse(text: str, max_attachments: int) -> tuple[Packet, int]:
    """Parse `<type>[<n>-][<namespace>,][<id>][<data>]` into a packet and its `n`."""
    kind = _TYPES.get(text[:1])
    if kind is None:
        if not text:
            raise ProtocolError("empty packet (Socket.IO 5, packet encoding)")
        raise ProtocolError(f"unknown packet type {text[0]!a} (Socket.IO 5, packet encoding)")
    at = 1
    awaited = 0
    if kind in _BINARY:
        dash = text.find("-", 1, 2 + _MAX_DIGITS)
        count = text[1:dash] if dash > 0 else ""
        if not (count.isascii() and count.isdigit()):
            raise ProtocolError("attachment count is not digits and '-' (Socket.IO 5, binary)")
        awaited = int(count)
        if awaited > max_attachments:
            raise ProtocolError(
                f"more than {max_attachments} attachments announced (Socket.IO 5, binary)"
            )
        at = dash + 1
    namespace = "/"
    if text.startswith("/", at):
        comma = text.find(",", at)
        end = len(text) if comma < 0 else comma
        # A client that connects to a URL with a query puts it here.
        namespace = text[at:end].partition("?")[0]
        at = end + 1
    id: int | None = None
    if digits := _DIGITS.match(text, at, at + _MAX_DIGITS + 1):
        at = digits.end()
        id = int(digits[0])
        if id > MAX_ID or len(digits[0]) > _MAX_DIGITS:
            raise ProtocolError("acknowledgement id over 2^53 - 1 (Socket.IO 5)")
        if kind not in _MAY_HAVE_ID:
            raise ProtocolError(f"{kind.name} cannot have an id (Socket.IO 5, packet encoding)")
    elif kind in _ACKS:
        raise ProtocolError(f"{kind.name} without an id (Socket.IO 5, packet encoding)")
    if text[at : at + 1] not in _DATA_STARTS[kind]:
        raise _bad_data(kind)
    try:
        if not namespace.isascii():
            namespace.encode()  # so that an answer can name it
        return Packet(kind, namespace, id, text[at:].encode()), awaited
    except UnicodeEncodeError:
        raise ProtocolError("lone surrogate (Socket.IO 5, packet encoding)") from None


def _bad_data(kind: PacketType) -> ProtocolError:
    expected = {
        PacketType.CONNECT: "an object or nothing",
        PacketType.DISCONNECT: "nothing",
        PacketType.CONNECT_ERROR: "an object",
    }.get(kind, "an array")
    return ProtocolError(
        f"{kind.name} takes {expected} as data, and a namespace starts with '/' and ends "
        "with ',' (Socket.IO 5, packet encoding)"
    )


def read_event(text: str, at: int) -> tuple[str, str, int | None, list[msgspec.Raw]] | None:
    """Read namespace, name, id and arguments of a common EVENT, after its type.

    Returns None for anything else: let a Decoder read that, or say what is wrong. Hot: it takes
    a third of the time that a Decoder and `split_event` take.
    """
    namespace = "/"
    if text.startswith("/", at):
        # 256 characters: no namespace has a longer name.
        comma = text.find(",", at, at + 258)
        if comma < 0:
            return None
        namespace = text[at:comma]
        if not namespace.isascii() or "?" in namespace:
            return None
        at = comma + 1
    bracket = text.find("[", at, at + _MAX_DIGITS)
    id: int | None = None
    if bracket != at:
        digits = text[at:bracket]
        if bracket < 0 or not (digits.isascii() and digits.isdigit()):
            return None
        id = int(digits)
    # A namespace may have brackets and quotes in its name: they are not the data's.
    data = text[bracket:]
    if len(data) > FLAT and is_deeper(data, MESSAGE_DEPTH):
        return None
    try:
        items = _decode_items(data)
        name = _decode_name(items[0])
    except (ValueError, IndexError, RecursionError):
        return None
    del items[0]
    return namespace, name, id, items


def split_event(packet: Packet) -> tuple[str, list[msgspec.Raw]]:
    """Return an EVENT's name and its arguments as raw JSON.

    The arguments are views into `packet.data`. They are well-formed JSON, but numbers out of
    range raise an error only when they are decoded further.

    A name may be a number (since Socket.IO 3.1): it is read as JavaScript writes it, 7 as "7".

    Raises ProtocolError if the data is not a JSON array that starts with a string or number,
    and InvalidMessage if it is nested too deeply or contains half a surrogate pair: JavaScript
    strings can be invalid Unicode, such as half an emoji, and are then sent escaped.
    """
    items = _split(packet)
    if not items:
        raise ProtocolError("event without a name (Socket.IO 5, EVENT)")
    name = _read_name(bytes(items[0]))
    del items[0]
    return name, items


def split_ack(packet: Packet) -> list[msgspec.Raw]:
    """Return an ACK's arguments as raw JSON; raises like `split_event`."""
    return _split(packet)


def _split(packet: Packet) -> list[msgspec.Raw]:
    data = packet.data
    try:
        if not data.isascii():
            data.decode()  # msgspec skips strings without checking their UTF-8
        if not is_deeper(data, MESSAGE_DEPTH):
            return _decode_items(data)
    except ValueError as error:  # msgspec.DecodeError, UnicodeDecodeError
        _check_surrogates(data)
        raise ProtocolError(f"{error} (Socket.IO 5, {packet.type.name})") from None
    raise InvalidMessage("Nested too deeply", event=_name_of(packet))


def _name_of(packet: Packet) -> str:
    """Return the name of an event whose arguments are not read; "" for an ACK."""
    if packet.type in _ACKS:
        return ""
    found = _NAME.match(packet.data)
    return _read_name(found[1] if found is not None else b"")


def _read_name(raw: bytes) -> str:
    try:
        if not raw.startswith(b'"'):
            return _spell(_decode_number(raw))
        return _decode_name(raw)
    except ValueError:
        raise ProtocolError("event name is not a string or number (Socket.IO 5, EVENT)") from None


def _spell(number: float) -> str:
    """Write a number as JavaScript does (ECMA-262, Number::toString)."""
    text = repr(number)
    if not number:
        return "0"
    if 1e-6 <= abs(number) < 1e21:
        return format(Decimal(text), "f").removesuffix(".0")
    digits, _, exponent = text.partition("e")
    return f"{digits}e{int(exponent):+d}"


def is_number(event: str) -> bool:
    """Return whether an event's name is how JavaScript writes some number."""
    return _NUMBER.fullmatch(event) is not None


def _check_surrogates(data: bytes) -> None:
    """Raise InvalidMessage if a lone surrogate is all that is wrong with an array."""
    if _SURROGATE.search(data) is None:
        return
    items: Any = None
    try:
        # The standard library decodes them like characters.
        items = loads(data)
        dumps(items, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        if isinstance(items, list):
            name = items[0] if items else ""
            if isinstance(name, (int, float)) and not isinstance(name, bool):
                name = _spell(float(name))
            event = name.encode(errors="replace").decode() if isinstance(name, str) else ""
            raise InvalidMessage("Half a surrogate pair is not a character", event=event) from None
    except (ValueError, RecursionError):
        return


def connect_auth(packet: Packet) -> dict[str, Any]:
    """Return the auth object of a CONNECT; {} if it has none.

    Raises MessageTooLarge past 16 KiB, InvalidMessage if it is nested too deeply, and
    ProtocolError if it is not a JSON object.
    """
    data = packet.data
    if not data:
        return {}
    if len(data) > MAX_AUTH:
        raise MessageTooLarge(MAX_AUTH)
    if is_deeper(data, MAX_DEPTH):
        raise InvalidMessage("Nested too deeply")
    try:
        return _decode_object(data)
    except ValueError as error:
        raise ProtocolError(f"{error} (Socket.IO 5, CONNECT)") from None


def encode_event(
    namespace: str,
    event: str,
    payload: Payload,
    *,
    id: int | None = None,
    offset: str | None = None,
) -> str:
    """Encode an event; its attachments are sent after it, as separate messages.

    `offset` becomes the last argument, as connection state recovery requires.

    Raises EncodeError when a name is not valid on the wire.
    """
    # Hot: once per publication and namespace. `payload.json` is copied, never parsed.
    json, attachments = payload.json, payload.attachments
    head = b"5%d-" % len(attachments) if attachments else b"2"
    number = b"" if id is None else b"%d" % id
    items = json[1:-1]
    middle = b"," + items if items else b""
    tail = b"]" if offset is None else b"," + _json(offset, "offset") + b"]"
    return _text(
        head + _namespace(namespace) + number + b"[" + _json(event, "event") + middle + tail
    )


def encode_ack(namespace: str, id: int, payload: Payload) -> str:
    """Encode an acknowledgement; its attachments are sent after it."""
    json, attachments = payload.json, payload.attachments
    head = b"6%d-" % len(attachments) if attachments else b"3"
    return _text(head + _namespace(namespace) + b"%d" % id + json)


def ack_bytes(namespace: str, id: int, data: bytes) -> bytes:
    """Encode an acknowledgement of one value; `data` is known to be UTF-8. Hot."""
    return b"3%b%d[%b]" % (_namespace(namespace), id, data)


def encode_connect(namespace: str, sid: str, pid: str | None) -> str:
    """Encode the answer to a CONNECT; `pid` is None if recovery is off."""
    answer = {"sid": sid} if pid is None else {"sid": sid, "pid": pid}
    return _text(b"0" + _namespace(namespace) + _json(answer, "answer"))


def encode_connect_error(namespace: str, message: str, data: Any = None) -> str:
    """Encode a refusal; `data` is left out if None.

    Raises EncodeError if `data` has no JSON form.
    """
    refusal: dict[str, Any] = {"message": message}
    if data is not None:
        refusal["data"] = data
    return _text(b"4" + _namespace(namespace) + to_json(refusal))


def encode_disconnect(namespace: str) -> str:
    """Encode the end of one namespace; the connection stays."""
    return _text(b"1" + _namespace(namespace))


def encode_connect_request(namespace: str, auth: Mapping[str, Any] | None) -> str:
    """Encode a client's CONNECT."""
    payload = b"" if auth is None else _json(dict(auth), "auth")
    return _text(b"0" + _namespace(namespace) + payload)


def _namespace(name: str) -> bytes:
    if name == "/":
        return b""
    if not name.startswith("/") or "," in name or "?" in name:
        raise EncodeError(f"namespace {name!a} must start with '/' and hold no ',' or '?'")
    try:
        return name.encode() + b","
    except UnicodeEncodeError:
        raise EncodeError(f"namespace {name!a} holds a lone surrogate") from None


def _json(value: Any, what: str) -> bytes:
    try:
        return _encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise EncodeError(f"{what} cannot be encoded as JSON: {error}") from error


def _text(wire: bytes) -> str:
    try:
        return wire.decode()
    except UnicodeDecodeError as error:
        raise EncodeError(f"payload is not UTF-8: {error}") from error
