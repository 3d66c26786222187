"""The HTTP API: what a publication that cannot be used is answered with."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from crossband import Hub
from tests.clients.base import WAIT
from tests.conftest import Serve

KEY = "the-only-key"


def broken_key(data: Any) -> str:
    raise LookupError("no such field")


@pytest.mark.parametrize(
    ("body", "path", "reason"),
    [
        ({}, "$", "missing required field `event`"),
        ({"event": 7}, "$.event", "Expected `str`"),
        ({"event": ""}, "$.event", "1 to 256 characters"),
        ({"event": "a" * 257}, "$.event", "1 to 256 characters"),
        ({"event": "a\nb"}, "$.event", "control characters"),
        ({"event": "connect"}, "$.event", "reserved"),
        ({"event": "news", "room": ""}, "$.room", "1 to 256 characters"),
        ({"event": "news", "room": "a\x00b"}, "$.room", "control characters"),
        ({"event": "news", "room": ["a"]}, "$.room", "Expected `str"),
        ({"event": "news", "namespace": "news"}, "$.namespace", "starts with `/`"),
        ({"event": "keyed", "data": {}}, "$.data", "no such field"),
    ],
)
async def test_publication_that_cannot_be_used_is_told_where_and_why(
    serve: Serve, body: Any, path: str, reason: str
) -> None:
    hub = Hub(api_keys=[KEY])
    hub.policy("keyed", "latest", key=broken_key)
    server = await serve(hub)
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False) as http:
        answer = await http.post(
            f"{server.url}/api/broadcast", json=body, headers={"X-API-Key": KEY}
        )
    assert answer.status_code == 422
    error = answer.json()
    assert (error["code"], error["path"]) == ("invalid_message", path)
    assert reason in error["reason"]
