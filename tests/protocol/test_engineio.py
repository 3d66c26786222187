"""Engine.IO 4 packets and polling payloads."""

from __future__ import annotations

import json
import re
import tracemalloc

import engineio.packet
import engineio.payload
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.errors import EncodeError, ProtocolError
from crossband.protocol.engineio import (
    SEPARATOR,
    Packet,
    PacketType,
    decode_packet,
    decode_payload,
    encode_binary,
    encode_open,
    encode_packet,
    encode_payload,
)
from tests.protocol.strategies import any_text, hostile_text

wire_text = st.text(st.characters(codec="utf-8", exclude_characters=SEPARATOR))
text_packets = st.builds(Packet, st.sampled_from(PacketType), wire_text)
packets = text_packets | st.builds(Packet, st.just(PacketType.MESSAGE), st.binary())


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("2probe", Packet(PacketType.PING, "probe")),
        ("3probe", Packet(PacketType.PONG, "probe")),
        ("5", Packet(PacketType.UPGRADE)),
        ("6", Packet(PacketType.NOOP)),
        ("1", Packet(PacketType.CLOSE)),
        ("4hello", Packet(PacketType.MESSAGE, "hello")),
        ("4", Packet(PacketType.MESSAGE)),
        ('42["a"]', Packet(PacketType.MESSAGE, '2["a"]')),
    ],
)
def test_packets_of_the_protocol_page(text: str, packet: Packet) -> None:
    assert decode_packet(text) == packet
    assert encode_packet(packet) == text


@pytest.mark.parametrize("text", ["7", "9x", "x", "BAA==", " 4", "²", "٣", "\x00", "-1", "\ud800"])
def test_unknown_packet_type_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"unknown packet type .* \(Engine.IO 4"):
        decode_packet(text)


def test_empty_packet_is_refused() -> None:
    with pytest.raises(ProtocolError, match="empty packet"):
        decode_packet("")


def test_payload_keeps_the_order_of_text_and_binary() -> None:
    assert list(decode_payload("4a\x1ebAQID\x1e2")) == [
        Packet(PacketType.MESSAGE, "a"),
        Packet(PacketType.MESSAGE, b"\x01\x02\x03"),
        Packet(PacketType.PING),
    ]


def test_empty_binary_message_is_a_message() -> None:
    assert encode_binary(b"") == "b"
    assert list(decode_payload("b")) == [Packet(PacketType.MESSAGE, b"")]


@pytest.mark.parametrize("body", ["", "\x1e", "4a\x1e", "\x1e4a", "4a\x1e\x1e4b"])
def test_payload_with_an_empty_packet_is_refused(body: str) -> None:
    with pytest.raises(ProtocolError, match="empty"):
        list(decode_payload(body))


@pytest.mark.parametrize(
    "body",
    [
        "bA",
        "bAA",
        "bAA=",
        "b=",
        "b====",
        "bA A=",
        "bAA\xa0==",
        "bAA==AA==",
        "b-_==",
        "bé",
        "b\ud800",
    ],
)
def test_binary_that_is_not_base64_is_refused(body: str) -> None:
    with pytest.raises(ProtocolError, match="not base64"):
        list(decode_payload(body))


@pytest.mark.parametrize(
    "packet", ["bAQID\n", "bAQ\r\nID\r\n", "b AQ ID", "bA\tQ\vI\fD", "bAQID" + "\n" * 100]
)
def test_white_space_in_base64_is_skipped(packet: str) -> None:
    expected = Packet(PacketType.MESSAGE, b"\x01\x02\x03")
    assert decode_packet(packet) == expected
    assert list(decode_payload(f"4a\x1e{packet}"))[1] == expected


def test_packets_are_counted_up_to_the_limit() -> None:
    assert len(list(decode_payload(SEPARATOR.join(["4"] * 128), max_packets=128))) == 128
    with pytest.raises(ProtocolError, match="more than 128 packets"):
        decode_payload(SEPARATOR.join(["4"] * 129), max_packets=128)


def test_payload_is_not_bounded_in_packets_by_itself() -> None:
    assert len(list(decode_payload(SEPARATOR.join(["4"] * 100_000)))) == 100_000


@pytest.mark.parametrize("max_packets", [0, 128])
def test_a_megabyte_of_separators_is_refused_before_it_is_split(max_packets: int) -> None:
    body = SEPARATOR * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=r"more than 128 packets|empty packet"):
            list(decode_payload(body, max_packets=max_packets))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_only_a_message_can_be_binary() -> None:
    assert encode_packet(Packet(PacketType.MESSAGE, b"\x00")) == "bAA=="
    with pytest.raises(EncodeError, match="PING"):
        encode_packet(Packet(PacketType.PING, b"\x00"))


def test_open_packet_is_in_whole_milliseconds() -> None:
    packet = encode_open(
        "sid", ["websocket"], ping_interval=0.3, ping_timeout=20, max_payload=1_000_000
    )
    assert packet == (
        '0{"sid":"sid","upgrades":["websocket"],"pingInterval":300,"pingTimeout":20000,'
        '"maxPayload":1000000}'
    )


def test_interval_below_a_millisecond_is_not_sent_as_none() -> None:
    packet = encode_open("s", (), ping_interval=0.0001, ping_timeout=0.0001, max_payload=1)
    handshake = json.loads(packet[1:])
    assert (handshake["pingInterval"], handshake["pingTimeout"]) == (1, 1)


@pytest.mark.parametrize(
    ("sid", "interval"), [("s", float("inf")), ("s", float("nan")), ("\ud800", 1.0)]
)
def test_open_packet_that_cannot_be_written_is_refused(sid: str, interval: float) -> None:
    with pytest.raises(EncodeError):
        encode_open(sid, (), ping_interval=interval, ping_timeout=1, max_payload=1)


@given(st.lists(packets, min_size=1, max_size=16))
def test_what_is_encoded_is_decoded(sent: list[Packet]) -> None:
    body = encode_payload(encode_packet(packet) for packet in sent)
    assert list(decode_payload(body, max_packets=len(sent))) == sent


@given(text_packets)
def test_what_is_encoded_for_websocket_is_decoded(packet: Packet) -> None:
    assert decode_packet(encode_packet(packet)) == packet


@given(any_text | hostile_text)
def test_any_text_decodes_or_is_refused(text: str) -> None:
    try:
        packet = decode_packet(text)
    except ProtocolError:
        pass
    else:
        if not text.startswith("b"):
            assert encode_packet(packet) == text


@given(any_text | hostile_text, st.integers(1, 6))
def test_any_body_decodes_or_is_refused(body: str, limit: int) -> None:
    try:
        decoded = list(decode_payload(body, max_packets=limit))
    except ProtocolError:
        return
    assert 1 <= len(decoded) <= limit


@given(any_text | hostile_text | st.lists(any_text | hostile_text, max_size=4).map(SEPARATOR.join))
def test_packets_are_those_of_a_body_that_is_split_ahead(body: str) -> None:
    packets = decode_payload(body) if body else iter(())
    for part in body.split(SEPARATOR) if body else ():
        try:
            expected = decode_packet(part)
        except ProtocolError as error:
            with pytest.raises(ProtocolError, match=f"^{re.escape(str(error))}$"):
                next(packets)
            return
        assert next(packets) == expected
    assert next(packets, None) is None


@given(st.lists(packets, min_size=1, max_size=16))
def test_python_engineio_reads_what_is_encoded(sent: list[Packet]) -> None:
    body = encode_payload(encode_packet(packet) for packet in sent)
    read = engineio.payload.Payload(encoded_payload=body).packets
    assert [(packet.packet_type, packet.binary) for packet in read] == [
        (packet.type, isinstance(packet.data, bytes)) for packet in sent
    ]
    # It decodes text that happens to be JSON, so text is compared by what it encodes again.
    assert [packet.data for packet in read if packet.binary] == [
        packet.data for packet in sent if isinstance(packet.data, bytes)
    ]
    for theirs, ours in zip(read, sent, strict=True):
        if isinstance(theirs.data, str):
            assert theirs.data == ours.data


@given(st.lists(wire_text | st.binary(), min_size=1, max_size=16))
def test_what_python_engineio_encodes_is_read(messages: list[str | bytes]) -> None:
    body = engineio.payload.Payload(
        [engineio.packet.Packet(engineio.packet.MESSAGE, message) for message in messages]
    ).encode()
    assert list(decode_payload(body)) == [
        Packet(PacketType.MESSAGE, message) for message in messages
    ]
