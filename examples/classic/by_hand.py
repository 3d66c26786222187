"""Shows heartbeat, limits and shutdown set by hand, and a server run from Python.

Run: python by_hand.py
Try: wscat -c ws://127.0.0.1:8000/ws -x '{"type": "message", "data": "hello"}'
     Ctrl-C in the first terminal while a client is there
"""

from __future__ import annotations

import os

from crossband import Hub, Limits, Socket
from crossband.server import Server

hub = Hub(
    # Seconds: a client that vanishes silently is noticed within 15.
    ping_interval=10,
    ping_timeout=5,
    # Comments on idle event streams, which have no pings.
    keepalive_interval=10,
    # Time for goodbyes and running handlers when the server stops; then connections are closed.
    shutdown_timeout=3,
    limits=Limits(
        message_size=4_096,
        message_rate=20,  # a second, by connection
        burst_time=1,
        flood_time=2,  # seconds it is throttled to that rate, then it is refused
        refusals=10,
        connections_per_address=100,
        outbox=262_144,
    ),
)


@hub.on("message")
async def message(socket: Socket, text: str) -> None:
    await hub.emit("message", {"from": socket.id, "text": text})


@hub.on("disconnect")
async def disconnect(socket: Socket, reason: str) -> None:
    print(f"{socket.id} left: {reason}", flush=True)


if __name__ == "__main__":
    server = Server(hub, port=int(os.environ.get("PORT", "8000")))
    # SIGTERM and Ctrl-C say goodbye to every client first; a second one exits at once.
    server.run(on_start=lambda started: print(f"Running on {started.url}", flush=True))
