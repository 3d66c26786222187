"""The handshakes that the lane takes are those that the `websockets` library accepts."""

from __future__ import annotations

from base64 import b64encode

from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.http11 import Request
from websockets.server import ServerProtocol

from crossband.lane.deflate import DEFLATE, negotiate
from crossband.lane.upgrade import MAX_HEADERS, websocket_key
from crossband.protocol.websocket import WINDOW_BITS

KEY = b64encode(bytes(16))
SOUND = [
    (b"host", b"x"),
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
]

keys = (
    st.binary(min_size=15, max_size=17).map(b64encode)
    | st.binary(min_size=24, max_size=24)
    | st.sampled_from([KEY[:-2], KEY[:-1] + b"A", KEY[:-2] + b"\xe9=", b"=" * 24, b""])
)
others = st.sampled_from(
    [(b"host", b"y"), (b"content-length", b"3"), (b"transfer-encoding", b"chunked"), (b"x", b"y")]
)


def request_of(headers: list[tuple[bytes, bytes]]) -> Request:
    lines = [(name.decode(), value.decode("latin-1")) for name, value in headers]
    return Request("/", Headers(lines))


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(keys, max_size=2), st.lists(others, max_size=2), st.sampled_from([0, MAX_HEADERS]))
@example([KEY], [], 0)
@example([KEY, KEY], [], 0)
@example([KEY], [], MAX_HEADERS)
def test_handshake_the_lane_takes_is_one_the_library_accepts(
    keys: list[bytes], others: list[tuple[bytes, bytes]], more: int
) -> None:
    headers = [*SOUND, *((b"sec-websocket-key", key) for key in keys), *others]
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value)
    taken = websocket_key(fields, len(headers) + more)
    try:
        ServerProtocol().process_request(request_of(headers))
        accepted = True
    except InvalidHandshake:
        accepted = False
    # A body, another host, and more lines than it reads: the library is left to answer those.
    common = not more and all(name == b"x" for name, _ in others)
    assert (taken is not None) is (accepted and common)
    assert taken is None or [taken] == keys


parameters = st.lists(
    st.sampled_from(
        [
            *("client_max_window_bits", "client_no_context_takeover", "server_no_context_takeover"),
            *("client_max_window_bits=9", "client_max_window_bits=15", "client_max_window_bits=8"),
            *("server_max_window_bits=9", "server_max_window_bits=12"),
            *("server_max_window_bits=15", "server_max_window_bits"),
            *("unknown", "client_max_window_bits=x", 'server_max_window_bits="13"'),
        ]
    ),
    max_size=3,
)
offers = st.builds(
    lambda name, parameters: "; ".join([name, *parameters]),
    st.sampled_from(["permessage-deflate", "permessage-deflate", "x-webkit-deflate-frame"]),
    parameters,
)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.lists(offers, min_size=1, max_size=2).map(", ".join), max_size=2))
def test_compression_is_agreed_as_the_library_would(values: list[str]) -> None:
    headers = [(b"sec-websocket-extensions", value.encode()) for value in values]
    extension, line = negotiate(headers)
    library = ServerProtocol(extensions=[DEFLATE])
    answer, extensions = library.process_extensions(request_of(headers).headers)
    if not extensions:
        assert (extension, line) == (None, b"")
        return
    (expected,) = extensions
    assert isinstance(expected, PerMessageDeflate)
    if expected.local_max_window_bits < WINDOW_BITS:
        # Frames that are compressed once for all would not fit: a later offer, or none.
        assert extension is None or extension.local_max_window_bits >= WINDOW_BITS
        return
    assert line == f"Sec-WebSocket-Extensions: {answer}\r\n".encode()
    assert extension is not None
    assert extension.remote_max_window_bits == expected.remote_max_window_bits
    assert extension.local_max_window_bits == expected.local_max_window_bits
