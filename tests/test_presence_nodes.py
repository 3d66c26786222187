"""Presence over nodes on a real Redis, when one of them or Redis itself is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import redis.asyncio

from crossband import BrokerUnavailable, Hub
from crossband.names import new_id
from tests.children import Child
from tests.clients import Client, NewClient
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import Engine, shared
from tests.waiting import until

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


@pytest.mark.parametrize("empty", [False, True], ids=["with its data", "empty"])
async def test_members_are_right_again_when_redis_was_away(
    serve: Serve, new_client: NewClient, empty: bool
) -> None:
    with Engine("redis", save=True) as engine:
        hubs = [Hub(broker=engine.url) for _ in range(2)]
        for hub in hubs:
            hub.presence("room", grace=0.1)
        urls = [(await serve(hub)).url for hub in hubs]
        clients = [new_client("websocket") for _ in range(4)]
        for number, client in enumerate(clients):
            await client.connect(urls[number % 2], rooms=["room"])
        assert (await hubs[0].members("room")).count == 4
        engine.kill()
        # One leaves meanwhile, as far as its node can tell.
        socket = hubs[1].sockets[clients[3].sid]
        await clients[3].close()
        await until(lambda: not socket.connected)
        engine.start(empty=empty)
        there = {client.sid for client in clients[:3]}

        async def members(hub: Hub) -> set[str]:
            try:
                return {member.id for member in (await hub.members("room")).members}
            except BrokerUnavailable:
                return set()

        async with asyncio.timeout(WAIT):
            for hub in hubs:
                # By the next heartbeat of both nodes.
                while await members(hub) != there:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        # From there on, what is told is what happens.
        seen = len(clients[0].log)
        late = new_client("websocket")
        await late.connect(urls[1], rooms=["room"])
        await until(lambda: [e for e in clients[0].log[seen:] if e.name == "presence:join"])
        assert await members(hubs[0]) == {*there, late.sid}
