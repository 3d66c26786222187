"""Shows a message to everybody but its sender.

Run: crossband serve relay:hub
Try: crossband listen ws://127.0.0.1:8000/ws
     wscat -c ws://127.0.0.1:8000/ws -x '{"type": "message", "data": "hello"}'
"""

from __future__ import annotations

from crossband import Hub, Socket

hub = Hub()


@hub.on("message")
async def message(socket: Socket, text: str) -> None:
    await socket.broadcast.emit("message", {"from": socket.id, "text": text})
