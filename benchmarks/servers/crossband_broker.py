"""A node's broker without a hub: what publishing and hearing takes, and nothing else.

A line "BURST NAMESPACES MILLISECONDS" publishes bursts for so long, each when the last one was
heard, and is answered with what was done. What is published in one namespace at once is one batch,
and comes in one frame.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from benchmarks.servers.control import PAYLOAD, REDIS
from crossband.broker import Publication
from crossband.broker.redis import RedisBroker
from crossband.protocol import payload

# A frame each, if publications are in namespaces of their own.
NAMESPACES = ["/", *(f"/{number}" for number in range(1, 100))]
NEWS = payload.encode([PAYLOAD])


class Nobody:
    """A receiver without clients."""

    def deliver(self, publication: Publication) -> None:
        pass

    def lost(self, namespace: str, sid: str | None = None) -> None:
        sys.exit("the broker has lost something")

    def taken(self, namespace: str, key: str, take: int) -> None:
        pass


async def publish(
    broker: RedisBroker, burst: int, namespaces: int, seconds: float
) -> dict[str, float]:
    """Publish bursts; return what the load generator would."""
    publications = [
        Publication(NAMESPACES[number % namespaces], "news", NEWS, ("all",))
        for number in range(burst)
    ]
    latencies = []
    began = ended = time.monotonic()
    while (since := ended) < began + seconds:
        heard = [broker.publish(publication) for publication in publications]
        for each in heard:
            await each
        ended = time.monotonic()
        latencies.append(round((ended - since) * 1e9))
    latencies.sort()
    return {
        "count": burst * len(latencies),
        "rounds": len(latencies),
        "seconds": ended - began,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
    }


async def main() -> None:
    broker = RedisBroker(f"unix://{REDIS}")
    await broker.start(Nobody())
    for namespace in NAMESPACES:
        attached = broker.attach(namespace)
        if attached is not None:
            await attached

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            burst, namespaces, milliseconds = map(int, line.split())
            done = await publish(broker, burst, namespaces, milliseconds / 1000)
            writer.write(json.dumps(done).encode() + b"\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"port": port, "control": port}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
