"""sse-starlette on uvicorn: a queue per client, as in its documentation."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

from sse_starlette import (  # pyright: ignore[reportMissingImports]
    EventSourceResponse,
    ServerSentEvent,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from benchmarks.servers.control import PAYLOAD, run_on_uvicorn

clients: set[asyncio.Queue[ServerSentEvent]] = set()
positions = itertools.count(1)


async def events(request: Request) -> EventSourceResponse:
    queue: asyncio.Queue[ServerSentEvent] = asyncio.Queue()

    async def stream() -> AsyncIterator[ServerSentEvent]:
        clients.add(queue)
        try:
            yield ServerSentEvent(data="{}", event="welcome")
            while True:
                yield await queue.get()
        finally:
            clients.discard(queue)

    return EventSourceResponse(stream())


def fire(count: int) -> None:
    for _ in range(count):
        event = ServerSentEvent(data=json.dumps(PAYLOAD), event="news", id=str(next(positions)))
        for queue in clients:
            queue.put_nowait(event)


app = Starlette(routes=[Route("/events", events)])

if __name__ == "__main__":
    run_on_uvicorn(app, fire)
