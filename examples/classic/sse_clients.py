"""Shows who listens: GET /api/clients, POST /api/broadcast to all of them, DELETE of one.

Run: uvicorn sse_clients:app
Try: curl -N 'http://127.0.0.1:8000/events?name=ada'
     curl http://127.0.0.1:8000/api/clients
     curl -d '{"event": "news", "data": "hello"}' http://127.0.0.1:8000/api/broadcast
     curl -X DELETE http://127.0.0.1:8000/api/clients/<id>
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from crossband import EncodeError, Hub, Socket

hub = Hub()


class Broadcast(msgspec.Struct):
    event: str
    data: Any = None


@hub.on("connect")
async def connect(socket: Socket) -> None:
    socket.data["name"] = socket.handshake.query.get("name", ["somebody"])[0]
    await hub.emit("clients", len(hub.sockets))


@hub.on("disconnect")
async def disconnect(socket: Socket, reason: str) -> None:
    await hub.emit("clients", len(hub.sockets))


async def list_clients(request: Request) -> JSONResponse:
    return JSONResponse(
        [
            {"id": socket.id, "name": socket.data["name"], "since": socket.handshake.time}
            for socket in hub.sockets.values()
        ]
    )


async def broadcast(request: Request) -> JSONResponse:
    try:
        message = msgspec.json.decode(await request.body(), type=Broadcast)
        await hub.emit(message.event, message.data)
    except (msgspec.DecodeError, EncodeError) as error:
        return JSONResponse({"success": False, "error": str(error)}, status_code=422)
    return JSONResponse({"success": True, "clients": len(hub.sockets)})


async def remove_client(request: Request) -> JSONResponse:
    socket = hub.sockets.get(request.path_params["id"])
    if socket is None:
        return JSONResponse({"success": False, "error": "No such client"}, status_code=404)
    await socket.disconnect()
    return JSONResponse({"success": True})


app = Starlette(
    routes=[
        Route("/api/clients", list_clients),
        Route("/api/clients/{id}", remove_client, methods=["DELETE"]),
        # Open to anybody here; the hub's own /api/broadcast asks for an API key.
        Route("/api/broadcast", broadcast, methods=["POST"]),
        Mount("/", hub),
    ],
    lifespan=hub.lifespan,
)
