"""The control port of the Python servers, and uvicorn as the peers run on it.

Imported by programs of several virtual environments: the standard library only, at the top.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

# What every publication carries.
PAYLOAD = sys.argv[1] if len(sys.argv) > 1 else ""
# The socket of the Redis server that nodes share; the adapter is for those that have several.
REDIS = sys.argv[3] if len(sys.argv) > 3 else None


class Control(asyncio.Protocol):
    """Calls `fire(n)` for each line "n"."""

    def __init__(self, fire: Callable[[int], None]) -> None:
        self._fire = fire

    def data_received(self, data: bytes) -> None:
        for line in data.split():
            self._fire(int(line))


async def announce(port: int, fire: Callable[[int], None]) -> None:
    """Open the control port and tell both."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Control(fire), "127.0.0.1", 0)
    control = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"port": port, "control": control}) + "\n")
    sys.stdout.flush()
    await server.serve_forever()


def bind() -> socket.socket:
    """Return a listening socket on a free port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def run_on_uvicorn(app: Any, fire: Callable[[int], None]) -> None:
    """Serve an ASGI app on uvicorn at its fastest: uvloop, httptools, websockets-sansio."""
    import uvicorn
    import uvloop

    async def main() -> None:
        listener = bind()
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="websockets-sansio",
            loop="none",
            log_level="error",
            access_log=False,
            lifespan="off",
        )
        control = asyncio.create_task(announce(listener.getsockname()[1], fire))
        await uvicorn.Server(config).serve(sockets=[listener])
        control.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
