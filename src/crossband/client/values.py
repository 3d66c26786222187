"""JSON as the doors carry it, read leniently: another server may send anything."""

from __future__ import annotations

from typing import Any, Final

import msgspec

decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
encode: Final = msgspec.json.Encoder().encode  # bytes become base64 text


def object_of(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object, or an empty one for anything else."""
    try:
        return decode_object(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def json_of(text: str) -> bytes:
    """Return a text as JSON: unchanged if it is JSON, else as a string."""
    try:
        return encode(msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError):
        return encode(text)
