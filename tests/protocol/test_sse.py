"""Server-Sent Events, judged by an independent decoder."""

from __future__ import annotations

import json
import re

import pytest
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given
from hypothesis import strategies as st

from crossband.errors import EncodeError
from crossband.names import check_name as check_hub_name
from crossband.protocol.sse import (
    MAX_RETRY,
    check_name,
    encode_comment,
    encode_event,
    encode_retry,
)
from tests.protocol.strategies import any_text, cursors, json_values, names, text

# Every character Python takes for a line break, of which the format knows three.
breaks = st.sampled_from(
    ["\n", "\r", "\r\n", "\n\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]
)
field_like = st.sampled_from(
    ["data: x", "id: 9", "event: e", "retry: 1", ": c", ":", "", " ", "\0"]
)
lines_of_text = st.lists(breaks | field_like | text, max_size=8).map("".join)


def read(stream: bytes, pieces: int = 1) -> list[ServerSentEvent]:
    """Decode a stream that arrives in `pieces`."""
    received = stream.decode()
    size = max(1, -(-len(received) // pieces))
    lines, decoder = SSELineDecoder(), SSEDecoder()
    found = [
        decoder.decode(line)
        for start in range(0, len(received), size)
        for line in lines.decode(received[start : start + size])
    ]
    assert lines.flush() == []
    return [event for event in found if event is not None]


def normalised(data: str) -> str:
    return re.sub("\r\n?", "\n", data)


def test_event_is_written_as_fields_and_a_blank_line() -> None:
    assert encode_event('{"a":1}', event="chat:message", id="e.17", retry=2000) == (
        b'retry: 2000\nevent: chat:message\ndata: {"a":1}\nid: e.17\n\n'
    )


def test_data_is_split_on_cr_lf_and_crlf_only() -> None:
    data = "a\nb\rc\r\nd\n\re\u2028f\x85g\vh\fi\x1cj"
    assert (
        encode_event(data)
        == (
            "data: a\ndata: b\ndata: c\ndata: d\ndata: \ndata: e\u2028f\x85g\vh\fi\x1cj\n\n"
        ).encode()
    )


def test_leading_space_survives() -> None:
    assert encode_event(" x\n  y") == b"data:  x\ndata:   y\n\n"
    assert read(encode_event(" x\n  y"))[0].data == " x\n  y"


def test_empty_data_still_has_its_line() -> None:
    assert encode_event("") == b"data: \n\n"
    assert read(encode_event("", id="1"))[0].data == ""


def test_trailing_line_break_is_kept() -> None:
    assert encode_event("a\n") == b"data: a\ndata: \n\n"


def test_empty_id_resets_the_cursor() -> None:
    assert encode_event("a", id="") == b"data: a\nid: \n\n"
    assert read(encode_event("a", id="7") + encode_event("b", id=""))[1].id == ""


def test_id_persists_over_events_without_one() -> None:
    received = read(encode_event("a", id="7") + encode_event("b"))
    assert [event.id for event in received] == ["7", "7"]


@pytest.mark.parametrize("character", ["\n", "\r", "\r\n", "\0", "\t", "\x1b", "\x7f", "\ud800"])
def test_control_characters_in_event_and_id_are_refused(character: str) -> None:
    with pytest.raises(EncodeError, match=r"event holds .* at character 1"):
        encode_event("", event=f"a{character}b")
    with pytest.raises(EncodeError, match=r"id holds .* at character 1"):
        encode_event("", id=f"a{character}b")
    with pytest.raises(EncodeError, match="room holds"):
        check_name(f"a{character}b", "room")


def test_empty_event_is_refused() -> None:
    with pytest.raises(EncodeError, match="event is empty"):
        encode_event("", event="")


@pytest.mark.parametrize("value", [-1, MAX_RETRY + 1, pytest.param(10**5000, id="huge")])
def test_retry_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(EncodeError, match="retry"):
        encode_event("", retry=value)
    with pytest.raises(EncodeError, match="retry"):
        encode_retry(value)


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(EncodeError):
        encode_event("\ud800")
    with pytest.raises(EncodeError):
        encode_comment("\ud800")


def test_every_line_of_a_comment_is_a_comment() -> None:
    assert encode_comment() == b":\n"
    assert encode_comment("a\ndata: b\r\n\rid: 1") == b": a\n: data: b\n:\n: id: 1\n"


def test_comments_and_retry_are_no_events() -> None:
    stream = encode_comment("hello") + encode_retry(2000) + encode_event("a", id="1")
    stream += encode_comment() * 3 + encode_retry(0) + encode_event("b") + encode_comment()
    assert [(event.data, event.id, event.retry) for event in read(stream)] == [
        ("a", "1", 2000),
        ("b", "1", 0),
    ]


@given(lines_of_text, st.none() | names, st.none() | cursors, st.integers(1, 50))
def test_an_independent_decoder_reads_it_back(
    data: str, event: str | None, id: str | None, pieces: int
) -> None:
    [read_back] = read(encode_event(data, event=event, id=id), pieces)
    assert read_back.data == normalised(data)
    assert read_back.event == (event or "message")
    assert read_back.id == (id or "")


@given(json_values, st.sampled_from([None, 2]))
def test_json_comes_back_unchanged(value: object, indent: int | None) -> None:
    [event] = read(encode_event(json.dumps(value, ensure_ascii=False, indent=indent)))
    assert event.json() == value


@given(st.lists(st.tuples(lines_of_text, names, cursors), max_size=5), lines_of_text)
def test_a_stream_holds_the_published_events_and_no_others(
    sent: list[tuple[str, str, str]], comment: str
) -> None:
    stream = encode_comment(comment) + encode_retry(1000)
    for data, event, id in sent:
        stream += encode_event(data, event=event, id=id) + encode_comment(comment)
    assert [(event.data, event.event, event.id) for event in read(stream)] == [
        (normalised(data), event, id) for data, event, id in sent
    ]


@given(any_text, st.none() | any_text, st.none() | any_text, st.none() | st.integers())
def test_any_text_is_encoded_or_refused(
    data: str, event: str | None, id: str | None, retry: int | None
) -> None:
    try:
        wire = encode_event(data, event=event, id=id, retry=retry)
    except EncodeError:
        return
    assert wire.count(b"\n\n") == 1
    assert wire.endswith(b"\n\n")
    assert b"\r" not in wire


@given(any_text)
def test_every_name_the_hub_takes_can_be_sent(name: str) -> None:
    try:
        check_hub_name(name, "an event name")
    except EncodeError:
        return
    encode_event("", event=name)


@given(any_text)
def test_a_name_that_passes_can_be_sent(name: str) -> None:
    try:
        check_name(name, "event")
    except EncodeError:
        return
    encode_event("", id=name)
