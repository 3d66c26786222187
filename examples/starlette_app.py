"""A hub in a Starlette application that has a lifespan of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from crossband import Hub, Socket

hub = Hub()


class Message(msgspec.Struct):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    room: str = "general"


@hub.on("connect")
async def connect(socket: Socket) -> None:
    await socket.join("general")


@hub.on("chat:message")
async def chat_message(socket: Socket, message: Message) -> dict[str, str]:
    """Publish a client's message to its room; the return value is the acknowledgement."""
    await hub.to(message.room).emit("chat:message", {"from": socket.id, "text": message.text})
    return {"status": "received"}


async def publish(request: Request) -> JSONResponse:
    """Publish from an ordinary route: every client in the room gets it, on every door."""
    try:
        message = msgspec.json.decode(await request.body(), type=Message)
    except msgspec.DecodeError as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    offset = await hub.to(message.room).emit("chat:message", {"from": "http", "text": message.text})
    return JSONResponse({"offset": offset})


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    async with hub.lifespan(app):
        yield  # what the application starts and stops itself goes around this


app = Starlette(
    routes=[Mount("/realtime", hub), Route("/messages", publish, methods=["POST"])],
    lifespan=lifespan,
)
