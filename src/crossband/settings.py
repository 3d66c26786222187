"""Everything that can be set on a hub, as one frozen value."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from itertools import permutations
from typing import Any, Final, Literal, TypedDict
from urllib.parse import urlsplit

import msgspec

from crossband.addresses import TrustedProxies
from crossband.limits import Limits

# Seconds a connection to our own server may be idle between two HTTP requests. 75 s, as in
# nginx. Load balancers of AWS and Azure keep theirs for 60 s, and a request sent just as the
# server closes is lost; uvicorn and Node close after 5 s.
KEEP_ALIVE: Final = 75.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configure a hub; `Hub(**settings)` takes the same names.

    Times are in seconds. `crossband serve` also reads each setting from `CROSSBAND_<NAME>`
    (limits: `CROSSBAND_LIMITS_<NAME>`) and from a TOML file.
    """

    # Heartbeats. Socket.IO pings at this interval and gives up after the timeout (25 s and
    # 20 s, as in Node); `crossband serve` sends WebSocket pings at the same interval.
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    # Interval of comments on an idle event stream. 15 s: proxies commonly cut after 30 or 60.
    keepalive_interval: float = 15.0
    # How long EventSource is told to wait before it reconnects.
    retry: float = 2.0
    # How many events each namespace keeps for clients that come back, and as many again of
    # those sent to single clients. Usually bytes and age are reached first: 100,000 events are
    # 830 a second for two minutes.
    history_size: int = 100_000
    # 64 MiB holds 67 events of 1 MB, or all 100,000 of a chat.
    history_bytes: int = 67_108_864
    history_age: float = 120.0
    # Rooms that show who is in them, in every namespace, besides those that code declares; `*`
    # in a pattern matches any characters.
    presence: tuple[str, ...] = ()
    # How long a client whose connection was cut stays a member; at most as long as its session.
    presence_grace: float = 120.0
    # If False, Socket.IO events carry no offset and the answer to CONNECT has no pid.
    recovery: bool = True
    # Tell Socket.IO clients why their event failed: in its acknowledgement or an `error` event.
    answer_errors: bool = True
    # Other sites' origins that may connect: exact, such as "https://app.example.com";
    # ("*",) allows any, without credentials. The same origin is always allowed.
    cors_origins: tuple[str, ...] = ()
    # Hosts that requests may name in their Host header, without a port; () allows any. Protects
    # against DNS rebinding, where an attacker's page passes the check of origins because its
    # own host name resolves to this server.
    allowed_hosts: tuple[str, ...] = ()
    # How long before its token expires a client is told, so that it can send a new one.
    token_warning: float = 30.0
    # Addresses and networks of proxies whose X-Forwarded-For and -Proto are trusted; "unix"
    # is any peer on a unix socket.
    trusted_proxies: tuple[str, ...] = ()
    # Keys for /api/broadcast. Without any, the route refuses everybody.
    api_keys: tuple[str, ...] = ()
    # Who may read /api/status: anybody ("open"), holders of an API key ("key"), nobody ("off").
    status: Literal["open", "key", "off"] = "open"
    # Paths of the doors below the mount point; None or "" switches a door off. A door may be at
    # "/", which leaves the others where they are, and may lie below the API.
    socketio_path: str | None = "/socket.io"
    websocket_path: str | None = "/ws"
    events_path: str | None = "/events"
    api_path: str | None = "/api"
    # How long a graceful stop may take before connections are cut.
    shutdown_timeout: float = 10.0
    # A stopping hub spreads the closing of its clients over this time, so that they do not all
    # come back at once: at most half of `shutdown_timeout`, and less for few clients. 2 s:
    # hypercorn cuts what is left after 3.
    drain_time: float = 2.0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for name in ("ping_interval", "ping_timeout", "keepalive_interval"):
            if not _is_number(value := getattr(self, name)) or value == 0:
                raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")
        for name in (
            "token_warning",
            "retry",
            "history_size",
            "history_bytes",
            "history_age",
            "presence_grace",
            "shutdown_timeout",
            "drain_time",
        ):
            if not _is_number(value := getattr(self, name)):
                raise ValueError(f"{name} must be 0 or a positive number, not {value!r}")
        if not all(self.presence):
            raise ValueError("presence takes rooms, or patterns with '*', but has an empty one")
        self._check_paths()
        for origin in self.cors_origins:
            _check_origin(origin)
        for host in self.allowed_hosts:
            _check_host(host)
        TrustedProxies(self.trusted_proxies)
        if any(not key or not key.isascii() for key in self.api_keys):
            raise ValueError("api_keys must be non-empty ASCII strings")

    def _check_paths(self) -> None:
        paths = {name: path for name in DOORS if (path := getattr(self, name))}
        for name, path in paths.items():
            if name != "api_path" and path == "/":
                continue
            if not path.startswith("/") or path.endswith("/") or not _PATH.isdisjoint(path):
                raise ValueError(
                    f"{name} must start with '/', not end with it, and have no '?', '#' or "
                    f"space, not {path!r}; None or an empty string switches the door off"
                )
            if path in _HEALTH:
                raise ValueError(f"{name} and the hub's own {path} overlap: choose another path")
        for (one, path), (other, within) in permutations(paths.items(), 2):
            if path == within:
                raise ValueError(
                    f"{one} and {other} overlap: both are {path!r}. Give each a path of its own, "
                    "or switch one off with None or an empty string"
                )
            below = path.removeprefix(within + "/")
            if below == path:
                continue
            if other == "api_path" and below.partition("/")[0] in _API_ROUTES:
                raise ValueError(
                    f"{one} ({path}) and {other} ({within}) overlap: the API has a route there. "
                    f"Choose another path, such as {within}/{one.removesuffix('_path')}"
                )
            if other in ("websocket_path", "events_path"):
                raise ValueError(
                    f"{one} ({path}) and {other} ({within}) overlap: below {within} are that "
                    f"door's namespaces. Choose a path that does not begin with {within}/"
                )


# The settings that are a door's path.
DOORS: Final = ("socketio_path", "websocket_path", "events_path", "api_path")
_HEALTH: Final = ("/healthz", "/readyz")
_API_ROUTES: Final = ("status", "broadcast", "presence")
_PATH = frozenset("?# ")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


Names = list[str] | tuple[str, ...] | set[str] | frozenset[str]


class HubSettings(TypedDict, total=False):
    """The arguments of `Hub` that are settings, for type checkers and editors.

    They have the names of `Settings`, and the types that are accepted for them.
    """

    ping_interval: float
    ping_timeout: float
    keepalive_interval: float
    retry: float
    history_size: int
    history_bytes: int
    history_age: float
    presence: Names
    presence_grace: float
    recovery: bool
    answer_errors: bool
    cors_origins: Names
    allowed_hosts: Names
    token_warning: float
    trusted_proxies: Names
    api_keys: Names
    status: Literal["open", "key", "off"]
    socketio_path: str | None
    websocket_path: str | None
    events_path: str | None
    api_path: str | None
    shutdown_timeout: float
    drain_time: float
    limits: Limits | Mapping[str, float]


# Default ports by scheme: browsers leave them out of an origin.
_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_OPAQUE = re.compile(r"[A-Za-z0-9._~-]*(:[0-9]{1,5})?")
_HOST = re.compile(r"[a-z0-9._~-]+|\[[0-9a-f:.]+\]")


def _check_host(host: str) -> None:
    """Raise ValueError for a host that no Host header without its port can equal."""
    try:
        shown = str(IPv6Address(host)) if ":" in host else host.lower()
    except ValueError:
        shown = ""
    if not shown or (":" not in shown and _HOST.fullmatch(shown) is None):
        raise ValueError(
            "allowed_hosts takes hosts such as 'chat.example.com' or '::1' (no scheme, no port, "
            f"no pattern; an empty list allows any), not {host!r}"
        )
    if shown != host:
        raise ValueError(f"allowed_hosts has {host!r}, which is compared as {shown!r}")


def _check_origin(origin: str) -> None:
    """Raise ValueError for an origin that no browser sends (RFC 6454 §6.2)."""
    if origin in ("*", "null"):
        return
    complaint = (
        "cors_origins takes origins such as 'https://app.example.com' (scheme, host, perhaps a "
        f"port, nothing after them; 'file://' and 'null' too) or '*', not {origin!r}"
    )
    if "*" in origin:
        raise ValueError(f"{complaint}: there are no patterns, name each origin")
    try:
        sent = _as_sent(origin)
    except ValueError:
        raise ValueError(complaint) from None
    if sent != origin:
        raise ValueError(f"cors_origins has {origin!r}, which browsers send as {sent!r}")


def _as_sent(origin: str) -> str:
    """Return an origin as browsers write it. Raises ValueError if it is not one."""
    parts = urlsplit(origin)
    scheme, separator, authority = origin.partition("://")
    if separator and scheme.lower() not in _PORTS:
        # An application's or an extension's origin: its host stays as written, or is empty
        # ("file://"). WHATWG URL §4.5, opaque hosts.
        if _SCHEME.fullmatch(scheme.lower()) is None or _OPAQUE.fullmatch(authority) is None:
            raise ValueError
        return f"{scheme.lower()}://{authority}"
    host, port = parts.hostname, parts.port
    if not parts.scheme or host is None or port == 0 or "@" in parts.netloc:
        raise ValueError
    if origin.partition("://")[2].lower() != parts.netloc.lower():
        raise ValueError
    if ":" in host:
        host = f"[{IPv6Address(host)}]"
    elif not host.isascii():
        host = host.encode("idna").decode()
    if _HOST.fullmatch(host) is None:
        raise ValueError
    shown = "" if port is None or port == _PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"


def changed(base: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return settings with some of them changed.

    Raises ValueError for an unknown setting or an unsuitable value.
    """
    known = {item.name: item for item in msgspec.structs.fields(Settings)}
    for name in changes:
        if name not in known:
            raise ValueError(f"unknown setting {name!r}{_hint(name, known)}")
    values = {name: changes.get(name, getattr(base, name)) for name in known}
    try:
        # Checks the types, and accepts lists as tuples and dicts as limits.
        return msgspec.convert(values, Settings, from_attributes=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"invalid setting: {error}") from None


def _hint(name: str, known: Iterable[str]) -> str:
    limits = Limits.__struct_fields__
    near = difflib.get_close_matches(name, [*known, *limits], n=1)
    if not near:
        return ""
    found = f"limits={{{near[0]!r}: …}}" if near[0] in limits else repr(near[0])
    return f"; did you mean {found}?"
