"""Shows an event stream that ticks once a second: the time, and how many hear it.

Run: crossband serve sse_ticker:hub
Try: curl -N http://127.0.0.1:8000/events
     new EventSource("/events").addEventListener("tick", (tick) => console.log(tick.data))
"""

from __future__ import annotations

import asyncio
import datetime as dt

from crossband import Hub

# Seconds.
INTERVAL = 1.0

hub = Hub()


async def tick() -> None:
    number = 0
    while True:
        await asyncio.sleep(INTERVAL)
        number += 1
        now = dt.datetime.now(dt.UTC)
        # Volatile: an old time is useless, so it is not kept for clients that come back.
        await hub.volatile.emit("tick", {"number": number, "time": now, "heard": len(hub.sockets)})


@hub.on_start
def start() -> None:
    hub.spawn(tick())
