"""Settings that cannot work are refused where they are given."""

from __future__ import annotations

import re
from typing import Any

import pytest

from crossband import Hub, Limits, MemoryBroker


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"ping_interval": 0}, "ping_interval must be a number of seconds above 0, not 0"),
        ({"ping_timeout": -1}, "ping_timeout must be a number of seconds above 0"),
        ({"keepalive_interval": float("nan")}, "keepalive_interval must be a number"),
        ({"history_age": float("inf")}, "history_age must be 0 or a positive number"),
        ({"history_size": -1}, "history_size must be 0 or a positive number"),
        ({"history_size": "many"}, "Expected `int`, got `str`"),
        ({"websocket_path": "live"}, "websocket_path must start with '/'"),
        ({"events_path": "/a/"}, "events_path must start with '/', not end with it"),
        ({"api_path": "/"}, "api_path must start with '/', not end with it"),
        (
            {"websocket_path": "/events"},
            "websocket_path and events_path overlap: both are '/events'. Give each a path of",
        ),
        ({"websocket_path": "/", "events_path": "/"}, "overlap: both are '/'"),
        (
            {"events_path": "/ws/events"},
            "events_path (/ws/events) and websocket_path (/ws) overlap: below /ws are that door's",
        ),
        ({"api_path": "/events/api"}, "api_path (/events/api) and events_path (/events) overlap"),
        (
            {"events_path": "/api/status"},
            "overlap: the API has a route there. Choose another path, such as /api/events",
        ),
        ({"socketio_path": "/ws/io"}, "Choose a path that does not begin with /ws/"),
        ({"websocket_path": "/api/broadcast/ws"}, "the API has a route there"),
        ({"events_path": "/healthz"}, "events_path and the hub's own /healthz overlap"),
        ({"websocket_path": "off"}, "an empty string switches the door off"),
        ({"presence": ["team-*", ""]}, "presence takes rooms, or patterns"),
        ({"presence_grace": -1}, "presence_grace must be 0 or a positive number"),
        ({"cors_origins": ["https://x.example/"]}, "cors_origins takes origins such as"),
        ({"allowed_hosts": ["http://x.example"]}, "allowed_hosts takes hosts such as"),
        ({"allowed_hosts": ["x.example:80"]}, "allowed_hosts takes hosts such as"),
        ({"allowed_hosts": ["*"]}, "no pattern; an empty list allows any), not '*'"),
        ({"allowed_hosts": [""]}, "not ''"),
        ({"allowed_hosts": ["[::1]"]}, "allowed_hosts takes hosts such as"),
        ({"allowed_hosts": ["X.example"]}, "which is compared as 'x.example'"),
        ({"allowed_hosts": ["0::1"]}, "which is compared as '::1'"),
        ({"cors_origins": ["x.example"]}, "cors_origins takes origins such as"),
        ({"cors_origins": "https://x.example"}, "Expected `array`, got `str`"),
        ({"api_keys": [""]}, "api_keys must be non-empty"),
        ({"cors_origins": ["https://X.Example"]}, "browsers send as 'https://x.example'"),
        ({"cors_origins": ["HTTPS://x.example"]}, "browsers send as 'https://x.example'"),
        ({"cors_origins": ["https://x.example:443"]}, "browsers send as 'https://x.example'"),
        ({"cors_origins": ["http://x.example:80"]}, "browsers send as 'http://x.example'"),
        ({"cors_origins": ["https://x.example:0444"]}, "browsers send as 'https://x.example:444'"),
        ({"cors_origins": ["https://x.example:"]}, "browsers send as 'https://x.example'"),
        ({"cors_origins": ["file:///"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["file:"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["FILE://"]}, "browsers send as 'file://'"),
        ({"cors_origins": ["app://x/y"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["://x"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["https://"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["http://[::0:1]:81"]}, "browsers send as 'http://[::1]:81'"),
        ({"cors_origins": ["https://bücher.example"]}, "as 'https://xn--bcher-kva.example'"),
        ({"cors_origins": ["https://*.x.example"]}, "there are no patterns, name each origin"),
        ({"cors_origins": ["https://x.example:*"]}, "there are no patterns, name each origin"),
        ({"cors_origins": ["https://me@x.example"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["https://x example"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["https://x.example:0"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["https://x.example:x"]}, "cors_origins takes origins such as"),
        ({"limits": {"rooms": 0}}, "limits.rooms must be a whole number above 0, not 0"),
        ({"limits": {"connections": -1}}, "limits.connections must be a whole number 0 or more"),
        ({"limits": {"room": 1}}, "unknown field `room`"),
        ({"pingInterval": 25}, "unknown setting 'pingInterval'; did you mean 'ping_interval'?"),
        ({"cors_origin": "*"}, "unknown setting 'cors_origin'; did you mean 'cors_origins'?"),
        ({"message_size": 1}, "'message_size'; did you mean limits={'message_size': …}?"),
    ],
)
def test_setting_that_cannot_work_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        Hub(**settings)


def test_settings_are_kept_and_lists_taken_for_tuples() -> None:
    hub = Hub(
        ping_interval=0.3,
        history_size=0,
        cors_origins=["https://app.example.com", "http://localhost:5173", "*"],
        limits={"message_size": 10},
    )
    assert hub.settings.ping_interval == 0.3
    assert hub.settings.cors_origins[1] == "http://localhost:5173"
    assert hub.settings.limits.message_size == 10
    hub.configure(retry=5)
    assert hub.settings.retry == 5
    assert hub.settings.limits.message_size == 10


async def test_settings_of_a_running_hub_are_fixed() -> None:
    hub = Hub()
    async with hub.lifespan():
        with pytest.raises(RuntimeError, match="running"):
            hub.configure(retry=5)


def test_origins_of_any_kind_of_page_are_taken() -> None:
    origins = (
        *("https://x.example", "http://x.example:443", "https://x.example:8443", "http://10.0.0.1"),
        *("http://[::1]:3000", "https://xn--bcher-kva.example", "https://x_y.example."),
        *("capacitor://localhost", "chrome-extension://abcdefghijklmnop", "null", "*"),
        *("file://", "ionic://localhost", "tauri://localhost", "app://-", "app://."),
        *("vscode-webview://0f2v9kq3", "moz-extension://9b9a-4c", "com.example.app://localhost"),
        # Their hosts are as they were written, and so are their ports.
        *("safari-web-extension://9B9A-4C", "app://localhost:8100"),
    )
    assert Hub(cors_origins=origins).settings.cors_origins == origins


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"rooms": "3"}, "limits.rooms must be a whole number above 0, not '3'"),
        ({"rooms": 1.5}, "limits.rooms must be a whole number above 0, not 1.5"),
        ({"rooms": True}, "limits.rooms must be a whole number above 0, not True"),
        ({"connections": None}, "limits.connections must be a whole number 0 or more, not None"),
        ({"head_time": "1"}, "limits.head_time must be a number above 0, not '1'"),
        ({"message_rate": True}, "limits.message_rate must be a number 0 or more, not True"),
    ],
)
def test_limit_of_another_type_is_refused(limits: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(complaint)):
        Limits(**limits)


def test_unknown_broker_is_refused() -> None:
    with pytest.raises(ValueError, match="no broker for 'kafka'"):
        Hub("kafka://localhost")
    wrong: Any
    for wrong, told in (
        (5, "5"),
        (MemoryBroker, "the class MemoryBroker"),
        (Limits(), "Limits\\("),
    ):
        with pytest.raises(TypeError, match=f"takes a URL, such as .*, or a Broker, not {told}"):
            Hub(wrong)
