"""One scenario for every client: what a user does from joining to coming back after a cut."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from crossband import ConnectionRefused, Hub, Socket
from tests.clients import CLIENTS, EventFailed, NewClient, Refused
from tests.conftest import Serve

TOKEN = "open sesame"
BLOB = bytes(range(256))


class ChatMessage(msgspec.Struct):
    room: str
    content: str


@dataclass
class Blob:
    body: bytes


def scenario_hub() -> Hub:
    hub = Hub()

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


@pytest.mark.node
@pytest.mark.parametrize("kind", CLIENTS)
async def test_scenario(kind: str, serve: Serve, new_client: NewClient) -> None:
    hub = scenario_hub()
    server = await serve(hub)

    # Refused, then let in.
    stranger = new_client(kind)
    with pytest.raises(Refused, match="not without a token") as refusal:
        await stranger.connect(server.url, auth={"token": "open barley"})
    assert refusal.value.data == {"hint": "ask the cave"}
    assert refusal.value.status in (None, 403)
    assert not hub.sockets

    client = new_client(kind)
    client.answer("question", lambda data: {"answer": data["number"] * 2})
    await client.connect(server.url, auth={"token": TOKEN})
    assert len(client.sid) == 20
    assert list(hub.sockets) == [client.sid]
    # Somebody else, at another door.
    other = new_client("sse" if kind == "websocket" else "websocket")
    await other.connect(server.url, auth={"token": TOKEN})

    # Acknowledgements from the server, and a room joined by one.
    assert await client.call("room:join", "cave") == ["cave"]
    assert client.sid in hub.rooms["cave"]
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
    await client.resume()
    await hub.to("cave").emit("numbers", 4)
    for number in (1, 2, 3, 4):
        assert (await client.next_event("numbers")).data == number
    assert (await client.next_event("chat:message")).data == {"content": "missed"}
    assert client.data_of("numbers") == [0, 1, 2, 3, 4]
    assert client.data_of("chat:message")[2:] == [{"content": "missed"}]
    assert not client.gaps
    assert client.sid == sid
    assert list(hub.rooms["cave"]) == [sid]
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
