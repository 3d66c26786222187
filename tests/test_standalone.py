"""The standalone hub from its clients' side."""

from __future__ import annotations

from typing import Any

import pytest

from crossband import Hub
from crossband.standalone import create_hub
from tests.clients import Client, EventFailed, NewClient
from tests.conftest import Serve

KINDS = ["websocket", "sse", "python-socketio"]


@pytest.fixture(params=KINDS)
async def clients(
    request: pytest.FixtureRequest, serve: Serve, new_client: NewClient
) -> tuple[Client, Client]:
    """Return two clients of one door, on a standalone hub of their own."""
    server = await serve(create_hub())
    pair = new_client(request.param), new_client(request.param)
    for client in pair:
        await client.connect(server.url)
    return pair


# Rooms and chat.


@pytest.mark.parametrize("form", ["news", {"room": "news"}])
async def test_join_and_leave_by_name_or_object(clients: tuple[Client, Client], form: Any) -> None:
    one, other = clients
    assert await one.call("room:join", form) == {"status": "joined", "room": "news", "members": 1}
    assert (await other.call("room:join", form))["members"] == 2
    assert (await other.call("room:join", form))["members"] == 2
    assert await one.call("room:leave", form) == {"status": "left", "room": "news"}
    assert (await other.call("room:join", form))["members"] == 1


async def test_message_reaches_the_room_and_its_sender(clients: tuple[Client, Client]) -> None:
    one, _ = clients
    for client in clients:
        await client.call("room:join", "news")
    answer = await one.call("room:message", {"room": "news", "data": {"n": [1, None, "é"]}})
    assert answer == {"status": "received"}
    for client in clients:
        event = await client.next_event("room:message")
        assert event.data == {"from": one.sid, "room": "news", "data": {"n": [1, None, "é"]}}
        assert event.offset is not None


async def test_message_stays_in_its_room(clients: tuple[Client, Client]) -> None:
    one, other = clients
    await one.call("room:join", "news")
    await one.call("room:message", {"room": "news", "data": "for the room"})
    await one.call("chat:message", {"content": "for everybody"})
    # In one order: had the room's message been meant for it, it would be here by now.
    assert (await other.next_event("chat:message")).data == {
        "from": one.sid,
        "content": "for everybody",
    }
    assert other.data_of("room:message") == []


async def test_chat_in_a_room(clients: tuple[Client, Client]) -> None:
    one, _ = clients
    for client in clients:
        await client.call("room:join", "news")
    await one.call("chat:message", {"content": "hi", "room": "news"})
    for client in clients:
        event = await client.next_event("chat:message")
        assert event.data == {"from": one.sid, "room": "news", "content": "hi"}


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("room:message", {"room": "news", "data": 1}),
        ("chat:message", {"room": "news", "content": "hi"}),
    ],
)
async def test_only_members_send_to_a_room(
    clients: tuple[Client, Client], event: str, data: dict[str, Any]
) -> None:
    one, other = clients
    await other.call("room:join", "news")
    with pytest.raises(EventFailed) as caught:
        await one.call(event, data)
    assert caught.value.error == {
        "code": "not_in_room",
        "error": "Not in this room; join it first",
        "room": "news",
        "event": event,
    }
    await other.call("chat:message", {"content": "end"})
    await other.next_event("chat:message")
    assert other.data_of("room:message") == []


async def test_room_of_another_client_cannot_be_joined(clients: tuple[Client, Client]) -> None:
    one, other = clients
    with pytest.raises(EventFailed, match="own room"):
        await one.call("room:join", other.sid)
    with pytest.raises(EventFailed, match="own room"):
        await one.call("room:leave", one.sid)
    assert (await one.call("room:join", one.sid))["status"] == "joined"


@pytest.mark.parametrize(
    ("event", "data", "path"),
    [
        ("room:join", 5, "$"),
        ("room:join", "", "$"),
        ("room:join", "a" * 257, "$"),
        ("room:join", "a\x00b", "$"),
        ("room:join", "a\n", "$"),
        ("room:join", {"name": "news"}, "$"),
        ("room:join", {"room": ["news"]}, "$.room"),
        ("room:leave", None, "$"),
        ("room:message", {"room": "news"}, "$"),
        ("room:message", {"room": "a\n", "data": 1}, "$.room"),
        ("chat:message", "hi", "$"),
        ("chat:message", {"content": 5}, "$.content"),
        # Ignored, it would reach everybody.
        ("chat:message", {"content": "for hr", "rooms": "hr"}, "$"),
        ("chat:message", {"content": "hi", "room": 5}, "$.room"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_path(
    clients: tuple[Client, Client], event: str, data: Any, path: str
) -> None:
    one, other = clients
    with pytest.raises(EventFailed) as caught:
        await one.call(event, data)
    assert caught.value.code == "invalid_message"
    assert caught.value.error["path"] == path
    assert caught.value.error["reason"]
    # Nobody is worse off for it.
    await one.call("chat:message", {"content": "still here"})
    assert (await other.next_event("chat:message")).data["content"] == "still here"


async def test_doors_meet(serve: Serve, new_client: NewClient) -> None:
    server = await serve(create_hub())
    clients = [new_client(kind) for kind in KINDS]
    for client in clients:
        await client.connect(server.url)
    for sender in clients:
        await sender.call("chat:message", {"content": sender.kind})
        for receiver in clients:
            event = await receiver.next_event("chat:message")
            assert event.data == {"from": sender.sid, "content": sender.kind}


def test_settings_are_the_hubs() -> None:
    hub = create_hub(api_keys=("key",), history_size=7)
    assert isinstance(hub, Hub)
    assert hub.settings.history_size == 7
    assert set(hub.events) == {"room:join", "room:leave", "room:message", "chat:message"}
    with pytest.raises(ValueError, match="histroy_size"):
        create_hub(histroy_size=7)
