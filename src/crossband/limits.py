"""Every limit of a hub, in one frozen value. Knows nothing about the doors."""

from __future__ import annotations

import math
from typing import Final

import msgspec

# Limits that 0 switches off.
OPTIONAL: Final = frozenset(
    {
        "message_rate",
        "user_message_rate",
        "byte_rate",
        "publish_rate",
        "packets_per_payload",
        "connections",
        "connections_per_address",
        "connections_per_user",
    }
)


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what one client may cost.

    Sizes are in bytes, times in seconds, rates per second. 0 switches a limit on a rate or on a
    number of connections off.
    """

    # Raw WebSocket message or back-channel body. 64 KiB, as Centrifugo; ws allows 100 MiB.
    message_size: int = 65_536
    # Socket.IO `maxHttpBufferSize`: one WebSocket message or polling body. 1 MB, as in Node.
    max_http_buffer_size: int = 1_000_000
    # Binary parts of one Socket.IO packet. 10, as in the official parser.
    attachments: int = 10
    # A Socket.IO event with all its binary parts. The default is the event and ten parts of the
    # size above. Never less than one message.
    event_size: int = 11_000_000
    # Engine.IO packets in one polling body. Off: official clients split by size alone, and
    # size and `message_rate` bound what a body costs.
    packets_per_payload: int = 0
    # Frames of one WebSocket message: even empty ones cost memory.
    fragments: int = 1_024
    # Messages one connection may send. No person and no game comes near it; a flood at this
    # pace costs a hundredth of a core. Other servers ship without such a limit.
    message_rate: float = 1_000.0
    # What all connections of one user may send. Off: a "user" may be a fleet of devices.
    user_message_rate: float = 0.0
    # Bytes one connection may send, after inflation: 1 KB of a deflated message can inflate to
    # 1 MB, which the hub sends on to a whole room. 2 MiB; a thousand full chat lines are 0.3.
    byte_rate: float = 2_097_152.0
    # Requests to /api/broadcast with one API key. Off: the key's owner is trusted.
    publish_rate: float = 0.0
    # How much of a rate may come at once: 2 s worth of it, but at least the largest message
    # where bytes are counted.
    burst_time: float = 2.0
    # How long a client that sends faster than its rates is slowed down to them, if it never
    # pauses for `burst_time`; after that its messages are refused. It is long enough for an
    # official client that buffered 30,000 events while it was offline.
    flood_time: float = 30.0
    # Messages refused, with no pause of `burst_time` in between, before the connection is
    # closed.
    refusals: int = 100
    # Open connections: in all, from one address (an IPv6 /64), of one user. Off: the process
    # already has a limit on open files, and clients in one office, or behind a proxy that is
    # not in `trusted_proxies`, share one address.
    connections: int = 0
    connections_per_address: int = 0
    connections_per_user: int = 0
    # Rooms one socket may be in, its own included.
    rooms: int = 256
    # Rooms one request may ask for (`?room=`).
    subscriptions: int = 64
    # Namespaces one Socket.IO connection may join.
    namespaces: int = 32
    # Acknowledgements the server may be waiting for from one socket.
    pending_acks: int = 1_024
    # Received events that may wait for one socket's handlers before reading is paused.
    inbox: int = 256
    # Bytes of those events: a message of 1 MB may arrive as 1 KB.
    inbox_size: int = 1_048_576
    # Bytes waiting for one client. Past this, droppable events are dropped; if that is not
    # enough, the client is disconnected and resumes.
    outbox: int = 1_048_576
    # For receiving a request's head, from its first byte or the start of the connection, and
    # its body. nginx allows 60 s for each, Node 60 s and 300 s.
    head_time: float = 10.0
    body_time: float = 30.0
    # For a client to read some of a response that is waiting for it; event streams are checked
    # every `keepalive_interval`. nginx: 60 s.
    send_time: float = 30.0
    # From the Engine.IO handshake to a namespace's CONNECT (Socket.IO `connectTimeout`: 45 s).
    # Also for `authenticate`, and for all connect middlewares together.
    handshake_time: float = 45.0

    @property
    def largest_message(self) -> int:
        """Size in bytes of the largest message of any door, its header included."""
        # 1 KiB for what precedes the data in a Socket.IO packet: a name and two numbers.
        return max(self.message_size, self.max_http_buffer_size) + 1_024

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            # A fraction makes sense for seconds and rates, not for things that are counted.
            countable = not name.endswith(("_time", "_rate"))
            kind, what = (int, "whole number") if countable else ((int, float), "number")
            optional = name in OPTIONAL
            complaint = (
                f"limits.{name} must be a {what} {'0 or more' if optional else 'above 0'}, "
                f"not {value!r}"
            )
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(complaint)
            if not 0 < value < math.inf and not (optional and value == 0):
                raise ValueError(complaint)
