"""Shows typed messages: chat, notification, user_joined, user_left; no client can send others.

Run: crossband serve typed_messages:hub
Try: wscat -c 'ws://127.0.0.1:8000/ws?user=ada' -x '{"type": "chat", "data": {"text": "hello"}}'
     wscat -c 'ws://127.0.0.1:8000/ws?user=ada' -x '{"type": "cat"}'
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from crossband import Hub, InvalidMessage, Socket

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]

hub = Hub()


class Chat(msgspec.Struct):
    text: Text


class Notification(msgspec.Struct):
    title: Text
    level: Literal["info", "warning"] = "info"


@hub.use_event
async def known_types_only(socket: Socket, event: str, args: list[Any]) -> None:
    # Without this, other events are answered with "Unknown event".
    if event not in hub.events:
        raise InvalidMessage(f"Expected one of: {', '.join(hub.events)}", path="$.type")


@hub.on("connect")
async def connect(socket: Socket) -> None:
    user = socket.data["user"] = socket.handshake.query.get("user", ["somebody"])[0]
    await socket.broadcast.emit("user_joined", {"user": user})


@hub.on("disconnect")
async def disconnect(socket: Socket, reason: str) -> None:
    await hub.emit("user_left", {"user": socket.data["user"], "reason": reason})


@hub.on("chat")
async def chat(socket: Socket, message: Chat) -> None:
    await hub.emit("chat", {"user": socket.data["user"], "text": message.text})


@hub.on("notification")
async def notification(socket: Socket, message: Notification) -> None:
    await socket.broadcast.emit("notification", message)
