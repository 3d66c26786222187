"""Every limit of a hub, in one frozen value. Knows nothing of the doors."""

from __future__ import annotations

import math
from typing import Final

import msgspec

# Where 0 means that there is no such limit.
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

    Sizes are in bytes, times in seconds, rates per second; a rate or a number of connections
    of 0 is no limit.
    """

    # Raw WebSocket message or back-channel body. 64 KiB, as Centrifugo; ws allows 100 MiB.
    message_size: int = 65_536
    # Socket.IO `maxHttpBufferSize`: one WebSocket message or polling body. 1 MB, as Node.
    max_http_buffer_size: int = 1_000_000
    # Binary parts of one Socket.IO packet. 10, as the official parser.
    attachments: int = 10
    # A Socket.IO event with all its binary parts, each of which may have the size above: ten
    # of them by default, and the event. Never less than one message.
    event_size: int = 11_000_000
    # Engine.IO packets in one polling body. Off: official clients split by size alone, and
    # size and `message_rate` bound what a body costs.
    packets_per_payload: int = 0
    # Frames of one WebSocket message: empty ones cost memory too.
    fragments: int = 1_024
    # Messages one connection may send. No person and no game comes near; a flood at this
    # pace costs a hundredth of a core. Peers have no such limit as they are shipped.
    message_rate: float = 1_000.0
    # What all connections of one user may send. Off: a "user" may be a fleet of devices.
    user_message_rate: float = 0.0
    # Bytes one connection may send, after inflation: 1 KB of a deflated message can be 1 MB,
    # which the hub sends on to a whole room. 2 MiB; a thousand full chat lines are 0.3.
    byte_rate: float = 2_097_152.0
    # Requests to /api/broadcast with one API key. Off: the key's owner is trusted.
    publish_rate: float = 0.0
    # How much of a rate may come at once: 2 s worth of it; of bytes the largest message at
    # least.
    burst_time: float = 2.0
    # How long a client may go on sending faster than its rates, held back to them, without
    # `burst_time` of peace in between; then its messages are refused. An official client
    # that buffered 30,000 events during a cut is through in that time.
    flood_time: float = 30.0
    # Messages refused, without `burst_time` of peace in between, until the connection is
    # closed.
    refusals: int = 100
    # Open connections: in all, from one address (an IPv6 /64), of one user. Off: the process
    # has its own limit of files, and behind a proxy that is not in `trusted_proxies`, or
    # within an office, all clients have one address.
    connections: int = 0
    connections_per_address: int = 0
    connections_per_user: int = 0
    # Rooms one socket may be in, its own included.
    rooms: int = 256
    # Rooms one request may ask for (`?room=`).
    subscriptions: int = 64
    # Namespaces one Socket.IO connection may join.
    namespaces: int = 32
    # Acknowledgements one socket may owe the server.
    pending_acks: int = 1_024
    # Received events one socket may have waiting before its reading is paused.
    inbox: int = 256
    # Their bytes: a message of 1 MB may come as 1 KB.
    inbox_size: int = 1_048_576
    # Bytes waiting for one client; past it what may be dropped is, or the client is
    # disconnected and resumes.
    outbox: int = 1_048_576
    # For a request's head, from its first byte or the connection's beginning, and for its
    # body. nginx allows 60 s for each, Node 60 s and 300 s.
    head_time: float = 10.0
    body_time: float = 30.0
    # For a client to take some of a response that waits for it; an event stream is looked at
    # every `keepalive_interval`. nginx: 60 s.
    send_time: float = 30.0
    # From the Engine.IO handshake to a namespace's CONNECT (Socket.IO `connectTimeout`: 45 s);
    # and what `authenticate` may take, and the connect middlewares together.
    handshake_time: float = 45.0

    @property
    def largest_message(self) -> int:
        """Bytes of the largest message of any door, its header included."""
        # 1 KiB for what a Socket.IO packet has before its data: a name and two numbers.
        return max(self.message_size, self.max_http_buffer_size) + 1_024

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            # Half of something countable is a slip; of seconds or a rate it is not.
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
