"""Settings that cannot work are refused where they are given."""

from __future__ import annotations

import re
from typing import Any

import pytest

from crossband import Hub


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
        ({"websocket_path": "/events"}, "overlap"),
        ({"websocket_path": "/api/ws"}, "websocket_path (/api/ws) and api_path (/api) overlap"),
        ({"events_path": "/healthz"}, "overlap"),
        ({"cors_origins": ["https://x.example/"]}, "cors_origins takes origins such as"),
        ({"cors_origins": ["x.example"]}, "cors_origins takes origins such as"),
        ({"cors_origins": "https://x.example"}, "Expected `array`, got `str`"),
        ({"api_keys": [""]}, "api_keys must be non-empty"),
        ({"limits": {"rooms": 0}}, "limits.rooms must be a number above 0"),
        ({"limits": {"room": 1}}, "unknown field `room`"),
        ({"pingInterval": 25}, "unknown setting 'pingInterval'"),
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


def test_unknown_broker_is_refused() -> None:
    with pytest.raises(ValueError, match="no broker for 'kafka'"):
        Hub("kafka://localhost")
