"""An event's arguments as they are recorded and carried: JSON text and binary parts.

The form is Socket.IO's: each binary value is replaced by a numbered placeholder. Encoding
happens once, at emit, so what the caller does to its objects afterwards changes nothing.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from crossband.errors import EncodeError, ProtocolError
from crossband.protocol.depth import FLAT_SENT, MAX_DEPTH_SENT, MESSAGE_DEPTH_SENT, is_deeper
from crossband.protocol.values import SCALARS, plain


# gc=False, as bytes and strings refer to nothing. Walking a history of 100,000, the garbage
# collector stopped the loop for 0.2 s.
class Payload(msgspec.Struct, frozen=True, gc=False):
    """The arguments of one event; `json` is the text of a JSON array."""

    json: bytes
    attachments: tuple[bytes, ...] = ()


EMPTY: Final = Payload(b"[]")

# The highest id of an acknowledgement. 2^53 - 1: JavaScript numbers are exact up to here.
MAX_ID: Final = 2**53 - 1
# The parser of the official clients closes the connection on a packet with more.
MAX_ATTACHMENTS: Final = 10

_CONTAINERS: Final = frozenset({dict, list, tuple})
# The encoded form. Nothing else encodes to these bytes: inside a string, quotes are escaped.
_PLACEHOLDER: Final = b'{"_placeholder":true,"num":%d}'
_TOO_DEEP: Final = "cannot encode the event's data: nested too deeply, or inside itself"
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])


def encode(args: Sequence[Any]) -> Payload:
    """Encode arguments to JSON, with the binary values apart.

    Takes what `json.dumps`, msgspec and pydantic take, subclasses of builtins included; NaN
    and the infinities become null. Raises EncodeError for anything else, for more than 10
    binary values, and for more than 128 levels of arrays and objects.
    """
    attachments: list[bytes] = []
    try:
        if _is_plain(args):
            text = _encode_json(args)
        else:

            def attach(value: bytes) -> dict[str, Any]:
                attachments.append(value)
                return {"_placeholder": True, "num": len(attachments) - 1}

            text = _encode_json(plain(list(args), attach))
    except RecursionError:
        raise EncodeError(_TOO_DEEP) from None
    except UnicodeEncodeError as error:
        found = error.object[error.start]
        raise EncodeError(
            f"cannot encode the event's data: a string in it holds {found!a}, half of a "
            "surrogate pair, which UTF-8 cannot carry"
        ) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(f"cannot encode the event's data: {error}") from error
    if len(text) > FLAT_SENT and is_deeper(text, MESSAGE_DEPTH_SENT):
        raise EncodeError(_TOO_DEEP)
    if len(attachments) > MAX_ATTACHMENTS:
        raise EncodeError(
            f"an event carries at most {MAX_ATTACHMENTS} binary values, not {len(attachments)}"
        )
    return Payload(text, tuple(attachments))


def encode_value(value: Any) -> bytes | None:
    """Encode a value of builtins to JSON; None for others, which `encode` may take.

    Hot: once per acknowledgement.
    """
    try:
        if not _is_plain(value):
            return None
        text = _encode_json(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    if len(text) > FLAT_SENT and is_deeper(text, MAX_DEPTH_SENT):
        return None
    return text


def encode_answer(result: Any) -> Payload:
    """Encode what a handler returned: nothing, one value, or a tuple of several.

    A named tuple is one value, encoded as an array.
    """
    if result is None:
        return EMPTY
    return encode(result if type(result) is tuple else (result,))


def to_json(value: Any) -> bytes:
    """Encode one value to JSON as `encode` does, but binary values as base64 text."""
    return to_data(encode((value,)))


def decode(payload: Payload) -> list[Any]:
    """Decode arguments to builtins, with the binary values back in their places."""
    args: list[Any] = msgspec.json.decode(payload.json)
    if payload.attachments:
        reconstruct(args, payload.attachments)
    return args


def to_data(payload: Payload) -> bytes:
    """Return the arguments as one JSON value, for doors that carry a single `data`.

    No arguments become null, several an array; binary values become base64 text.
    """
    text = payload.json
    for number, data in enumerate(payload.attachments):
        text = text.replace(_PLACEHOLDER % number, b'"%b"' % b64encode(data), 1)
    raws = _raws.decode(text)
    if len(raws) == 1:
        return text[1:-1]
    return text if raws else b"null"


def reconstruct(value: Any, attachments: Sequence[bytes]) -> Any:
    """Put binary values back in place of their placeholders in decoded data.

    Raises ProtocolError for a placeholder whose attachment does not exist or was already used.
    """
    return place(value, dict(enumerate(attachments)))


def place(value: Any, attachments: dict[int, bytes]) -> Any:
    """Put binary values into one of several arguments, like `reconstruct`.

    `attachments` are by number; those that are placed are removed. Each has one place: with ten
    placeholders, it would be sent on ten times.
    """
    kind = type(value)
    if kind is dict:
        if value.get("_placeholder") is True:
            number = value.get("num")
            data = attachments.pop(number, None) if type(number) is int else None
            if data is None:
                raise ProtocolError(
                    "illegal attachment number, or one used twice (Socket.IO 5, binary)"
                )
            return data
        items = value.items()
    elif kind is list:
        items = enumerate(value)
    else:
        return value
    for key, item in items:
        # Empty containers hold no placeholder. Only values change, so iterating a dict is safe.
        if item and type(item) in _CONTAINERS:
            value[key] = place(item, attachments)
    return value


def _is_plain(value: Any) -> bool:
    """Return whether a value has only JSON's own types. Hot: once per event sent."""
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                return False
        value = value.values()
    elif kind is not list and kind is not tuple:
        return kind in SCALARS
    for item in value:
        # No call for scalars: they are most values, and in a flood all of them.
        kind = type(item)
        if kind in SCALARS:
            continue
        if kind not in _CONTAINERS or (item and not _is_plain(item)):
            return False
    return True


_encode_json: Final = msgspec.json.Encoder().encode
