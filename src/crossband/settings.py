"""Everything that can be set on a hub, as one frozen value."""

from __future__ import annotations

import msgspec

from crossband.limits import Limits


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configure a hub; `Hub(**settings)` takes the same names.

    Times are in seconds. `crossband serve` reads each also from `CROSSBAND_<NAME>` (limits:
    `CROSSBAND_LIMITS_<NAME>`) and from a TOML file.
    """

    # Heartbeats. Socket.IO pings at this interval and gives up after the timeout (25 s and
    # 20 s, as Node); `crossband serve` sends WebSocket pings at the same pace.
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    # Comments on an idle event stream. 15 s: proxies commonly cut after 30 or 60.
    keepalive_interval: float = 15.0
    # What EventSource is told to wait before it reconnects.
    retry: float = 2.0
    # How much each namespace remembers for clients that come back.
    history_size: int = 1_000
    history_age: float = 120.0
    # Off: Socket.IO events carry no offset and CONNECT answers no pid.
    recovery: bool = True
    # Origins of other sites that may connect: exact, such as "https://app.example.com";
    # ("*",) allows any, without credentials. Same origin is always allowed.
    cors_origins: tuple[str, ...] = ()
    # Keys for /api/broadcast. Without one the route refuses everybody.
    api_keys: tuple[str, ...] = ()
    # Paths of the doors below the mount point.
    socketio_path: str = "/socket.io"
    websocket_path: str = "/ws"
    events_path: str = "/events"
    api_path: str = "/api"
    # How long a graceful stop may take before connections are cut.
    shutdown_timeout: float = 10.0
    limits: Limits = Limits()
