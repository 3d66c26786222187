"""python-socketio on uvicorn: an emit to a room; acknowledges with what it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import socketio

from benchmarks.servers.control import PAYLOAD, run_on_uvicorn

server = socketio.AsyncServer(async_mode="asgi")
tasks: set[asyncio.Task[None]] = set()


@server.event  # type: ignore[untyped-decorator]
async def connect(sid: str, environ: dict[str, Any]) -> None:
    await server.enter_room(sid, "all")


@server.on("echo")  # type: ignore[untyped-decorator]
async def answer(sid: str, text: str) -> str:
    return text


async def publish(count: int) -> None:
    for _ in range(count):
        await server.emit("news", PAYLOAD, to="all")


def fire(count: int) -> None:
    task = asyncio.get_running_loop().create_task(publish(count))
    tasks.add(task)
    task.add_done_callback(tasks.discard)


app = socketio.ASGIApp(server)

if __name__ == "__main__":
    run_on_uvicorn(app, fire)
