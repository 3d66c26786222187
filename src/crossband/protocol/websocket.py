"""WebSocket frames of the common case: builds them, and splits incoming bytes (RFC 6455 §5).

Everything rare is left, as whole frames, to the `websockets` library: fragments, compressed
frames, and anything that breaks the protocol.
"""

from __future__ import annotations

import zlib
from typing import Final

try:
    # In C; the library's own fallback is in Python.
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - only where the library has no wheel
    from websockets.utils import apply_mask

# What `FrameSplitter.split` returns besides the opcodes of §5.2: RAW, an uncommon frame as it
# came; TOO_LARGE, a data frame whose header announces too much; BROKEN, bytes that cannot be a
# client's frame.
RAW: Final = -1
TOO_LARGE: Final = -2
BROKEN: Final = -3

TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

PING_FRAME: Final = b"\x89\x00"

# The headers of unmasked text frames of up to 125 bytes.
_SHORT_TEXT: Final = tuple(bytes((0x80 | TEXT, length)) for length in range(126))
# First bytes of the frames that are handled here: FIN and an opcode, no reserved bits.
_COMMON: Final = frozenset(0x80 | opcode for opcode in (TEXT, BINARY, CLOSE, PING, PONG))

# permessage-deflate (RFC 7692) as the server uses it: without context takeover, so that a
# compressed frame is the same for every recipient. The window bounds the memory that each side
# needs to inflate.
WINDOW_BITS: Final = 12
# Compressing less gains nothing: the tail and the tables cost more. Node's `ws` has 1,024.
MIN_DEFLATED: Final = 256


def encode_frame(message: str | bytes) -> bytes:
    """Build an unmasked frame: text from a string, binary from bytes."""
    if isinstance(message, str):
        return encode_text(message.encode())
    return _header(0x80 | BINARY, message) + message


def encode_text(payload: bytes) -> bytes:
    """Build an unmasked text frame of UTF-8. Hot: once per acknowledgement."""
    length = len(payload)
    if length < 126:
        return _SHORT_TEXT[length] + payload
    if length < 65_536:
        return b"\x81\x7e%b%b" % (length.to_bytes(2, "big"), payload)
    return _header(0x80 | TEXT, payload) + payload


def encode_deflated(message: str | bytes) -> bytes:
    """Build a compressed frame (RFC 7692 §7.2.1), or a plain one for a short message."""
    payload = message.encode() if isinstance(message, str) else message
    if len(payload) < MIN_DEFLATED:
        return encode_frame(message)
    deflate = zlib.compressobj(wbits=-WINDOW_BITS, memLevel=5)
    # A sync flush ends in four bytes, which the receiver adds back.
    deflated = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    opcode = TEXT if isinstance(message, str) else BINARY
    return _header(0xC0 | opcode, deflated) + deflated


def encode_close(code: int, reason: str) -> bytes:
    """Build a close frame; the reason is cut at 123 bytes (§5.5)."""
    payload = code.to_bytes(2, "big") + reason.encode()[:123].decode(errors="ignore").encode()
    return encode_close_payload(payload)


def encode_close_payload(payload: bytes) -> bytes:
    """Build a close frame with a payload of at most 125 bytes, such as the peer's own."""
    return _header(0x80 | CLOSE, payload) + payload


def encode_pong(payload: bytes) -> bytes:
    """Build the answer to a ping."""
    return _header(0x80 | PONG, payload) + payload


def _header(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((first, length))
    if length < 65_536:
        return bytes((first, 126, length >> 8, length & 0xFF))
    return bytes((first, 127)) + length.to_bytes(8, "big")


class FrameSplitter:
    """Splits what a client sends into frames, and unmasks the common ones.

    `limit` bounds a data frame's payload in bytes, as announced by its header. After TOO_LARGE
    or BROKEN nothing more is split.
    """

    __slots__ = ("_data", "_ended", "_fragmented", "_position", "_rest", "limit", "more")

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        # Bytes that may still contain a whole frame, from `_position` on.
        self._data = b""
        self._position = 0
        # The beginning of a frame, and how many bytes it needs. None between frames.
        self._rest: tuple[bytearray, int] | None = None
        # True between the first and the last fragment of a message: a whole data frame there
        # is not the common case (§5.4).
        self._fragmented = False
        self._ended = False
        # True if there may be frames left to split without more bytes.
        self.more: bool = False

    def whole_text(self, data: bytes) -> bytes | None:
        """Return the payload if the bytes are exactly one text frame, else None.

        After None, `feed` them. Call it only while `more` is False. Hot: most reads are one
        text frame, and this halves the cost of `feed` and `split`.
        """
        size = len(data)
        if size < 8 or data[0] != 0x80 | TEXT or self._rest is not None:
            return None
        if self._fragmented or self._ended:
            return None
        length = data[1]
        if length == 0xFE:
            length = data[2] << 8 | data[3]
            if size != length + 8 or length > self.limit:
                return None
            return apply_mask(data[8:], data[4:8])
        # 0xFF means that eight bytes of length follow.
        if not 0x80 <= length < 0xFE or size != length - 0x80 + 6 or length - 0x80 > self.limit:
            return None
        return apply_mask(data[6:], data[2:6])

    def feed(self, data: bytes) -> None:
        """Take bytes, for `split`."""
        if self._ended:
            return
        if self._rest is not None:
            # Appended, not concatenated: a frame in tiny pieces must not take quadratic time.
            rest, need = self._rest
            rest += data
            if len(rest) < need:
                return
            data = bytes(rest)
            self._rest = None
        elif self.more:
            data = self._data[self._position :] + data
        self._data = data
        self._position = 0
        self.more = True

    def split(self, most: int) -> list[tuple[int, bytes]]:
        """Return at most `most` of the next frames: (opcode or RAW …, payload).

        Sets `more` if it stopped at `most`. The payload of RAW is the whole frame, that of
        BROKEN all the remaining bytes. Hot: once per read.
        """
        frames: list[tuple[int, bytes]] = []
        if not self.more:
            return frames
        data, position = self._data, self._position
        end = len(data)
        while True:
            left = end - position
            if left < 2:
                need = 2
                break
            first = data[position]
            length = data[position + 1]
            if length < 0x80:
                return self._stop(frames, BROKEN, data[position:])
            length &= 0x7F
            head = 6
            if length > 125:
                if first & 0x08:
                    return self._stop(frames, BROKEN, data[position:])
                head = 8 if length == 126 else 14
                if left < head - 4:
                    need = head - 4
                    break
                length = int.from_bytes(data[position + 2 : position + head - 4], "big")
                if length >> 63:
                    return self._stop(frames, BROKEN, data[position:])
            if length > self.limit and not first & 0x08:
                if first & 0x0F > BINARY:
                    # An opcode that is not defined.
                    return self._stop(frames, BROKEN, data[position:])
                return self._stop(frames, TOO_LARGE, b"")
            need = head + length
            if left < need:
                break
            if len(frames) == most:
                self._position = position
                return frames
            body = position + head
            position += need
            if first in _COMMON and not (self._fragmented and first < 0x88):
                frames.append(
                    (first & 0x0F, apply_mask(data[body:position], data[body - 4 : body]))
                )
            else:
                if not first & 0x08:
                    self._fragmented = not first & 0x80
                frames.append((RAW, data[position - need : position]))
        if left:
            self._rest = (bytearray(data[position:] if position else data), need)
        self._data = b""
        self.more = False
        return frames

    def end(self) -> None:
        """Split nothing more."""
        self._ended = True
        self._data = b""
        self._rest = None
        self.more = False

    def _stop(
        self, frames: list[tuple[int, bytes]], kind: int, payload: bytes
    ) -> list[tuple[int, bytes]]:
        self.end()
        frames.append((kind, payload))
        return frames
