"""How a lane ends: nothing is written any more, and the peer gets to read what was."""

from __future__ import annotations

import asyncio
from typing import Final

# Seconds for the transport to deliver the close frame to a peer at fault: closed with unread
# input, the kernel would reset it away.
BROKEN_TIME: Final = 0.1


def half_close(transport: asyncio.Transport) -> None:
    """Send nothing more. Over TLS, which has no halves, nothing is read any more either."""
    if not transport.can_write_eof():
        transport.close()
        return
    try:
        transport.write_eof()
    except OSError:
        # The peer has reset the connection, and the transport is yet to hear of it.
        transport.abort()


def discard(data: bytes) -> None:
    """Write nothing: the connection has ended."""
