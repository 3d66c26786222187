"""The chat's server, over real clients: who is there, what is said, once and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from crossband import Hub, MemoryBroker
from crossband.broker.redis import RedisBroker
from crossband.demo import chat
from crossband.names import new_id
from crossband.server import Server
from tests.clients import Client, EventFailed, NewClient
from tests.conftest import Serve
from tests.engines import shared

KEY = "a-key-of-two-tabs"


@dataclass
class Tab:
    """A client that has registered."""

    client: Client
    user: dict[str, Any]
    key: str

    async def join(self, room: str = "general") -> list[dict[str, Any]]:
        """Join a room; returns its history."""
        state = await self.client.call("room:join", {"room": room})
        messages: list[dict[str, Any]] = state["messages"]
        return messages

    async def users(self, room: str = "general") -> list[dict[str, Any]]:
        """Return who is in a room that it is in."""
        found = await self.client.call("presence:members", room)
        return [{"id": member["id"], **member["info"]} for member in found["members"]]

    async def sees(self, event: str, user: dict[str, Any], room: str = "general") -> int:
        """Wait until the next member is this user; return how many there are."""
        while (data := await self.next(f"presence:{event}"))["room"] != room:
            pass
        member = data["member"]
        assert {"id": member["id"], **member["info"]} == user
        count: int = data["count"]
        return count

    def has_seen(self, event: str, room: str = "general") -> list[str]:
        """List the names of all in events of a room so far."""
        events = self.client.data_of(f"presence:{event}")
        return [each["member"]["info"]["name"] for each in events if each["room"] == room]

    async def say(self, content: str, room: str = "general", **draft: Any) -> Any:
        return await self.client.call("chat:message", {"room": room, "content": content, **draft})

    async def next(self, event: str) -> Any:
        return (await self.client.next_event(event)).data

    def said(self) -> list[str]:
        return [message["content"] for message in self.client.data_of("chat:message")]


Open = Callable[..., Awaitable[Tab]]


@pytest.fixture
def grace() -> float:
    """Return the seconds in which who was cut has not left."""
    return 0.2


@pytest.fixture
def hub(grace: float) -> Hub:
    hub = Hub()
    chat.install(hub.of("/chat"), grace=grace)
    return hub


@pytest.fixture
async def server(hub: Hub, serve: Serve) -> Server:
    return await serve(hub)


@pytest.fixture
def open_tab(server: Server, new_client: NewClient) -> Open:
    async def open_tab(
        name: str, *rooms: str, kind: str = "websocket", key: str | None = None
    ) -> Tab:
        client = new_client(kind)
        await client.connect(server.url, "/chat")
        registration = {"name": name} if key is None else {"name": name, "key": key}
        welcome = await client.call("user:register", registration)
        tab = Tab(client, welcome["user"], welcome["key"])
        for room in rooms:
            await tab.join(room)
        return tab

    return open_tab


@pytest.mark.parametrize("kind", ["websocket", "python-socketio", "sse"])
async def test_message_reaches_everybody_in_the_room_on_any_door(open_tab: Open, kind: str) -> None:
    ada = await open_tab("Ada", "general", kind=kind)
    bob = await open_tab("Bob", "general")
    eve = await open_tab("Eve", "random")
    await ada.sees("join", ada.user)
    await ada.sees("join", bob.user)
    receipt = await ada.say("  hello, <b>world</b> 🌍 שלום  ")
    assert receipt["status"] == "received"
    for tab in (ada, bob):
        message = await tab.next("chat:message")
        assert message == {
            "id": receipt["id"],
            "room": "general",
            "user": ada.user,
            "content": "hello, <b>world</b> 🌍 שלום",
            "time": receipt["time"],
        }
    await eve.say("to nobody", "random")
    assert eve.said() == ["to nobody"]


async def test_welcome_tells_the_rooms_and_the_bounds(
    server: Server, new_client: NewClient
) -> None:
    client = new_client("websocket")
    await client.connect(server.url, "/chat")
    welcome = await client.call("user:register", {"name": "  Ada   Lovelace "})
    assert welcome["user"]["name"] == "Ada Lovelace"
    assert welcome["rooms"] == [
        {"name": name, "topic": topic} for name, topic in chat.ROOMS.items()
    ]
    assert (welcome["nameLength"], welcome["contentLength"]) == (40, 4_000)


async def test_everybody_has_a_colour_of_their_own(open_tab: Open) -> None:
    people = [await open_tab(f"Guest {number}", "general") for number in range(12)]
    assert [tab.user["colour"] for tab in people] == list(range(12))
    second = await open_tab("Guest 3", "random", key=people[3].key)
    assert second.user["colour"] == 3


async def test_colour_is_free_again_when_nothing_shows_it(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general", key=KEY)
    eve = await open_tab("Eve", "general")
    await bob.say("remember me")
    for tab in (bob, eve):
        await tab.client.close()
        await ada.sees("leave", tab.user)
    # What Bob said is still to be read; Eve said nothing.
    assert [(await open_tab(name)).user["colour"] for name in ("Max", "Moritz")] == [2, 3]
    # Bob looks as before.
    assert (await open_tab("Bob", key=KEY)).user["colour"] == 1


async def test_user_that_comes_back_late_is_told_its_new_colour(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general")
    await bob.client.cut()
    await ada.sees("leave", bob.user)
    eve = await open_tab("Eve", "general")
    assert eve.user["colour"] == bob.user["colour"] == 1
    await bob.client.resume()
    users = await bob.users()
    assert {user["name"]: user["colour"] for user in users} == {"Ada": 0, "Bob": 2, "Eve": 1}


async def test_users_of_a_room_are_told_and_kept_current(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general")
    assert await bob.users() == [ada.user, bob.user]
    assert await ada.sees("join", ada.user) == 1
    assert await ada.sees("join", bob.user) == 2
    await bob.client.call("room:leave", {"room": "general"})
    assert await ada.sees("leave", bob.user) == 1
    # Whoever goes is not told of itself.
    assert bob.has_seen("join") == ["Bob"]
    assert bob.has_seen("leave") == []


async def test_user_in_two_tabs_is_one_user(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    first = await open_tab("Bob", "general", key=KEY)
    second = await open_tab("Bobby", "general", key=KEY, kind="python-socketio")
    # The name that the user is here by already.
    assert second.user == first.user
    await first.say("from one tab")
    assert (await second.next("chat:message"))["content"] == "from one tab"
    await first.client.close()
    await second.say("from the other")
    await ada.next("chat:message")
    await ada.next("chat:message")
    assert ada.has_seen("leave") == []
    await second.client.close()
    await ada.sees("leave", first.user)
    assert ada.has_seen("join") == ["Ada", "Bob"]


async def test_user_in_two_rooms_leaves_both(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general", "music")
    bob = await open_tab("Bob", "general", "music")
    await bob.client.close()
    left = [(await ada.next("presence:leave"))["room"] for _ in range(3)]
    assert sorted(left) == [chat.EVERYBODY, "general", "music"]


async def test_history_is_there_for_who_joins(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    for number in range(3):
        await ada.say(f"{number}")
    bob = await open_tab("Bob")
    assert [message["content"] for message in await bob.join()] == ["0", "1", "2"]


async def test_history_is_bounded_in_number_and_in_bytes(
    serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    chat.install(hub.of("/chat"), burst=300)
    server = await serve(hub)
    client = new_client("websocket")
    await client.connect(server.url, "/chat")
    await client.call("user:register", {"name": "Ada"})
    await client.call("room:join", {"room": "general"})
    for number in range(chat.HISTORY + 5):
        await client.call("chat:message", {"room": "general", "content": f"{number}"})
    state = await client.call("room:join", {"room": "general"})
    assert [message["content"] for message in state["messages"]] == [
        f"{number}" for number in range(5, chat.HISTORY + 5)
    ]
    for _ in range(40):
        await client.call("chat:message", {"room": "general", "content": "🌍" * 4_000})
    state = await client.call("room:join", {"room": "general"})
    assert len(state["messages"]) == chat.HISTORY_BYTES // 16_000


async def test_message_sent_again_arrives_once(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general", key=KEY)
    bob = await open_tab("Bob", "general")
    receipt = await ada.say("once", id="the-same-id")
    other = await open_tab("Ada", "general", key=KEY)
    assert await other.say("once", id="the-same-id") == receipt
    # Ids are each user's own.
    await bob.say("of another", id="the-same-id")
    await bob.say("after")
    for _ in range(3):
        await bob.next("chat:message")
    assert bob.said() == ["once", "of another", "after"]


async def test_typing_is_told_to_the_others_only(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general", key=KEY)
    second = await open_tab("Ada", "general", key=KEY)
    bob = await open_tab("Bob", "general")
    for typing in (True, False):
        await ada.client.emit("chat:typing", {"room": "general", "typing": typing})
        notice = await bob.next("user:typing")
        assert notice == {"room": "general", "user": ada.user, "typing": typing}
    await ada.say("done")
    await second.next("chat:message")
    assert ada.client.data_of("user:typing") == second.client.data_of("user:typing") == []


@pytest.mark.parametrize("grace", [600])
async def test_user_that_comes_back_in_time_never_left(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general", kind="python-socketio")
    await bob.client.cut()
    await ada.say("meanwhile")
    await bob.client.resume()
    assert (await bob.next("chat:message"))["content"] == "meanwhile"
    await bob.say("back")
    for _ in range(2):
        await ada.next("chat:message")
    assert ada.said() == ["meanwhile", "back"]
    assert ada.has_seen("leave") == []
    assert ada.has_seen("join") == ["Ada", "Bob"]


async def test_user_that_comes_back_late_left_and_joined(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general")
    await bob.client.cut()
    await ada.sees("leave", bob.user)
    await bob.client.resume()
    assert bob.client.recovered
    await ada.sees("join", ada.user)
    for _ in range(2):
        await ada.sees("join", bob.user)
    await bob.say("here again")
    assert (await ada.next("chat:message"))["user"] == bob.user


async def test_name_that_was_taken_meanwhile_is_asked_for_again(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general")
    await bob.client.cut()
    await ada.sees("leave", bob.user)
    other = await open_tab("Bob", "general")
    await bob.client.resume()
    with pytest.raises(EventFailed) as failure:
        await bob.say("I was Bob")
    assert failure.value.code == "not_registered"
    await other.say("I am Bob")
    assert (await ada.next("chat:message"))["user"] == other.user
    assert "I am Bob" not in bob.said()
    # Nobody has seen two of them.
    assert ada.has_seen("join") == ["Ada", "Bob", "Bob"]


async def test_burst_is_refused_with_the_seconds_to_wait(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    said = 0
    error: dict[str, Any] = {}
    # Eight, and one more for each second that they take.
    while not error:
        try:
            await ada.say("too much", id=f"message-{said}")
            said += 1
        except EventFailed as failure:
            error = failure.error
    assert said >= 8
    assert (error["code"], error["error"]) == ("rate_limited", "Rate limit exceeded")
    assert 0 < error["retryAfter"] <= 1
    await asyncio.sleep(error["retryAfter"])
    await ada.say("at last", id=f"message-{said}")
    for _ in range(said + 1):
        await ada.next("chat:message")
    assert ada.said()[-1] == "at last"


@pytest.mark.parametrize(
    ("event", "data", "code"),
    [
        ("chat:message", {"room": "general", "content": "x" * 4_001}, "invalid_message"),
        ("chat:message", {"room": "general", "content": " \n\t "}, "invalid_message"),
        ("chat:message", {"room": "general", "content": ""}, "invalid_message"),
        ("chat:message", {"room": "general", "content": 3}, "invalid_message"),
        ("chat:message", {"room": "general", "content": "x", "id": "a b"}, "invalid_message"),
        ("chat:message", {"room": "music", "content": "x"}, "not_in_room"),
        ("chat:message", {"room": "nowhere", "content": "x"}, "unknown_room"),
        ("room:join", {"room": "nowhere"}, "unknown_room"),
        ("room:leave", {"room": "user:0"}, "unknown_room"),
        ("user:register", {"name": "Another", "key": "another-key-of-another"}, "registered"),
        ("chat:typing", {"room": 1}, "invalid_message"),
    ],
)
async def test_bad_input_gets_its_error(open_tab: Open, event: str, data: Any, code: str) -> None:
    ada = await open_tab("Ada", "general")
    with pytest.raises(EventFailed) as failure:
        await ada.client.call(event, data)
    assert failure.value.code == code
    await ada.say("still here")
    assert (await ada.next("chat:message"))["content"] == "still here"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "invalid_message"),
        ("   ", "invalid_message"),
        ("\u202e\u2066", "invalid_message"),
        ("\u200d\ufe0f", "invalid_message"),
        ("a\x00b", "invalid_message"),
        ("x" * 41, "invalid_message"),
        ("x" * 100_000, "invalid_message"),
        ("ÁDA", "name_taken"),
        ("Áda\u202e", "name_taken"),
    ],
)
async def test_unusable_name_is_refused(
    open_tab: Open, server: Server, new_client: NewClient, name: str, code: str
) -> None:
    await open_tab("Áda")
    client = new_client("python-socketio")
    await client.connect(server.url, "/chat")
    with pytest.raises(EventFailed) as failure:
        await client.call("user:register", {"name": name})
    assert failure.value.code == code
    assert await client.call("user:register", {"name": "👩‍🚀 مريم"})


@pytest.mark.parametrize("event", ["room:join", "room:leave", "chat:message", "chat:typing"])
async def test_nobody_acts_without_a_name(
    server: Server, new_client: NewClient, event: str
) -> None:
    client = new_client("websocket")
    await client.connect(server.url, "/chat")
    with pytest.raises(EventFailed) as failure:
        await client.call(event, {"room": "general", "content": "x"})
    assert failure.value.code == "not_registered"


async def test_name_is_free_again_when_its_user_has_left(open_tab: Open) -> None:
    ada = await open_tab("Ada", "general")
    bob = await open_tab("Bob", "general")
    await bob.client.close()
    await ada.sees("leave", bob.user)
    again = await open_tab("Bob")
    assert again.user["id"] != bob.user["id"]


async def test_nothing_is_kept_of_who_left(serve: Serve, new_client: NewClient) -> None:
    hub = Hub()
    chat.install(hub.of("/chat"), grace=0)
    server = await serve(hub)
    watcher = new_client("websocket")
    await watcher.connect(server.url, "/chat")
    await watcher.call("user:register", {"name": "Watcher"})
    await watcher.call("room:join", {"room": "general"})
    for number in range(3):
        client = new_client("websocket")
        await client.connect(server.url, "/chat")
        await client.call("user:register", {"name": f"Guest {number}"})
        await client.call("room:join", {"room": "general"})
        await (client.cut() if number else client.close())
        for _ in range(2):
            await watcher.next_event("presence:leave")
    for room in ("general", chat.EVERYBODY):
        found = await hub.of("/chat").members(room)
        assert [member.info["name"] for member in found.members] == ["Watcher"]


# Several servers.


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_two_servers_are_one_chat(serve: Serve, new_client: NewClient, kind: str) -> None:
    memory = MemoryBroker()
    url = f"{shared('redis').url}?prefix={new_id()}" if kind == "redis" else ""
    urls = []

    async def start() -> None:
        hub = Hub(RedisBroker(url) if url else memory.peer())
        chat.install(hub.of("/chat"), grace=600)
        urls.append((await serve(hub)).url)

    async def open_tab(name: str, server: int, key: str | None = None) -> Tab:
        client = new_client("websocket")
        await client.connect(urls[server], "/chat")
        registration = {"name": name} if key is None else {"name": name, "key": key}
        welcome = await client.call("user:register", registration)
        tab = Tab(client, welcome["user"], welcome["key"])
        await tab.join()
        return tab

    await start()
    await start()
    ada, bob = await open_tab("Ada", 0), await open_tab("Bob", 1, KEY)
    assert bob.user["colour"] == 1
    with pytest.raises(EventFailed) as failure:
        await open_tab("ada", 1)
    assert failure.value.code == "name_taken"
    second = await open_tab("Bob", 0, KEY)
    assert second.user == bob.user
    assert await ada.users() == await bob.users() == [ada.user, bob.user]
    receipt = await bob.say("to both", id="the-same-id")
    for tab in (ada, bob, second):
        assert (await tab.next("chat:message"))["content"] == "to both"
    # Sent again, over the other server, which is told of it as well.
    while not await ada.join():
        pass
    assert await second.say("to both", id="the-same-id") == receipt
    # The server that starts last has the history too.
    await start()
    eve = await open_tab("Eve", 2)
    history = await eve.join()
    assert [message["content"] for message in history] == ["to both"]
    assert eve.user["colour"] == 2
    # One moves to the other server, and nobody notices.
    await bob.client.cut()
    bob.client.url = urls[2]
    await bob.client.resume()
    assert bob.client.recovered
    await bob.say("from there")
    assert (await ada.next("chat:message"))["content"] == "from there"
    assert ada.has_seen("leave") == []
    assert ada.has_seen("join") == ["Ada", "Bob", "Eve"]
