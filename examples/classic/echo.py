"""Shows an echo with a welcome message, over bare WebSocket frames.

Run: crossband serve echo:hub
Try: wscat -c ws://127.0.0.1:8000/ws
"""

from __future__ import annotations

from crossband import Hub, Socket

hub = Hub()
# Plain: a frame is its text, without the JSON envelope. Text comes as str, binary as bytes.
echo = hub.of("/", plain=True)


@echo.on("connect")
async def connect(socket: Socket) -> None:
    await socket.emit("message", f"Welcome, {socket.id}")


@echo.on("message")
async def message(socket: Socket, data: str | bytes) -> None:
    await socket.emit("message", data)
