"""Engine.IO 4 packets and polling payloads, both ways.

Pure: knows nothing of sessions, heartbeats or transports.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from crossband.errors import EncodeError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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


# ASCII "record separator": cannot occur raw inside JSON, which is why the protocol chose it.
SEPARATOR: Final = "\x1e"

_TYPES: Final = {str(int(kind)): kind for kind in PacketType}


def decode_packet(text: str) -> Packet:
    """Decode one WebSocket text message.

    Binary WebSocket messages are bare data and never come here.

    Raises ProtocolError when it is empty or its type is not 0 to 6.
    """
    kind = _TYPES.get(text[:1])
    if kind is None:
        if not text:
            raise ProtocolError("empty packet (Engine.IO 4, packet encoding)")
        raise ProtocolError(f"unknown packet type {text[0]!a} (Engine.IO 4, packet encoding)")
    return Packet(kind, text[1:])


def decode_payload(body: str, *, max_packets: int) -> list[Packet]:
    """Split a polling body into its packets; `b…` becomes a MESSAGE with bytes.

    The packets are counted before anything is split, so that a body of separators costs one
    scan and no allocation. The body's own size is for the transport to bound.

    Raises ProtocolError when it is empty, holds more than `max_packets`, or any packet does
    not decode.
    """
    if not body:
        raise ProtocolError("empty payload (Engine.IO 4, HTTP long-polling)")
    if body.count(SEPARATOR) >= max_packets:
        raise ProtocolError(
            f"more than {max_packets} packets in a payload (Engine.IO 4, HTTP long-polling)"
        )
    return [
        _decode_binary(part) if part.startswith("b") else decode_packet(part)
        for part in body.split(SEPARATOR)
    ]


def _decode_binary(part: str) -> Packet:
    try:
        # Strict: Python otherwise skips what is not base64 and stops at the first padding.
        return Packet(PacketType.MESSAGE, a2b_base64(part[1:], strict_mode=True))
    except ValueError:  # binascii.Error, or characters outside ASCII
        raise ProtocolError(
            "binary packet is not base64 (Engine.IO 4, HTTP long-polling)"
        ) from None


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
    """Join encoded packets into one polling body."""
    return SEPARATOR.join(packets)


def encode_binary(data: bytes) -> str:
    """Encode a binary message for polling; over WebSocket it is sent as it is."""
    return "b" + b2a_base64(data, newline=False).decode("ascii")


def encode_open(
    sid: str,
    upgrades: Sequence[str],
    *,
    ping_interval: float,
    ping_timeout: float,
    max_payload: int,
) -> str:
    """Encode the handshake packet, `0{…}`.

    Times are in seconds here and in whole milliseconds on the wire, at least 1: a client
    takes 0 for "no heartbeat". `max_payload` is in bytes.

    Raises EncodeError when a value cannot be written, such as an infinite interval.
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
