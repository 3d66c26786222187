"""permessage-deflate (RFC 7692) for clients that keep their context though told not to."""

from __future__ import annotations

import zlib

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode


class KeptWindow(PerMessageDeflate):
    """The negotiated extension, which inflates what refers back to messages before.

    Tornado's and Mojolicious' clients ignore `client_no_context_takeover`, and other servers
    read them. What a client may refer to is the end of what it sent: its window, 4 KiB where
    it lets the server say so (`client_max_window_bits`), else 32 KiB. That much is kept of
    each connection that has sent a compressed message; an inflater is 7 KiB more, and lives
    for one message. Node's `ws` keeps both.
    """

    def __init__(self, negotiated: PerMessageDeflate) -> None:
        super().__init__(
            # The library would make, and keep, an inflater for all messages.
            remote_no_context_takeover=True,
            local_no_context_takeover=negotiated.local_no_context_takeover,
            remote_max_window_bits=negotiated.remote_max_window_bits,
            local_max_window_bits=negotiated.local_max_window_bits,
        )
        # It is made here instead, once for each message.
        self.remote_no_context_takeover = False
        self._window = b""

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        """Inflate a frame. Raises PayloadTooBig past `max_size` bytes, or ProtocolError."""
        first = frame.rsv1 and frame.opcode in (Opcode.TEXT, Opcode.BINARY)
        inflates = first or (frame.opcode is Opcode.CONT and self.decode_cont_data)
        if first:
            self.decoder = zlib.decompressobj(
                wbits=-self.remote_max_window_bits, zdict=self._window
            )
        decoded = super().decode(frame, max_size=max_size)
        if inflates:
            size = 1 << self.remote_max_window_bits
            self._window = (self._window + bytes(decoded.data[-size:]))[-size:]
            if frame.fin:
                del self.decoder
        return decoded
