"""Requests that offer another protocol (RFC 9110 §7.8): WebSocket, or one to ignore."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A request's header fields: the values of each name, in order.
Fields = Mapping[bytes, Sequence[bytes]]

# Header lines of a handshake, as in `websockets`.
MAX_HEADERS: Final = 128
# The headers that give the length of a body.
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


def asks_for_websocket(parser: httptools.HttpRequestParser, fields: Fields) -> bool:
    """Return whether a request validly asks for a WebSocket."""
    # RFC 9110 §7.8: not in HTTP/1.0. RFC 6455 §4.1: only with GET.
    if parser.get_method() != b"GET" or parser.get_http_version() != "1.1":
        return False
    upgrade = b",".join(fields.get(b"upgrade", ())).lower().strip(b", \t")
    options = b",".join(fields.get(b"connection", ())).lower().split(b",")
    return upgrade == b"websocket" and b"upgrade" in [option.strip() for option in options]


def websocket_key(fields: Fields, lines: int) -> bytes | None:
    """Return the key of a common handshake (RFC 6455 §4.2.1); None for any other.

    `lines` is the number of its header lines.
    """
    # A handshake with a body is not common.
    if len(fields.get(b"host", ())) != 1 or not _FRAMING.isdisjoint(fields) or lines > MAX_HEADERS:
        return None
    match fields.get(b"sec-websocket-key"):
        case [key] if len(key) == 24:
            try:
                return key if len(b64decode(key, validate=True)) == 16 else None
            except binascii.Error:
                return None
    return None


# After the head of a request with an offer, the parser stops and leaves the body to the other
# protocol. To go on, a new parser is told the length of the body, but not the offer.


def head_without_offer(headers: Iterable[tuple[bytes, bytes]], *, keep_alive: bool) -> bytes:
    """Return a head without the offer but with the same body, for a new parser."""
    head = [b"POST / HTTP/1.1\r\n"]
    for name, value in headers:
        if name in _FRAMING:
            head += [name, b": ", value, b"\r\n"]
    if not keep_alive:
        head.append(b"connection: close\r\n")
    return b"".join([*head, b"\r\n"])


class Replay:
    """Callbacks of the new parser; pass on all but the head, which is known."""

    def __init__(self, http: HttpToolsProtocol) -> None:
        self._http = http
        self._over = False

    def on_message_begin(self) -> None:
        if self._over:
            self._http.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._over:
            self._http.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._over:
            self._http.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._over:
            self._http.on_headers_complete()
        self._over = True

    def on_body(self, body: bytes) -> None:
        self._http.on_body(body)

    def on_message_complete(self) -> None:
        self._http.on_message_complete()
