"""Typed events: a handler's annotations are the event's schema, and payloads decode into it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin
from typing import get_type_hints as typing_hints

import msgspec

from crossband.errors import EncodeError, InvalidMessage, ProtocolError
from crossband.protocol import payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

Handler = Callable[..., Any]

# Names with a meaning of their own on some door: neither emitted nor received.
RESERVED: Final = frozenset(
    {
        "connect",
        "connect_error",
        "disconnect",
        "disconnecting",
        "newListener",
        "removeListener",
        "welcome",
        "ack",
        "ack:request",
        "gap",
        "server:shutdown",
    }
)
# The server's own answer to an event that failed.
RECEIVED_RESERVED: Final = RESERVED | {"error"}

NAME_LENGTH: Final = 256
_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_CONTROL: Final = frozenset(map(chr, [*range(32), 127]))


def check_name(value: object, what: str) -> str:
    """Return a usable event, room or namespace name.

    Raises EncodeError: 1 to 256 characters, encodable, none of them a control character.
    """
    if not isinstance(value, str):
        raise EncodeError(f"{what} must be a string, not {type(value).__name__}")
    if not 0 < len(value) <= NAME_LENGTH:
        raise EncodeError(f"{what} must have 1 to {NAME_LENGTH} characters, not {len(value)}")
    # isprintable() is a quick yes for almost every name.
    if not value.isprintable() and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise EncodeError(f"{what} must be valid Unicode") from None
    if not _CONTROL.isdisjoint(value):
        raise EncodeError(f"{what} must not contain control characters: {value!r}")
    return value


def check_event(event: object) -> str:
    """Return an event name that may be emitted. Raises EncodeError."""
    name = check_name(event, "an event name")
    if name in RESERVED:
        raise EncodeError(f"{name!r} is a reserved event name")
    return name


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
    `*args` when the handler has them, else None.
    """

    __slots__ = (
        "_decoders",
        "_kinds",
        "doc",
        "handler",
        "is_async",
        "name",
        "parameters",
        "returns",
        "variadic",
    )

    def __init__(self, name: str, handler: Handler) -> None:
        self.name = name
        self.handler = handler
        self.is_async = is_async(handler)
        self.doc = inspect.getdoc(handler)
        hints = _type_hints(handler)
        self.returns: Any = hints.get("return", Any)
        parameters: list[Parameter] = []
        self.variadic: Any = None
        names = list(inspect.signature(handler).parameters.values())
        positional = [item for item in names if item.kind is not item.KEYWORD_ONLY]
        if not positional:
            raise TypeError(f"the handler of {name!r} must take the socket as first argument")
        for item in names:
            if item.kind is item.KEYWORD_ONLY and item.default is item.empty:
                raise TypeError(f"the handler of {name!r} needs keyword {item.name!r}")
        if positional[0].kind is inspect.Parameter.VAR_POSITIONAL:
            self.variadic = hints.get(positional[0].name, Any)
        for item in positional[1:]:
            hint = hints.get(item.name, Any)
            if item.kind is item.VAR_POSITIONAL:
                self.variadic = hint
            elif item.kind is not item.VAR_KEYWORD:
                required = item.default is item.empty
                parameters.append(
                    Parameter(item.name, hint, required, None if required else item.default)
                )
        self.parameters = tuple(parameters)
        kinds = [item.type for item in parameters]
        if self.variadic is not None:
            kinds.append(self.variadic)
        kinds = [_without_bytes(kind) for kind in kinds]
        self._kinds = kinds
        try:
            self._decoders = [msgspec.json.Decoder(kind, dec_hook=_decode_model) for kind in kinds]
        except TypeError as error:
            raise TypeError(f"the handler of {name!r}: {error}") from error
        for kind in kinds:
            _check_decodable(kind, name)

    def bind(
        self,
        raws: Sequence[msgspec.Raw],
        attachments: Sequence[bytes],
        *,
        single: bool = False,
    ) -> list[Any]:
        """Decode a message's arguments into the handler's types.

        With `single`, the message carries one value, and an array of it is the arguments of
        a handler that takes several.

        Raises InvalidMessage with the path and the reason. A handler without payload
        parameters takes any message.
        """
        parameters = self.parameters
        if not parameters and self.variadic is None:
            return []
        if single and raws and (len(parameters) > 1 or self.variadic is not None):
            try:
                raws = _array.decode(raws[0])
            except (msgspec.DecodeError, RecursionError):
                raise InvalidMessage("Expected an array of arguments") from None
        count = len(raws)
        if count > len(parameters) and self.variadic is None:
            raise InvalidMessage(f"Expected {len(parameters)} arguments, got {count}")
        bound: list[Any] = []
        for index, parameter in enumerate(parameters):
            if index >= count:
                if parameter.required:
                    raise InvalidMessage(f"Missing argument `{parameter.name}`")
                bound.append(parameter.default)
            else:
                bound.append(self._decode(index, raws[index], attachments, len(parameters)))
        bound += [
            self._decode(len(parameters), raws[index], attachments, count, index)
            for index in range(len(parameters), count)
        ]
        return bound

    def _decode(
        self,
        decoder: int,
        raw: msgspec.Raw,
        attachments: Sequence[bytes],
        count: int,
        position: int | None = None,
    ) -> Any:
        root = "$" if count == 1 else f"$[{decoder if position is None else position}]"
        try:
            if not attachments:
                return self._decoders[decoder].decode(raw)
            value = payload.reconstruct(msgspec.json.decode(raw), attachments)
            kind = self._kinds[decoder]
            declared = (*(item.type for item in self.parameters), self.variadic)[decoder]
            if isinstance(value, bytes) and kind is not declared:
                return value
            return msgspec.convert(value, kind, dec_hook=_decode_model)
        except InvalidMessage:
            raise
        except msgspec.ValidationError as error:
            raise _explain(error, root) from None
        except ProtocolError as error:
            raise InvalidMessage(str(error), path=root) from None
        except RecursionError:
            raise InvalidMessage("Nested too deeply", path=root) from None
        except (msgspec.DecodeError, ValueError) as error:
            raise InvalidMessage(str(error), path=root) from None

    def json_schema(self) -> dict[str, Any]:
        """Return JSON Schemas: `parameters` (an array of name, schema, required) and `returns`."""
        return {
            "parameters": [
                {
                    "name": item.name,
                    "required": item.required,
                    "schema": _json_schema(item.type),
                }
                for item in self.parameters
            ],
            "returns": _json_schema(self.returns),
        }

    def __repr__(self) -> str:
        return f"<EventSchema {self.name!r}>"


def is_async(function: Handler) -> bool:
    """Tell whether calling this gives a coroutine; also for callable objects."""
    if inspect.iscoroutinefunction(function):
        return True
    call = getattr(function, "__call__", None)  # noqa: B004 - the method itself is wanted
    return inspect.iscoroutinefunction(call)


def _without_bytes(kind: Any) -> Any:
    # `str | bytes`, what a plain namespace carries. JSON has no bytes, and msgspec will not
    # tell them from a string: they come as attachments, and pass as they are.
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    members = get_args(kind)
    if str not in members or bytes not in members:
        return kind
    return Union[tuple(member for member in members if member is not bytes)]  # noqa: UP007


def _type_hints(handler: Handler) -> Mapping[str, Any]:
    target: Any = handler
    if isinstance(handler, functools.partial):
        target = handler.func
    elif not isinstance(handler, (types.FunctionType, types.MethodType)):
        target = type(handler).__call__
    try:
        return typing_hints(target, include_extras=True)
    except NameError as error:
        # Types of a function body are not in the module's globals: look where they stand.
        frame = inspect.currentframe()
        while frame is not None:
            try:
                return typing_hints(target, localns=frame.f_locals, include_extras=True)
            except NameError:
                frame = frame.f_back
        raise TypeError(f"cannot resolve the annotation: {error}") from error


def _pydantic_model(kind: Any) -> type[BaseModel] | None:
    # pydantic is optional: a class of it exists only if somebody imported it.
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        return kind
    return None


def _decode_model(kind: type, value: Any) -> Any:
    model = _pydantic_model(kind)
    if model is None:
        raise TypeError(f"{kind!r} cannot be decoded")
    from pydantic import ValidationError

    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
        raise InvalidMessage(first["msg"], path="$" + path) from None


def _check_decodable(kind: Any, event: str) -> None:
    origin = get_origin(kind)
    if origin is Literal:
        return
    if origin is not None:
        # Of Annotated only the type itself; the rest is constraints.
        inner = get_args(kind)[:1] if origin is Annotated else get_args(kind)
        for item in inner:
            if isinstance(item, type) or get_origin(item) is not None:
                _check_decodable(item, event)
    elif isinstance(kind, type) and _pydantic_model(kind) is None:
        try:
            info = msgspec.inspect.type_info(kind)
        except Exception as error:
            raise TypeError(f"the handler of {event!r}: {error}") from error
        if isinstance(info, msgspec.inspect.CustomType):
            raise TypeError(
                f"the handler of {event!r} cannot take {kind.__name__!r}: use builtins, a "
                "msgspec.Struct, a dataclass, a TypedDict or a pydantic model"
            )


def _explain(error: msgspec.ValidationError, root: str) -> InvalidMessage:
    # msgspec: "Expected `str`, got `int` - at `$.content`"; no path at the root.
    reason, _, path = str(error).partition(" - at `")
    path = path.rstrip("`") or "$"
    return InvalidMessage(reason, path=root + path[1:] if path.startswith("$") else path)


def _json_schema(kind: Any) -> dict[str, Any]:
    if kind is Any or kind is inspect.Parameter.empty:
        return {}

    def hook(model: type) -> dict[str, Any]:
        found = _pydantic_model(model)
        if found is None:
            raise NotImplementedError
        return found.model_json_schema()

    try:
        return msgspec.json.schema(kind, schema_hook=hook)
    except (TypeError, NotImplementedError):
        return {}


__all__ = ["EventSchema", "Parameter", "check_event", "check_name"]
