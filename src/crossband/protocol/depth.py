"""How deep JSON may be nested: all that is read, and all that is sent, is held to it."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

# Arrays and objects within each other in what a client sends. Decoders that call themselves
# end near 500; no data that means something comes near this.
MAX_DEPTH: Final = 64
# The same in what is sent: handlers put what they got into something of theirs.
MAX_DEPTH_SENT: Final = 128
# With what is around the arguments: their array, or an envelope.
MESSAGE_DEPTH: Final = MAX_DEPTH + 1
MESSAGE_DEPTH_SENT: Final = MAX_DEPTH_SENT + 1
# Characters. No JSON of so many is deeper: each level takes one to open and one to close. The
# hot paths look at this first, which spares most messages the call.
FLAT: Final = 2 * MAX_DEPTH
FLAT_SENT: Final = 2 * MAX_DEPTH_SENT

_STRING: Final = re.compile(rb'"[^"]*"')
# One up for what opens, one down for what closes.
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHERS: Final = bytes(set(range(256)).difference(b'[{]}"'))


def is_deeper(text: str | bytes, limit: int) -> bool:
    """Tell whether JSON text has more than `limit` arrays and objects within each other.

    What is no JSON is left to who decodes it. Hot: once per message that is not short.
    """
    # Of so many that open, one stands behind the others.
    if isinstance(text, str):
        if text.find("[", limit) < 0 and text.find("{", limit) < 0:
            return False
        text = text.encode(errors="replace")
    elif text.find(b"[", limit) < 0 and text.find(b"{", limit) < 0:
        return False
    return text.count(b"[") + text.count(b"{") > limit and _depth(text) > limit


def _depth(text: bytes) -> int:
    # Where decoding 1 MB takes 19 ms (rows of a table) to 340 (nothing but brackets, 64 deep),
    # this takes 4 to 20.
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = text.translate(None, _OTHERS)
    # Pairs: whole strings, or nothing between two.
    marks = marks.replace(b'""', b"")
    if b'"' in marks:
        marks = _STRING.sub(b"", marks)
    return max(accumulate(memoryview(marks.translate(_STEPS)).cast("b")), default=0)
