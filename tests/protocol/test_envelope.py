"""The JSON envelope: what a message may be, and how a bad one is named."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.errors import EncodeError, EventError, InvalidMessage
from crossband.protocol.envelope import (
    CONTROL,
    Message,
    decode,
    encode_ack,
    encode_error,
    encode_event,
    encode_gap,
    encode_shutdown,
    encode_welcome,
)
from crossband.protocol.payload import MAX_ID
from tests.protocol.strategies import any_text, cursors, hostile_text, ids, json_values, names


def refusal(text: str | bytes) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode(text)
    assert caught.value.message == "Invalid message format"
    assert isinstance(caught.value.details["path"], str)
    assert caught.value.details["reason"]
    return caught.value


@pytest.mark.parametrize(
    ("text", "type", "data", "id"),
    [
        ('{"type":"a"}', "a", None, None),
        ('{"type":"a","data":null}', "a", b"null", None),
        ('{"type":"a","data":{"x": [1]},"id":0}', "a", b'{"x": [1]}', 0),
        ('{"id":9007199254740991,"data":1,"type":"é"}', "é", b"1", MAX_ID),
        ('{"type":"a","id":null}', "a", None, None),
        ('{"type":"a","other":[1,{}],"":0}', "a", None, None),
        ('{"type":"a","data":1,"data":2}', "a", b"2", None),
        (' {"type" : "a"}\n', "a", None, None),
    ],
)
def test_message_is_read(text: str, type: str, data: bytes | None, id: int | None) -> None:
    for message in (decode(text), decode(text.encode())):
        assert (message.type, message.id) == (type, id)
        if data is None:
            assert message.data is msgspec.UNSET
        else:
            assert isinstance(message.data, msgspec.Raw)
            assert bytes(message.data) == data


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("{}", "$", "Object missing required field `type`"),
        ("[]", "$", "Expected `object`, got `array`"),
        ('"a"', "$", "Expected `object`, got `str`"),
        ("1", "$", "Expected `object`, got `int`"),
        ("null", "$", "Expected `object`, got `null`"),
        ('{"type":1}', "$.type", "Expected `str`, got `int`"),
        ('{"type":null}', "$.type", "Expected `str`, got `null`"),
        ('{"type":["a"]}', "$.type", "Expected `str`, got `array`"),
        ('{"type":""}', "$.type", "Expected `str` of length >= 1"),
        ('{"type":"a","id":"1"}', "$.id", "Expected `int | null`, got `str`"),
        ('{"type":"a","id":1.5}', "$.id", "Expected `int | null`, got `float`"),
        ('{"type":"a","id":true}', "$.id", "Expected `int | null`, got `bool`"),
        ('{"type":"a","id":-1}', "$.id", "Expected `int` >= 0"),
        ('{"type":"a","id":9007199254740992}', "$.id", "Expected `int` <= 9007199254740991"),
        ("{'type':'a'}", "$", "JSON is malformed: object keys must be strings (byte 1)"),
        ("", "$", "Input data was truncated"),
        ('{"type":"a"', "$", "Input data was truncated"),
    ],
)
def test_refusal_names_the_path_and_the_reason(text: str, path: str, reason: str) -> None:
    error = refusal(text)
    assert (error.details["path"], error.details["reason"]) == (path, reason)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"a"}x',
        '{"type":"a",}',
        '{"type":"a"}{"type":"b"}',
        '\ufeff{"type":"a"}',
        '{"type":"a","data":nul}',
        '{"type":"a","data":NaN}',
        '{"type":"a","data":"\x1e"}',
        '{"type":"a","data":"\\ud800"}',
        '{"type":"\\ud800"}',
        '{"type":"a\\udc00b"}',
        '{"type":"\ud800"}',
        '{"type":"a","data":"\ud800"}',
        '{"type":"a","id":1e999}',
        '{"type":"a","id":' + "9" * 5_000 + "}",
        '{"type":"a","id":²}',
        '{"type":"a","data":' + "[" * 100_000,
        '{"type":"a","data":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":"a","data":' + '{"a":' * 100_000,
        '{"type":"a","other":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":' + "[" * 100_000 + "}",
        "[" * 100_000,
        "," * 1_000_000,
        "\x00",
        "\x1e" * 1_000_000,
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_malformed_message_is_refused(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff",
        b'{"type":"\xff"}',
        b'{"type":"a","data":"\xff"}',
        b'{"type":"a","data":"\xed\xa0\x80"}',
        b'{"type":"a","data":"\xc3"}',
        b'{"type":"a","\xff":1}',
    ],
)
def test_bytes_that_are_not_utf8_are_refused(text: bytes) -> None:
    assert refusal(text).details["reason"] == "Not UTF-8"


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ('{"type":5,"id":7}', 7),
        ('{"id":7}', 7),
        ('{"type":"","data":1,"id":0}', 0),
        ('{"type":5,"id":-1}', None),
        ('{"type":5,"id":"7"}', None),
        ('{"type":5,"id":7', None),
        ("[7]", None),
    ],
)
def test_refusal_carries_the_id_that_waits_for_an_answer(text: str, id: int | None) -> None:
    assert refusal(text).to_dict().get("id") == id


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (encode_event("a", b"null"), '{"type":"a","data":null}'),
        (encode_event("a", b"1", offset="e.7"), '{"type":"a","data":1,"offset":"e.7"}'),
        (encode_event('é"', b'"\xc3\xa9"', id=0), '{"type":"é\\"","data":"é","id":0}'),
        (
            encode_event("a", b"[]", offset="e.7", id=3),
            '{"type":"a","data":[],"offset":"e.7","id":3}',
        ),
        (encode_ack(4, b"[1,2]"), '{"type":"ack","id":4,"data":[1,2]}'),
        (
            encode_welcome(sid="s", session="k", recovered=True, offset="e.7"),
            '{"type":"welcome","sid":"s","session":"k","recovered":true,"offset":"e.7"}',
        ),
        (
            encode_welcome(sid="s", session=None, recovered=False, offset=None),
            '{"type":"welcome","sid":"s","session":null,"recovered":false,"offset":null}',
        ),
        (encode_gap("unknown", "e.7"), '{"type":"gap","reason":"unknown","offset":"e.7"}'),
        (encode_shutdown("bye"), '{"type":"server:shutdown","message":"bye"}'),
        (
            encode_error(EventError("No", code="refused", left=3).to_dict(), 5),
            '{"type":"error","code":"refused","error":"No","left":3,"id":5}',
        ),
        (encode_error({"code": "refused"}), '{"type":"error","code":"refused"}'),
    ],
)
def test_frames_are_written_as_documented(text: str, wire: str) -> None:
    assert text == wire


def test_details_cannot_change_the_type_or_the_id_of_an_error() -> None:
    frame = json.loads(encode_error({"type": "chat", "code": "c", "id": 1}, 2))
    assert frame == {"type": "error", "code": "c", "id": 2}


def test_what_has_no_json_form_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for detail in (object(), loop, "\ud800"):
        with pytest.raises(EncodeError):
            encode_error({"detail": detail})
    with pytest.raises(EncodeError):
        encode_event("\ud800", b"1")
    with pytest.raises(EncodeError):
        encode_event("a", b"1", offset="\ud800")
    with pytest.raises(EncodeError, match="UTF-8"):
        encode_event("a", b'"\xff"')
    with pytest.raises(EncodeError, match="UTF-8"):
        encode_ack(1, b'"\xff"')


@given(names, json_values, st.none() | cursors, st.none() | ids)
def test_events_come_back(name: str, data: Any, offset: str | None, id: int | None) -> None:
    text = encode_event(name, msgspec.json.encode(data), offset=offset, id=id)
    message = decode(text)
    assert (message.type, message.id) == (name, id)
    assert isinstance(message.data, msgspec.Raw)
    assert msgspec.json.decode(message.data) == data
    assert json.loads(text).get("offset") == offset


@given(ids, json_values)
def test_acknowledgements_come_back(id: int, data: Any) -> None:
    message = decode(encode_ack(id, msgspec.json.encode(data)))
    assert (message.type, message.id) == ("ack", id)
    assert isinstance(message.data, msgspec.Raw)
    assert msgspec.json.decode(message.data) == data


@given(st.dictionaries(names, json_values, max_size=3), st.none() | ids)
def test_errors_come_back(error: dict[str, Any], id: int | None) -> None:
    expected = error | {"type": "error"} | ({} if id is None else {"id": id})
    assert json.loads(encode_error(error, id)) == expected


def accepted(text: str | bytes) -> Message | None:
    try:
        return decode(text)
    except InvalidMessage as error:
        encode_error(error.to_dict())
        return None


envelopes = st.builds(
    '{{"type":{},"data":{},"id":{}}}'.format,
    hostile_text | st.just('"a"'),
    hostile_text | st.just("1"),
    hostile_text | st.just("1"),
)


@given(any_text | hostile_text | envelopes | st.binary())
def test_any_text_or_bytes_decode_or_are_refused(text: str | bytes) -> None:
    message = accepted(text)
    if message is None:
        return
    assert message.type
    assert message.id is None or 0 <= message.id <= MAX_ID
    if isinstance(message.data, msgspec.Raw):
        assert json.loads(encode_event(message.type, bytes(message.data)))["type"] == message.type


@given(json_values)
def test_any_json_decodes_or_is_refused(value: Any) -> None:
    accepted(json.dumps(value))
    accepted(json.dumps({"type": value, "id": value, "data": value}))


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_event_of_a_word_of_the_envelope_cannot_be_mistaken(name: str) -> None:
    text = encode_event(name, b"5", offset="e-1", id=7)
    assert json.loads(text) == {
        "type": "event", "event": name, "data": 5, "offset": "e-1", "id": 7
    }  # fmt: skip
    message = decode(text)
    assert (message.type, message.id, message.is_ack) == (name, 7, False)
    bare = json.dumps({"type": name, "id": 7, "event": "x"})
    if name == "ack":
        assert decode(bare).is_ack
    else:
        with pytest.raises(InvalidMessage) as caught:
            decode(bare)
        assert (caught.value.details["path"], caught.value.details["id"]) == ("$.type", 7)


def test_event_may_be_called_event() -> None:
    assert encode_event("event", b"5") == '{"type":"event","data":5}'
    assert decode('{"type":"event","data":5}').type == "event"
    for bad in ("5", "null", '""'):
        with pytest.raises(InvalidMessage):
            decode('{"type":"event","event":' + bad + "}")
