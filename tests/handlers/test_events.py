"""Typed events: what a handler's annotations take, refuse and describe."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import inspect
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
)

import fastapi
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass as pydantic_dataclass

from crossband import (
    ConnectionRefused,
    EncodeError,
    EventError,
    EventSchema,
    Hub,
    InvalidMessage,
    Socket,
)
from tests.clients import EventFailed, NewClient, PythonSocketIOClient, Refused, WebSocketClient
from tests.conftest import Serve
from tests.protocol.strategies import json_values

if TYPE_CHECKING:
    # Known to type checkers only, as linters ask for.
    from nowhere import Ghost  # type: ignore[import-not-found]


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Shape(msgspec.Struct, tag="shape"):
    points: list[Point]
    label: Annotated[str, msgspec.Meta(min_length=1)] = "none"


class Circle(msgspec.Struct, tag="circle"):
    radius: float


@dataclasses.dataclass
class Person:
    name: str
    born: dt.date | None = None


class Options(TypedDict):
    size: int
    colour: NotRequired[str]


class Pair(NamedTuple):
    left: int
    right: str


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(pydantic.BaseModel):
    street: str
    number: Annotated[int, pydantic.Field(gt=0)] = 1


class Order(pydantic.BaseModel):
    id: uuid.UUID
    to: list[Address] = []


class Tree(pydantic.BaseModel):
    children: list[Tree] = []


class Names(pydantic.RootModel[list[str]]):
    pass


@pydantic_dataclass
class Range:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Shipment(msgspec.Struct):
    order: Order
    others: dict[str, list[Address]] = {}


class Unknown:
    """A class nothing decodes into."""


class Holder(msgspec.Struct):
    things: list[Unknown | None]


UserId = NewType("UserId", int)
UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def taking(*kinds: Any) -> Callable[..., None]:
    """Return a handler of arguments of these types: `a`, `b` and so on."""

    def none(socket: Socket) -> None: ...
    def one(socket: Socket, a: Any) -> None: ...
    def two(socket: Socket, a: Any, b: Any) -> None: ...

    handler: Callable[..., None] = (none, one, two)[len(kinds)]
    handler.__annotations__.update(zip("ab", kinds, strict=False))
    return handler


def schema_of(handler: Callable[..., Any]) -> EventSchema:
    hub = Hub()
    hub.on("event", handler)
    return hub.events["event"]


def bind(
    handler: Callable[..., Any],
    *args: Any,
    attachments: Sequence[bytes] = (),
    single: bool = False,
) -> list[Any]:
    raws = [msgspec.Raw(msgspec.json.encode(arg)) for arg in args]
    return schema_of(handler).bind(raws, attachments, single=single)


def refusal(handler: Callable[..., Any], *args: Any, **options: Any) -> tuple[str, str]:
    """Return the path and the reason of a refused message."""
    with pytest.raises(InvalidMessage) as caught:
        bind(handler, *args, **options)
    error = caught.value
    assert error.code == "invalid_message"
    assert error.message == "Invalid message format"
    return error.details["path"], error.details["reason"]


# What is taken.


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (str, "é", "é"),
        (bool, True, True),
        (None, None, None),
        (Any, {"a": [1, None]}, {"a": [1, None]}),
        (object, {"a": [1, None]}, {"a": [1, None]}),
        (dict[str, object], {"a": [1]}, {"a": [1]}),
        (list[int], [1, 2], [1, 2]),
        (dict[int, str], {"1": "a"}, {1: "a"}),
        (set[str], ["a", "a"], {"a"}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Sequence[int], [1], [1]),
        (int | None, None, None),
        (int | str, "a", "a"),
        (Union[int, str], 1, 1),  # noqa: UP007
        (str | bytes, "text", "text"),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2] | None, 2, 2),
        (Colour, "red", Colour.RED),
        (dict[str, Colour | None], {"a": "blue", "b": None}, {"a": Colour.BLUE, "b": None}),
        (UserId, 3, 3),
        (Annotated[int, msgspec.Meta(ge=1)], 1, 1),
        (bytes, "aGk=", b"hi"),
        (uuid.UUID, str(UUID), UUID),
        (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
        (dt.date, "2026-11-23", dt.date(2026, 11, 23)),
        (Point, {"x": 1}, Point(1)),
        (Point, {"x": 1, "unknown": 2}, Point(1)),
        (Shape | Circle, {"type": "circle", "radius": 1}, Circle(1.0)),
        (list[Point], [{"x": 1}], [Point(1)]),
        (Person, {"name": "Ada", "born": "1815-12-10"}, Person("Ada", dt.date(1815, 12, 10))),
        (Options, {"size": 1}, {"size": 1}),
        (Pair, [1, "a"], Pair(1, "a")),
        (Address, {"street": "Elm"}, Address(street="Elm")),
        (Address | None, None, None),
        (list[Address], [{"street": "Elm"}], [Address(street="Elm")]),
        (Address | Order, {"id": str(UUID)}, Order(id=UUID)),
        (Address | str, "Elm", "Elm"),
        (Order, {"id": str(UUID), "to": [{"street": "Elm"}]},
         Order(id=UUID, to=[Address(street="Elm")])),
        (Tree, {"children": [{"children": []}]}, Tree(children=[Tree()])),
        (Names, ["a"], Names(["a"])),
        (Range, {"low": 1, "high": 2}, Range(1, 2)),
        (Annotated[str, pydantic.Field(min_length=1)], "a", "a"),
        (Shipment, {"order": {"id": str(UUID)}, "others": {"a": [{"street": "Elm"}]}},
         Shipment(Order(id=UUID), {"a": [Address(street="Elm")]})),
    ],
)  # fmt: skip
def test_value_is_decoded_into_the_annotation(kind: Any, value: Any, expected: Any) -> None:
    (found,) = bind(taking(kind), value)
    assert found == expected
    assert type(found) is type(expected)


def test_argument_without_annotation_takes_anything() -> None:
    handler: Any = lambda socket, value: None  # noqa: E731
    for value in (None, 1, "a", [1], {"a": 1}):
        assert bind(handler, value) == [value]


# What does not fit.


@pytest.mark.parametrize(
    ("kind", "value", "path", "reason"),
    [
        (int, "1", "$", "Expected `int`, got `str`"),
        (int, True, "$", "Expected `int`, got `bool`"),
        (int, 1.5, "$", "Expected `int`, got `float`"),
        (str, None, "$", "Expected `str`, got `null`"),
        (None, 1, "$", "Expected `null`, got `int`"),
        (int | None, "a", "$", "Expected `int | null`, got `str`"),
        (list[int], [1, "a"], "$[1]", "Expected `int`, got `str`"),
        (dict[int, str], {"a": "b"}, "$", "Expected `int`, got `str` as a key"),
        (list[dict[int, str]], [{}, {"a": ""}], "$[1]", "Expected `int`, got `str` as a key"),
        (dict[str, int], {"a": "b"}, "$[...]", "Expected `int`, got `str`"),
        (tuple[int, str], [1], "$", "Expected `array` of length 2"),
        (Literal["a"], "b", "$", "Invalid enum value 'b'"),
        (Colour, "green", "$", "Invalid enum value 'green'"),
        (Annotated[int, msgspec.Meta(ge=1)], 0, "$", "Expected `int` >= 1"),
        (bytes, "%", "$", "Invalid base64 encoded string"),
        (dt.date, "tomorrow", "$", "Invalid RFC3339 encoded date"),
        (Point, [], "$", "Expected `object`, got `array`"),
        (Point, {}, "$", "Object missing required field `x`"),
        (Point, {"x": "a"}, "$.x", "Expected `int`, got `str`"),
        (Shape, {"type": "shape", "points": [{"x": 1}, {"x": 1, "y": None}]}, "$.points[1].y",
         "Expected `int`, got `null`"),
        (Shape | Circle, {"type": "square"}, "$.type", "Invalid value 'square'"),
        (Person, {"born": "1815-12-10"}, "$", "Object missing required field `name`"),
        (Options, {"size": "big"}, "$.size", "Expected `int`, got `str`"),
        (Address, {"street": 1}, "$.street", "Input should be a valid string"),
        (Address, [], "$", "Input should be an object"),
        (list[Address], [{"street": "a"}, {"street": "a", "number": 0}], "$[1].number",
         "Input should be greater than 0"),
        (Order, {"id": str(UUID), "to": [{}]}, "$.to[0].street", "Field required"),
        (Range, {"low": 2, "high": 1}, "$", "Value error, low is above high"),
        (Annotated[str, pydantic.Field(min_length=1)], "", "$",
         "String should have at least 1 character"),
        (Shipment, {"order": {"id": str(UUID)}, "others": {"a": [{"street": "a"}, {}]}},
         "$.others[...][1].street", "Field required"),
    ],
)  # fmt: skip
def test_what_does_not_fit_tells_path_and_reason(
    kind: Any, value: Any, path: str, reason: str
) -> None:
    assert refusal(taking(kind), value) == (path, reason)


@pytest.mark.parametrize("kind", [Any, list[Any], Tree, Order])
def test_json_nested_too_deeply_is_refused(kind: Any) -> None:
    raw = msgspec.Raw(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(InvalidMessage) as caught:
        schema_of(taking(kind)).bind([raw], ())
    assert caught.value.details["path"] == "$"
    if kind is not Tree and kind is not Order:
        assert caught.value.details["reason"] == "Nested too deeply"


@pytest.mark.parametrize("kind", [int, str, Any, Point, Address])
@pytest.mark.parametrize("text", [b'"\\ud800"', b'"\xff"', b'{"x":"\xc3"}', b"1" * 5000])
def test_bytes_that_no_decoder_takes_are_refused_or_decoded(kind: Any, text: bytes) -> None:
    # What each library makes of these differs; none may raise anything else.
    schema = schema_of(taking(kind))
    with contextlib.suppress(InvalidMessage):
        schema.bind([msgspec.Raw(text)], ())


# How many arguments.


def test_handler_without_payload_takes_any_message() -> None:
    def handler(socket: Socket) -> None: ...

    assert bind(handler) == []
    assert bind(handler, 1, "a") == []
    assert bind(handler, {"a": 1}, single=True) == []


def test_several_arguments() -> None:
    def handler(socket: Socket, a: int, b: Point) -> None: ...

    assert bind(handler, 1, {"x": 2}) == [1, Point(2)]
    assert refusal(handler, 1, {"x": "a"}) == ("$[1].x", "Expected `int`, got `str`")
    assert refusal(handler, "a", {"x": 1}) == ("$[0]", "Expected `int`, got `str`")
    takes = "'event' takes (a: int, b: Point)"
    assert refusal(handler, 1) == ("$", f"{takes}; got 1 argument")
    assert refusal(handler) == ("$", f"{takes}; got 0 arguments")
    assert refusal(handler, 1, {"x": 2}, 3) == ("$", f"{takes}; got 3 arguments")


def test_more_than_one_value_for_one_argument_is_refused() -> None:
    assert refusal(taking(int), 1, 2) == ("$", "'event' takes (a: int); got 2 arguments")


def test_what_an_event_takes_is_spelt_as_in_the_source() -> None:
    def handler(  # type: ignore[no-untyped-def]
        socket: Socket,
        room: Annotated[str, msgspec.Meta(max_length=9)],
        anything,
        points: list[Point] | None,
        kind: Literal["a", 1],
        by_id: dict[UserId, tuple[dt.date, ...]],
        silent: bool = True,
        *rest: Address | None,
    ) -> None: ...

    assert schema_of(handler).signature == (
        "(room: str, anything, points: list[Point] | None, kind: Literal['a', 1], "
        "by_id: dict[UserId, tuple[date, ...]], silent: bool = …, *rest: Address | None)"
    )
    assert schema_of(lambda socket: None).signature == "()"


def test_defaults() -> None:
    def handler(socket: Socket, a: int = 1, b: str | None = None, *, c: int = 3) -> None: ...

    assert bind(handler) == [1, None]
    assert bind(handler, 2) == [2, None]
    assert bind(handler, 2, "b") == [2, "b"]
    # null is a value.
    assert refusal(handler, None) == ("$[0]", "Expected `int`, got `null`")


def test_any_number_of_arguments() -> None:
    def handler(socket: Socket, a: str, *rest: int) -> None: ...

    assert bind(handler, "a") == ["a"]
    assert bind(handler, "a", 1, 2) == ["a", 1, 2]
    assert refusal(handler, "a", 1, "b") == ("$[2]", "Expected `int`, got `str`")
    assert refusal(handler, 1) == ("$[0]", "Expected `str`, got `int`")
    assert refusal(handler) == ("$", "'event' takes (a: str, *rest: int); got 0 arguments")


def test_handler_of_nothing_but_args() -> None:
    def handler(*args: Any) -> None: ...

    assert bind(handler, 1, "a") == [1, "a"]


def test_array_of_a_door_with_one_value_is_the_arguments() -> None:
    def two(socket: Socket, a: int, b: int = 0) -> None: ...
    def some(socket: Socket, *args: int) -> None: ...
    def one(socket: Socket, a: list[int]) -> None: ...

    assert bind(two, [1, 2], single=True) == [1, 2]
    assert bind(two, [1], single=True) == [1, 0]
    assert bind(some, [1, 2, 3], single=True) == [1, 2, 3]
    # For a handler of one argument it is that argument.
    assert bind(one, [1, 2], single=True) == [[1, 2]]
    assert refusal(two, [1, "a"], single=True) == ("$[1]", "Expected `int`, got `str`")
    assert refusal(two, [1, 2, 3], single=True) == (
        "$",
        "'event' takes (a: int, b: int = …); got 3 arguments",
    )


def test_value_of_a_door_with_one_value_is_the_first_argument() -> None:
    def optional(socket: Socket, a: Any = 5, b: int = 0) -> None: ...
    def some(socket: Socket, *args: Any) -> None: ...
    def more(socket: Socket, a: dict[str, int], *args: int) -> None: ...
    def array(socket: Socket, a: list[int], b: int = 0) -> None: ...
    def arrays(socket: Socket, *args: list[int]) -> None: ...
    def both(socket: Socket, a: int, b: int) -> None: ...

    assert bind(optional, single=True) == [5, 0]
    assert bind(some, single=True) == []
    for value in ("text", 1, None, {"a": 1}):
        assert bind(optional, value, single=True) == [value, 0]
        assert bind(some, value, single=True) == [value]
    assert bind(more, {"a": 1}, single=True) == [{"a": 1}]
    assert bind(more, [{"a": 1}, 2], single=True) == [{"a": 1}, 2]
    assert refusal(more, {"a": "b"}, single=True) == ("$[...]", "Expected `int`, got `str`")
    # An array is the arguments, where it can be; else the first of them.
    assert bind(optional, [1, 2], single=True) == [1, 2]
    assert bind(array, [[1, 2], 3], single=True) == [[1, 2], 3]
    assert bind(array, [1, 2], single=True) == [[1, 2], 0]
    assert bind(arrays, [[1], [2]], single=True) == [[1], [2]]
    assert bind(arrays, [1, 2], single=True) == [[1, 2]]
    for count, sent in ((1, 1), (1, [1]), (3, [1, 2, 3])):
        assert refusal(both, sent, single=True)[1].startswith(
            f"'event' takes (a: int, b: int); got {count} argument"
        )


@pytest.mark.parametrize("kind", ["python-socketio", "websocket", "sse"])
async def test_one_value_is_taken_alike_by_every_door(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()

    @hub.on("any")
    def any_number(socket: Socket, *args: Any) -> list[Any]:
        return list(args)

    @hub.on("optional")
    def optional(socket: Socket, text: str, times: int = 1) -> str:
        return text * times

    client = new_client(kind)
    await client.connect((await serve(hub)).url)
    assert await client.call("any") == []
    for value in ("text", 1, {"a": 1}):
        assert await client.call("any", value) == [value]
    assert await client.call("optional", "text") == "text"
    with pytest.raises(EventFailed) as failed:
        await client.call("optional")
    assert failed.value.error["reason"] == (
        "'optional' takes (text: str, times: int = …); got 0 arguments"
    )


# Bytes.

FIRST = {"_placeholder": True, "num": 0}
SECOND = {"_placeholder": True, "num": 1}


class Upload(msgspec.Struct):
    name: str
    parts: list[bytes]


class Picture(pydantic.BaseModel):
    data: bytes


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (bytes, FIRST, b"one"),
        (bytearray, FIRST, bytearray(b"one")),
        (str | bytes, SECOND, b"two"),
        (bytes | None, FIRST, b"one"),
        (Any, {"a": [SECOND, FIRST]}, {"a": [b"two", b"one"]}),
        (list[bytes], [FIRST, SECOND], [b"one", b"two"]),
        (dict[int, bytes], {"1": FIRST}, {1: b"one"}),
        (Upload, {"name": "a", "parts": [FIRST, SECOND]}, Upload("a", [b"one", b"two"])),
        (Picture, {"data": FIRST}, Picture(data=b"one")),
        (Point, {"x": 1}, Point(1)),
    ],
)
def test_attachments_stand_in_their_places(kind: Any, value: Any, expected: Any) -> None:
    assert bind(taking(kind), value, attachments=[b"one", b"two"]) == [expected]


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (str, FIRST, "$"),
        (Upload, {"name": FIRST, "parts": []}, "$.name"),
        (bytes, {"_placeholder": True, "num": 2}, "$"),
        (bytes, {"_placeholder": True, "num": -1}, "$"),
        (bytes, {"_placeholder": True, "num": "0"}, "$"),
        (bytes, {"_placeholder": True}, "$"),
    ],
)
def test_attachments_that_do_not_fit_are_refused(kind: Any, value: Any, path: str) -> None:
    assert refusal(taking(kind), value, attachments=[b"one", b"two"])[0] == path


def test_placeholder_without_attachments_is_an_ordinary_object() -> None:
    assert bind(taking(Any), FIRST) == [FIRST]
    assert refusal(taking(bytes), FIRST) == ("$", "Expected `bytes`, got `object`")


class Reminder(pydantic.BaseModel, strict=True):
    at: dt.date
    to: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Reminder, {"at": "2026-11-28", "to": [1]}),
        (decimal.Decimal, msgspec.Raw(b"0.1000000000000000000001")),
        (msgspec.Raw, [1.0]),
    ],
)
def test_argument_beside_an_attachment_is_decoded_as_any_other(kind: Any, value: Any) -> None:
    (alone,) = bind(taking(kind), value)
    assert bind(taking(kind, bytes), value, FIRST, attachments=[b"one"]) == [alone, b"one"]


# One message in several forms: by the quick way and the general one, as arguments and as an
# array of them, alone and beside a binary value.

KINDS: list[Any] = [
    *(Any, int, float, str, bool, bytes, str | bytes, int | None, str | int, list[int], list[Any]),
    *(dict[str, int], dict[int, str], tuple[int, str], set[int], Literal["a", 1]),
    *(dt.datetime, dt.date, dt.timedelta, uuid.UUID, decimal.Decimal),
    *(Annotated[str, msgspec.Meta(min_length=1)], Annotated[int, pydantic.Field(gt=0)]),
    *(Point, Shape, Shape | Circle, Person, Options, Pair, Colour, Upload),
    *(Address, Order, Tree, Names, Range, Shipment, Reminder),
]
VALUES = [
    *("null", "true", "0", "1", "-0", "1.0", "1.5", "1e2", "9" * 20, '""', '"a"', '"1"', '"red"'),
    *('"2026-11-28"', '"2026-11-28T01:02:03Z"', '"UUID"', '"PT1S"', '"1.5"', '"YQ=="'),
    *("[]", "[1]", "[1,2]", '["a"]', '[1,"a"]', "{}", '{"a":1}', '{"1":"a"}', '{"x":1,"x":2}'),
    *('{"x":1}', '{"x":1.0,"y":"2"}', '{"x":1,"z":[[[]]]}', '{"type":"nope"}'),
    *('{"type":"shape","points":[{"x":1}]}', '{"type":"circle","radius":1}'),
    *('{"name":"a","born":"2026-11-28"}', '{"name":"a","born":3}', '{"size":1,"colour":"x"}'),
    *('{"left":1,"right":"a"}', '{"street":"a","number":0}', '{"street":"a","number":"1"}'),
    *('{"id":"UUID","to":[{"street":1}]}', '{"id":"UUID"}', '{"name":"a","parts":[]}'),
    *('{"children":[{"children":[]}]}', '{"low":2,"high":1}', '{"low":1,"high":2}'),
    *('{"order":{"id":"UUID"},"others":{"a":[{"street":"x"}]}}', '{"order":{"id":7}}'),
    *('{"at":"2026-11-28"}', '{"at":"2026-11-28","to":[1]}', "[" * 60 + "]" * 60),
]  # fmt: skip
kinds = st.integers(0, len(KINDS) - 1)
texts = st.sampled_from(VALUES).map(lambda text: text.replace("UUID", str(UUID))) | json_values.map(
    json.dumps
)
agreeing = settings(max_examples=100, deadline=None, database=None)


@functools.cache
def schema_taking(kind: int, *others: Any) -> EventSchema:
    return schema_of(taking(KINDS[kind], *others))


def raws_of(texts: Sequence[str]) -> list[msgspec.Raw]:
    return [msgspec.Raw(text.encode()) for text in texts]


def outcome(bind: Callable[[], list[Any]]) -> Any:
    """Return what a message binds to, or what its client is told."""
    try:
        return bind()
    except InvalidMessage as error:
        return error.to_dict()


@agreeing
@given(kinds, texts)
def test_quick_way_of_one_argument_is_the_general_one(kind: int, text: str) -> None:
    schema, raws = schema_taking(kind), raws_of([text])
    general = outcome(lambda: schema._bind(raws, (), indexed=False))
    assert outcome(lambda: schema.bind(raws, ())) == general
    assert outcome(lambda: schema.bind(raws, (), single=True)) == general


@agreeing
@given(kinds, st.lists(texts, max_size=3))
def test_array_of_arguments_binds_as_they_do(kind: int, args: list[str]) -> None:
    schema = schema_taking(kind, int)
    if len(args) > 1:
        args[1] = "1"
    expected = outcome(lambda: schema.bind(raws_of(args), ()))
    array = raws_of([f"[{','.join(args)}]"])
    assert outcome(lambda: schema.bind(array, (), single=True)) == expected


@agreeing
@given(kinds, texts)
def test_argument_binds_the_same_beside_an_attachment(kind: int, text: str) -> None:
    alone = outcome(lambda: schema_taking(kind, int).bind(raws_of([text, "1"]), ()))
    raws = raws_of([text, json.dumps(FIRST)])
    beside = outcome(lambda: schema_taking(kind, bytes).bind(raws, [b"one"]))
    if isinstance(alone, list):
        assert beside == [alone[0], b"one"]
    else:
        assert beside == alone


# Where annotations are looked up. This file has `from __future__ import annotations`.


def test_types_of_the_function_around_the_handler() -> None:
    class Message(msgspec.Struct):
        text: str

    def handler(socket: Socket, message: Message) -> None: ...

    assert bind(handler, {"text": "a"}) == [Message("a")]


def test_types_of_several_functions_around_the_handler() -> None:
    class Outer(msgspec.Struct):
        a: int

    def register() -> EventSchema:
        class Inner(msgspec.Struct):
            b: int

        def handler(socket: Socket, first: Outer, second: Inner) -> None: ...

        return schema_of(handler)

    first, second = register().parameters
    assert first.type is Outer
    assert second.type.__name__ == "Inner"


def test_local_type_hides_the_global_one() -> None:
    class Point(msgspec.Struct):
        z: int

    def handler(socket: Socket, point: Point) -> None: ...

    assert bind(handler, {"z": 1}) == [Point(1)]


def test_types_the_handler_closes_over_after_its_function_returned() -> None:
    def make() -> Callable[..., Any]:
        class Message(msgspec.Struct):
            text: str

        def handler(socket: Socket, message: Message) -> str:
            return Message("answer").text

        return handler

    assert schema_of(make()).parameters[0].type.__name__ == "Message"


def test_types_of_the_class_around_the_handler() -> None:
    hub = Hub()

    class Chat:
        class Message(msgspec.Struct):
            text: str

        @hub.on("event")
        @staticmethod
        def handler(socket: Socket, message: Message) -> None: ...

    assert hub.events["event"].parameters[0].type is Chat.Message


def test_type_of_the_socket_need_not_exist() -> None:
    def handler(socket: Ghost, message: Point) -> Ghost: ...

    schema = schema_of(handler)
    assert [item.type for item in schema.parameters] == [Point]
    assert schema.returns is Any
    assert schema.json_schema()["returns"] == {}


def test_type_of_the_payload_must_exist() -> None:
    def handler(socket: Socket, message: Ghost) -> None: ...

    with pytest.raises(TypeError, match="the handler of 'event': cannot resolve the annotation of "
                       "`message`: name 'Ghost' is not defined"):  # fmt: skip
        schema_of(handler)


def test_type_that_refers_to_an_unknown_one_is_refused() -> None:
    class Message(msgspec.Struct):
        ghost: Ghost

    class Model(pydantic.BaseModel):
        ghost: Ghost

    for kind in (Message, Model):
        with pytest.raises(TypeError, match=r"cannot take `a: .*'Ghost' is not defined"):
            schema_of(taking(kind))


# What may be a handler.


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Game:
    """A class whose instances can be called."""

    def __init__(self) -> None:
        self.moves: list[Point] = []

    def move(self, socket: Socket, point: Point) -> int:
        """Note a move."""
        self.moves.append(point)
        return len(self.moves)

    async def move_later(self, socket: Socket, point: Point) -> int:
        """Note a move."""
        return self.move(socket, point)

    def __call__(self, socket: Socket, point: Point) -> int:
        """Note a move."""
        return self.move(socket, point)

    def named(self, name: str) -> None: ...


class LaterGame(Game):
    async def __call__(self, socket: Socket, point: Point) -> int:  # type: ignore[override]
        """Note a move."""
        return self.move(socket, point)


def named_move(game: Game, socket: Socket, point: Point, *, times: int) -> int:
    """Note a move."""
    return game.move(socket, point) * times


async def named_move_later(game: Game, socket: Socket, point: Point, times: int = 1) -> int:
    """Note a move."""
    return game.move(socket, point) * times


def handlers(game: Game) -> dict[str, Callable[..., Any]]:
    later = LaterGame()
    later.moves = game.moves
    return {
        "method": game.move,
        "async-method": game.move_later,
        "object": game,
        "async-object": later,
        "partial": functools.partial(named_move, game, times=1),
        "async-partial": functools.partial(named_move_later, game, times=1),
        "partial-of-a-method": functools.partial(game.move),
        "partial-of-an-object": functools.partial(game),
        "decorated": decorated(game.move),
        "decorated-async": decorated(game.move_later),
    }


@pytest.mark.parametrize("kind", handlers(Game()))
def test_schema_of_any_callable(kind: str) -> None:
    schema = schema_of(handlers(Game())[kind])
    assert [(item.name, item.type) for item in schema.parameters] == [("point", Point)]
    assert schema.returns is int
    assert schema.doc == "Note a move."


async def test_any_callable_is_called(serve: Serve, new_client: NewClient) -> None:
    hub = Hub()
    game = Game()
    for kind, handler in handlers(game).items():
        hub.on(kind, handler)
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    for count, kind in enumerate(handlers(game), 1):
        assert await client.call(kind, {"x": count}) == count
    assert game.moves == [Point(count) for count in range(1, len(hub.events) + 1)]


def test_handler_is_left_as_it_is() -> None:
    hub = Hub()

    @hub.on("event")
    def handler(socket: Socket) -> str:
        return "as it is"

    assert handler(None) == "as it is"  # type: ignore[arg-type]
    assert hub.on("other", handler) is handler


def needs_keyword(socket: Socket, *, a: int) -> None: ...


# What would let a client say what it may not: its own user, say.


class User(msgspec.Struct):
    name: str


class Database:
    """Something that a framework would fill in."""


class Watched(Socket):
    """A subclass of the application's own."""


class HasId(Protocol):
    @property
    def id(self) -> str: ...


SocketT = TypeVar("SocketT", bound=Socket)


def current_user() -> User:
    return User("nobody")


class Injected:
    """A mark of some framework that nobody here knows."""

    def __init__(self, dependency: Any = None) -> None:
        self.dependency = dependency


def depending(kind: Any, default: Any = inspect.Parameter.empty) -> Callable[..., None]:
    """Return a handler of one argument, `user`, with this annotation and this default."""

    def handler(socket: Socket, user: Any) -> None: ...

    handler.__annotations__["user"] = kind
    if default is not inspect.Parameter.empty:
        handler.__defaults__ = (default,)
    return handler


@pytest.mark.parametrize(
    ("kind", "default", "message"),
    [
        (User, fastapi.Depends(current_user), (
            r"`user` cannot be Depends\(…\): a handler's arguments come from its client. Look it "
            "up in the handler, from `socket.identity`"
        )),
        (Any, fastapi.Depends(current_user), r"cannot be Depends\(…\)"),
        (User | None, fastapi.Security(current_user), r"cannot be Security\(…\)"),
        (str, fastapi.Query("a"), r"cannot be Query\(…\)"),
        (str, fastapi.Header(), r"cannot be Header\(…\)"),
        (str, fastapi.Cookie(None), r"cannot be Cookie\(…\)"),
        (User, fastapi.Body(), r"cannot be Body\(…\)"),
        (User, Injected(current_user), (
            r"the default of `user` must be None, a plain value or an instance of its "
            r"annotation, not Injected\(…\): a handler's arguments"
        )),
        (Any, Injected(), r"not Injected\(…\)"),
        (Any, object(), r"not object\(…\)"),
        (Any, User("a"), r"not User\(…\)"),
        (User, Point(1), r"not Point\(…\)"),
        (User | None, [User("a"), Database()], r"not list\(…\)"),
        (dict[str, Any], {"db": Database()}, r"not dict\(…\)"),
        (Any, current_user, "not current_user"),
        (Any, Database, "not Database"),
        (str, pydantic.Field(min_length=1), (
            r"the default of `user` cannot be FieldInfo\(…\): write constraints as "
            r"`user: Annotated\[str, Field\(…\)\]`"
        )),
        (Annotated[User, fastapi.Depends(current_user)], ..., r"cannot be Depends\(…\)"),
        (Annotated[str, fastapi.Query(min_length=1)], ..., r"cannot be Query\(…\)"),
        (Annotated[User | None, fastapi.Depends(current_user)], None, r"cannot be Depends\(…\)"),
        (list[Annotated[User, fastapi.Depends(current_user)]], ..., r"cannot be Depends\(…\)"),
        (Annotated[User, Injected(current_user)], ..., r"`user` cannot be Injected\(…\): a han"),
        (Annotated[User, Injected], ..., "`user` cannot be Injected: a handler's"),
        (Annotated[User, current_user], ..., "`user` cannot be current_user: a handler's"),
    ],
)  # fmt: skip
def test_parameter_that_a_framework_would_fill_is_refused(
    kind: Any, default: Any, message: str
) -> None:
    missing = inspect.Parameter.empty
    handler = depending(kind, missing if default is ... else default)
    with pytest.raises(TypeError, match=f"the handler of 'event': .*{message}") as caught:
        schema_of(handler)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "register",
    [
        lambda hub, function: hub.on("event", function),
        lambda hub, function: hub.on("connect", function),
        lambda hub, function: hub.use(function),
        lambda hub, function: Hub(authenticate=function),
    ],
    ids=["event", "connect", "use", "authenticate"],
)
def test_marks_of_a_framework_are_refused_wherever_functions_are_registered(
    register: Callable[[Hub, Any], Any],
) -> None:
    def by_default(socket: Any, *, db: Any = fastapi.Depends(Database)) -> None: ...  # noqa: B008
    def by_annotation(
        socket: Any, *, db: Annotated[Any, fastapi.Depends(Database)] = None
    ) -> None: ...

    hub = Hub()
    for function in (by_default, by_annotation):
        with pytest.raises(TypeError, match=r"`db` cannot be Depends\(…\)"):
            register(hub, function)
    assert not hub.events


@pytest.mark.parametrize(
    ("kind", "default"),
    [
        (Any, None), (bool, True), (int, -1), (float, 0.5), (str, "a"), (bytes, b"a"),
        (list[int], [1, [2]]), (dict[str, Any], {"a": {"b": (1,)}}), (set[str], {"a"}),
        (tuple[int, ...], (1, 2)), (Pair, Pair(1, "a")), (Colour, Colour.RED),
        (dt.date, dt.date(2026, 1, 1)), (decimal.Decimal, decimal.Decimal(1)), (uuid.UUID, UUID),
        (str | msgspec.UnsetType, msgspec.UNSET), (Point, Point(1)), (Point | None, Point(1)),
        (list[Point], [Point(1)]), (dict[str, Address], {"a": Address(street="Elm")}),
        (Person, Person("Ada")), (Address, Address(street="Elm")), (Names, Names(["a"])),
        (Annotated[Point, "where to"], Point(1)), (Options, {"size": 1}),
    ],
)  # fmt: skip
def test_plain_defaults_are_taken(kind: Any, default: Any) -> None:
    schema = schema_of(depending(kind, default))
    assert schema.bind([], ()) == [default]


@pytest.mark.parametrize(
    "kind",
    [
        Annotated[str, "a note"],
        Annotated[str, msgspec.Meta(description="a note")],
        Annotated[str, pydantic.Field(min_length=1), pydantic.AfterValidator(str.strip)],
        Annotated[str, pydantic.StringConstraints(min_length=1)],
        list[Annotated[int, pydantic.Field(gt=0)]],
    ],
)
def test_notes_and_constraints_beside_a_type_are_taken(kind: Any) -> None:
    assert schema_of(depending(kind)).parameters[0].type == kind


def test_what_is_no_argument_of_the_client_may_be_anything() -> None:
    database = Database()

    def handler(socket: Socket, text: str, *, database: Database = database) -> None: ...

    assert bind(handler, "a") == ["a"]
    made = functools.partial(handler, database=Database())
    assert bind(made, "a") == ["a"]


async def nothing() -> None: ...
async def text_first(room: str, content: str) -> None: ...
async def message_first(message: Point) -> None: ...
async def model_first(message: Address | None) -> None: ...
async def list_first(items: list[int]) -> None: ...
def environ(sid: str, environ: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (nothing, r": write `nothing\(socket: Socket\)`"),
        (text_first, r", not `room: str`: write `text_first\(socket: Socket, room, content\)`"),
        (message_first, r", not `message: Point`: write `message_first\(socket: So"),
        (model_first, r", not `message: Address \| None`: write"),
        (list_first, r", not `items: list\[int\]`: write"),
        (environ, r", not `sid: str`: write"),
        (Game().named, r", not `name: str`: write `named\(socket: Socket, name\)`"),
    ],
)  # fmt: skip
def test_handler_that_does_not_take_the_socket_first_is_refused(
    handler: Callable[..., Any], message: str
) -> None:
    with pytest.raises(
        TypeError, match=f"^the handler of 'event' must take the socket as first argument{message}"
    ):
        schema_of(handler)


@pytest.mark.parametrize("place", ["use", "on_any", "use_event", "connect", "disconnect"])
def test_other_functions_take_the_socket_first_too(place: str) -> None:
    hub = Hub()

    def wrong(user: str, *args: Any) -> None: ...
    def right(socket: Watched, *args: Any) -> None: ...

    register: Any = getattr(hub, place, functools.partial(hub.on, place))
    register(right)
    with pytest.raises(TypeError, match="must take the socket as first argument, not `user: str`"):
        register(wrong)


@pytest.mark.parametrize(
    "kind",
    [
        Any, object, Socket, Watched, HasId, SocketT, TypeVar("AnyT"), Socket | None, "Ghost",
        Annotated[Socket, "the client"],
    ],
)  # fmt: skip
def test_socket_may_be_annotated_in_these_ways(kind: Any) -> None:
    handler = taking(int)
    handler.__annotations__["socket"] = kind
    assert bind(handler, 1) == [1]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda: None, "must take the socket as first argument"),
        (needs_keyword, "needs keyword 'a': give it a default"),
        (taking(Unknown), "cannot take `a: .*Unknown`: 'Unknown' cannot be decoded: use builtins"),
        (taking(int, list[Unknown]), "cannot take `b: list.*: 'Unknown' cannot be decoded"),
        (taking(Holder), "cannot take `a: .*Holder`: 'Unknown' cannot be decoded"),
        (taking(Socket), "'Socket' cannot be decoded"),
        (taking(Unknown | None), "'Unknown' cannot be decoded"),
        (taking(Callable[[], None]), "'Callable' cannot be decoded"),
        (taking(Awaitable[int]), "'Awaitable' cannot be decoded"),
        (taking(complex), "'complex' cannot be decoded"),
        (taking(Point | Circle), "all Struct types must be tagged"),
        (taking(list[Address] | Unknown), "pydantic refuses it: Unable to generate .*Unknown"),
        (taking(Address | Point), "pydantic refuses it: Unable to generate .*Point"),
    ],
)
def test_handler_that_cannot_be_served_is_refused_at_registration(
    handler: Callable[..., Any], message: str
) -> None:
    hub = Hub()
    with pytest.raises(TypeError, match=f"the handler of 'event' .*{message}") as caught:
        hub.on("event", handler)
    assert "\n" not in str(caught.value)
    assert "event" not in hub.events


# What a hub sends: `tests/protocol/test_values.py` has the list of it.


class Markup(str):
    __slots__ = ()


class Topic(enum.StrEnum):
    NEWS = "news"


SENT = {
    Markup("html"): Markup("<b>"),
    True: collections.Counter("aab"),
    3: [Topic.NEWS, decimal.Decimal("1.5"), Address(street="Elm"), Pair(1, "a")],
}
ARRIVES = {
    "html": "<b>",
    "true": {"a": 2, "b": 1},
    "3": ["news", "1.5", {"street": "Elm", "number": 1}, [1, "a"]],
}


@pytest.mark.parametrize(
    "kind", ["socket.io-client websocket", "python-socketio", "websocket", "sse"]
)
async def test_values_are_taken_by_events_answers_and_errors_alike(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()

    @hub.on("answer")
    def answer(socket: Socket) -> Any:
        return SENT

    @hub.on("row")
    async def row(socket: Socket) -> Any:
        return Pair(1, "a")

    @hub.on("fail")
    def fail(socket: Socket) -> None:
        raise EventError(Markup("No"), code=Topic.NEWS, sent=SENT)

    @hub.on("ask")
    async def ask(socket: Socket) -> Any:
        return await socket.emit_with_ack(Topic.NEWS, SENT)

    client = new_client(kind)
    client.answer("news", lambda data: data)
    await client.connect((await serve(hub)).url)
    hub.emit("x", SENT)
    assert (await client.next_event("x")).data == ARRIVES
    assert await client.call("answer") == ARRIVES
    assert await client.call("row") == [1, "a"]
    with pytest.raises(EventFailed, match="No") as failed:
        await client.call("fail")
    assert failed.value.code == "news"
    assert failed.value.error["sent"] == ARRIVES
    if kind != "sse":
        # The stream's client answers by a POST of its own, one at a time.
        assert await client.call("ask") == ARRIVES
    await client.emit("fail")
    if kind != "sse":
        assert (await client.next_error())["sent"] == ARRIVES


@pytest.mark.parametrize(
    "kind", ["socket.io-client websocket", "python-socketio", "websocket", "sse"]
)
async def test_values_are_taken_by_refusals(kind: str, serve: Serve, new_client: NewClient) -> None:
    hub = Hub()

    @hub.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused(Markup("No"), data=SENT, code=Topic.NEWS)

    with pytest.raises(Refused) as refused:
        await new_client(kind).connect((await serve(hub)).url)
    data = refused.value.data
    assert data == ARRIVES or data["data"] == ARRIVES


@pytest.mark.parametrize("kind", ["socket.io-client websocket", "websocket", "sse"])
async def test_names_may_be_members_of_an_enum(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    class Event(str, enum.Enum):  # noqa: UP042 - what was written before StrEnum
        SAID = "said"

    hub = Hub()

    @hub.on(Event.SAID)
    async def said(socket: Socket, text: str) -> frozenset[str]:
        await socket.join(Topic.NEWS)
        hub.to(Topic.NEWS).emit(Event.SAID, text)
        hub.except_(Markup(socket.id)).emit(Topic.NEWS)
        hub.emit(Topic.NEWS, "last")
        return socket.rooms - {socket.id}

    assert list(hub.events) == ["said"]
    client = new_client(kind)
    await client.connect((await serve(hub)).url)
    assert await client.call("said", "a") == ["news"]
    assert (await client.next_event("said")).data == "a"
    assert (await client.next_event("news")).data == "last"
    assert hub.rooms.keys() == {"news", client.sid}
    assert all(type(name) is str for name in (*hub.events, *hub.rooms))


# The registry.


def test_events_can_be_read_from_the_hub() -> None:
    hub = Hub()

    @hub.on("move")
    async def move(socket: Socket, point: Point, speed: float = 1.0, *tags: str) -> Shape:
        """Move to a point.

        Slowly.
        """
        raise NotImplementedError

    @hub.of("/admin").on("stop")
    def stop(socket: Socket) -> None: ...

    @hub.of(lambda name: name.startswith("/room-")).on("say")
    def say(socket: Socket, text: str) -> None: ...

    assert list(hub.events) == ["move"]
    assert list(hub.of("/admin").events) == ["stop"]
    assert list(hub.of("/room-1").events) == ["say"]
    schema = hub.events["move"]
    assert repr(schema) == "<EventSchema 'move'>"
    assert (schema.name, schema.handler, schema.is_async) == ("move", move, True)
    assert schema.doc == "Move to a point.\n\nSlowly."
    point, speed = schema.parameters
    assert (point.name, point.type, point.required) == ("point", Point, True)
    assert (speed.name, speed.type, speed.required, speed.default) == ("speed", float, False, 1.0)
    assert schema.variadic is str
    assert schema.returns is Shape
    assert hub.of("/admin").events["stop"].returns is type(None)
    with pytest.raises(TypeError):
        hub.events["other"] = schema  # type: ignore[index]


def test_json_schema_of_an_event() -> None:
    def handler(socket: Socket, point: Point, when: dt.date | None = None) -> dict[str, int]:
        raise NotImplementedError

    schema = schema_of(handler).json_schema()
    assert schema == {
        "parameters": [
            {
                "name": "point",
                "required": True,
                "schema": {
                    "$ref": "#/$defs/Point",
                    "$defs": {
                        "Point": {
                            "title": "Point",
                            "type": "object",
                            "properties": {
                                "x": {"type": "integer"},
                                "y": {"type": "integer", "default": 0},
                            },
                            "required": ["x"],
                        }
                    },
                },
            },
            {
                "name": "when",
                "required": False,
                "schema": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
            },
        ],
        "returns": {"type": "object", "additionalProperties": {"type": "integer"}},
    }


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Any, {}),
        (object, {}),
        (bytes, {"type": "string", "contentEncoding": "base64"}),
        (str | bytes, {"type": "string"}),
        (Literal["a"], {"enum": ["a"]}),
        (dict[str, Any], {"type": "object"}),
        (list[object], {"type": "array", "items": {"$comment": "anything"}}),
        (Names, {"items": {"type": "string"}, "title": "Names", "type": "array"}),
        (Annotated[str, pydantic.Field(min_length=1)], {"type": "string", "minLength": 1}),
    ],
)
def test_json_schema_of_a_type(kind: Any, schema: dict[str, Any]) -> None:
    assert schema_of(taking(kind)).json_schema()["parameters"][0]["schema"] == schema


@pytest.mark.parametrize("kind", [Order, list[Order], Shipment, Tree, list[Tree], Shape | Circle])
def test_json_schema_refers_only_to_its_own_definitions(kind: Any) -> None:
    (parameter,) = schema_of(taking(kind)).json_schema()["parameters"]
    schema = parameter["schema"]
    references: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                references.append(node["$ref"])
            for item in node.values():
                collect(item)
        elif isinstance(node, list):
            for item in node:
                collect(item)

    collect(schema)
    assert references
    assert {f"#/$defs/{name}" for name in schema["$defs"]} >= set(references)


def test_json_schema_of_any_number_of_arguments() -> None:
    def handler(socket: Socket, *points: Point) -> tuple[int, str]:
        raise NotImplementedError

    schema = schema_of(handler).json_schema()
    assert schema["parameters"] == []
    assert schema["variadic"]["$ref"] == "#/$defs/Point"
    assert schema["returns"]["type"] == "array"


def test_return_type_that_json_cannot_describe() -> None:
    def handler(socket: Socket) -> Unknown:
        raise NotImplementedError

    schema = schema_of(handler)
    assert schema.returns is Unknown
    assert schema.json_schema()["returns"] == {}


def test_event_has_one_handler() -> None:
    hub = Hub()
    hub.on("event", taking())
    with pytest.raises(ValueError, match="'event' has a handler already"):
        hub.on("event", taking(int))
    assert hub.events["event"].parameters == ()
    # Another namespace has its own.
    hub.of("/other").on("event", taking(int))


@pytest.mark.parametrize(
    "name", ["ack:request", "event:named", "connect_error", "disconnecting", "newListener",
             "removeListener", "server:shutdown", "token:expiring", "token:refresh"]
)  # fmt: skip
def test_reserved_names_are_refused(name: str) -> None:
    hub = Hub()
    with pytest.raises(ValueError, match=f"'{name}' is a reserved event name"):
        hub.on(name, taking())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "1 to 256 characters, not 0"),
        ("a" * 257, "1 to 256 characters, not 257"),
        ("a\nb", "must not contain control characters"),
        ("a\0", "must not contain control characters"),
        ("\ud800", "must be valid Unicode"),
    ],
)
def test_unusable_names_are_refused(name: str, message: str) -> None:
    hub = Hub()
    with pytest.raises(EncodeError, match=message):
        hub.on(name, taking())
    with pytest.raises(EncodeError, match=message):
        hub.emit(name)


def test_decorator_needs_the_name_of_the_event() -> None:
    hub = Hub()
    on: Any = hub.on
    for name in (taking(), None, 3):
        with pytest.raises(TypeError, match="takes the event's name first"):
            on(name)


# Over the wire.


async def test_message_that_does_not_fit_is_answered_and_handled_by_nobody(
    serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    handled: list[Any] = []

    @hub.on("draw")
    def draw(socket: Socket, shape: Shape, *more: Address) -> int:
        handled.append((shape, *more))
        return len(handled)

    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    shape = {"type": "shape", "points": [{"x": 1}]}
    # Without an id, as an error of its own; with one, as the answer.
    await client.emit("draw", [shape, {"street": 1}])
    error = {
        "code": "invalid_message",
        "error": "Invalid message format",
        "path": "$[1].street",
        "reason": "Input should be a valid string",
        "event": "draw",
    }
    assert await client.next_error() == error
    with pytest.raises(EventFailed) as failed:
        await client.call("draw", [shape, {"street": 1}])
    assert failed.value.error == error
    with pytest.raises(EventFailed) as failed:
        await client.call("draw")
    assert failed.value.error["reason"] == (
        "'draw' takes (shape: Shape, *more: Address); got 0 arguments"
    )
    assert handled == []
    # The connection is as good as before.
    assert await client.call("draw", [shape, {"street": "Elm"}]) == 1
    assert handled == [(Shape([Point(1)]), Address(street="Elm"))]


async def test_handler_gets_its_types_and_answers_with_them(
    serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()

    @hub.on("mirror")
    async def mirror(socket: Socket, point: Point) -> Point:
        return Point(point.y, point.x)

    @hub.on("order")
    async def order(socket: Socket, addresses: list[Address]) -> Order:
        return Order(id=UUID, to=addresses)

    @hub.on("none")
    async def none(socket: Socket) -> None: ...

    @hub.on("several")
    async def several(socket: Socket, a: int, b: int) -> tuple[int, int]:
        return b, a

    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url)
    assert await client.call("mirror", {"x": 1, "y": 2}) == {"x": 2, "y": 1}
    addresses = [{"street": "Elm", "number": 2}]
    assert await client.call("order", addresses) == {"id": str(UUID), "to": addresses}
    assert await client.call("none", "whatever") is None
    assert await client.call("several", [1, 2]) == [2, 1]


async def test_bytes_come_and_go_as_attachments(serve: Serve, new_client: NewClient) -> None:
    hub = Hub()
    seen: list[Any] = []

    @hub.on("upload")
    async def upload(socket: Socket, file: Upload, extra: bytes = b"") -> bytes:
        seen.append((file, extra))
        return b"".join(file.parts) + extra

    server = await serve(hub)
    client = new_client("python-socketio")
    await client.connect(server.url)
    assert isinstance(client, PythonSocketIOClient)
    file = {"name": "a", "parts": [b"\0one", b"two"]}
    assert await client.call("upload", file, b"three") == b"\0onetwothree"
    assert seen == [(Upload("a", [b"\0one", b"two"]), b"three")]
    with pytest.raises(EventFailed) as failed:
        await client.call("upload", {"name": b"a", "parts": []})
    assert failed.value.error["path"] == "$[0].name"
    # On a JSON door they are base64.
    other = new_client("websocket")
    await other.connect(server.url)
    assert isinstance(other, WebSocketClient)
    parts = {"name": "a", "parts": ["AG9uZQ=="]}
    assert await other.call("upload", [parts, "dHdv"]) == "AG9uZXR3bw=="
