"""What is known of a client when it connects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is known of a client at connect."""

    # "websocket", "polling" or "sse": how the client came; it may upgrade later. "http" when
    # `authenticate` is asked about a publication over the HTTP API.
    transport: str
    # Names in lower case; several lines of one name are joined by ", ". Not in the repr, as
    # the query and `auth`: they hold tokens and session keys.
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, list[str]] = field(repr=False)
    # The peer's address, without port. None over a unix socket.
    address: str | None
    # Seconds since 1970.
    time: float
    # Below the mount point, such as "/ws/admin". Socket.IO's has no namespace in it: clients
    # name that later, and `socket.namespace` has it.
    path: str = "/"
    # Over TLS, as the server or a trusted proxy says.
    secure: bool = False
    # Socket.IO's auth payload; on the other doors empty, but for a token that was refreshed.
    auth: Mapping[str, Any] = field(default_factory=dict, repr=False)
