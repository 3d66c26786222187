"""What may be emitted: Python's values, and the JSON that stands for them."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import json
import math
import pathlib
import re
import types
import uuid
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple
from unittest import mock

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass as pydantic_dataclass

from crossband import EncodeError
from crossband.protocol import payload
from crossband.protocol.payload import Payload
from tests.protocol.strategies import any_text, json_values


class Markup(str):
    """As markupsafe's and Django's: a string that says something else of itself."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not this"

    __repr__ = __format__ = __html__ = __str__  # type: ignore[assignment]


class Whole(int):
    def __str__(self) -> str:
        return "not this"

    def __int__(self) -> int:
        return -1


class Real(float):
    def __repr__(self) -> str:
        return "not this"


class Shade(enum.StrEnum):
    DARK = "dark"


class Mixed(str, enum.Enum):  # noqa: UP042 - what was written before StrEnum
    DARK = "dark"


class Level(enum.IntEnum):
    HIGH = 3


class Access(enum.IntFlag):
    READ = 1
    WRITE = 2


class Half(float, enum.Enum):
    UP = 0.5


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, "a")
    NONE = None
    BLOB = b"blob"


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Person:
    name: str
    born: Any = None


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    id: int
    left_out: Any = msgspec.UNSET


@attrs.define
class Place:
    x: int
    what: Any = None


class Point(msgspec.Struct, rename="camel", omit_defaults=True):
    at_x: Any
    at_y: Any = 0


class Tagged(msgspec.Struct, tag="tagged", array_like=True):
    id: int


class Address(pydantic.BaseModel):
    street: str
    since: dt.date | None = None
    secret: pydantic.SecretStr = pydantic.SecretStr("hidden")
    path: pathlib.PurePosixPath = pathlib.PurePosixPath("/a")

    @pydantic.field_serializer("since", when_used="json")
    def year_only(self, since: dt.date | None) -> int | None:
        return None if since is None else since.year

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> int:
        return len(self.street)


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True, populate_by_name=True)
    room_id: int = pydantic.Field(alias="roomId")


class Trimmed(pydantic.BaseModel):
    a: int | None = None
    b: int = 1

    def model_dump(self, **options: Any) -> dict[str, Any]:
        return super().model_dump(exclude_none=True, **options)


class Names(pydantic.RootModel[list[str]]):
    pass


class Picture(pydantic.BaseModel):
    name: Markup
    data: bytes
    secret: pydantic.SecretStr = pydantic.SecretStr("hidden")

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)


class Anything(pydantic.BaseModel):
    value: Any


@pydantic_dataclass
class Range:
    low: int
    high: Annotated[dt.timedelta, pydantic.PlainSerializer(lambda value: value.days)]


class Timestamp(dt.datetime):
    """As pandas.Timestamp."""


class Day(dt.date):
    pass


class Duration(dt.timedelta):
    pass


class Clock(dt.time):
    pass


class Key(uuid.UUID):
    """As the one of asyncpg."""


class Price(decimal.Decimal):
    pass


class Blob(bytes):
    pass


class Buffer(bytearray):
    pass


class Array:
    """As numpy's scalars and arrays: what these have, and no more."""

    dtype = "int64"

    def __init__(self, value: Any) -> None:
        self._value = value

    def tolist(self) -> Any:
        return self._value


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
UTC = dt.UTC


def json_of(value: Any) -> Any:
    encoded = payload.encode([value])
    assert encoded.attachments == ()
    (found,) = json.loads(encoded.json)
    return found


# Whatever json.dumps takes, it comes out as it.


@pytest.mark.parametrize(
    "value",
    [
        Markup("<b>"),
        Whole(5),
        Whole(2**70),
        Real(1.5),
        Shade.DARK,
        Mixed.DARK,
        Level.HIGH,
        Access.READ | Access.WRITE,
        Access(0),
        Half.UP,
        -(2**64),
        10**400,
        Pair(1, Markup("a")),
        [Pair(1, [Whole(2)])],
        collections.OrderedDict(b=1, a=Markup("x")),
        collections.defaultdict(list, a=[Real(0.5)]),
        collections.Counter("aab"),
        type("Row", (list,), {})([Markup("a")]),
        type("Row", (tuple,), {})((1, Level.HIGH)),
        {2: "a", 2.5: "b", 1e22: "c", True: "d", False: "e", None: "f"},
        {-1: 0, 2**70: 1},
        {math.nan: 1, math.inf: 2, -math.inf: 3},
        {Whole(3): 1, Real(0.5): 2, Markup("a"): 3},
        {Shade.DARK: 1, Level.HIGH: 2, Mixed.DARK: 3},
        {"1": "a", 1: "b"},
        {"a": {"b": [{Markup("c"): (Whole(1), [Real(2.5)])}]}},
    ],
)
def test_what_json_dumps_takes_is_written_as_it_writes_it(value: Any) -> None:
    assert json_of(value) == json.loads(json.dumps(value))


def encoded(args: list[Any]) -> Payload | str:
    try:
        return payload.encode(args)
    except EncodeError as error:
        return str(error)


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


almost_plain = st.recursive(
    st.none()
    | any_text
    | st.integers()
    | st.floats()
    | st.binary(max_size=3)
    | st.builds(Whole)
    | st.sampled_from(
        [2**64, -(2**63), -(2**64), 10**400, (), {}, deep(127), deep(128), deep(129)]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(any_text | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(almost_plain, max_size=3))
def test_what_is_plain_is_encoded_as_if_it_were_not(args: list[Any]) -> None:
    with mock.patch.object(payload, "_is_plain", return_value=False):
        expected = encoded(args)
    assert encoded(args) == expected


@given(json_values)
def test_plain_values_come_out_the_same_by_either_way(value: Any) -> None:
    assert payload.encode([value, Whole(1)]).json == payload.encode([value, 1]).json


@given(st.recursive(st.builds(Markup) | st.builds(Whole) | st.builds(Real, st.floats(-9, 9)),
                    lambda inner: st.lists(inner) | st.dictionaries(st.builds(Markup), inner),
                    max_leaves=5))  # fmt: skip
def test_subclasses_are_what_they_are_at_any_depth(value: Any) -> None:
    assert json_of(value) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Colour.PAIR, [1, "a"]),
        (Colour.NONE, None),
        ({Colour.RED: [Colour.PAIR]}, {"red": [[1, "a"]]}),
        (dt.datetime(2026, 11, 28, 1, 2, 3, tzinfo=UTC), "2026-11-28T01:02:03Z"),
        (Timestamp(2026, 11, 28, 1, 2, 3, 4, tzinfo=UTC), "2026-11-28T01:02:03.000004Z"),
        (dt.date(2026, 11, 28), "2026-11-28"),
        (Day(2026, 11, 28), "2026-11-28"),
        (dt.time(1, 2, 3), "01:02:03"),
        (Clock(1, 2, 3), "01:02:03"),
        (dt.timedelta(hours=1), "PT3600S"),
        (Duration(hours=1), "PT3600S"),
        ({dt.date(2026, 11, 28): 1}, {"2026-11-28": 1}),
        (decimal.Decimal("1.50"), "1.50"),
        (Price("1.50"), "1.50"),
        ({decimal.Decimal("1.5"): 1}, {"1.5": 1}),
        (UUID, str(UUID)),
        (Key(str(UUID)), str(UUID)),
        ({UUID: 1}, {str(UUID): 1}),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (pathlib.Path("a"), "a"),
        (ipaddress.ip_address("::1"), "::1"),
        (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        (ipaddress.ip_interface("10.0.0.1/8"), "10.0.0.1/8"),
        (collections.UserString("a"), "a"),
        (collections.UserDict({"a": 1}), {"a": 1}),
        (types.MappingProxyType({"a": Whole(1)}), {"a": 1}),
        (collections.ChainMap({"a": 1}), {"a": 1}),
        (collections.UserList([1]), [1]),
        (collections.deque([1, Whole(2)]), [1, 2]),
        ({1}, [1]),
        (frozenset({Markup("a")}), ["a"]),
        (range(3), [0, 1, 2]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [["a", 1]]),
        ((number for number in (1, Whole(2))), [1, 2]),
        (msgspec.Raw(b'{"a": 1}'), {"a": 1}),
        (math.nan, None),
        ([math.inf, -math.inf, Real("nan")], [None, None, None]),
    ],
)
def test_other_values_have_the_usual_form(value: Any, expected: Any) -> None:
    assert json_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Person("Ada"), {"name": "Ada", "born": None}),
        (Person(Markup("Ada"), Slotted(1)), {"name": "Ada", "born": {"id": 1}}),
        (Person("Ada", {True: Whole(1)}), {"name": "Ada", "born": {"true": 1}}),
        (Place(1, Markup("a")), {"x": 1, "what": "a"}),
        (Point(Markup("a")), {"atX": "a"}),
        (Point(Whole(1), [Real(2.5)]), {"atX": 1, "atY": [2.5]}),
        (Point({Whole(1): {Real(2.5)}}, collections.deque([Place(1)])),
         {"atX": {"1": [2.5]}, "atY": [{"x": 1, "what": None}]}),
        (Tagged(1), ["tagged", 1]),
        (Address(street="Elm", since=dt.date(2026, 1, 1)),
         {"street": "Elm", "since": 2026, "secret": "**********", "path": "/a", "length": 3}),
        (Aliased(roomId=1), {"roomId": 1}),
        (Trimmed(), {"b": 1}),
        (Names(["a"]), ["a"]),
        (Range(1, dt.timedelta(2)), {"low": 1, "high": 2}),
        (Point(Names(["a"]), {"in": (Aliased(roomId=1),)}),
         {"atX": ["a"], "atY": {"in": [{"roomId": 1}]}}),
        ([Names(["a"]), {"a": Person("b", Range(1, dt.timedelta(2)))}],
         [["a"], {"a": {"name": "b", "born": {"low": 1, "high": 2}}}]),
        (Anything(value=Point(Whole(1))), {"value": {"atX": 1}}),
        (Anything(value={"a": Markup("b")}), {"value": {"a": "b"}}),
        (pydantic.SecretStr("hidden"), "**********"),
        (pydantic.AnyUrl("https://a.example/b"), "https://a.example/b"),
        (Person("a", pydantic.SecretStr("hidden")), {"name": "a", "born": "**********"}),
    ],
)  # fmt: skip
def test_models_have_the_form_their_own_library_gives_them(value: Any, expected: Any) -> None:
    assert json_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Array(5), 5),
        (Array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ({"a": [Array(True)], "b": (Array(dt.date(2026, 1, 1)),)},
         {"a": [True], "b": ["2026-01-01"]}),
        ({Array(5): 1}, {"5": 1}),
        (Point(Array(0.5)), {"atX": 0.5}),
    ],
)  # fmt: skip
def test_scalars_and_arrays_of_numpy_are_what_they_hold(value: Any, expected: Any) -> None:
    assert json_of(value) == expected


# Bytes stay bytes, wherever they are.


@pytest.mark.parametrize("blob", [bytes, bytearray, memoryview, Blob, Buffer])
@pytest.mark.parametrize(
    "within",
    [
        lambda blob: blob,
        lambda blob: {"a": [blob]},
        lambda blob: collections.OrderedDict(a=collections.deque([blob])),
        lambda blob: Pair(1, blob),
        lambda blob: {1: blob},
        lambda blob: Person("a", blob),
        lambda blob: Place(1, blob),
        Point,
        lambda blob: Point({"a": (blob,)}),
        lambda blob: Anything(value={"a": [blob]}),
        lambda blob: [Anything(value=Point(blob))],
        lambda blob: (item for item in [blob]),
    ],
)
def test_binary_values_are_set_apart(
    within: Callable[[Any], Any], blob: Callable[[bytes], Any]
) -> None:
    encoded = payload.encode([within(blob(b"\x00\xff"))])
    assert encoded.attachments == (b"\x00\xff",)
    assert type(encoded.attachments[0]) is bytes
    assert b'{"_placeholder":true,"num":0}' in encoded.json


def test_binary_values_are_numbered_in_their_order() -> None:
    sent = [b"a", {"b": bytearray(b"b")}, Colour.BLOB, Picture(name=Markup("c"), data=b"c")]
    encoded = payload.encode(sent)
    assert encoded.attachments == (b"a", b"b", b"blob", b"c")
    *_, picture = payload.decode(encoded)
    assert picture == {"name": "c", "data": b"c", "secret": "**********"}


# Values without a JSON form are refused with a helpful error.


def endless() -> Any:
    class Box:
        dtype = "object"

        def tolist(self) -> Any:
            return self

    return Box()


def within_itself(kind: str) -> Any:
    if kind == "model":
        model = Anything(value=None)
        model.value = [model]
        return model
    person = Person("a")
    person.born = {"list": [person], "tuple": (1, person)}[kind]
    return person


async def nobody_awaits() -> None: ...


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (object(), "object is not JSON serialisable"),
        (1j, "complex is not JSON serialisable"),
        (fractions.Fraction(1, 2), "Fraction is not JSON serialisable"),
        (Person, "the class Person is not JSON serialisable: did you mean to call it?"),
        (len, "builtin_function_or_method is not JSON serialisable"),
        (msgspec.UNSET, "UnsetType is not JSON serialisable"),
        ({(1, 2): 1}, "a key must be a string or a number, not tuple"),
        ({b"a": 1}, "a key must be a string or a number, not bytes"),
        ({object(): 1}, "object is not JSON serialisable"),
        ("\ud800", r"a string in it holds '\ud800', half of a surrogate pair"),
        (Markup("a\udfff"), r"holds '\udfff', half"),
        ({"\ud800": Whole(1)}, r"holds '\ud800', half"),
        (Person("a", {"b": ["\ud800"]}), r"holds '\ud800', half"),
        ([10**5_000], "Exceeds the limit"),
        ([Whole(10**5_000)], "Exceeds the limit"),
        (within_itself("list"), "nested too deeply, or inside itself"),
        (within_itself("tuple"), "nested too deeply, or inside itself"),
        (within_itself("model"), "nested too deeply, or inside itself"),
        (endless(), "nested too deeply, or inside itself"),
    ],
)
def test_value_without_a_form_is_refused(value: Any, complaint: str) -> None:
    for sent in (value, {"a": [value]}):
        with pytest.raises(EncodeError, match=re.escape(complaint)):
            payload.encode([sent])


def test_coroutine_is_refused_with_a_hint() -> None:
    coroutine = nobody_awaits()
    with pytest.raises(
        EncodeError, match=r"coroutine is not JSON .*: did you forget to await it\?"
    ):
        payload.encode([coroutine])
    coroutine.close()


# Answers.


def test_answer_is_nothing_one_value_or_a_tuple_of_several() -> None:
    assert payload.encode_answer(None).json == b"[]"
    assert payload.encode_answer([1, 2]).json == b"[[1,2]]"
    assert payload.encode_answer((1, Markup("a"))).json == b'[1,"a"]'
    # A named tuple is a value, as a row of a database is.
    assert payload.encode_answer(Pair(1, 2)).json == b"[[1,2]]"


def test_values_for_json_doors_are_one_text() -> None:
    assert payload.to_json({"a": Markup("b"), "c": [b"hi"]}) == b'{"a":"b","c":["aGk="]}'
