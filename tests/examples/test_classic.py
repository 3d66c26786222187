"""The programs of `examples/classic`, each run as it says and used through real clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.clients import Client, EventFailed, NewClient, Refused, WebSocketClient
from tests.clients.base import WAIT
from tests.examples.conftest import Run

pytestmark = pytest.mark.node

WEBSOCKET = "websocket"
SSE = "sse"
OFFICIAL = "socket.io-client upgrading"
PYTHON = "python-socketio"


async def connected(new_client: NewClient, url: str, *kinds: str, **options: Any) -> list[Client]:
    """Connect a client of each kind, one after another."""
    clients = [new_client(kind) for kind in kinds]
    for client in clients:
        await client.connect(url, **options)
    return clients


async def data_of(clients: list[Client], event: str) -> list[Any]:
    """Return the data of the next event of that name at each client."""
    return [(await client.next_event(event)).data for client in clients]


async def gone(client: Client) -> None:
    """Wait until the client's connection has ended."""
    async with asyncio.timeout(WAIT):
        await client.gone.wait()


async def test_echo_welcomes_and_sends_back(run: Run) -> None:
    program = await run("echo")
    address = program.url.replace("http", "ws", 1) + "/ws"
    async with asyncio.timeout(WAIT), connect(address, proxy=None) as client:
        assert str(await client.recv()).startswith("Welcome, ")
        for frame in ("hello", '{"not": "parsed"}', b"\x00\xff", ""):
            await client.send(frame)
            assert await client.recv() == frame


async def test_broadcast_reaches_everybody(run: Run, new_client: NewClient) -> None:
    program = await run("broadcast")
    clients = await connected(new_client, program.url, WEBSOCKET, OFFICIAL, PYTHON, SSE)
    for sender in clients:
        await sender.emit("message", "hello")
        expected = {"from": sender.sid, "text": "hello"}
        assert await data_of(clients, "message") == [expected] * len(clients)


async def test_relay_reaches_everybody_but_the_sender(run: Run, new_client: NewClient) -> None:
    program = await run("relay")
    clients = await connected(new_client, program.url, WEBSOCKET, OFFICIAL, PYTHON, SSE)
    for sender in clients:
        await sender.emit("message", "hello")
        others = [client for client in clients if client is not sender]
        expected = {"from": sender.sid, "text": "hello"}
        assert await data_of(others, "message") == [expected] * len(others)
    # In the order of the namespace: had one heard itself, it would be in between.
    for client in clients:
        heard = [message["from"] for message in client.data_of("message")]
        assert heard == [other.sid for other in clients if other is not client]


async def test_typed_messages_and_no_others(run: Run, new_client: NewClient) -> None:
    program = await run("typed_messages")
    ada, bob = new_client(WEBSOCKET), new_client(OFFICIAL)
    await ada.connect(program.url, auth={"user": "ada"})
    await bob.connect(program.url)
    assert await data_of([ada], "user_joined") == [{"user": "somebody"}]

    await ada.emit("chat", {"text": "hello"})
    assert await data_of([ada, bob], "chat") == [{"user": "ada", "text": "hello"}] * 2
    await ada.emit("notification", {"title": "Tea"})
    assert await data_of([bob], "notification") == [{"title": "Tea", "level": "info"}]

    for event, data in (
        ("cat", {"text": "meow"}),
        ("user_joined", {"user": "eve"}),
        ("chat", {"text": ""}),
        ("chat", "hello"),
        ("notification", {"title": "Tea", "level": "loud"}),
    ):
        await ada.emit(event, data)
        error = await ada.next_error()
        assert error["code"] == "invalid_message"
        assert error["error"] == "Invalid message format"
        assert error["path"].startswith("$")
    assert isinstance(ada, WebSocketClient)
    assert ada.connection is not None
    await ada.connection.send("not JSON")
    assert (await ada.next_error())["error"] == "Invalid message format"

    await ada.close()
    assert await data_of([bob], "user_left") == [{"user": "ada", "reason": "transport close"}]


async def test_http_api_beside_websocket(
    run: Run, new_client: NewClient, http: httpx.AsyncClient
) -> None:
    program = await run("http_api")
    (client,) = await connected(new_client, program.url, WEBSOCKET)
    await client.emit("message", {"text": "by WebSocket"})
    assert await data_of([client], "message") == [{"from": client.sid, "text": "by WebSocket"}]
    posted = await http.post(f"{program.url}/api/messages", json={"text": "by HTTP"})
    assert (posted.status_code, posted.json()) == (201, {"success": True})
    assert await data_of([client], "message") == [{"from": "http", "text": "by HTTP"}]
    refused = await http.post(f"{program.url}/api/messages", content=b'{"text": 3}')
    assert refused.status_code == 422
    assert "$.text" in refused.json()["error"]

    status = (await http.get(f"{program.url}/api/status")).json()
    assert status["status"] == "ok"
    assert status["messages"] == {"websocket": 1, "http": 1}
    assert status["clients"] == {"total": 1, "websocket": 1, "polling": 0, "sse": 0}
    assert status["uptime"] >= 0


async def test_rooms_keep_to_themselves(run: Run, new_client: NewClient) -> None:
    program = await run("rooms")
    ada, bob, eve = await connected(new_client, program.url, OFFICIAL, PYTHON, OFFICIAL)
    assert await ada.call("join", "kitchen") == {"members": 1}
    assert await bob.call("join", "kitchen") == {"members": 2}
    assert await data_of([ada], "joined") == [{"room": "kitchen", "who": bob.sid}]
    with pytest.raises(EventFailed, match="Join the room first"):
        await eve.call("say", "kitchen", "let me in")
    await bob.emit("say", "kitchen", "hello")
    expected = {"room": "kitchen", "who": bob.sid, "text": "hello"}
    assert await data_of([ada, bob], "said") == [expected] * 2
    await bob.call("leave", "kitchen")
    assert await data_of([ada], "left") == [{"room": "kitchen", "who": bob.sid}]
    assert not eve.log


async def test_namespaces_are_apart(run: Run, new_client: NewClient) -> None:
    program = await run("namespaces")
    (guest,) = await connected(new_client, program.url, OFFICIAL, namespace="/chat")
    for wrong in ({}, {"key": "guess"}):
        with pytest.raises(Refused, match="Admins only"):
            await new_client(OFFICIAL).connect(program.url, "/admin", auth=wrong)
    admin = new_client(PYTHON)
    await admin.connect(program.url, "/admin", auth={"key": "secret"})
    await guest.emit("message", "hello")
    assert await data_of([guest], "message") == [{"from": guest.sid, "text": "hello"}]
    assert await data_of([admin], "activity") == [{"who": guest.sid, "length": 5}]
    assert await admin.call("announce", "closing soon") == {"heard": 1}
    assert await data_of([guest], "announcement") == ["closing soon"]
    assert not admin.data_of("announcement")


async def test_acknowledgements_both_ways(run: Run, new_client: NewClient) -> None:
    program = await run("acknowledgements")
    ada, bob, eve = await connected(new_client, program.url, OFFICIAL, WEBSOCKET, PYTHON)
    for sender in (ada, bob, eve):
        answer = await sender.call("message", "hello")
        assert answer.keys() == {"status", "messageId"}
        assert answer["status"] == "received"
        other = bob if sender is ada else ada
        assert (await other.next_event("message")).data["messageId"] == answer["messageId"]
    bob.answer("question", lambda question: f"{question} Fine.")
    assert await ada.call("ask", bob.sid, "How are you?") == {
        "status": "answered",
        "answer": "How are you? Fine.",
    }
    with pytest.raises(EventFailed, match="nobody"):
        await ada.call("ask", "somebody", "How are you?")


async def test_auth_middleware_on_every_door(run: Run, new_client: NewClient) -> None:
    program = await run("auth_middleware")
    for kind in (OFFICIAL, PYTHON, WEBSOCKET, SSE):
        for wrong in ({}, {"token": "guess"}):
            with pytest.raises(Refused, match="Authentication failed") as refusal:
                await new_client(kind).connect(program.url, auth=wrong)
            assert refusal.value.status == (401 if kind in (WEBSOCKET, SSE) else None)
    (alice,) = await connected(new_client, program.url, OFFICIAL, auth={"token": "alice-token"})
    bobs = await connected(new_client, program.url, WEBSOCKET, SSE, auth={"token": "bob-token"})
    assert await alice.call("whoami") == {"user": "alice"}
    await alice.emit("private", "bob", "psst")
    assert await data_of(bobs, "private") == [{"from": "alice", "text": "psst"}] * 2
    assert not alice.log


async def test_typed_events_are_checked_and_described(run: Run, new_client: NewClient) -> None:
    program = await run("typed_events")
    ada, bob = await connected(new_client, program.url, OFFICIAL, WEBSOCKET)
    assert await ada.call("order", {"item": "tea", "amount": 2}) == {"number": 1, "price": 5.0}
    assert await data_of([bob], "ordered") == [{"item": "tea", "amount": 2, "ready_by": None}]
    for wrong, path in (
        ({"item": "beer"}, "$.item"),
        ({"item": "tea", "amount": 0}, "$.amount"),
        ({"item": "tea", "ready_by": "soon"}, "$.ready_by"),
        ({"item": "tea", "sugar": 1}, "$"),
    ):
        for client in (ada, bob):
            with pytest.raises(EventFailed, match="Invalid message format") as failure:
                await client.call("order", wrong)
            assert failure.value.error["path"] == path
    schemas = await bob.call("schemas")
    assert schemas.keys() == {"order", "schemas"}
    assert "ready_by" in json.dumps(schemas["order"])


async def test_sse_ticker_ticks_for_everybody(run: Run, new_client: NewClient) -> None:
    program = await run("sse_ticker")
    clients = await connected(new_client, program.url, SSE, WEBSOCKET)
    earlier, later = clients
    common = (await later.next_event("tick")).data
    assert common["heard"] == 2
    tick = (await earlier.next_event("tick")).data
    while tick["number"] < common["number"]:
        tick = (await earlier.next_event("tick")).data
    assert tick == common
    assert (await earlier.next_event("tick")).data["number"] == common["number"] + 1


async def test_sse_clients_are_listed_told_and_removed(
    run: Run, new_client: NewClient, http: httpx.AsyncClient
) -> None:
    program = await run("sse_clients")
    api = f"{program.url}/api"
    ada, bob = new_client(SSE), new_client(SSE)
    await ada.connect(program.url, auth={"name": "ada"})
    await bob.connect(program.url)
    assert (await ada.next_event("clients")).data == 1
    assert (await ada.next_event("clients")).data == 2
    listed = (await http.get(f"{api}/clients")).json()
    assert [(each["id"], each["name"]) for each in listed] == [
        (ada.sid, "ada"),
        (bob.sid, "somebody"),
    ]
    news = {"event": "news", "data": {"text": "hello"}}
    answer = await http.post(f"{api}/broadcast", json=news)
    assert answer.json() == {"success": True, "clients": 2}
    assert await data_of([ada, bob], "news") == [{"text": "hello"}] * 2
    for wrong in ({"data": 1}, {"event": "bad\nname"}, {"event": "connect"}):
        answer = await http.post(f"{api}/broadcast", json=wrong)
        assert (answer.status_code, answer.json()["success"]) == (422, False)

    assert (await http.delete(f"{api}/clients/{bob.sid}")).json() == {"success": True}
    await gone(bob)
    assert (await ada.next_event("clients")).data == 1
    assert (await http.delete(f"{api}/clients/{bob.sid}")).status_code == 404


async def test_sse_replay_of_the_last_hundred(
    run: Run, new_client: NewClient, http: httpx.AsyncClient
) -> None:
    program = await run("sse_replay")
    offsets = []
    for number in range(150):
        answer = await http.post(
            f"{program.url}/api/broadcast",
            json={"event": "news", "data": number},
            headers={"Authorization": "Bearer secret"},
        )
        assert answer.json()["success"]
        offsets.append(answer.json()["offset"])

    (returning,) = await connected(new_client, program.url, SSE, offset=offsets[49])
    for number in range(50, 150):
        assert (await returning.next_event("news")).data == number
    assert not returning.gaps
    (late,) = await connected(new_client, program.url, SSE, offset=offsets[48])
    assert await late.next_gap() == {"reason": "expired", "offset": offsets[-1]}
    assert not late.data_of("news")


async def test_by_hand_limits_and_shutdown(
    run: Run, new_client: NewClient, http: httpx.AsyncClient
) -> None:
    program = await run("by_hand")
    opened = await http.get(f"{program.url}/socket.io/?EIO=4&transport=polling")
    heartbeat = json.loads(opened.text[1:])
    assert (heartbeat["pingInterval"], heartbeat["pingTimeout"]) == (10_000, 5_000)

    client, loud, fast = await connected(new_client, program.url, WEBSOCKET, WEBSOCKET, WEBSOCKET)
    await loud.emit("message", "x" * 4_096)
    error = await loud.next_error()
    assert (error["code"], error["maxSize"]) == ("message_too_large", 4_096)
    await gone(loud)
    assert loud.farewell.startswith("1009")

    answered = 0

    async def hurry() -> None:
        nonlocal answered
        while True:
            await fast.call("message", "spam")
            answered += 1

    with pytest.raises(EventFailed, match="Rate limit exceeded"):
        await hurry()
    # A second's worth at once, and what the time in which it was held back added.
    assert answered >= 20
    for _ in range(answered):
        assert (await client.next_event("message")).data["from"] == fast.sid

    await program.stop()
    assert (await client.next_event("server:shutdown")).data == {"message": "Server shutting down"}
    await gone(client)
    assert client.farewell.startswith("1001")
    assert f"{client.sid} left: server shutting down\n" in program.output
