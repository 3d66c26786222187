"""Converts what `json.dumps`, msgspec and pydantic take to JSON's own types.

Off the hot path: values that have only JSON's own types never come here. Objects of pydantic,
attrs, numpy and datetime are recognized by their attributes, without an import.
"""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import functools
import inspect
import ipaddress
import math
import pathlib
import sys
import types
import uuid
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from contextlib import suppress
from typing import Any, Final

import msgspec

SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_BINARY: Final = (bytes, bytearray, memoryview)
_PYDANTIC: Final = ("pydantic", "pydantic_core", "pydantic_extra_types")
# As json.dumps writes the keys of a dict.
_KEYS: Final = {True: "true", False: "false", None: "null"}


def plain(value: Any, attach: Callable[[bytes], Any]) -> Any:
    """Return a value as dicts with string keys, lists and scalars.

    `attach` gets each binary value and returns its replacement. Raises TypeError for a value
    without a JSON form, ValueError for a model that cannot be dumped, and RecursionError for a
    value that contains itself.
    """
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict:
        return {
            key if type(key) is str else _key(key): plain(item, attach)
            for key, item in value.items()
        }
    if kind is list or kind is tuple:
        return [plain(item, attach) for item in value]
    if kind is bytes:
        return attach(value)
    return plain(_simpler(value), attach)


def _key(key: Any) -> str:
    """Return the key of an object, as json.dumps writes it."""
    if isinstance(key, _BINARY):
        raise TypeError("a key must be a string or a number, not bytes")
    kind = type(key)
    if kind is bool or key is None:
        return _KEYS[key]
    if kind is float:
        if math.isfinite(key):
            return repr(key)
        return "NaN" if math.isnan(key) else "Infinity" if key > 0 else "-Infinity"
    if kind in SCALARS:
        return str(key)
    if isinstance(key, (tuple, frozenset)):
        raise TypeError(f"a key must be a string or a number, not {kind.__name__}")
    return _key(_simpler(key))


@functools.singledispatch
def _simpler(value: Any) -> Any:
    """Return a value in a form closer to JSON's; its contents are left as they are."""
    kind = type(value)
    if hasattr(kind, "__pydantic_serializer__") or hasattr(kind, "model_dump"):
        return _dump(value)
    if dataclasses.is_dataclass(kind):
        fields = {
            item.name: getattr(value, item.name, msgspec.UNSET) for item in dataclasses.fields(kind)
        }
        return {name: item for name, item in fields.items() if item is not msgspec.UNSET}
    if hasattr(kind, "__attrs_attrs__"):
        return _built(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        # A scalar or array of numpy, or of a library with the same interface.
        return value.tolist()
    for base in kind.__mro__:
        module = base.__module__.partition(".")[0]
        if module == "datetime":
            return _time(value, base)
        if module in _PYDANTIC:
            # A secret or a URL, for example: pydantic knows their JSON form.
            return sys.modules["pydantic_core"].to_jsonable_python(value)
    if inspect.isawaitable(value):
        raise TypeError(f"{kind.__name__} is not JSON serialisable: did you forget to await it?")
    if isinstance(value, type):
        raise TypeError(
            f"the class {value.__name__} is not JSON serialisable: did you mean to call it?"
        )
    raise TypeError(f"{kind.__name__} is not JSON serialisable")


def _dump(model: Any) -> Any:
    """Return pydantic's dump of a model or of a pydantic dataclass."""
    dump = getattr(model, "model_dump", None)
    if dump is None:
        dump = functools.partial(type(model).__pydantic_serializer__.to_python, model)
    dumped = dump(mode="python")
    # In JSON mode pydantic turns bytes into text, but they must stay bytes.
    if not _holds_binary(dumped):
        # PydanticSerializationError: pydantic does not know a field's type, but we may.
        with suppress(ValueError):
            return dump(mode="json")
    return dumped


def _holds_binary(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_binary, value.values()))
    if isinstance(value, (list, tuple, Set, collections.deque)):
        return any(map(_holds_binary, value))
    return isinstance(value, _BINARY)


def _built(value: Any) -> Any:
    return msgspec.to_builtins(value, builtin_types=_BINARY, str_keys=True, enc_hook=_simpler)


def _time(value: Any, kind: Any) -> Any:
    """Return the text of a value of one of `datetime`'s types, or of a subclass.

    msgspec encodes exactly these types, so a subclass such as pandas.Timestamp is first converted
    to its base.
    """
    if type(value) is not kind and kind.__name__ == "timedelta":
        value = kind(value.days, value.seconds, value.microseconds)
    elif type(value) is not kind:
        value = kind.fromisoformat(kind.isoformat(value))
    return msgspec.to_builtins(value)


def _member(value: enum.Enum) -> Any:
    return value.value


# By class; a subclass uses the first of its bases that is listed here.
_FORMS: Final[Mapping[type, Callable[[Any], Any]]] = {
    # As in json.dumps: the value itself, whatever a subclass returns from `__str__` or `__int__`.
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: bytes,
    bytearray: bytes,
    memoryview: bytes,
    dict: dict,
    Mapping: dict,
    list: list,
    tuple: list,
    Sequence: list,
    Set: list,
    ValuesView: list,
    types.GeneratorType: list,
    collections.UserString: str,
    enum.Enum: _member,
    uuid.UUID: str,
    decimal.Decimal: str,
    pathlib.PurePath: str,
    ipaddress.IPv4Address: str,
    ipaddress.IPv6Address: str,
    ipaddress.IPv4Network: str,
    ipaddress.IPv6Network: str,
    msgspec.Raw: msgspec.json.decode,
    msgspec.Struct: _built,
}
for _kind, _form in _FORMS.items():
    _simpler.register(_kind, _form)
