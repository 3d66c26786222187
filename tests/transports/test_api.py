"""The HTTP API: what a publication that cannot be used is answered with."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from crossband import Hub
from tests.clients import NewClient
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
        ({"event": "x", "rooms": ["hr"]}, "$.rooms", "field `rooms`; did you mean `room`?"),
        ({"event": "x", "Room": "hr"}, "$.Room", "field `Room`; did you mean `room`?"),
        ({"event": "x", "rom": "hr"}, "$.rom", "did you mean `room`?"),
        ({"event": "x", "to": "hr"}, "$.to", "did you mean `room`?"),
        ({"event": "x", "channel": "hr"}, "$.channel", "did you mean `room`?"),
        ({"event": "x", "nsp": "/hr"}, "$.nsp", "did you mean `namespace`?"),
        ({"event": "x", "namespaces": "/hr"}, "$.namespaces", "did you mean `namespace`?"),
        ({"type": "x", "room": "hr"}, "$.type", "did you mean `event`?"),
        ({"event": "x", "payload": 1}, "$.payload", "did you mean `data`?"),
        ({"event": "x", "except": "hr"}, "$.except", "expected event, data, room, namespace"),
        ({"event": "x", "": "hr"}, "$.", "expected event, data, room, namespace"),
        ({"event": "x", "a`b - at `$": 1}, "$.a`b - at `$", "Unknown field `a`b - at `$`"),
        ({"event": "x", "é" * 500: 1}, "$." + "é" * 64, "Unknown field"),
    ],
)
async def test_publication_that_cannot_be_used_is_told_where_and_why(
    serve: Serve, body: Any, path: str, reason: str
) -> None:
    hub = Hub(api_keys=[KEY])
    hub.policy("keyed", "latest", key=broken_key)
    server = await serve(hub)
    head = hub.broker.head("/")
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        answer = await http.post(
            f"{server.url}/api/broadcast", json=body, headers={"X-API-Key": KEY}
        )
    assert answer.status_code == 422
    error = answer.json()
    assert (error["code"], error["path"]) == ("invalid_message", path)
    assert reason in error["reason"]
    assert hub.broker.head("/") == head


@pytest.mark.parametrize("query", ["room=hr", "rooms=hr", "to=hr", "namespace=/hr", "event=x"])
async def test_fields_of_a_publication_in_the_query_are_refused(serve: Serve, query: str) -> None:
    hub = Hub(api_keys=[KEY])
    server = await serve(hub)
    head = hub.broker.head("/")
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        answer = await http.post(
            f"{server.url}/api/broadcast?{query}",
            json={"event": "x", "data": 1},
            headers={"X-API-Key": KEY},
        )
    assert answer.status_code == 422
    assert answer.json()["reason"].endswith("belongs in the body, not in the query")
    assert hub.broker.head("/") == head


async def test_publication_without_a_room_is_for_everybody(
    serve: Serve, new_client: NewClient
) -> None:
    server = await serve(Hub(api_keys=[KEY]))
    client = new_client("websocket")
    await client.connect(server.url)
    async with httpx.AsyncClient(timeout=WAIT, trust_env=False, verify=False) as http:
        for number, body in enumerate(({}, {"room": None, "namespace": "/"})):
            answer = await http.post(
                f"{server.url}/api/broadcast",
                json={"event": "x", "data": number, **body},
                headers={"X-API-Key": KEY},
            )
            assert answer.json()["clients"] == 1
            assert (await client.next_event("x")).data == number
