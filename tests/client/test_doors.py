"""Which door a URL means, and at which address."""

from __future__ import annotations

import pytest

from crossband.client.doors import Door, locate


@pytest.mark.parametrize(
    ("url", "door", "namespace", "expected"),
    [
        ("http://h:1", None, "/", (Door.SSE, "http://h:1/events")),
        ("https://h/", None, "/", (Door.SSE, "https://h/events")),
        ("h:1", None, "/", (Door.SSE, "http://h:1/events")),
        ("localhost", None, "/", (Door.SSE, "http://localhost/events")),
        ("ws://h:1", None, "/", (Door.WEBSOCKET, "ws://h:1/ws")),
        ("wss://[::1]:1/", None, "/", (Door.WEBSOCKET, "wss://[::1]:1/ws")),
        ("ws://h/ws", None, "/", (Door.WEBSOCKET, "ws://h/ws")),
        ("ws://h/ws/admin", None, "/", (Door.WEBSOCKET, "ws://h/ws/admin")),
        ("ws://h/live?token=x", None, "/", (Door.WEBSOCKET, "ws://h/live?token=x")),
        ("http://h/events", None, "/", (Door.SSE, "http://h/events")),
        ("http://h/my/stream", None, "/", (Door.SSE, "http://h/my/stream")),
        ("http://h/socket.io", None, "/", (Door.SOCKETIO, "ws://h/socket.io/")),
        ("https://h/rt/socket.io/", None, "/", (Door.SOCKETIO, "wss://h/rt/socket.io/")),
        ("ws://h/socket.io/", None, "/", (Door.SOCKETIO, "ws://h/socket.io/")),
        ("http://h", Door.WEBSOCKET, "/", (Door.WEBSOCKET, "ws://h/ws")),
        ("http://h/rt", Door.WEBSOCKET, "/", (Door.WEBSOCKET, "ws://h/rt/ws")),
        ("https://h/rt", Door.SOCKETIO, "/", (Door.SOCKETIO, "wss://h/rt/socket.io/")),
        ("ws://h/rt", Door.SSE, "/", (Door.SSE, "http://h/rt/events")),
        ("http://h", None, "/admin", (Door.SSE, "http://h/events/admin")),
        ("ws://h", None, "/a b", (Door.WEBSOCKET, "ws://h/ws/a%20b")),
        ("http://h", Door.SOCKETIO, "/admin", (Door.SOCKETIO, "ws://h/socket.io/")),
    ],
)
def test_url_names_a_door(
    url: str, door: Door | None, namespace: str, expected: tuple[Door, str]
) -> None:
    assert locate(url, door, namespace) == expected


@pytest.mark.parametrize(
    "url", ["", "ftp://h", "http://", "http:///events", "http://h:0", "http://h:99999", "http://["]
)
def test_url_that_names_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        locate(url, None, "/")
