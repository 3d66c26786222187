"""Shows rooms: join one, leave it, speak in it, and hear who comes and goes.

Run: crossband serve rooms:hub
Try: io("http://127.0.0.1:8000").emit("join", "kitchen"), in a page with socket.io-client
     wscat -c ws://127.0.0.1:8000/ws -x '{"type": "join", "data": "kitchen", "id": 1}'
"""

from __future__ import annotations

from crossband import EventError, Hub, Socket

hub = Hub()


@hub.on("join")
async def join(socket: Socket, room: str) -> dict[str, int]:
    await socket.join(room)
    await socket.to(room).emit("joined", {"room": room, "who": socket.id})
    return {"members": len(hub.rooms[room])}


@hub.on("leave")
async def leave(socket: Socket, room: str) -> None:
    await socket.leave(room)
    await hub.to(room).emit("left", {"room": room, "who": socket.id})


@hub.on("say")
async def say(socket: Socket, room: str, text: str) -> None:
    if room not in socket.rooms:
        raise EventError("Join the room first", code="not_in_room", room=room)
    await hub.to(room).emit("said", {"room": room, "who": socket.id, "text": text})
