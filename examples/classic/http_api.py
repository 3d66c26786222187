"""Shows an HTTP API of your own beside the hub: GET /api/status and POST /api/messages.

Run: uvicorn http_api:app
Try: crossband listen ws://127.0.0.1:8000/ws
     curl http://127.0.0.1:8000/api/status
     curl -d '{"text": "hello"}' http://127.0.0.1:8000/api/messages
"""

from __future__ import annotations

from collections import Counter

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from crossband import Hub, Socket

hub = Hub()
# Number of messages per door.
messages: Counter[str] = Counter()


class Message(msgspec.Struct):
    text: str


@hub.on("message")
async def on_message(socket: Socket, message: Message) -> None:
    messages[socket.transport] += 1
    await hub.emit("message", {"from": socket.id, "text": message.text})


async def post_message(request: Request) -> JSONResponse:
    try:
        message = msgspec.json.decode(await request.body(), type=Message)
    except msgspec.DecodeError as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    messages["http"] += 1
    await hub.emit("message", {"from": "http", "text": message.text})
    return JSONResponse({"success": True}, status_code=201)


async def get_status(request: Request) -> JSONResponse:
    # Routed before the hub, it takes the place of the hub's own.
    of_hub = hub.status()
    return JSONResponse(
        {
            "status": "ok",
            "clients": of_hub["clients"],
            "uptime": of_hub["uptime"],
            "messages": messages,
        }
    )


app = Starlette(
    routes=[
        Route("/api/status", get_status),
        Route("/api/messages", post_message, methods=["POST"]),
        Mount("/", hub),
    ],
    lifespan=hub.lifespan,
)
