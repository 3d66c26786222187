"""A hub in a FastAPI application: one model for the event and for the HTTP route."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel, Field

from crossband import Hub, Socket

hub = Hub()
app = FastAPI(lifespan=hub.lifespan)
app.mount("/realtime", hub)


class Message(BaseModel):
    room: str = "general"
    text: str = Field(min_length=1, max_length=2000)


@hub.on("connect")
async def connect(socket: Socket) -> None:
    await socket.join("general")


@hub.on("chat:message")
async def chat_message(socket: Socket, message: Message) -> dict[str, str]:
    """Publish a client's message to its room; the return value is the acknowledgement."""
    await hub.to(message.room).emit("chat:message", {"from": socket.id, "text": message.text})
    return {"status": "received"}


@app.post("/messages")
async def publish(message: Message) -> dict[str, str | None]:
    """Publish from an ordinary route: every client in the room gets it, on every door."""
    offset = await hub.to(message.room).emit("chat:message", {"from": "http", "text": message.text})
    return {"offset": offset}
