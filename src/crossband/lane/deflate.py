"""permessage-deflate (RFC 7692): negotiates it, and copes with clients that break the deal."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import (
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension

from crossband.protocol import websocket

# The server keeps no context, so that a compressed frame is built once for all recipients.
# Clients are told to keep none either, but not all obey: see `KeptWindow`.
DEFLATE: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    server_max_window_bits=websocket.WINDOW_BITS,
    client_max_window_bits=websocket.WINDOW_BITS,
)


class KeptWindow(PerMessageDeflate):
    """The negotiated extension; inflates messages that refer back to earlier ones.

    The clients of Tornado and Mojolicious ignore `client_no_context_takeover`, and other
    servers understand them anyway. A client can refer back to the end of what it sent: its
    window, which is 4 KiB if the server may set it (`client_max_window_bits`), else 32 KiB.
    That much is kept for each connection that has sent a compressed message; an inflater takes
    7 KiB more, but lives for one message only. Node's `ws` keeps both.
    """

    def __init__(self, negotiated: PerMessageDeflate) -> None:
        super().__init__(
            # Otherwise the library would keep one inflater for all messages.
            remote_no_context_takeover=True,
            local_no_context_takeover=negotiated.local_no_context_takeover,
            remote_max_window_bits=negotiated.remote_max_window_bits,
            local_max_window_bits=negotiated.local_max_window_bits,
        )
        # `decode` makes one for each message instead.
        self.remote_no_context_takeover = False
        self._window = b""

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Inflate a frame. Raises PayloadTooBig past `max_size` bytes, or ProtocolError."""
        first = frame.rsv1 and frame.opcode in (Opcode.TEXT, Opcode.BINARY)
        inflates = first or (frame.opcode is Opcode.CONT and self.decode_cont_data)
        if first:
            self.decoder: zlib._Decompress = zlib.decompressobj(
                wbits=-self.remote_max_window_bits, zdict=self._window
            )
        decoded = super().decode(frame, max_size=max_size)
        if inflates:
            size = 1 << self.remote_max_window_bits
            self._window = (self._window + bytes(decoded.data[-size:]))[-size:]
            if frame.fin:
                del self.decoder
        return decoded


def negotiate(headers: Iterable[tuple[bytes, bytes]]) -> tuple[KeptWindow | None, bytes]:
    """Accept the first suitable offer in a handshake's headers (RFC 7692 §5).

    Returns the extension and the header line to answer with, or None and b"" if no offer is
    suitable, which is not an error.
    """
    for name, value in headers:
        if name == b"sec-websocket-extensions":
            try:
                offers = parse_extension(value.decode("latin-1"))
            except InvalidHeader:
                continue
            for offered, parameters in offers:
                if offered == DEFLATE.name:
                    try:
                        accepted, extension = DEFLATE.process_request_params(parameters, [])
                    except NegotiationError:
                        continue
                    # The window must fit the frames that are compressed once for everyone.
                    if extension.local_max_window_bits < websocket.WINDOW_BITS:
                        continue
                    header = build_extension([(DEFLATE.name, accepted)])
                    line = b"Sec-WebSocket-Extensions: %b\r\n" % header.encode()
                    return KeptWindow(extension), line
    return None, b""
