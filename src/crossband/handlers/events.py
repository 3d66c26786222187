"""Typed events: a handler's annotations are the schema that payloads are decoded by."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from crossband.errors import InvalidMessage
from crossband.handlers.annotations import Shape, explain, resolve, shape_of, underlying
from crossband.handlers.callables import check_runs, is_async
from crossband.handlers.parameters import check_first, check_injected, check_payload, spell
from crossband.protocol import payload

Handler = Callable[..., Any]

_array: Final = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Parameter:
    """One payload argument of a handler."""

    name: str
    type: Any
    required: bool
    default: Any = None


class EventSchema:
    """What an event takes and returns, read from its handler's signature.

    `parameters` are the payload arguments, without the socket; `variadic` is the type of
    `*args`, or None if the handler has no `*args`. An event between servers has no `socket`.
    """

    __slots__ = (
        "_rest",
        "_shapes",
        "doc",
        "handler",
        "is_async",
        "name",
        "parameters",
        "returns",
        "variadic",
    )

    def __init__(self, name: str, handler: Handler, *, socket: bool = True) -> None:
        self.name: Final = name
        self.handler: Final = handler
        check_runs(handler, f"the handler of {name!r} must be a function, plain or async")
        self.is_async: Final = is_async(handler)
        try:
            signature = _signature(handler).parameters.values()
        except (TypeError, ValueError) as error:
            raise TypeError(f"the handler of {name!r} has no signature to read: {error}") from error
        self.doc: Final = inspect.getdoc(underlying(handler))
        positional: list[inspect.Parameter] = []
        for item in signature:
            if item.kind not in (item.KEYWORD_ONLY, item.VAR_KEYWORD):
                positional.append(item)
            elif item.kind is item.KEYWORD_ONLY and item.default is item.empty:
                raise TypeError(
                    f"the handler of {name!r} needs keyword {item.name!r}: give it a default"
                )
        if socket:
            check_first(handler, f"the handler of {name!r}")
            if not positional:
                raise TypeError(f"the handler of {name!r} must take the socket as first argument")
            if positional[0].kind is not inspect.Parameter.VAR_POSITIONAL:
                del positional[0]
        try:
            hints = resolve(handler, [item.name for item in positional])
            check_injected(handler, signature)
            for item in positional:
                check_payload(item, hints.get(item.name, Any))
        except TypeError as error:
            raise TypeError(f"the handler of {name!r}: {error}") from error
        self.returns: Any = hints.get("return", Any)
        self.variadic: Any = None
        # The name of `*args`, or "".
        self._rest = ""
        parameters: list[Parameter] = []
        # One for each parameter; that of `*args`, if any, is last.
        self._shapes: list[Shape] = []
        for item in positional:
            kind = hints.get(item.name, Any)
            try:
                self._shapes.append(shape_of(kind))
            except TypeError as error:
                raise TypeError(
                    f"the handler of {name!r} cannot take `{item.name}: "
                    f"{inspect.formatannotation(kind)}`: {error}"
                ) from error
            if item.kind is item.VAR_POSITIONAL:
                self.variadic = kind
                self._rest = item.name
            else:
                required = item.default is item.empty
                default = None if required else item.default
                parameters.append(Parameter(item.name, kind, required, default))
        self.parameters: Final = tuple(parameters)

    def bind(
        self,
        raws: Sequence[msgspec.Raw],
        attachments: Sequence[bytes],
        *,
        single: bool = False,
    ) -> list[Any]:
        """Decode a message's arguments into the handler's types.

        With `single`, the message carries one value. For a handler that takes several
        arguments, or any number, the value is the first, or all of them if it is an array.

        Raises InvalidMessage with the path and the reason. A handler without payload
        parameters accepts any message.
        """
        shapes = self._shapes
        if not shapes:
            return []
        several = len(shapes) != 1 or self.variadic is not None
        if not several and len(raws) == 1 and not attachments:
            # Hot: most handlers take one argument. Errors are explained below.
            try:
                return [shapes[0].decode(raws[0])]
            except (msgspec.MsgspecError, ValueError, RecursionError):
                pass
        if not (single and raws and several):
            return self._bind(raws, attachments, indexed=several)
        try:
            items = _array.decode(raws[0])
        except (msgspec.DecodeError, RecursionError):
            return self._bind(raws, attachments, indexed=False)
        try:
            return self._bind(items, attachments, indexed=True)
        except InvalidMessage:
            # The array does not hold the arguments; it may be the first one.
            with contextlib.suppress(InvalidMessage):
                return self._bind(raws, attachments, indexed=False)
            raise

    def _bind(
        self, raws: Sequence[msgspec.Raw], attachments: Sequence[bytes], *, indexed: bool
    ) -> list[Any]:
        """Decode these arguments; if `indexed`, error paths include their index."""
        parameters = self.parameters
        shapes = self._shapes
        count = len(raws)
        if self.variadic is None and count > len(parameters):
            raise self._miscounted(count)
        bound: list[Any] = []
        left = dict(enumerate(attachments))
        for index, raw in enumerate(raws):
            # Any extra arguments are for `*args`.
            shape = shapes[index] if index < len(shapes) else shapes[-1]
            try:
                if attachments:
                    before = len(left)
                    value = payload.place(msgspec.json.decode(raw), left)
                    if len(left) < before:
                        bound.append(shape.convert(value))
                        continue
                # What holds no binary value is decoded as in any other event: the text of a
                # number or a date says more than the value that JSON's own types have for it.
                bound.append(shape.decode(raw))
            except RecursionError:
                reason, path = "Nested too deeply", "$"
            except (msgspec.MsgspecError, ValueError) as error:
                reason, path = explain(error)
            else:
                continue
            root = f"$[{index}]" if indexed else "$"
            raise InvalidMessage(reason, path=root + path[1:])
        for parameter in parameters[count:]:
            if parameter.required:
                raise self._miscounted(count)
            bound.append(parameter.default)
        return bound

    def _miscounted(self, count: int) -> InvalidMessage:
        arguments = "1 argument" if count == 1 else f"{count} arguments"
        return InvalidMessage(f"{self.name!r} takes {self.signature}; got {arguments}")

    @property
    def signature(self) -> str:
        """What clients send, for example `(room: str, content: str, silent: bool = …)`."""
        items = [
            _spell(item.name, item.type) + ("" if item.required else " = …")
            for item in self.parameters
        ]
        if self.variadic is not None:
            items.append(_spell(f"*{self._rest}", self.variadic))
        return f"({', '.join(items)})"

    def json_schema(self) -> dict[str, Any]:
        """Return JSON Schemas: `parameters` (a list) and `returns`.

        Each parameter has `name`, `required` and `schema`. `variadic` is present if the handler
        takes any number of further arguments. A return type that JSON Schema cannot describe is
        `{}`, anything.
        """
        parameters = [
            {"name": item.name, "required": item.required, "schema": shape.json_schema()}
            for item, shape in zip(self.parameters, self._shapes, strict=False)
        ]
        schemas: dict[str, Any] = {"parameters": parameters}
        if self.variadic is not None:
            schemas["variadic"] = self._shapes[-1].json_schema()
        try:
            schemas["returns"] = shape_of(self.returns).json_schema()
        except TypeError:
            schemas["returns"] = {}
        return schemas

    def __repr__(self) -> str:
        return f"<EventSchema {self.name!r}>"


def _signature(handler: Handler) -> inspect.Signature:
    try:
        return inspect.signature(handler)
    except TypeError:
        # Up to Python 3.11.2 some mocks look like functions with unreadable parameters. A call
        # goes to their `__call__`.
        return inspect.signature(types.MethodType(type(handler).__call__, handler))


def _spell(name: str, kind: Any) -> str:
    return name if kind is Any else f"{name}: {spell(kind)}"
