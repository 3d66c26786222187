"""Every limit of a hub, in one frozen value. Knows nothing of the doors."""

from __future__ import annotations

import math

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what one client may cost.

    Sizes are in bytes, times in seconds.
    """

    # Raw WebSocket message or back-channel body. 64 KiB, as Centrifugo; ws allows 100 MiB.
    message_size: int = 65_536
    # Socket.IO `maxHttpBufferSize`: one WebSocket message or polling body. 1 MB, as Node.
    max_http_buffer_size: int = 1_000_000
    # Binary parts of one Socket.IO packet. 10, as the official parser.
    attachments: int = 10
    # Engine.IO packets in one polling body.
    packets_per_payload: int = 128
    # Rooms one socket may be in, its own included.
    rooms: int = 256
    # Namespaces one Socket.IO connection may join.
    namespaces: int = 32
    # Acknowledgements one socket may owe the server.
    pending_acks: int = 1_024
    # Received events one socket may have waiting before its reading is paused.
    inbox: int = 256
    # Bytes waiting for one client; past it the client is disconnected and resumes.
    outbox: int = 1_048_576
    # From the first byte to the namespace's CONNECT (Socket.IO `connectTimeout`: 45 s).
    handshake_time: float = 45.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0 or (value < 1 and name != "handshake_time"):
                raise ValueError(f"limits.{name} must be a number above 0, not {value!r}")
