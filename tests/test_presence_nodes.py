"""Presence over nodes that are processes, on a real Redis, when one of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from textwrap import dedent

import redis.asyncio

from crossband.names import new_id
from tests.children import Child
from tests.clients import Client, NewClient
from tests.clients.base import WAIT
from tests.engines import shared

# As many as a short test has time for; the promise was also tried with a thousand.
CLIENTS = int(os.environ.get("PRESENCE_CLIENTS", "40"))

HUB = """
    import os

    from crossband import Hub, Socket
    from crossband.broker.redis import presence, sessions
    from crossband.hub import cluster

    # So that the others notice within the test that a node is gone.
    cluster.HEARTBEAT = 0.2
    presence.LEASE = sessions.LEASE = 2.0

    hub = Hub(broker=os.environ["REDIS"])
    hub.presence("room")

    @hub.on("join")
    async def join(socket: Socket, room: str) -> None:
        await socket.join(room)

    @hub.on("say")
    async def say(socket: Socket, text: str) -> None:
        await hub.to("room").emit("said", text)
"""


async def test_clients_of_a_killed_node_are_back_elsewhere_and_nobody_saw_them_leave(
    tmp_path: Path, new_client: NewClient
) -> None:
    prefix = new_id()
    url = shared("redis").url
    (tmp_path / "rooms.py").write_text(dedent(HUB))
    command = (sys.executable, "-m", "crossband", "serve", "rooms:hub", "--port", "0")
    env = {"REDIS": f"{url}?prefix={prefix}"}
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(Child(*command, cwd=tmp_path, env=env))
            for _ in range(3)
        ]
        urls = [(await node.says(r"http://127\.0\.0\.1:\d+"))[0] for node in nodes]
        store = redis.asyncio.Redis.from_url(url)
        stack.push_async_callback(store.aclose)

        async def leases(count: int) -> None:
            """Wait until as many nodes have a lease."""
            async with asyncio.timeout(WAIT):
                while await store.zcard(f"{prefix}:{{/}}:here:nodes") != count:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        watcher = new_client("websocket")
        await watcher.connect(urls[0], rooms=["room"])
        kinds = ("websocket", "sse")
        clients = [new_client(kinds[number % 2]) for number in range(CLIENTS)]

        async def enter(client: Client) -> None:
            await client.connect(urls[1])
            await client.call("join", "room")

        for start in range(0, CLIENTS, 100):
            await asyncio.gather(*map(enter, clients[start : start + 100]))
        other = new_client("websocket")
        await other.connect(urls[2], rooms=["room"])
        everybody = {watcher.sid, other.sid, *(client.sid for client in clients)}
        await leases(3)

        nodes[1].send_signal(signal.SIGKILL)

        async def come_back(number: int) -> None:
            client = clients[number]
            async with asyncio.timeout(WAIT):
                await client.gone.wait()
            client.url = urls[0 if number % 3 else 2]
            await client.resume()
            assert client.recovered

        for start in range(0, CLIENTS, 100):
            await asyncio.gather(*map(come_back, range(start, min(start + 100, CLIENTS))))
        # The others have noticed, and counted its clients as cut: none of them is its any more.
        await leases(2)
        await other.call("say", "done")
        for client in (watcher, *clients):
            await client.next_event("said")
        joined = [event.data["member"]["id"] for event in watcher.log if event.name != "said"]
        assert {event.name for event in watcher.log} == {"presence:join", "said"}
        assert sorted(joined) == sorted(everybody)
        found = await watcher.call("presence:members", "room")
        assert found["count"] == len(everybody)
