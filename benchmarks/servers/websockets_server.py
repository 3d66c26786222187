"""`websockets` on uvloop: its `broadcast()`, and an echo."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

from benchmarks.servers.control import PAYLOAD, announce, bind

clients: set[ServerConnection] = set()


async def handle(client: ServerConnection) -> None:
    clients.add(client)
    try:
        await client.send('{"type":"welcome"}')
        async for message in client:
            await client.send(message)
    finally:
        clients.discard(client)


def publish(data: Any) -> None:
    broadcast(clients, json.dumps({"type": "news", "data": data}))


def fire(count: int) -> None:
    for _ in range(count):
        publish(PAYLOAD)


async def main() -> None:
    listener = bind()
    async with serve(handle, sock=listener):
        await announce(listener.getsockname()[1], fire)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
