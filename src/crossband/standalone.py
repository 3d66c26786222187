"""The hub for teams without Python handlers.

Any client can use rooms and chat; everything else is published over HTTP.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from crossband.asgi import Hub
from crossband.errors import EventError
from crossband.hub.namespace import Socket
from crossband.names import NAME_LENGTH, NAME_PATTERN, is_socket_id

# The same rules as for every name on the doors.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH, pattern=NAME_PATTERN)]


class RoomRef(msgspec.Struct):
    """A room, given as an object."""

    room: Name


class RoomMessage(msgspec.Struct):
    """Any data, for everybody in a room."""

    room: Name
    data: Any


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A line of chat, for a room or for everybody.

    Unknown fields are refused: a misspelt `room` would send the line to everybody.
    """

    content: str
    room: Name | None = None


def create_hub(**settings: Any) -> Hub:
    """Create the hub that `crossband serve` runs without a target.

    Takes the settings of `Hub`. Clients may join and leave rooms, send to the rooms they are
    in, and chat with everybody, as far as `authorize` allows.
    """
    hub = Hub(**settings)

    @hub.on("room:join")
    async def join(socket: Socket, room: Name | RoomRef) -> dict[str, Any]:
        """Join a room, given as its name or as `{"room": name}`."""
        name = room if isinstance(room, str) else room.room
        # Every socket is in the room of its own id, and its messages show that id to others.
        if name != socket.id and is_socket_id(name):
            raise EventError("A client's own room cannot be joined", room=name)
        await socket.subscribe(name)
        members = await hub.to(name).fetch_sockets()
        return {"status": "joined", "room": name, "members": len(members)}

    @hub.on("room:leave")
    async def leave(socket: Socket, room: Name | RoomRef) -> dict[str, Any]:
        """Leave a room; leaving one that was never joined is not an error."""
        name = room if isinstance(room, str) else room.room
        if name == socket.id:
            raise EventError("A client cannot leave its own room", room=name)
        await socket.leave(name)
        return {"status": "left", "room": name}

    @hub.on("room:message")
    async def room_message(socket: Socket, message: RoomMessage) -> dict[str, str]:
        """Send data to everybody in a room, the sender included."""
        await _require_right(socket, message.room)
        await hub.to(message.room).emit(
            "room:message", {**_sender(socket), "room": message.room, "data": message.data}
        )
        return {"status": "received"}

    @hub.on("chat:message")
    async def chat_message(socket: Socket, message: ChatMessage) -> dict[str, str]:
        """Send a line to a room or to everybody, the sender included."""
        await _require_right(socket, message.room)
        if message.room is None:
            await hub.emit("chat:message", {**_sender(socket), "content": message.content})
        else:
            await hub.to(message.room).emit(
                "chat:message",
                {**_sender(socket), "room": message.room, "content": message.content},
            )
        return {"status": "received"}

    return hub


def _sender(socket: Socket) -> dict[str, str]:
    # With tokens, also the user.
    if socket.identity is None:
        return {"from": socket.id}
    return {"from": socket.id, "user": socket.identity.user}


async def _require_right(socket: Socket, room: str | None) -> None:
    if room is not None and room not in socket.rooms:
        raise EventError("Not in this room; join it first", code="not_in_room", room=room)
    # Tokens do not list a socket's own room.
    if room != socket.id:
        await socket.authorize("publish", room)
