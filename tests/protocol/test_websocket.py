"""WebSocket frames against the `websockets` library, and hostile bytes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from crossband.protocol.websocket import (
    BINARY,
    BROKEN,
    CLOSE,
    MIN_DEFLATED,
    PING,
    PING_FRAME,
    PONG,
    RAW,
    TEXT,
    TOO_LARGE,
    WINDOW_BITS,
    FrameSplitter,
    encode_close,
    encode_deflated,
    encode_frame,
    encode_pong,
)

LIMIT = 200_000
CONTROL = (Opcode.CLOSE, Opcode.PING, Opcode.PONG)

messages = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
    st.integers(0, 70_000).map(lambda size: b"x" * size),
    st.sampled_from([125, 126, 127, 65_535, 65_536]).map(lambda size: "é" * size),
)


def masked(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def read_back(wire: bytes, *, deflate: bool = False) -> list[Frame]:
    """Read frames as the `websockets` library's client does."""
    client = Protocol(CLIENT, max_size=None)
    if deflate:
        client.extensions = [PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)]
    client.receive_data(wire)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


@given(messages)
def test_frame_is_read_back(message: str | bytes) -> None:
    (frame,) = read_back(encode_frame(message))
    if isinstance(message, str):
        assert (frame.opcode, bytes(frame.data).decode()) == (Opcode.TEXT, message)
    else:
        assert (frame.opcode, frame.data) == (Opcode.BINARY, message)


@given(messages)
def test_deflated_frame_is_read_back(message: str | bytes) -> None:
    wire = encode_deflated(message)
    # The same bytes twice: no context is taken over.
    one, other = read_back(wire + wire, deflate=True)
    expected = message.encode() if isinstance(message, str) else message
    assert bytes(one.data) == bytes(other.data) == expected


def test_deflate_pays_for_what_repeats() -> None:
    text = "crossband " * MIN_DEFLATED
    assert len(encode_deflated(text)) < len(text) / 10
    assert encode_deflated("short") == encode_frame("short")


@pytest.mark.parametrize("reason", ["", "bye", "é" * 100])
def test_close_frame_is_read_back(reason: str) -> None:
    (frame,) = read_back(encode_close(4_001, reason))
    close = Close.parse(bytes(frame.data))
    assert close.code == 4_001
    assert close.reason == reason[:61]


def test_control_frames_are_read_back() -> None:
    ping, pong = read_back(PING_FRAME + encode_pong(b"x" * 125))
    assert (ping.opcode, ping.data) == (Opcode.PING, b"")
    assert (pong.opcode, pong.data) == (Opcode.PONG, b"x" * 125)


def split(splitter: FrameSplitter, data: bytes, most: int = 1_000) -> list[tuple[int, bytes]]:
    """Feed a splitter; return all frames that it finds, `most` at a time."""
    splitter.feed(data)
    found = splitter.split(most)
    assert len(found) <= most
    while splitter.more:
        frames = splitter.split(most)
        assert 0 < len(frames) <= most
        found += frames
    assert splitter.split(most) == []
    return found


pieces = st.lists(
    st.one_of(
        st.tuples(st.just(Opcode.TEXT), st.text(max_size=300).map(os.fsencode), st.just(True)),
        st.tuples(st.just(Opcode.BINARY), st.binary(max_size=300), st.booleans()),
        st.tuples(st.just(Opcode.CONT), st.binary(max_size=10), st.booleans()),
        st.tuples(st.sampled_from(CONTROL), st.binary(max_size=125), st.just(True)),
        st.tuples(st.just(Opcode.BINARY), st.just(b"x" * 70_000), st.just(True)),
    ),
    max_size=8,
)


@given(pieces, st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(1, 5))
def test_frames_are_found_however_they_are_cut(
    frames: list[tuple[Opcode, bytes, bool]], cuts: list[int], most: int
) -> None:
    wires = [masked(opcode, data, fin=fin) for opcode, data, fin in frames]
    wire = b"".join(wires)
    whole = split(FrameSplitter(LIMIT), wire)
    splitter = FrameSplitter(LIMIT)
    found, position, turn = [], 0, 0
    while position < len(wire):
        step = cuts[turn % len(cuts)] * (1 if len(wire) < 50_000 else 100)
        found += split(splitter, wire[position : position + step], most)
        position, turn = position + step, turn + 1
    assert found == whole
    fragmented = False
    for (kind, payload), (opcode, data, fin), raw in zip(whole, frames, wires, strict=True):
        if opcode in CONTROL or (fin and opcode is not Opcode.CONT and not fragmented):
            assert (kind, payload) == (opcode, data)
        else:
            assert (kind, payload) == (RAW, raw)
            fragmented = not fin


@given(pieces)
def test_whole_text_is_the_one_frame_that_splitting_finds(
    frames: list[tuple[Opcode, bytes, bool]],
) -> None:
    wires = [masked(opcode, data, fin=fin) for opcode, data, fin in frames]
    for wire in [*wires, b"".join(wires)]:
        for end in {*range(min(len(wire), 200)), len(wire)}:
            payload = FrameSplitter(LIMIT).whole_text(wire[:end])
            if payload is not None:
                assert split(FrameSplitter(LIMIT), wire[:end]) == [(TEXT, payload)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535])
def test_one_whole_text_is_known(size: int) -> None:
    wire = masked(Opcode.TEXT, b"x" * size)
    assert FrameSplitter(LIMIT).whole_text(wire) == (b"x" * size if size > 1 else None)


def test_beginning_of_a_long_text_is_no_whole_one() -> None:
    # 0xFF would be a length of 127, were it not the sign of a longer one.
    wire = masked(Opcode.TEXT, b"x" * 65_536)
    assert FrameSplitter(LIMIT).whole_text(wire[:133]) is None


@given(st.lists(st.binary(max_size=80), max_size=10))
def test_any_bytes_are_split_without_an_exception(chunks: list[bytes]) -> None:
    splitter = FrameSplitter(1_000)
    for chunk in chunks:
        for kind, _ in split(splitter, chunk):
            assert kind in (TEXT, BINARY, CLOSE, PING, PONG, RAW, TOO_LARGE, BROKEN)


@pytest.mark.parametrize(
    "wire",
    [
        b"\x81\x01",  # unmasked, judged by its second byte
        b"\x89\xfe\x00\x80",  # a ping of more than 125 bytes
        b"\x82\xff" + b"\xff" * 8,  # a length of 2^64-1
        b"\x82\xff\x80" + b"\x00" * 7,  # of 2^63
        b"\x83\xff" + b"\x00" * 4 + b"\xff" * 4,  # too large, of an opcode that is not defined
    ],
)
def test_what_is_no_frame_is_known_at_once(wire: bytes) -> None:
    splitter = FrameSplitter(LIMIT)
    assert split(splitter, masked(Opcode.TEXT, b"a") + wire) == [(TEXT, b"a"), (BROKEN, wire)]
    assert split(splitter, masked(Opcode.TEXT, b"a")) == []


def test_bytes_may_come_before_the_frames_of_the_last_ones_are_split() -> None:
    wire = b"".join(masked(Opcode.TEXT, b"%d" % number) for number in range(9))
    splitter = FrameSplitter(LIMIT)
    splitter.feed(wire[:30])
    found = splitter.split(1)
    assert splitter.more
    splitter.feed(wire[30:40])
    found += splitter.split(2)
    splitter.feed(wire[40:])
    found += splitter.split(9)
    assert found == [(TEXT, b"%d" % number) for number in range(9)]
    assert not splitter.more


def test_nothing_is_split_after_its_end() -> None:
    splitter = FrameSplitter(LIMIT)
    splitter.feed(masked(Opcode.TEXT, b"a") * 2)
    assert splitter.split(1) == [(TEXT, b"a")]
    splitter.end()
    assert not splitter.more
    assert split(splitter, masked(Opcode.TEXT, b"a")) == []


@pytest.mark.parametrize("size", [LIMIT + 1, 2**62])
def test_too_large_is_known_from_the_header(size: int) -> None:
    splitter = FrameSplitter(LIMIT)
    assert split(splitter, b"\x82\xff" + size.to_bytes(8, "big")) == [(TOO_LARGE, b"")]
    assert split(splitter, b"more") == []


def test_exactly_the_limit_passes() -> None:
    splitter = FrameSplitter(130)
    assert split(splitter, masked(Opcode.BINARY, b"x" * 130)) == [(BINARY, b"x" * 130)]
    assert split(splitter, masked(Opcode.BINARY, b"x" * 131)) == [(TOO_LARGE, b"")]


def test_limit_of_messages_is_none_of_control_frames() -> None:
    splitter = FrameSplitter(10)
    assert split(splitter, masked(Opcode.PING, b"x" * 125)) == [(PING, b"x" * 125)]


def test_compressed_frames_are_left_to_the_library() -> None:
    splitter = FrameSplitter(LIMIT)
    plain = masked(Opcode.TEXT, b"\xaa\x00")
    wire = bytes((plain[0] | 0x40,)) + plain[1:]
    assert split(splitter, wire) == [(RAW, wire)]


def test_close_frame_is_split_also_within_a_message() -> None:
    first = masked(Opcode.TEXT, b"a", fin=False)
    wire = masked(Opcode.CLOSE, b"\x03\xe8bye")
    assert split(FrameSplitter(LIMIT), wire) == [(CLOSE, b"\x03\xe8bye")]
    assert split(FrameSplitter(LIMIT), first + wire) == [(RAW, first), (CLOSE, b"\x03\xe8bye")]
