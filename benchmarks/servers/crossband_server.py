"""One process of Crossband, or with the path of a Redis server's socket, one of its nodes."""

from __future__ import annotations

import asyncio

from benchmarks.servers.control import PAYLOAD, REDIS, announce
from benchmarks.servers.crossband_hub import make_hub
from crossband.server import Server

hub = make_hub(f"unix://{REDIS}" if REDIS else None)


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
