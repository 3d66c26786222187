"""What is known about a client when it connects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Handshake:
    """What is known about a client when it connects."""

    # "websocket", "polling" or "sse": how the client connected; it may upgrade later. "http"
    # when `authenticate` is called for a publication over the HTTP API.
    transport: str
    # Names are in lower case; repeated headers are joined by ", ". Left out of the repr, like
    # the query and `auth`: they hold tokens and session keys.
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, list[str]] = field(repr=False)
    # The peer's address, without the port. None over a unix socket.
    address: str | None
    # Seconds since 1970.
    time: float
    # Below the mount point, for example "/ws/admin". With Socket.IO it does not contain the
    # namespace, which clients name later: see `socket.namespace`.
    path: str = "/"
    # True over TLS, according to the server or a trusted proxy.
    secure: bool = False
    # Socket.IO's auth payload. On the other doors empty, except for a refreshed token.
    auth: Mapping[str, Any] = field(default_factory=dict, repr=False)
