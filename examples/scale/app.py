"""A hub that runs on several nodes: each ticks, and tells its clients which node it is.

Run: python start.py
"""

from __future__ import annotations

import asyncio
import os

from crossband import BrokerUnavailable, Hub, Member, Socket

# Those who start it name it, and the broker: in CROSSBAND_BROKER, which the hub reads by itself.
NODE = int(os.environ.get("NODE", "1"))
# Seconds.
INTERVAL = 1.0

hub = Hub()
# Who is in the room, on all nodes: each client shows with its node. One that comes back in time,
# on whatever node, has not left.
hub.presence("tabs", member=lambda socket: Member(id=socket.id, info={"node": NODE}), grace=10)


@hub.on("connect")
async def connect(socket: Socket) -> None:
    await socket.join("tabs")


@hub.on("where")
async def where(socket: Socket) -> dict[str, int]:
    return {"node": NODE, "pid": os.getpid()}


async def tick() -> None:
    number = failed = 0
    while True:
        number += 1
        tick = {"node": NODE, "pid": os.getpid(), "number": number, "failed": failed}
        try:
            # To everybody, on all nodes.
            await hub.emit("tick", tick)
        except BrokerUnavailable:
            failed += 1
        await asyncio.sleep(INTERVAL)


@hub.on_start
def start() -> None:
    hub.spawn(tick())
