"""Socket.IO 5 packets: what the wire allows, and what it must survive."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import socketio.packet
from hypothesis import example, given
from hypothesis import strategies as st

from crossband.errors import (
    CloseCode,
    EncodeError,
    InvalidMessage,
    MessageTooLarge,
    ProtocolError,
)
from crossband.protocol import payload as payloads
from crossband.protocol.payload import MAX_ID, Payload
from crossband.protocol.socketio import (
    MAX_AUTH,
    Decoder,
    Packet,
    PacketType,
    connect_auth,
    encode_ack,
    encode_connect,
    encode_connect_error,
    encode_connect_request,
    encode_disconnect,
    encode_event,
    is_number,
    read_event,
    split_ack,
    split_event,
)
from tests.protocol.strategies import (
    any_text,
    binary_values,
    cursors,
    hostile_text,
    ids,
    json_values,
    names,
    namespaces,
)


def decoder(*, max_attachments: int = 10, max_bytes: int = 1_000_000) -> Decoder:
    return Decoder(max_attachments=max_attachments, max_bytes=max_bytes)


def decode(*messages: str | bytes) -> Packet:
    """Feed the messages of one packet; all but the last must ask for more."""
    receiver = decoder()
    for message in messages[:-1]:
        assert receiver.feed(message) is None
        assert receiver.pending
    packet = receiver.feed(messages[-1])
    assert packet is not None
    assert not receiver.pending
    return packet


def values(raws: list[msgspec.Raw]) -> list[Any]:
    return [msgspec.json.decode(raw) for raw in raws]


# What each packet looks like on the wire


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("0", Packet(PacketType.CONNECT)),
        ("0/admin,", Packet(PacketType.CONNECT, "/admin")),
        ("0/admin", Packet(PacketType.CONNECT, "/admin")),
        ("0/admin?token=1,", Packet(PacketType.CONNECT, "/admin")),
        ("0/admin?a=1&b=2", Packet(PacketType.CONNECT, "/admin")),
        ('0/admin,{"sid":"x"}', Packet(PacketType.CONNECT, "/admin", data=b'{"sid":"x"}')),
        ('0{"pid":"p"}', Packet(PacketType.CONNECT, data=b'{"pid":"p"}')),
        ("1", Packet(PacketType.DISCONNECT)),
        ("1/admin,", Packet(PacketType.DISCONNECT, "/admin")),
        ('2["a"]', Packet(PacketType.EVENT, data=b'["a"]')),
        ('20["a"]', Packet(PacketType.EVENT, id=0, data=b'["a"]')),
        ('2/admin,456["a",1]', Packet(PacketType.EVENT, "/admin", 456, b'["a",1]')),
        ('2/é,["a"]', Packet(PacketType.EVENT, "/é", data=b'["a"]')),
        ("3/admin,456[]", Packet(PacketType.ACK, "/admin", 456, b"[]")),
        (f"3{MAX_ID}[]", Packet(PacketType.ACK, id=MAX_ID, data=b"[]")),
        ('4{"message":"no"}', Packet(PacketType.CONNECT_ERROR, data=b'{"message":"no"}')),
        ('50-["a"]', Packet(PacketType.BINARY_EVENT, data=b'["a"]')),
        ("60-1[]", Packet(PacketType.BINARY_ACK, id=1, data=b"[]")),
    ],
)
def test_packets_of_the_protocol_page(text: str, packet: Packet) -> None:
    assert decode(text) == packet


def test_attachments_complete_their_packet_in_order() -> None:
    text = '52-/admin,7["a",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]'
    packet = decode(text, b"\x01", b"\x02\x03")
    assert packet.type is PacketType.BINARY_EVENT
    assert (packet.namespace, packet.id) == ("/admin", 7)
    assert packet.attachments == (b"\x01", b"\x02\x03")


def test_empty_attachment_counts() -> None:
    assert decode('51-["a",{"_placeholder":true,"num":0}]', b"").attachments == (b"",)


def test_binary_acknowledgement_is_put_together() -> None:
    packet = decode('61-7[{"_placeholder":true,"num":0}]', b"x")
    assert (packet.type, packet.id, packet.attachments) == (PacketType.BINARY_ACK, 7, (b"x",))


def test_decoder_goes_on_with_the_next_packet() -> None:
    receiver = decoder()
    for _ in range(3):
        assert receiver.feed('51-["a"]') is None
        assert receiver.feed(b"x") == Packet(
            PacketType.BINARY_EVENT, data=b'["a"]', attachments=(b"x",)
        )
        assert receiver.feed('2["b"]') == Packet(PacketType.EVENT, data=b'["b"]')


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (encode_event("/", "a", Payload(b"[]")), '2["a"]'),
        (encode_event("/", "a", Payload(b'[1,"x"]')), '2["a",1,"x"]'),
        (encode_event("/", "a", Payload(b"[1]"), offset="e.7"), '2["a",1,"e.7"]'),
        (encode_event("/", "a", Payload(b"[]"), offset="e.7"), '2["a","e.7"]'),
        (encode_event("/x", "a", Payload(b"[1]"), id=0), '2/x,0["a",1]'),
        (encode_event("/", 'é"\n', Payload(b"[]")), '2["é\\"\\n"]'),
        (
            encode_event("/x", "a", Payload(b'[{"_placeholder":true,"num":0}]', (b"z",)), id=3),
            '51-/x,3["a",{"_placeholder":true,"num":0}]',
        ),
        (encode_ack("/", 0, Payload(b"[]")), "30[]"),
        (encode_ack("/x", 12, Payload(b"[1]")), "3/x,12[1]"),
        (
            encode_ack("/", 5, Payload(b'[{"_placeholder":true,"num":0}]', (b"z",))),
            '61-5[{"_placeholder":true,"num":0}]',
        ),
        (encode_connect("/", "s", "p"), '0{"sid":"s","pid":"p"}'),
        (encode_connect("/x", "s", None), '0/x,{"sid":"s"}'),
        (encode_connect_error("/x", "Invalid namespace"), '4/x,{"message":"Invalid namespace"}'),
        (encode_connect_error("/", "no", {"a": 1}), '4{"message":"no","data":{"a":1}}'),
        (encode_disconnect("/"), "1"),
        (encode_disconnect("/x"), "1/x,"),
        (encode_connect_request("/", None), "0"),
        (encode_connect_request("/x", {"token": "t"}), '0/x,{"token":"t"}'),
        (encode_connect_request("/", {}), "0{}"),
    ],
)
def test_packets_are_written_as_on_the_protocol_page(text: str, wire: str) -> None:
    assert text == wire


# What is refused


@pytest.mark.parametrize("text", ["7", "9", "x", "²", "٣", "-1", " 2", "\x00", "\ud800", '"2"'])
def test_unknown_packet_type_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"unknown packet type .* \(Socket.IO 5"):
        decoder().feed(text)


def test_empty_packet_is_refused() -> None:
    with pytest.raises(ProtocolError, match="empty packet"):
        decoder().feed("")


@pytest.mark.parametrize(
    "text",
    [
        "5",
        '5["a"]',
        '5-["a"]',
        '51["a"]',
        '5x-["a"]',
        '5 1-["a"]',
        '5+1-["a"]',
        '5--1-["a"]',
        '51.5-["a"]',
        '51e1-["a"]',
        '5²-["a"]',
        '5٣-["a"]',
        "5" + "1" * 5_000 + '-["a"]',
        "5" + "0" * 5_000 + '1-["a"]',
        "5" + "1" * 1_000_000,
        '6-1["a"]',
        "5/x,1-[]",
    ],
    ids=lambda text: text[:12],
)
def test_bad_attachment_count_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="attachment count"):
        decoder(max_bytes=2_000_000).feed(text)


@pytest.mark.parametrize("count", ["11", "999999", "9999999999999999"])
def test_too_many_attachments_are_refused_when_announced(count: str) -> None:
    receiver = decoder()
    with pytest.raises(ProtocolError, match="more than 10 attachments"):
        receiver.feed(f'5{count}-["a"]')
    assert not receiver.pending
    assert decoder().feed('510-["a"]') is None


def test_attachment_nobody_announced_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        decoder().feed(b"x")
    assert str(caught.value) == "unexpected attachment (Socket.IO 5, binary)"
    receiver = decoder()
    receiver.feed('51-["a"]')
    receiver.feed(b"x")
    with pytest.raises(ProtocolError, match="unexpected attachment"):
        receiver.feed(b"y")
    receiver.feed('50-["a"]')
    with pytest.raises(ProtocolError, match="unexpected attachment"):
        receiver.feed(b"y")


def test_text_instead_of_attachments_is_refused_and_frees_what_came() -> None:
    receiver = decoder()
    receiver.feed('53-["a"]')
    receiver.feed(b"x" * 1000)
    with pytest.raises(ProtocolError, match="text while 2 attachments are awaited"):
        receiver.feed('2["b"]')
    assert not receiver.pending
    with pytest.raises(ProtocolError, match="unexpected attachment"):
        receiver.feed(b"x")


def test_attachments_announced_and_never_sent_hold_only_their_packet() -> None:
    receiver = decoder()
    assert receiver.feed('510-["a"]') is None
    assert receiver.pending


def test_size_is_counted_over_text_and_attachments() -> None:
    receiver = decoder(max_bytes=100)
    assert receiver.feed('52-["a"]') is None
    assert receiver.feed(b"x" * 50) is None
    with pytest.raises(ProtocolError, match="over 100 bytes") as caught:
        receiver.feed(b"x" * 50)
    assert caught.value.close_code is CloseCode.MESSAGE_TOO_BIG
    assert not receiver.pending


def test_message_and_event_have_limits_of_their_own() -> None:
    receiver = Decoder(max_attachments=10, max_bytes=100, max_total=300)
    receiver.feed('53-["a"]')
    for _ in range(2):
        assert receiver.feed(b"x" * 99) is None
    packet = receiver.feed(b"x" * 97)
    assert packet is not None
    assert sum(map(len, packet.attachments)) + len(packet.data) == 300
    receiver.feed('51-["a"]')
    with pytest.raises(ProtocolError, match="over 100 bytes"):
        receiver.feed(b"x" * 101)
    receiver.feed('53-["a"]')
    receiver.feed(b"x" * 99)
    receiver.feed(b"x" * 99)
    with pytest.raises(ProtocolError, match="over 300 bytes"):
        receiver.feed(b"x" * 98)
    assert not receiver.pending


@pytest.mark.parametrize("text", ['2["' + "x" * 100 + '"]', '2["' + "é" * 49 + '"]'])
def test_text_over_the_size_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="over 100 bytes") as caught:
        decoder(max_bytes=100).feed(text)
    assert caught.value.close_code is CloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize(
    "id", [str(MAX_ID + 1), "9" * 16, "9" * 17, "9" * 5_000, "0" * 17, "0" * 16 + "1"]
)
def test_id_that_a_browser_could_not_count_to_is_refused(id: str) -> None:
    for text in (f'2{id}["a"]', f"3/x,{id}[]"):
        with pytest.raises(ProtocolError, match="id over"):
            decoder().feed(text)


@pytest.mark.parametrize("id", ["²", "٣", "-1", "+1", "1.5", "1e3", " 1", "1 ", "a", "0x1"])
def test_id_that_is_not_digits_is_refused(id: str) -> None:
    with pytest.raises(ProtocolError):
        decoder().feed(f'2{id}["a"]')


@pytest.mark.parametrize("text", ["3[]", "3/x,[]", "60-[]"])
def test_acknowledgement_without_an_id_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="without an id"):
        decoder().feed(text)


@pytest.mark.parametrize("text", ["01", "0/x,1{}", "11", '41{"message":""}'])
def test_id_where_there_is_none_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="cannot have an id"):
        decoder().feed(text)


# fmt: off
MISPLACED_DATA = [
    "2", "2/x", "2/x,", "21", "31", "50-", "60-1", "4", "4/x,",
    '2"a"', "2{}", "2null", "2true", '31{"a":1}', "0[]", '0"a"', "0null", "1{}", "4[]",
    '2admin,["a"]', '0admin,{"a":1}', "1x", '2 ["a"]', '2\x00["a"]', '2\ufeff["a"]',
]
# fmt: on


@pytest.mark.parametrize("text", MISPLACED_DATA)
def test_data_of_the_wrong_kind_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"takes .* as data, and a namespace starts with '/'"):
        decoder().feed(text)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'["a","\\ud800"]', "a"),
        (b'["a","\\udc00x"]', "a"),
        (b'["a",{"b":["\\uD83Dx"]}]', "a"),
        (b'["a",{"\\ud83d":1}]', "a"),
        (b'["\\ud83d\\ud83d\\ude00"]', "?\U0001f600"),
    ],
)
def test_half_a_surrogate_pair_breaks_the_event_and_not_the_protocol(
    data: bytes, name: str
) -> None:
    for split in (split_event, split_ack):
        with pytest.raises(InvalidMessage) as caught:
            split(event(data))
        assert caught.value.details["event"] == name


@pytest.mark.parametrize("text", ['2["\ud800"]', "0/\ud800,", '2/a\udc00,["a"]'])
def test_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="lone surrogate"):
        decoder().feed(text)


@pytest.mark.parametrize("text", ["2" + "," * 999_999, "2/" + "," * 999_998, "5" + "-" * 999_999])
def test_a_megabyte_of_separators_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decoder().feed(text)


# Payloads


def event(data: str | bytes) -> Packet:
    return Packet(PacketType.EVENT, data=data if isinstance(data, bytes) else data.encode())


def test_event_is_split_into_its_name_and_raw_arguments() -> None:
    name, arguments = split_event(event('["a", {"x" : 1} , [2] ,"é", null]'))
    assert name == "a"
    assert bytes(arguments[0]) == b'{"x" : 1}'
    assert values(arguments) == [{"x": 1}, [2], "é", None]


def test_event_name_may_be_escaped() -> None:
    assert split_event(event('["\\u0061\\ud83d\\ude00"]')) == ("a😀", [])


@pytest.mark.parametrize(
    ("number", "name"),
    [
        ("7", "7"),
        ("-7", "-7"),
        ("0", "0"),
        ("-0", "0"),
        ("7.0", "7"),
        ("1.5", "1.5"),
        ("-0.25", "-0.25"),
        ("0.000001", "0.000001"),
        ("1e-7", "1e-7"),
        ("1.5e-7", "1.5e-7"),
        ("9007199254740993", "9007199254740992"),
        ("100000000000000000000", "100000000000000000000"),
        ("123456789012345678901", "123456789012345680000"),
        ("1e21", "1e+21"),
        ("1.25e300", "1.25e+300"),
    ],
)
def test_number_as_event_name_is_spelled_as_in_javascript(number: str, name: str) -> None:
    assert split_event(event(f'[{number},"x"]'))[0] == name
    assert is_number(name)
    # Also where the arguments are not read.
    for data in (f'[{number},"\\ud800"]', f"[{number}," + "[" * 300 + "]" * 300 + "]"):
        with pytest.raises(InvalidMessage) as caught:
            split_event(event(data))
        assert caught.value.details["event"] == name


@pytest.mark.parametrize(
    "name", ["", "seven", "7a", "a7", "7.", ".7", "+7", "--7", "٣", "1e5", "-"]
)
def test_other_names_are_no_numbers(name: str) -> None:
    assert not is_number(name)


@pytest.mark.parametrize(
    "first", ["null", "true", "false", "{}", "[]", '["a"]', '{"a":1}', "1e400"]
)
def test_event_name_that_is_no_string_or_number_is_refused(first: str) -> None:
    with pytest.raises(ProtocolError, match="event name is not a string or number"):
        split_event(event(f"[{first},1]"))


def test_event_without_a_name_is_refused() -> None:
    with pytest.raises(ProtocolError, match="event without a name"):
        split_event(event("[]"))


bad_arrays = [
    b"",
    b"[",
    b"]",
    b"[,]",
    b'["a",]',
    b'["a" 1]',
    b'["a"]]',
    b'["a"] ["b"]',
    b'["a",01]',
    b'["a",.5]',
    b'["a",+1]',
    b'["a",NaN]',
    b'["a",Infinity]',
    b'["a",nul]',
    b"['a']",
    b'["a","\x00"]',
    b'["a","\n"]',
    b'["a","\x1e"]',
    b'["a","\\x"]',
    b'["a","\\u12"]',
    b'["a",{1:2}]',
    b'["a",{"b"}]',
    b'["a"',
    b'["a","b',
    b'{"a":1}',
    b'"a"',
    b"null",
    b'\xef\xbb\xbf["a"]',
    b'["a","\xff"]',
    b'["a","\xed\xa0\x80"]',
    b'["\xc3"]',
    b"[" + b"," * 999_999,
]


@pytest.mark.parametrize("data", bad_arrays, ids=lambda data: repr(data[:24]))
def test_data_that_is_not_a_json_array_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"\(Socket.IO 5, EVENT\)"):
        split_event(event(data))
    with pytest.raises(ProtocolError, match=r"\(Socket.IO 5, ACK\)"):
        split_ack(Packet(PacketType.ACK, id=1, data=data))


@pytest.mark.parametrize(
    "arguments",
    [
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'"[]",' + b'[{"[":' * 33 + b'"\\"]"' + b"}]" * 33,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_data_nested_too_deeply_is_a_message_that_does_not_fit(arguments: bytes) -> None:
    data = b'[ "a\\n",' + arguments + b"]"
    with pytest.raises(InvalidMessage) as caught:
        split_event(event(data))
    assert caught.value.details["reason"] == "Nested too deeply"
    assert caught.value.details["event"] == "a\n"
    assert read_event(data.decode(), 0) is None
    with pytest.raises(InvalidMessage):
        split_ack(Packet(PacketType.ACK, id=1, data=data))
    with pytest.raises(InvalidMessage):
        connect_auth(connect(b'{"a":%s}' % arguments[:10_000]))


def test_data_nested_too_deeply_without_a_name_is_refused() -> None:
    for data in (b"[" * 100_000, b"[true," + b"[" * 100_000, b'["\\ud800",' + b"[" * 100_000):
        with pytest.raises(ProtocolError, match="not a string or number"):
            split_event(event(data))


def test_data_nested_as_deeply_as_it_may_is_read() -> None:
    deep = "[" * 64 + "]" * 64
    for data in (f'["a",{deep}]', f'["a",{deep},{deep},"{deep * 2}","\\"{deep * 2}",["\\\\"]]'):
        name, raws = split_event(event(data))
        assert (name, bytes(raws[0])) == ("a", deep.encode())
        assert read_event(data, 0) == ("/", "a", None, raws)


def test_auth_has_a_size() -> None:
    assert connect_auth(connect(b'{"a":"%s"}' % (b"x" * (MAX_AUTH - 8))))
    with pytest.raises(MessageTooLarge):
        connect_auth(connect(b'{"a":"%s"}' % (b"x" * (MAX_AUTH - 7))))


def test_a_megabyte_of_digits_is_no_name() -> None:
    with pytest.raises(ProtocolError, match="not a string or number"):
        split_event(event("[" + "9" * 1_000_000 + "]"))


def test_acknowledgement_is_split_into_raw_arguments() -> None:
    assert values(split_ack(Packet(PacketType.ACK, id=1, data=b'[1,{"a":2}]'))) == [1, {"a": 2}]
    assert split_ack(Packet(PacketType.ACK, id=1, data=b"[]")) == []


def connect(data: bytes) -> Packet:
    return Packet(PacketType.CONNECT, data=data)


def test_auth_is_an_object_or_absent() -> None:
    assert connect_auth(connect(b"")) == {}
    assert connect_auth(connect(b'{"pid":"p","offset":"o"}')) == {"pid": "p", "offset": "o"}


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b'"a"',
        b"1",
        b"{",
        b'{"a"}',
        b'{"a":1}x',
        b"{1:2}",
        b'{"a":"\xff"}',
        b'{"\xff":1}',
        b'{"a":"\\ud800"}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5_000 + b"}",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_auth_of_another_kind_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"\(Socket.IO 5, CONNECT\)"):
        connect_auth(connect(data))


@pytest.mark.parametrize(
    "placeholder",
    [
        {"_placeholder": True},
        {"_placeholder": True, "num": 1},
        {"_placeholder": True, "num": -1},
        {"_placeholder": True, "num": 10**30},
        {"_placeholder": True, "num": 0.0},
        {"_placeholder": True, "num": True},
        {"_placeholder": True, "num": "0"},
        {"_placeholder": True, "num": "splice"},
        {"_placeholder": True, "num": None},
        {"_placeholder": True, "num": [0]},
    ],
)
def test_placeholder_without_its_attachment_is_refused(placeholder: dict[str, Any]) -> None:
    packet = decode("51-" + json.dumps(["a", {"b": [placeholder]}]), b"x")
    _, arguments = split_event(packet)
    with pytest.raises(ProtocolError, match="illegal attachment number"):
        payloads.reconstruct(values(arguments), packet.attachments)


# What cannot be sent


@pytest.mark.parametrize("namespace", ["", "admin", "/a,b", "/a?b=1", "/\ud800"])
def test_namespace_that_would_not_be_read_back_is_refused(namespace: str) -> None:
    with pytest.raises(EncodeError, match="namespace"):
        encode_event(namespace, "a", Payload(b"[]"))
    with pytest.raises(EncodeError, match="namespace"):
        encode_disconnect(namespace)


def test_what_has_no_json_form_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for data in (object(), loop, {1j: 2}, "\ud800"):
        with pytest.raises(EncodeError):
            encode_connect_error("/", "no", data)
        with pytest.raises(EncodeError):
            encode_connect_request("/", {"data": data})
    with pytest.raises(EncodeError, match="event"):
        encode_event("/", "\ud800", Payload(b"[]"))
    with pytest.raises(EncodeError, match="offset"):
        encode_event("/", "a", Payload(b"[]"), offset="\ud800")
    with pytest.raises(EncodeError, match="UTF-8"):
        encode_ack("/", 1, Payload(b'["\xff"]'))


# Properties


@given(namespaces, names, st.lists(binary_values, max_size=3), st.none() | ids, st.none() | cursors)
def test_events_come_back(
    namespace: str, name: str, arguments: list[Any], id: int | None, offset: str | None
) -> None:
    payload = payloads.encode(arguments)
    text = encode_event(namespace, name, payload, id=id, offset=offset)
    receiver = Decoder(max_attachments=len(payload.attachments), max_bytes=1_000_000)
    packet = receiver.feed(text)
    for attachment in payload.attachments:
        assert packet is None
        packet = receiver.feed(attachment)
    assert packet is not None
    assert (packet.namespace, packet.id) == (namespace, id)
    got_name, raws = split_event(packet)
    expected = arguments if offset is None else [*arguments, offset]
    assert got_name == name
    assert payloads.reconstruct(values(raws), packet.attachments) == expected


@given(namespaces, ids, st.lists(binary_values, max_size=3))
def test_acknowledgements_come_back(namespace: str, id: int, arguments: list[Any]) -> None:
    payload = payloads.encode(arguments)
    receiver = Decoder(max_attachments=len(payload.attachments), max_bytes=1_000_000)
    packet = receiver.feed(encode_ack(namespace, id, payload))
    for attachment in payload.attachments:
        packet = receiver.feed(attachment)
    assert packet is not None
    assert (packet.namespace, packet.id) == (namespace, id)
    assert payloads.reconstruct(values(split_ack(packet)), packet.attachments) == arguments


@given(namespaces, st.dictionaries(names, json_values, max_size=3))
def test_connect_requests_come_back(namespace: str, auth: dict[str, Any]) -> None:
    packet = decode(encode_connect_request(namespace, auth))
    assert (packet.type, packet.namespace) == (PacketType.CONNECT, namespace)
    assert connect_auth(packet) == auth


@given(namespaces, names, st.none() | json_values)
def test_control_packets_come_back(namespace: str, word: str, data: Any) -> None:
    packet = decode(encode_connect(namespace, word, None))
    assert (packet.namespace, connect_auth(packet)) == (namespace, {"sid": word})
    packet = decode(encode_connect_error(namespace, word, data))
    assert (packet.type, packet.namespace) == (PacketType.CONNECT_ERROR, namespace)
    refusal = {"message": word} if data is None else {"message": word, "data": data}
    assert json.loads(packet.data) == refusal
    assert decode(encode_disconnect(namespace)) == Packet(PacketType.DISCONNECT, namespace)


@given(namespaces, names, st.lists(binary_values, max_size=3), st.none() | ids)
def test_python_socketio_reads_what_is_encoded(
    namespace: str, name: str, arguments: list[Any], id: int | None
) -> None:
    payload = payloads.encode(arguments)
    theirs = socketio.packet.Packet(encoded_packet=encode_event(namespace, name, payload, id=id))
    assert theirs.attachment_count == len(payload.attachments)
    for attachment in payload.attachments:
        theirs.add_attachment(attachment)
    assert (theirs.namespace or "/", theirs.id) == (namespace, id)
    assert theirs.data == [name, *arguments]


@given(
    st.sampled_from([socketio.packet.EVENT, socketio.packet.ACK]),
    namespaces,
    names,
    st.lists(binary_values, max_size=3),
    ids,
)
def test_what_python_socketio_encodes_is_read(
    kind: int, namespace: str, name: str, arguments: list[Any], id: int
) -> None:
    theirs = socketio.packet.Packet(kind, [name, *arguments], namespace, id).encode()
    messages = theirs if isinstance(theirs, list) else [theirs]
    receiver = Decoder(max_attachments=len(messages) - 1, max_bytes=1_000_000)
    packet = None
    for message in messages:
        assert packet is None
        packet = receiver.feed(message)
    assert packet is not None
    assert (packet.namespace, packet.id) == (namespace, id)
    if packet.type in {PacketType.ACK, PacketType.BINARY_ACK}:
        raws = split_ack(packet)
    else:
        got_name, raws = split_event(packet)
        assert got_name == name
        raws = [msgspec.Raw(msgspec.json.encode(got_name)), *raws]
    assert payloads.reconstruct(values(raws), packet.attachments) == [name, *arguments]


messages_of_any_kind = any_text | hostile_text | st.binary(max_size=30)
almost_packets = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(list("0123456")),
    st.sampled_from(["", "0-", "1-", "2-", "3-", "-", "٣-"]),
    st.sampled_from(["", "/a,", "/a", "/a?b=c,", "a,"]),
    st.sampled_from(["", "0", "17", "9" * 16]),
    hostile_text | st.sampled_from(['["a"]', "[]", "{}", '["a",{"_placeholder":true,"num":0}]']),
)


@given(st.lists(almost_packets | messages_of_any_kind, max_size=8))
def test_any_messages_decode_or_are_refused(messages: list[str | bytes]) -> None:
    receiver = Decoder(max_attachments=2, max_bytes=60)
    for message in messages:
        try:
            packet = receiver.feed(message)
        except ProtocolError:
            assert not receiver.pending
            continue
        assert receiver.pending is (packet is None)
        if packet is None:
            continue
        assert len(packet.attachments) <= 2
        assert len(packet.data) + sum(map(len, packet.attachments)) <= 60
        assert packet.namespace.startswith("/")
        # A client can always be answered, whatever it called its namespace.
        encode_connect_error(packet.namespace, "Invalid namespace")
        for split in (split_event, split_ack, connect_auth):
            try:
                split(packet)
            except (ProtocolError, InvalidMessage, MessageTooLarge):
                pass


@given(st.binary() | hostile_text.map(lambda text: text.encode(errors="replace")))
def test_any_data_splits_or_is_refused(data: bytes) -> None:
    for split in (split_event, split_ack, connect_auth):
        try:
            split(event(data))
        except (ProtocolError, InvalidMessage, MessageTooLarge):
            pass
    try:
        name, arguments = split_event(event(data))
    except (ProtocolError, InvalidMessage, MessageTooLarge):
        return
    joined = b"[" + b",".join([msgspec.json.encode(name), *map(bytes, arguments)]) + b"]"
    assert split_event(event(joined)) is not None
    joined.decode()


# The common case, and what is nearly that.
event_data = (
    hostile_text
    | st.lists(json_values, max_size=3).map(lambda args: json.dumps(["a", *args]))
    | st.integers(63, 66).map(lambda depth: '["a",' + "[" * depth + "]" * depth + "]")
    | st.sampled_from(['[ "a" , 1e999 ] ', '["\\ud800"]', '["a","\\ud800"]', "[7]", "[]", '["a",]'])
)


@given(
    st.sampled_from(["", "/a,", "/]]],", '/",', "/[[,", "/é,", "/a?b=c,", "/a", "/,", "/" * 300]),
    st.sampled_from(["", "0", "017", "9" * 15, "9" * 16, "9" * 17, "²", "-1", "1 "]),
    event_data,
)
@example("/]]],", "", '["a",' + "[" * 65 + "]" * 65 + "]")
def test_common_event_is_read_as_a_decoder_reads_it(namespace: str, id: str, data: str) -> None:
    text = f"2{namespace}{id}{data}"
    common = read_event(text, 1)
    if common is None:
        return
    packet = decode(text)
    name, raws = split_event(packet)
    assert common == (packet.namespace, name, packet.id, raws)
