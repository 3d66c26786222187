"""Finds which door a URL means, and the address to connect to."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit


class Door(StrEnum):
    """A door, by its name in options and output."""

    WEBSOCKET = "websocket"
    SSE = "sse"
    SOCKETIO = "socketio"


def locate(url: str, door: Door | None, namespace: str) -> tuple[Door, str]:
    """Find the door a URL means, and the URL to connect to.

    The address of a server is enough: `http://…` means its event stream, `ws://…` its
    WebSocket, unless `door` is given. Raises ValueError for any other URL.
    """
    parts = parse_url(url, ("http", "https", "ws", "wss"))
    path = parts.path.rstrip("/")
    segments = path.split("/")
    if door is None:
        if "socket.io" in segments:
            door = Door.SOCKETIO
        elif parts.scheme in ("ws", "wss"):
            door = Door.WEBSOCKET
        else:
            door = Door.SSE
    default = {Door.WEBSOCKET: "ws", Door.SSE: "events", Door.SOCKETIO: "socket.io"}[door]
    if not path or (default not in segments and _is_other_door(door, parts)):
        path = f"{path}/{default}"
    secure = parts.scheme in ("https", "wss")
    if door is Door.SSE:
        scheme = "https" if secure else "http"
    else:
        scheme = "wss" if secure else "ws"
    if door is Door.SOCKETIO:
        path += "/"
    elif namespace != "/":
        path += quote(namespace)
    return door, parts._replace(scheme=scheme, path=path).geturl()


def _is_other_door(door: Door, parts: SplitResult) -> bool:
    # `--door websocket http://host/realtime` names a mount point, not a WebSocket.
    return (door is Door.SSE) != (parts.scheme in ("http", "https")) or door is Door.SOCKETIO


def add_query(url: str, fields: Iterable[tuple[str, str]]) -> str:
    """Add fields to the end of a URL's query."""
    parts = urlsplit(url)
    query = [*parse_qsl(parts.query, keep_blank_values=True), *fields]
    return parts._replace(query=urlencode(query)).geturl()


def parse_url(url: str, schemes: tuple[str, ...]) -> SplitResult:
    """Split a URL; `localhost:8000` means `http://localhost:8000`. Raises ValueError."""
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise ValueError(f"{url}: {exc}") from None
    try:
        # The form that is looked up.
        (parts.hostname or "").encode("idna")
    except UnicodeError:
        raise ValueError(f"{url}: {parts.hostname!r} is not a host name") from None
    if parts.scheme not in schemes:
        raise ValueError(f"{url}: expected a URL of {', '.join(schemes)}, not {parts.scheme}")
    if not parts.hostname:
        raise ValueError(f"{url}: the URL has no host")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"{url}: expected a port of 1 to 65535")
    return parts
