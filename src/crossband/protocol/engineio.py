"""Engine.IO 4 packets and polling payloads, both ways.

Pure: knows nothing about sessions, heartbeats or transports.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from crossband.errors import EncodeError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class PacketType(IntEnum):
    """The seven packet types, by their digit on the wire."""

    OPEN = 0
    CLOSE = 1
    PING = 2
    PONG = 3
    MESSAGE = 4
    UPGRADE = 5
    NOOP = 6


class Packet(NamedTuple):
    """One packet; `data` is bytes only for a binary MESSAGE."""

    type: PacketType
    data: str | bytes = ""


# `EIO` in the query of every request.
VERSION: Final = "4"

# The types on the wire. All but MESSAGE are complete packets when nothing follows.
CLOSE: Final = "1"
PING: Final = "2"
PONG: Final = "3"
MESSAGE: Final = "4"
UPGRADE: Final = "5"
NOOP: Final = "6"
MESSAGE_BYTES: Final = MESSAGE.encode()

# The first packet on a WebSocket that takes over a polling session, and the answer to it.
PROBE: Final = PING + "probe"
PROBE_ANSWER: Final = PONG + "probe"

# Precedes the base64 of a binary message.
_BINARY: Final = "b"

# ASCII "record separator": cannot occur raw inside JSON, which is why the protocol chose it.
SEPARATOR: Final = "\x1e"

# White space of ASCII, for str.translate: removed from base64.
_WHITE_SPACE: Final = dict.fromkeys(map(ord, " \t\n\v\f\r"))
_TYPES: Final = {str(int(kind)): kind for kind in PacketType}


def decode_packet(text: str) -> Packet:
    """Decode one packet: a WebSocket text message, or a part of a polling body.

    Clients without binary WebSockets (`forceBase64`) send `b…`, a MESSAGE of bytes in base64,
    over WebSocket too. Binary WebSocket messages are bare data and never come here.

    Raises ProtocolError if it is empty, its type is not 0 to 6, or its base64 is invalid.
    """
    kind = _TYPES.get(text[:1])
    if kind is None:
        if text.startswith(_BINARY):
            return _decode_binary(text)
        if not text:
            raise ProtocolError("empty packet (Engine.IO 4, packet encoding)")
        raise ProtocolError(f"unknown packet type {text[0]!a} (Engine.IO 4, packet encoding)")
    return Packet(kind, text[1:])


def decode_payload(body: str, *, max_packets: int = 0) -> Iterator[Packet]:
    """Decode a polling body, one packet at a time.

    Nothing is split ahead, so a body of separators costs only the first packet, which is
    refused. The transport bounds the size of the body; `max_packets` bounds their number.

    Raises ProtocolError at once if the body is empty or holds more than `max_packets` packets,
    and when its turn comes for a packet that cannot be decoded.
    """
    if not body:
        raise ProtocolError("empty payload (Engine.IO 4, HTTP long-polling)")
    if max_packets and body.count(SEPARATOR) >= max_packets:
        raise ProtocolError(
            f"more than {max_packets} packets in a payload (Engine.IO 4, HTTP long-polling)"
        )
    return _split_payload(body)


def _split_payload(body: str) -> Iterator[Packet]:
    at = 0
    while (end := body.find(SEPARATOR, at)) >= 0:
        yield decode_packet(body[at:end])
        at = end + 1
    yield decode_packet(body[at:])


def _decode_binary(part: str) -> Packet:
    try:
        # The Java client ends its base64 with a newline, and others break long lines.
        data = part[1:].translate(_WHITE_SPACE)
        # Strict: otherwise Python skips other characters and stops at the first padding.
        return Packet(PacketType.MESSAGE, a2b_base64(data, strict_mode=True))
    except ValueError:  # binascii.Error, or characters outside ASCII
        raise ProtocolError("binary packet is not base64 (Engine.IO 4, packet encoding)") from None


def encode_packet(packet: Packet) -> str:
    """Encode one packet; bytes take their polling form, `b` and base64.

    Raises EncodeError for bytes in anything but a MESSAGE.
    """
    kind, data = packet
    if isinstance(data, str):
        return f"{int(kind)}{data}"
    if kind is not PacketType.MESSAGE:
        raise EncodeError(f"only a MESSAGE can be binary, not {kind.name} (Engine.IO 4)")
    return encode_binary(data)


def encode_payload(packets: Iterable[str]) -> str:
    """Join packets in their polling form into one polling body."""
    return SEPARATOR.join(packets)


def encode_messages(messages: Iterable[str | bytes]) -> str:
    """Join WebSocket messages, packets of text and bare bytes, into one polling body."""
    return SEPARATOR.join(
        [part if isinstance(part, str) else encode_binary(part) for part in messages]
    )


def encode_binary(data: bytes) -> str:
    """Encode a binary message for polling; over WebSocket it is sent as it is."""
    return _BINARY + b2a_base64(data, newline=False).decode("ascii")


def encode_open(
    sid: str,
    upgrades: Sequence[str],
    *,
    ping_interval: float,
    ping_timeout: float,
    max_payload: int,
) -> str:
    """Encode the handshake packet, `0{…}`.

    Times are in seconds here and in whole milliseconds on the wire, at least 1: to a client,
    0 means "no heartbeat". `max_payload` is in bytes.

    Raises EncodeError if a value cannot be written, such as an infinite interval.
    """
    try:
        handshake = msgspec.json.encode(
            {
                "sid": sid,
                "upgrades": list(upgrades),
                "pingInterval": max(1, round(ping_interval * 1000)),
                "pingTimeout": max(1, round(ping_timeout * 1000)),
                "maxPayload": max_payload,
            }
        )
    except (ValueError, OverflowError, TypeError) as error:
        raise EncodeError(f"handshake cannot be encoded: {error} (Engine.IO 4)") from error
    return "0" + handshake.decode()
