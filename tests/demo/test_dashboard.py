"""The dashboard's server: real numbers each second, and notifications that are checked."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx
import psutil
import pytest

from crossband.demo import create_demo
from crossband.demo.dashboard import MAX_BODY, NOTIFICATIONS
from crossband.server import Server
from tests.clients import NewClient, WebSocketClient
from tests.conftest import Serve

KINDS = ["websocket", "sse", "python-socketio"]


@pytest.fixture
async def server(serve: Serve) -> Server:
    return await serve(create_demo())


@pytest.fixture
async def http(server: Server) -> Any:
    async with httpx.AsyncClient(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS)
async def test_samples_come_each_second_on_any_door(
    server: Server, new_client: NewClient, kind: str
) -> None:
    client = new_client(kind)
    await client.connect(server.url, "/dashboard")
    before, after = [(await client.next_event("sample")).data for _ in range(2)]
    assert 0.9 < after["time"] - before["time"] < 3
    assert abs(after["time"] - time.time()) < 60


async def test_sample_has_the_numbers_of_this_machine_and_process(
    server: Server, new_client: NewClient
) -> None:
    client = new_client("websocket")
    await client.connect(server.url, "/dashboard")
    sample = (await client.next_event("sample")).data
    # The server runs in this process.
    rss = psutil.Process(os.getpid()).memory_info().rss
    assert abs(sample["memory"]["server"] - rss) < rss / 2
    assert sample["memory"]["total"] == psutil.virtual_memory().total
    assert 0 < sample["memory"]["machine"] < sample["memory"]["total"]
    assert 0 <= sample["cpu"]["machine"] <= 100
    assert sample["cpu"]["server"] >= 0
    assert sample["clients"] == {"websocket": 1, "polling": 0, "sse": 0}


async def test_sample_counts_connections_and_messages_of_the_hub(
    server: Server, new_client: NewClient
) -> None:
    watcher = new_client("sse")
    await watcher.connect(server.url, "/dashboard")
    talkers = [new_client("websocket"), new_client("python-socketio")]
    for talker in talkers:
        await talker.connect(server.url, "/")
    before = (await watcher.next_event("sample")).data
    for _ in range(20):
        await talkers[0].emit("chat:message", {"content": "hello"})
    received = delivered = 0.0
    for _ in range(3):
        sample = (await watcher.next_event("sample")).data
        # Rates, of about a second each; on a busy machine of more.
        seconds = sample["time"] - before["time"]
        before = sample
        received += sample["messages"]["received"] * seconds
        delivered += sample["messages"]["delivered"] * seconds
    assert 15 < received <= 25
    # The samples themselves.
    assert delivered > 1
    assert sample["clients"] == {"websocket": 2, "polling": 0, "sse": 1}


async def test_status_counts_messages(http: httpx.AsyncClient, server: Server) -> None:
    ada, bob = WebSocketClient(), WebSocketClient()
    for client in (ada, bob):
        await client.connect(server.url, "/chat")
    before = (await http.get("/api/status")).json()["messages"]
    for client, name in ((ada, "Ada"), (bob, "Bob")):
        await client.call("user:register", {"name": name})
        await client.call("room:join", {"room": "general"})
    await ada.call("chat:message", {"room": "general", "content": "hello"})
    await bob.next_event("chat:message")
    after = (await http.get("/api/status")).json()["messages"]
    for client in (ada, bob):
        await client.close()
    assert after["received"] - before["received"] == 5
    # The message to both; who joined is told by the hub itself.
    assert after["published"] - before["published"] == 1
    assert after["delivered"] - before["delivered"] >= 3


async def test_page_that_is_opened_now_gets_what_was_before(
    http: httpx.AsyncClient, server: Server, new_client: NewClient
) -> None:
    client = new_client("websocket")
    await client.connect(server.url, "/dashboard")
    sample = (await client.next_event("sample")).data
    await http.post("/api/notify", json={"message": "hello"})
    response = await http.get("/api/metrics")
    assert response.headers["cache-control"] == "no-store"
    found = response.json()
    assert found["interval"] == 1
    assert sample in found["samples"]
    assert [each["message"] for each in found["notifications"]] == ["hello"]


async def test_notification_reaches_everybody_with_its_cursor(
    http: httpx.AsyncClient, server: Server, new_client: NewClient
) -> None:
    clients = [new_client(kind) for kind in KINDS]
    for client in clients:
        await client.connect(server.url, "/dashboard")
    notification = {"title": "<b>Disk</b>", "message": "91 % שלום 🌍", "level": "warning"}
    response = await http.post("/api/notify", json=notification)
    answer = response.json()
    assert (response.status_code, answer["success"], answer["clients"]) == (200, True, 3)
    for client in clients:
        data = (await client.next_event("notification")).data
        assert {name: data[name] for name in notification} == notification
    # The same again, for who reads instead.
    kept = (await http.get("/api/metrics")).json()["notifications"]
    assert [each["offset"] for each in kept] == [answer["offset"]]


async def test_title_and_level_may_be_left_out(http: httpx.AsyncClient) -> None:
    await http.post("/api/notify", json={"message": "hello"})
    (kept,) = (await http.get("/api/metrics")).json()["notifications"]
    assert (kept["title"], kept["level"]) == ("", "info")


async def test_newest_notifications_are_kept(http: httpx.AsyncClient) -> None:
    for number in range(NOTIFICATIONS + 5):
        await http.post("/api/notify", json={"message": f"{number}"})
    kept = (await http.get("/api/metrics")).json()["notifications"]
    assert [each["message"] for each in kept] == [
        f"{number}" for number in range(5, NOTIFICATIONS + 5)
    ]


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (b'{"title": "a"}', "message", "missing required field"),
        (b'{"message": 5}', "message", "Expected `str`, got `int`"),
        (b'{"message": null}', "message", "Expected `str`, got `null`"),
        (b'{"message": ""}', "message", "length >= 1"),
        (b'{"message": " \\n\\t"}', "message", "more than white space"),
        (b'{"message": "%s"}' % (b"x" * 501), "message", "length <= 500"),
        (b'{"message": "a", "title": ["b"]}', "title", "Expected `str`, got `array`"),
        (b'{"message": "a", "title": "%s"}' % (b"x" * 101), "title", "length <= 100"),
        (b'{"message": "a", "level": "loud"}', "level", "info, success, warning, error"),
        (b'{"message": "a", "level": 3}', "level", "info, success, warning, error"),
        (b'{"message": "a", "colour": "red"}', "colour", "unknown field"),
        (b'["a"]', None, "Expected `object`, got `array`"),
        (b"", None, "Not JSON"),
        (b'{"message": "a"', None, "Not JSON"),
        (b'{"message": "\xff"}', None, "Not JSON"),
        (b"[" * 10_000, None, "Expected `object`, got `array`"),
        (b'{"message": "a", "x": ' + b"[" * 10_000, None, ""),
    ],
)
async def test_malformed_notification_is_answered_with_422_and_the_field(
    http: httpx.AsyncClient, body: bytes, field: str | None, reason: str
) -> None:
    response = await http.post("/api/notify", content=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert (answer["type"], answer["code"]) == ("error", "invalid_message")
    assert reason in answer["reason"]
    if field is not None:
        assert (answer["field"], answer["path"]) == (field, f"$.{field}")
    assert (await http.get("/api/metrics")).json()["notifications"] == []


async def test_notification_that_is_too_large_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/api/notify", content=b" " * (MAX_BODY + 1))
    assert response.status_code == 413
    assert response.json()["code"] == "message_too_large"


@pytest.mark.parametrize("origin", ["https://a.example", "null", "http://["])
async def test_notification_from_a_page_of_another_site_is_refused(
    origin: str, http: httpx.AsyncClient
) -> None:
    message = {"message": "hello"}
    response = await http.post("/api/notify", json=message, headers={"Origin": origin})
    assert (response.status_code, response.json()["code"]) == (403, "origin_not_allowed")
    own = str(http.base_url).rstrip("/")
    response = await http.post("/api/notify", json=message, headers={"Origin": own})
    assert response.status_code == 200


@pytest.mark.parametrize("kind", KINDS)
async def test_values_and_notifications_of_a_cut_are_replayed(
    http: httpx.AsyncClient, server: Server, new_client: NewClient, kind: str
) -> None:
    client, witness = new_client(kind), new_client("websocket")
    await client.connect(server.url, "/dashboard")
    await client.next_event("sample")
    await client.cut()
    await witness.connect(server.url, "/dashboard")
    missed = (await witness.next_event("sample")).data
    await http.post("/api/notify", json={"message": "meanwhile"})
    await client.resume()
    assert (await client.next_event("notification")).data["message"] == "meanwhile"
    assert missed in client.data_of("sample")
