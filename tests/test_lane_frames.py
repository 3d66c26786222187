"""The frames of a client are the same messages to the lane and to uvicorn's own protocol.

Both are without a network. What the lane's splitter takes for itself, and what it leaves to the
`websockets` library, must come to the same as when the library takes all.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import CLIENT, Protocol

from crossband.lane.deflate import negotiate
from crossband.lane.fallback import WebSocketProtocol
from crossband.lane.websocket import WebSocketLane
from tests.clients.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, upgrade
from tests.waiting import until

LIMIT = 300
FRAGMENTS = 3
OFFER = [(b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits")]


class Transport(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.paused = False
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    async def readable(self) -> None:
        """Wait until it is read on, or not any more."""
        await until(lambda: not self.paused or self._closing)


class Peer:
    """What the lane tells a hub that has no limits of its own."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []

    def frame_received(self, frame: str | bytes) -> None:
        self.messages.append(frame)

    def ping_received(self) -> bool:
        return True

    def too_large(self) -> None: ...
    def pong_received(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self) -> None: ...


# What an end takes for messages, the pings it answered, and how it closed: None if it did not.
Outcome = tuple[list[str | bytes], list[bytes], int | None]


def outcome(messages: list[str | bytes], written: bytes) -> Outcome:
    client = Protocol(CLIENT, max_size=None)
    client.receive_data(written)
    frames = [event for event in client.events_received() if isinstance(event, Frame)]
    pongs = [bytes(frame.data) for frame in frames if frame.opcode is Opcode.PONG]
    closes = [Close.parse(bytes(frame.data)) for frame in frames if frame.opcode is Opcode.CLOSE]
    assert len(closes) <= 1
    return messages, pongs, closes[0].code if closes else None


async def by_the_lane(wires: list[bytes], cuts: list[int], *, deflate: bool) -> Outcome:
    """Give the lane all frames as one stream, cut anywhere."""
    transport, peer = Transport(), Peer()
    extension, _ = negotiate(OFFER if deflate else ())
    lane = WebSocketLane(
        transport, peer, set(), limit=LIMIT, fragments=FRAGMENTS, extension=extension, paused=False
    )
    stream, turn = b"".join(wires), 0
    while stream:
        await transport.readable()
        size = cuts[turn % len(cuts)]
        lane.data_received(stream[:size])
        stream, turn = stream[size:], turn + 1
    await transport.readable()
    lane.connection_lost(None)
    return outcome(peer.messages, transport.written)


async def by_uvicorn(wires: list[bytes], *, deflate: bool) -> Outcome:
    """Give uvicorn's protocol one frame at a time, up to the first that ends the connection."""
    messages: list[str | bytes] = []
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            messages.append(message["text"] if "text" in message else message["bytes"])
        ended.set()

    config = uvicorn.Config(app, log_config=None, ws_max_size=LIMIT, interface="asgi3")
    config.load()
    kind = type("", (WebSocketProtocol,), {"fragments": FRAGMENTS})
    protocol: WebSocketProtocol = kind(config, ServerState(), {})
    transport = Transport()
    protocol.connection_made(transport)
    protocol.data_received(upgrade("/"))
    await until(lambda: protocol.handshake_complete)
    transport.written = b""
    if deflate:
        # The lane's own: it inflates what other servers of `websockets` refuse.
        extension, _ = negotiate(OFFER)
        assert extension is not None
        protocol.conn.extensions = [extension]
    for wire in wires:
        if transport.is_closing():
            break
        protocol.data_received(wire)
    written = transport.written
    protocol.connection_lost(None)
    await ended.wait()
    return outcome(messages, written)


def deflated(data: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-12)
    return (compress.compress(data) + compress.flush(zlib.Z_SYNC_FLUSH))[:-4]


def bent(wire: bytes, bit: int) -> bytes:
    """Change a bit of a short frame's opcode, or one that is reserved."""
    return bytes((wire[0] ^ 1 << bit,)) + wire[1:]


payloads = (
    st.text(max_size=40).map(str.encode)
    | st.binary(max_size=40)
    | st.sampled_from([125, 126, LIMIT - 1, LIMIT, LIMIT + 1]).map(lambda size: b"x" * size)
)
whole = st.builds(frame, st.sampled_from([TEXT, TEXT, BINARY]), payloads)
# Three of them are over the limit, or leave room for a control frame beside: the library counts
# those, too.
pieces = st.sampled_from([b"", b"x", b"\xc3", b"\xa9", b"x" * 95, b"x" * 190])
parts = st.builds(
    frame, st.sampled_from([TEXT, BINARY, CONTINUATION, CONTINUATION]), pieces, fin=st.booleans()
)
controls = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=10))
compressed = st.builds(
    frame,
    st.sampled_from([TEXT, BINARY]),
    st.sampled_from([2_000, 70]).map(lambda size: deflated(b"x" * size)),
    fin=st.booleans(),
    rsv=st.just(4),
) | st.builds(frame, st.just(TEXT), payloads.map(deflated) | payloads, rsv=st.just(4))
codes = st.sampled_from([1000, 1001, 1005, 1006, 1011, 3000, 4999, 5000, 0])
closes = st.builds(
    frame,
    st.just(CLOSE),
    st.builds(lambda code, text: code.to_bytes(2) + text, codes, st.binary(max_size=8))
    | st.binary(max_size=2),
)
short = st.builds(frame, st.sampled_from([TEXT, BINARY]), st.binary(max_size=10))
odd = (
    st.builds(bent, short | controls | closes, st.integers(0, 6))
    | st.builds(
        frame,
        st.sampled_from([TEXT, CONTINUATION, PING, CLOSE, 11]),
        st.binary(max_size=10),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 1, 2, 4]),
        masked=st.booleans(),
    )
    | st.builds(frame, st.sampled_from([CONTINUATION, 3, 7]), payloads)
)
streams = st.lists(
    st.one_of(whole, whole, parts, parts, controls, compressed, closes | odd), max_size=10
)
cuts = st.lists(st.integers(1, 400), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None, database=None)
@given(streams, cuts, st.booleans())
@example([frame(PING, b"1"), frame(TEXT, masked=False)], [100], False)
@example([frame(PING, b"1"), frame(PING, b"x" * 126)], [200], False)
@example([frame(3, b"x" * (LIMIT + 1))], [100], False)
def test_frames_are_the_same_messages_by_either_way(
    wires: list[bytes], cuts: list[int], deflate: bool
) -> None:
    async def both() -> tuple[Outcome, Outcome]:
        return await by_the_lane(wires, cuts, deflate=deflate), await by_uvicorn(
            wires, deflate=deflate
        )

    one, other = asyncio.run(both())
    assert one == other
