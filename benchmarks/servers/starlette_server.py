"""Starlette on uvicorn: a set of WebSockets and a loop over it, as its users write it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from benchmarks.servers.control import PAYLOAD, run_on_uvicorn

clients: set[WebSocket] = set()
tasks: set[asyncio.Task[None]] = set()


async def serve(websocket: WebSocket) -> None:
    await websocket.accept()
    clients.add(websocket)
    try:
        await websocket.send_text('{"type":"welcome"}')
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass
    finally:
        clients.discard(websocket)


async def publish(data: Any) -> None:
    text = json.dumps({"type": "news", "data": data})
    for websocket in list(clients):
        await websocket.send_text(text)


async def take(request: Request) -> Response:
    await publish((await request.json())["data"])
    return JSONResponse({"success": True})


async def publish_many(count: int) -> None:
    for _ in range(count):
        await publish(PAYLOAD)


def fire(count: int) -> None:
    task = asyncio.get_running_loop().create_task(publish_many(count))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


app = Starlette(
    routes=[WebSocketRoute("/ws", serve), Route("/publish", take, methods=["POST"])],
)

if __name__ == "__main__":
    run_on_uvicorn(app, fire)
