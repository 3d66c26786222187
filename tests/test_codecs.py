"""What the codecs write: one message in several forms, which must all say the same."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import msgspec
from httpx_sse._decoders import SSEDecoder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from crossband.broker import Publication
from crossband.codecs import ENVELOPE, PLAIN, SOCKETIO, SSE, SSE_PLAIN, Codec, Wire
from crossband.errors import EncodeError
from crossband.protocol import envelope, payload, socketio
from crossband.protocol.engineio import MESSAGE, decode_payload
from crossband.protocol.websocket import MIN_DEFLATED, WINDOW_BITS
from tests.protocol.strategies import any_text, binary_values, cursors, ids, names, namespaces

quick = settings(max_examples=60, deadline=None, database=None)

publications = st.builds(
    lambda namespace, event, args, cursor: Publication(
        namespace, event, payload.encode(args), cursor=cursor
    ),
    namespaces,
    names | st.sampled_from(sorted(envelope.CONTROL | {"event", "message"})),
    # Some long enough to be compressed.
    st.lists(binary_values | st.just("crossband " * MIN_DEFLATED), max_size=3),
    st.none() | cursors,
)


def read_frames(wire: bytes, *, deflate: bool = False) -> list[str | bytes]:
    """Read messages as the `websockets` library's client does."""
    client = Protocol(CLIENT, max_size=None)
    if deflate:
        client.extensions = [PerMessageDeflate(True, True, WINDOW_BITS, WINDOW_BITS)]
    client.receive_data(wire)
    assert client.parser_exc is None
    frames = [event for event in client.events_received() if isinstance(event, Frame)]
    return [
        bytes(frame.data).decode() if frame.opcode is Opcode.TEXT else bytes(frame.data)
        for frame in frames
    ]


def read_polling(body: str) -> list[str | bytes]:
    """Read messages from a polling body, as they are over a WebSocket."""
    return [
        MESSAGE + packet.data if isinstance(packet.data, str) else packet.data
        for packet in decode_payload(body)
    ]


def read_stream(wire: Wire) -> tuple[str, str, str]:
    """Read the one event of a stream: its name, data and id."""
    size, line, rest = wire.chunk.partition(b"\r\n")
    assert rest[int(size, 16) :] == line == b"\r\n"
    block = rest[:-2]
    assert (block,) == wire.messages
    decoder = SSEDecoder()
    (event,) = filter(None, map(decoder.decode, re.split("\r\n|\r|\n", block.decode())[:-1]))
    return event.event, event.data, event.id


@quick
@given(st.sampled_from([SOCKETIO, ENVELOPE, PLAIN]), publications)
def test_every_form_of_an_event_is_the_same_messages(
    codec: Codec, publication: Publication
) -> None:
    wire = codec.event(publication)
    messages = list(wire.messages)
    assert wire.size == sum(map(len, messages))
    assert read_frames(wire.frames) == messages
    assert read_frames(wire.deflated, deflate=True) == messages
    if codec is SOCKETIO:
        assert read_polling(wire.polling) == messages


@quick
@given(publications)
def test_an_event_is_the_same_at_every_door(publication: Publication) -> None:
    args = payload.decode(publication.payload)
    cursor = publication.cursor
    expected = msgspec.json.decode(payload.to_data(publication.payload))

    messages = SOCKETIO.event(publication).messages
    decoder = socketio.Decoder(max_attachments=10, max_bytes=1_000_000)
    packets = [decoder.feed(part.removeprefix(MESSAGE) if isinstance(part, str) else part)
               for part in messages]  # fmt: skip
    packet = packets[-1]
    assert packet is not None
    name, raws = socketio.split_event(packet)
    found = payload.reconstruct(list(map(msgspec.json.decode, raws)), packet.attachments)
    assert (packet.namespace, name) == (publication.namespace, publication.event)
    assert found == (args if cursor is None else [*args, cursor])

    (text,) = ENVELOPE.event(publication).messages
    fields = msgspec.json.decode(text)
    assert (fields.get("event", fields["type"]), fields["data"]) == (publication.event, expected)
    assert fields.get("offset") == cursor

    name, data, id = read_stream(SSE.event(publication))
    value = msgspec.json.decode(data)
    if name == "event:named":
        name, value = value["event"], value["data"]
    assert (name, value, id) == (publication.event, expected, cursor or "")

    (bare,) = PLAIN.event(publication).messages
    _, data, _ = read_stream(SSE_PLAIN.event(publication))
    if publication.event not in envelope.CONTROL:
        shown = b64encode(bare).decode() if isinstance(bare, bytes) else bare
        assert data == re.sub("\r\n?", "\n", shown)


def written(encode: Callable[[], Wire]) -> Any:
    """Return a message in all its forms, or why there is none."""
    try:
        wire = encode()
    except EncodeError as error:
        return str(error)
    return wire.messages, wire.frames, wire.deflated, wire.polling


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


@quick
@given(
    st.sampled_from([SOCKETIO, ENVELOPE]),
    namespaces,
    ids,
    binary_values
    | any_text
    | st.lists(binary_values, max_size=3).map(tuple)
    | st.integers(127, 129).map(deep)
    | st.sampled_from([{1: 2}, {1j: 2}, object(), 2**70, float("nan"), "x" * MIN_DEFLATED]),
)
@example(ENVELOPE, "/", 1, deep(129))
def test_quick_answer_is_the_general_acknowledgement(
    codec: Codec, namespace: str, ack_id: int, result: Any
) -> None:
    expected = written(lambda: codec.ack(namespace, ack_id, payload.encode_answer(result)))
    assert written(lambda: codec.answer(namespace, ack_id, result)) == expected
