"""Crossband as it is shipped: limits, history and bounded outboxes on, everybody in a room.

With the path of a Redis server's socket, it is one of several nodes.
"""

from __future__ import annotations

import asyncio

from benchmarks.servers.control import PAYLOAD, REDIS, announce
from crossband import Hub, Limits, Socket
from crossband.server import Server

# Known to the load generator; on 127.0.0.1 only.
API_KEY = "benchmark"

# The echo client sends as fast as it is answered; the meters run all the same.
hub = Hub(
    api_keys=(API_KEY,),
    limits=Limits(message_rate=1e7, byte_rate=1e10),
    broker=f"unix://{REDIS}" if REDIS else None,
)
plain = hub.of("/plain", plain=True)


@hub.on("connect")
async def connect(socket: Socket) -> None:
    await socket.join("all")


@hub.on("echo")
async def answer(socket: Socket, text: str) -> str:
    return text


@plain.on("message")
async def echo(socket: Socket, text: str) -> None:
    await socket.emit("message", text)


def fire(count: int) -> None:
    for _ in range(count):
        hub.to("all").emit("news", PAYLOAD)


def main() -> None:
    tasks = []

    def on_start(server: Server) -> None:
        tasks.append(asyncio.get_running_loop().create_task(announce(server.port, fire)))

    Server(hub).run(on_start)


if __name__ == "__main__":
    main()
