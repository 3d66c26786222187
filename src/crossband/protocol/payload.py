"""An event's arguments as they are recorded and carried: JSON text and binary parts.

The form is Socket.IO's: each binary value is replaced by a numbered placeholder. Encoding
happens once, at emit, so nothing the caller does to its objects afterwards is seen by anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from crossband.errors import EncodeError, ProtocolError


class Payload(NamedTuple):
    """The arguments of one event; `json` is the text of a JSON array."""

    json: bytes
    attachments: tuple[bytes, ...] = ()


EMPTY: Final = Payload(b"[]")

# The official clients' parser refuses a packet with more, and closes the connection.
MAX_ATTACHMENTS: Final = 10

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_BINARY: Final = (bytes, bytearray, memoryview)
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])


def encode(args: Sequence[Any]) -> Payload:
    """Encode arguments to JSON with the binary values set apart.

    Takes what msgspec takes (builtins, `Struct`, dataclasses, datetime, UUID, enums) and
    pydantic models. Raises EncodeError for anything else, and for more than 10 binary values.
    """
    try:
        if _is_plain(args):
            return Payload(_encode_json(args))
        built = msgspec.to_builtins(
            list(args), builtin_types=_BINARY, str_keys=True, enc_hook=_encode_model
        )
        attachments: list[bytes] = []
        text = _encode_json(_deconstruct(built, attachments))
    except RecursionError:
        raise EncodeError("cannot encode the event's data: nested too deeply") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise EncodeError(f"cannot encode the event's data: {error}") from error
    if len(attachments) > MAX_ATTACHMENTS:
        raise EncodeError(
            f"an event carries at most {MAX_ATTACHMENTS} binary values, not {len(attachments)}"
        )
    return Payload(text, tuple(attachments))


def encode_value(value: Any) -> bytes | None:
    """Encode one value of builtins to JSON; None for any other, which `encode` may take.

    Hot: once per acknowledgement.
    """
    if not _is_plain(value):
        return None
    try:
        return _encode_json(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def encode_answer(result: Any) -> Payload:
    """Encode what a handler returned: nothing, one value, or a tuple of several."""
    if result is None:
        return EMPTY
    return encode(result if isinstance(result, tuple) else (result,))


def decode(payload: Payload) -> list[Any]:
    """Decode arguments to builtins, binary values back in their places."""
    args: list[Any] = msgspec.json.decode(payload.json)
    if payload.attachments:
        args = reconstruct(args, payload.attachments)
    return args


def to_data(payload: Payload) -> bytes:
    """Return the arguments as one JSON value, for doors that carry a single `data`.

    No argument is null, several are an array; binary becomes base64 text.
    """
    if payload.attachments:
        args = decode(payload)
        return msgspec.json.encode(args[0] if len(args) == 1 else args)
    raws = _raws.decode(payload.json)
    if len(raws) == 1:
        return payload.json[1:-1]
    return payload.json if raws else b"null"


def reconstruct(value: Any, attachments: Sequence[bytes]) -> Any:
    """Put binary values back where their placeholders stand.

    Raises ProtocolError for a placeholder that names no attachment.
    """
    if isinstance(value, dict):
        if value.get("_placeholder") is True:
            number = value.get("num")
            if type(number) is not int or not 0 <= number < len(attachments):
                raise ProtocolError("illegal attachment number (Socket.IO 5, binary)")
            return attachments[number]
        return {key: reconstruct(item, attachments) for key, item in value.items()}
    if isinstance(value, list):
        return [reconstruct(item, attachments) for item in value]
    return value


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return False


def _deconstruct(value: Any, attachments: list[bytes]) -> Any:
    if isinstance(value, _BINARY):
        attachments.append(bytes(value))
        return {"_placeholder": True, "num": len(attachments) - 1}
    if isinstance(value, dict):
        return {key: _deconstruct(item, attachments) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_deconstruct(item, attachments) for item in value]
    return value


def _encode_model(value: Any) -> Any:
    # pydantic is optional: its models are known by their method, not by an import.
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="python")
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON serialisable")


_encode_json: Final = msgspec.json.Encoder().encode
