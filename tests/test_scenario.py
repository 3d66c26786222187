"""One scenario for every client: what a user does from joining to coming back after a cut."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from crossband import Broker, ConnectionRefused, Hub, Socket
from tests.clients import CLIENTS, Client, EventFailed, NewClient, Refused
from tests.conftest import Serve
from tests.front import Front

TOKEN = "open sesame"
BLOB = bytes(range(256))


class ChatMessage(msgspec.Struct):
    room: str
    content: str


@dataclass
class Blob:
    body: bytes


def scenario_hub(broker: Broker | str | None = None) -> Hub:
    hub = Hub(broker)

    @hub.use
    async def only_with_token(socket: Socket) -> None:
        # Socket.IO clients send auth, the others a query.
        query = socket.handshake.query.get("token", [None])
        if socket.handshake.auth.get("token", query[0]) != TOKEN:
            raise ConnectionRefused("not without a token", data={"hint": "ask the cave"})

    @hub.on("room:join")
    async def room_join(socket: Socket, room: str) -> list[str]:
        await socket.join(room)
        return sorted(room for room in socket.rooms if room != socket.id)

    @hub.on("chat:message")
    async def chat_message(socket: Socket, message: ChatMessage) -> dict[str, str]:
        await hub.to(message.room).emit("chat:message", {"content": message.content})
        return {"status": "received"}

    @hub.on("others")
    async def others(socket: Socket, text: str) -> None:
        await socket.broadcast.emit("others", text)

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("blob")
    async def blob(socket: Socket, data: Blob) -> dict[str, bytes]:
        await socket.emit("blob", {"body": data.body, "size": len(data.body)})
        return {"reversed": data.body[::-1]}

    @hub.on("interview")
    async def interview(socket: Socket, count: int) -> list[Any]:
        # Asks back while the client waits for this handler.
        return [
            await socket.timeout(10).emit_with_ack("question", {"number": number})
            for number in range(count)
        ]

    return hub


class Site:
    """The nodes that serve a scenario, and an address of its own for each of two clients."""

    def __init__(self, hubs: Sequence[Hub], urls: Sequence[str], fronts: Sequence[Front]) -> None:
        self.hubs = hubs
        self._urls = urls
        # Where the client connects, and where the other one does.
        self.front, self.other = fronts
        # Who publishes: not the node of the client, where there is another one.
        self.hub = hubs[-1]

    def hop(self, client: Client) -> None:
        """Let the client come back at another node, if there is one."""
        self.front.target = (self.front.target + 1) % len(self.hubs)
        # Without the connections that it keeps. Official clients stay with their address.
        client.url = self._urls[self.front.target]

    @property
    def sockets(self) -> list[str]:
        return [sid for hub in self.hubs for sid in hub.sockets]

    def members(self, room: str) -> list[str]:
        return [sid for hub in self.hubs for sid in hub.rooms.get(room, ())]


@contextlib.asynccontextmanager
async def site_of(serve: Serve, hubs: Sequence[Hub], first: int = 0) -> AsyncIterator[Site]:
    """Serve hubs: the client comes to the first one of them, or to that of this number."""
    urls = [(await serve(hub)).url for hub in hubs]
    async with Front(urls) as front, Front(urls) as other:
        front.target = first
        other.target = (first + 1) % len(hubs)
        yield Site(hubs, urls, (front, other))


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_scenario(kind: str, serve: Serve, new_client: NewClient) -> None:
    async with site_of(serve, [scenario_hub()]) as site:
        await scenario(kind, site, new_client)


async def scenario(kind: str, site: Site, new_client: NewClient) -> None:
    hub = site.hub

    # Refused, then let in.
    stranger = new_client(kind)
    with pytest.raises(Refused, match="not without a token") as refusal:
        await stranger.connect(site.front.url, auth={"token": "open barley"})
    assert refusal.value.data == {"hint": "ask the cave"}
    assert refusal.value.status in (None, 403)
    assert not site.sockets

    client = new_client(kind)
    client.answer("question", lambda data: {"answer": data["number"] * 2})
    await client.connect(site.front.url, auth={"token": TOKEN})
    assert len(client.sid) == 20
    assert site.sockets == [client.sid]
    # Somebody else, at another door.
    other = new_client("sse" if kind == "websocket" else "websocket")
    await other.connect(site.other.url, auth={"token": TOKEN})

    # Acknowledgements from the server, and a room joined by one.
    assert await client.call("room:join", "cave") == ["cave"]
    assert client.sid in site.members("cave")
    for value in (None, True, 17, -2.5, "Žluťoučký 🐎\u2028", [1, [2]], {"a": {"b": None}}):
        assert await client.call("echo", value) == value
    await client.settled()

    # From the client to a room, without acknowledgement and with one.
    await client.emit("chat:message", {"room": "cave", "content": "one"})
    assert (await client.next_event("chat:message")).data == {"content": "one"}
    answer = await client.call("chat:message", {"room": "cave", "content": "two"})
    assert answer == {"status": "received"}
    assert (await client.next_event("chat:message")).data == {"content": "two"}

    # The client acknowledges the server, to one socket and gathered from a broadcast.
    assert await client.call("interview", 3) == [{"answer": 0}, {"answer": 2}, {"answer": 4}]
    answers = await hub.to("cave").timeout(10).emit_with_ack("question", {"number": 21})
    assert answers == [{"answer": 42}]

    # Bytes, both ways; base64 where a door carries JSON only.
    encoded = BLOB if client.binary else base64.b64encode(BLOB).decode()
    expected = BLOB[::-1] if client.binary else base64.b64encode(BLOB[::-1]).decode()
    assert await client.call("blob", {"body": encoded}) == {"reversed": expected}
    assert (await client.next_event("blob")).data == {"body": encoded, "size": len(BLOB)}

    # To all, and to all but the sender.
    await hub.emit("news", {"number": 1})
    for each in (client, other):
        assert (await each.next_event("news")).data == {"number": 1}
    await client.emit("others", "from the client")
    assert (await other.next_event("others")).data == "from the client"
    await other.emit("others", "from the other")
    assert (await client.next_event("others")).data == "from the other"
    assert client.data_of("others") == ["from the other"]
    assert other.data_of("others") == ["from the client"]
    assert other.data_of("chat:message") == []

    # What does not fit the handler's type is refused, with path and reason, either way of asking.
    with pytest.raises(EventFailed, match="Invalid message format") as failure:
        await client.call("chat:message", {"room": "cave", "content": 5})
    assert failure.value.code == "invalid_message"
    assert failure.value.error["path"] == "$.content"
    assert failure.value.error["reason"] == "Expected `str`, got `int`"
    await client.emit("chat:message", {"room": "cave"})
    error = await client.next_error()
    assert (error["code"], error["error"]) == ("invalid_message", "Invalid message format")
    assert error["path"] == "$"
    assert "content" in error["reason"]
    assert await client.call("echo", "still here") == "still here"

    # Cut, and back with the session: what was missed, in order and once, then what is new.
    await hub.to("cave").emit("numbers", 0)
    assert (await client.next_event("numbers")).data == 0
    sid = client.sid
    await client.cut()
    await other.call("chat:message", {"room": "cave", "content": "missed"})
    for number in (1, 2, 3):
        await hub.to("cave").emit("numbers", number)
    await hub.to("elsewhere").emit("numbers", -1)
    site.hop(client)
    await client.resume()
    assert client.sid in site.hubs[site.front.target].sockets
    await hub.to("cave").emit("numbers", 4)
    for number in (1, 2, 3, 4):
        assert (await client.next_event("numbers")).data == number
    assert (await client.next_event("chat:message")).data == {"content": "missed"}
    assert client.data_of("numbers") == [0, 1, 2, 3, 4]
    assert client.data_of("chat:message")[2:] == [{"content": "missed"}]
    assert not client.gaps
    assert client.sid == sid
    assert site.members("cave") == [sid]
    if client.tells_recovered:
        assert client.recovered
    # The restored socket is whole: it still answers, and is still answered.
    assert await client.call("interview", 1) == [{"answer": 0}]

    await client.close()
    await other.close()


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_events_of_the_connect_handler_come_after_the_welcome(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("lobby")
        await socket.emit("greeting", socket.id)
        await hub.to("lobby").emit("entered", socket.id)

    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url)
    assert (await client.next_event("greeting")).data == client.sid
    assert (await client.next_event("entered")).data == client.sid
    assert [event.name for event in client.log] == ["greeting", "entered"]


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_namespaces_are_apart(kind: str, serve: Serve, new_client: NewClient) -> None:
    hub = Hub()
    admin = hub.of("/admin")

    @admin.on("who")
    async def who(socket: Socket) -> str:
        return socket.namespace.name

    server = await serve(hub)
    inside, outside = new_client(kind), new_client(kind)
    await inside.connect(server.url, "/admin")
    await outside.connect(server.url)
    assert await inside.call("who") == "/admin"
    await hub.emit("news", "for the rest")
    await admin.emit("news", "for admins")
    assert (await inside.next_event("news")).data == "for admins"
    assert (await outside.next_event("news")).data == "for the rest"
    assert inside.data_of("news") == ["for admins"]
    assert outside.data_of("news") == ["for the rest"]
    nowhere = new_client(kind)
    with pytest.raises(Refused, match="Invalid namespace"):
        await nowhere.connect(server.url, "/custom")


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_one_clients_events_are_handled_in_order(
    kind: str, serve: Serve, new_client: NewClient
) -> None:
    hub = Hub()
    seen: list[int] = []

    @hub.on("number")
    async def number(socket: Socket, value: int) -> None:
        # Would overtake one another were they handled side by side.
        await socket.emit("number", value)
        seen.append(value)

    server = await serve(hub)
    client = new_client(kind)
    await client.connect(server.url)
    # The upgrading clients change transport in the midst of it.
    for value in range(50):
        await client.emit("number", value)
    for value in range(50):
        assert (await client.next_event("number")).data == value
    assert seen == list(range(50))
    await client.settled()
