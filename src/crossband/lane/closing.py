"""How a lane ends: it writes nothing more, and the peer can still read what was sent."""

from __future__ import annotations

import asyncio
from typing import Final

# Seconds for the transport to deliver the close frame to a peer at fault: closing with unread
# input sends RST, which can discard it.
BROKEN_TIME: Final = 0.1


def half_close(transport: asyncio.Transport) -> None:
    """Stop sending. Over TLS, which cannot half-close, stop reading too."""
    if not transport.can_write_eof():
        transport.close()
        return
    try:
        transport.write_eof()
    except OSError:
        # The peer has reset the connection, and the transport does not know yet.
        transport.abort()


def discard(data: bytes) -> None:
    """Write nothing: the connection has ended."""
