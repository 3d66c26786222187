"""Shows a message to everybody, the sender included, whatever the door.

Run: crossband serve broadcast:hub
Try: crossband listen ws://127.0.0.1:8000/ws
     wscat -c ws://127.0.0.1:8000/ws -x '{"type": "message", "data": "hello"}'
"""

from __future__ import annotations

from crossband import Hub, Socket

hub = Hub()


@hub.on("message")
async def message(socket: Socket, text: str) -> None:
    await hub.emit("message", {"from": socket.id, "text": text})
