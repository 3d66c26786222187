"""Annotations of handlers: resolves them, and decodes JSON into their types.

msgspec does the decoding, or pydantic where an annotation is one of its types.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Union, get_args, get_origin, get_type_hints

import msgspec

if TYPE_CHECKING:
    from pydantic import BaseModel

SUPPORTED = "builtins, a msgspec.Struct, a dataclass, a TypedDict or a pydantic model"


# Resolving.


def resolve(handler: Callable[..., Any], names: Collection[str]) -> dict[str, Any]:
    """Return the annotations of the named parameters of a handler, and of "return".

    Others are left alone: the socket's type is often imported for type checkers only.
    Raises TypeError when a parameter's annotation cannot be resolved; if that of "return"
    cannot, it is left out.
    """
    function = underlying(handler)
    annotations = _annotations_of(function)
    scope = getattr(function, "__globals__", {})
    enclosing = _enclosing(function)
    hints: dict[str, Any] = {}
    for name in (*names, "return"):
        if name not in annotations:
            continue
        holder = types.SimpleNamespace(__annotations__={name: annotations[name]})
        try:
            hints.update(get_type_hints(holder, scope, enclosing, include_extras=True))
        except (NameError, AttributeError, SyntaxError, TypeError) as error:
            if name != "return":
                raise TypeError(
                    f"cannot resolve the annotation of `{name}`: {error} (define the type at "
                    "module level, or register the handler where both are defined)"
                ) from error
    return hints


def underlying(handler: Any) -> Any:
    """Return the function behind a method, partial, decorator or callable object."""
    while True:
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif isinstance(handler, types.MethodType):
            handler = handler.__func__
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif isinstance(handler, (types.FunctionType, types.BuiltinFunctionType, type)) or (
            isinstance(type(handler).__call__, types.WrapperDescriptorType)
        ):
            return handler
        else:
            handler = type(handler).__call__


def _annotations_of(function: Any) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        # Names that only type checkers know are not an error yet.
        lib = importlib.import_module("annotationlib")
        found: dict[str, Any] = lib.get_annotations(function, format=lib.Format.FORWARDREF)
        return found
    return dict(getattr(function, "__annotations__", None) or {})


def _enclosing(function: Any) -> dict[str, Any]:
    # With `from __future__ import annotations` an annotation is a string, and a type defined in
    # the function around the handler is not a global: it is looked up in the frame of that
    # function, which is still running when the handler is registered there.
    if not isinstance(function, types.FunctionType):
        return {}
    parts = function.__qualname__.split(".")
    around = {".".join(parts[:end]) for end in range(1, len(parts))}
    frames = []
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if frame.f_globals is function.__globals__ and code.co_qualname in around:
            # Only the innermost call of a recursive function counts.
            around.discard(code.co_qualname)
            frames.append(frame)
        frame = frame.f_back
    names: dict[str, Any] = {}
    for frame in reversed(frames):
        names.update(frame.f_locals)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            names[name] = cell.cell_contents
    return names


# Decoding.


class Shape(Protocol):
    """Decodes one argument; `explain` takes the errors it raises."""

    def decode(self, raw: msgspec.Raw, /) -> Any:
        """Decode JSON text."""

    def convert(self, value: Any) -> Any:
        """Convert decoded builtins, which may contain binary values."""

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema (2020-12)."""
        ...


def shape_of(kind: Any) -> Shape:
    """Return a decoder into a type. Raises TypeError if nothing can decode into it."""
    if kind is object:
        kind = Any
    return _PydanticShape(kind) if _is_pydantic(kind) else _MsgspecShape(kind)


def explain(error: Exception) -> tuple[str, str]:
    """Return why a value does not fit and the path to the mismatch; `$` is the value."""
    if _is_pydantic(error):
        return _explain_model(error)
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return text, "$"
    # "Expected `str`, got `int` - at `$.content`"; for a key: "… - at `key` in `$.counts`".
    reason, found, path = text.rpartition(" - at `")
    if not found:
        reason, path = text, "$"
    elif path.startswith("key` in `"):
        reason, path = f"{reason} as a key", path.removeprefix("key` in `")
    path = path.rstrip("`")
    cause = error.__cause__
    if isinstance(cause, Exception) and _is_pydantic(cause):
        reason, inner = _explain_model(cause)
        path += inner[1:]
    return reason, path


class _MsgspecShape:
    def __init__(self, kind: Any) -> None:
        # JSON has no bytes, and msgspec refuses `str | bytes` because it could not tell the two
        # apart. With that type (plain namespaces) bytes come as attachments and pass unchanged.
        self._kind = _without_bytes(kind)
        self._bytes_pass = self._kind is not kind
        try:
            info = msgspec.inspect.type_info(self._kind)
            self.decode = msgspec.json.Decoder(self._kind, dec_hook=_decode_custom).decode
        except NameError as error:
            raise TypeError(f"cannot resolve an annotation in it: {error}") from error
        for custom in _custom_types(info, set()):
            if custom is not object and _model(custom) is None:
                raise TypeError(f"{custom.__qualname__!r} cannot be decoded: use {SUPPORTED}")

    def convert(self, value: Any) -> Any:
        if self._bytes_pass and isinstance(value, bytes):
            return value
        return msgspec.convert(value, self._kind, str_keys=True, dec_hook=_decode_custom)

    def json_schema(self) -> dict[str, Any]:
        definitions: dict[str, Any] = {}

        def describe(custom: type) -> dict[str, Any]:
            model = _model(custom)
            if model is None:
                # It is `object`. msgspec would take an empty schema for a missing one.
                return {"$comment": "anything"}
            schema = model.model_json_schema()
            # References to them start at the root, wherever the model is.
            definitions.update(schema.pop("$defs", {}))
            return schema

        schema = msgspec.json.schema(self._kind, schema_hook=describe)
        if definitions:
            schema["$defs"] = {**definitions, **schema.get("$defs", {})}
        return schema


class _PydanticShape:
    def __init__(self, kind: Any) -> None:
        from pydantic import TypeAdapter

        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(kind)
            # A model may wait for types that were not defined before it (pydantic 2.10).
            if hasattr(self._adapter, "rebuild"):
                self._adapter.rebuild()
        except Exception as error:
            raise TypeError(f"pydantic refuses it: {str(error).splitlines()[0]}") from error

    def decode(self, raw: msgspec.Raw) -> Any:
        return self._adapter.validate_json(bytes(raw))

    def convert(self, value: Any) -> Any:
        return self._adapter.validate_python(value)

    def json_schema(self) -> dict[str, Any]:
        return self._adapter.json_schema()


def _is_pydantic(item: Any) -> bool:
    # pydantic is optional, so its types are recognized by name, without an import. That includes
    # constraints such as `Field(min_length=1)`, which msgspec would not check.
    kind = item if isinstance(item, type) else type(item)
    if get_origin(item) is None and (
        kind.__module__.partition(".")[0] in ("pydantic", "pydantic_core", "annotated_types")
        or hasattr(kind, "__pydantic_core_schema__")
    ):
        return True
    return any(map(_is_pydantic, get_args(item)))


def _model(kind: type) -> type[BaseModel] | None:
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(kind, pydantic.BaseModel):
        return kind
    return None


def _decode_custom(kind: type, value: Any) -> Any:
    model = _model(kind)
    # If it is not a model it is `object`, which takes anything.
    return value if model is None else model.model_validate(value)


def _explain_model(error: Any) -> tuple[str, str]:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    return first["msg"], "$" + "".join(steps)


def _without_bytes(kind: Any) -> Any:
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    members = get_args(kind)
    if str not in members or bytes not in members:
        return kind
    return Union[tuple(member for member in members if member is not bytes)]  # noqa: UP007


def _custom_types(node: Any, seen: set[int]) -> Iterator[type]:
    """Yield the classes anywhere in a type that msgspec does not know."""
    if isinstance(node, msgspec.inspect.CustomType):
        yield node.cls
    elif isinstance(node, tuple):
        for item in node:
            yield from _custom_types(item, seen)
    elif isinstance(node, (msgspec.inspect.Type, msgspec.inspect.Field)) and id(node) not in seen:
        seen.add(id(node))
        for name in node.__struct_fields__:
            yield from _custom_types(getattr(node, name), seen)
