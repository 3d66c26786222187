"""Checks the parameters of a handler at registration.

Clients fill a handler's parameters. One that a framework was to fill, as FastAPI fills `Depends`,
must not be left to the client, which could then claim to be any user.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import inspect
import types
import uuid
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from crossband.handlers.annotations import resolve, underlying

# Packages whose markers say that the value is not to come from the client.
_INJECTORS: Final = frozenset(
    ("fastapi", "fast_depends", "faststream", "litestar", "dishka", "dependency_injector")
)
# Packages whose markers in `Annotated` describe a value.
_SCHEMAS: Final = frozenset(
    (
        *("msgspec", "pydantic", "pydantic_core", "pydantic_extra_types", "annotated_types"),
        *("typing", "typing_extensions"),
    )
)
_PLAIN: Final = (
    *(type(None), bool, int, float, str, bytes, bytearray, enum.Enum, msgspec.UnsetType),
    *(dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID),
)
_CLIENTS: Final = (
    "a handler's arguments come from its client. Look it up in the handler, from "
    "`socket.identity`, `socket.handshake` or `socket.data`"
)


def check_first(handler: Any, what: str) -> None:
    """Raise TypeError unless the first parameter can take the client's Socket.

    Its annotation may be missing, unresolvable (the type is often imported for type checkers
    only), `Any`, `object`, a protocol, Socket or a subclass. `what` names the handler.
    """
    try:
        # The call goes to the outermost wrapper.
        parameters = inspect.signature(handler, follow_wrapped=False).parameters
    except (TypeError, ValueError):
        return
    first = next(iter(parameters.values()), None)
    if first is not None and first.kind is first.VAR_POSITIONAL:
        return
    complaint = f"{what} must take the socket as first argument"
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        raise TypeError(f"{complaint}: write `{_name(handler)}(socket: Socket)`")
    try:
        kind = resolve(handler, [first.name]).get(first.name, Any)
    except TypeError:
        return
    if not _takes_socket(kind):
        names = ["socket: Socket", *(item.name for item in parameters.values())]
        raise TypeError(
            f"{complaint}, not `{first.name}: {spell(kind)}`: write "
            f"`{_name(handler)}({', '.join(names)})`"
        )


def check_injected(handler: Any, parameters: Iterable[inspect.Parameter]) -> None:
    """Raise TypeError for a parameter that expects a framework to fill it."""
    for item in parameters:
        try:
            kind = resolve(handler, [item.name]).get(item.name, Any)
        except TypeError:
            # Nothing is known about a type that is imported for type checkers only.
            kind = Any
        for mark in (item.default, *_marks(kind)):
            if _package(mark) in _INJECTORS:
                raise TypeError(f"`{item.name}` cannot be {_called(mark)}: {_CLIENTS}")


def check_payload(item: inspect.Parameter, kind: Any) -> None:
    """Raise TypeError for a payload parameter with an unusable marker or default."""
    for mark in _marks(kind):
        if not _describes(mark):
            raise TypeError(f"`{item.name}` cannot be {_called(mark)}: {_CLIENTS}")
    if item.default is item.empty or _is_plain(item.default, kind):
        return
    if _package(item.default) == "pydantic":
        raise TypeError(
            f"the default of `{item.name}` cannot be {_called(item.default)}: write constraints as "
            f"`{item.name}: Annotated[{spell(kind)}, Field(…)]`"
        )
    raise TypeError(
        f"the default of `{item.name}` must be None, a plain value or an instance of its "
        f"annotation, not {_called(item.default)}: {_CLIENTS}"
    )


def spell(kind: Any) -> str:
    """Return a type as it is written, without module names."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return spell(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(spell, inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is not None:
        return f"{spell(origin)}[{', '.join(map(spell, inner))}]"
    if kind is type(None):
        return "None"
    return "..." if kind is Ellipsis else getattr(kind, "__name__", str(kind))


def _takes_socket(kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _takes_socket(inner[0])
    if origin in (Union, types.UnionType):
        return any(map(_takes_socket, inner))
    if isinstance(kind, TypeVar):
        return kind.__bound__ is None or _takes_socket(kind.__bound__)
    kind = getattr(kind, "__supertype__", kind) if origin is None else origin
    if not isinstance(kind, type):
        return True
    if kind in (Any, object) or getattr(kind, "_is_protocol", False):
        return True
    # By name, because the module of Socket is above this one.
    return any(
        base.__name__ == "Socket" and base.__module__.startswith("crossband.")
        for base in kind.__mro__
    )


def _marks(kind: Any) -> Iterator[Any]:
    """Yield the metadata of every `Annotated` in an annotation."""
    kind = getattr(kind, "__value__", kind)  # of `type Alias = …` (Python 3.12)
    if get_origin(kind) is Annotated:
        yield from kind.__metadata__
    for inner in get_args(kind):
        if not isinstance(inner, (str, list)):
            yield from _marks(inner)


def _describes(mark: Any) -> bool:
    """Return whether metadata of `Annotated` describes the value, as constraints do."""
    if mark is None or isinstance(mark, (str, int, float)):
        return True
    if _package(mark) in _INJECTORS:
        return False
    kind = mark if isinstance(mark, type) else type(mark)
    return any(base.__module__.partition(".")[0] in _SCHEMAS for base in kind.__mro__) or any(
        hasattr(mark, f"__get_pydantic_{what}_schema__") for what in ("core", "json")
    )


def _is_plain(value: Any, kind: Any) -> bool:
    """Return whether a default is a value that a client could have sent."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, dict):
        return all(_is_plain(item, kind) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(item, kind) for item in value)
    return any(isinstance(value, member) for member in _classes(kind))


def _classes(kind: Any) -> Iterator[type]:
    """Yield the application's own classes that an annotation names."""
    if isinstance(kind, type) and kind not in (Any, object) and get_origin(kind) is None:
        yield kind
    for inner in get_args(kind):
        yield from _classes(inner)


def _package(mark: Any) -> str:
    kind = mark if isinstance(mark, type) else type(mark)
    return kind.__module__.partition(".")[0]


def _called(mark: Any) -> str:
    if isinstance(mark, (type, types.FunctionType)):
        return mark.__name__
    return f"{type(mark).__name__}(…)"


def _name(handler: Any) -> str:
    name: str = getattr(underlying(handler), "__name__", "handler")
    return "handler" if name == "<lambda>" else name
