"""Hostile clients beside honest ones, who lose nothing and are not kept waiting.

`CROSSBAND_SEED=<n>` replays a run; `CROSSBAND_FLOOD_TIME=30` makes it longer, in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.children import START, Child
from tests.crowd import Member, connect, crowd

ROOT = Path(__file__).parents[1]
HONEST = 100

SERVER = """
import asyncio, itertools
from crossband import Hub
from crossband.server import Server
from tests.stopwatch import Stopwatch

hub = Hub(history_size=10_000)

@hub.on("echo")
def echo(socket, data):
    return data

def begin(server):
    async def publish():
        with Stopwatch() as watch:
            for number in itertools.count():
                due = watch.time() + 0.05
                await asyncio.sleep(0.05)
                # With the seconds that others of this process kept it waiting.
                hub.emit("number", [number, watch.time() - due])
    hub.publishing = asyncio.get_running_loop().create_task(publish())
    print(server.url, flush=True)

Server(hub).run(begin)
"""


def python(*arguments: str) -> Child:
    """Run Python, with the package and the tests to import."""
    path = os.pathsep.join(["src", ".", *sys.path])
    return Child(sys.executable, *arguments, cwd=ROOT, env={"PYTHONPATH": path})


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


async def talk(member: Member, over: asyncio.Event) -> None:
    while not over.is_set():
        assert await member.echo("again") == "again"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 1)


@pytest.mark.alone
async def test_honest_clients_lose_nothing_beside_hostile_ones() -> None:
    seed = int(os.environ.get("CROSSBAND_SEED") or secrets.randbits(31))
    seconds = float(os.environ.get("CROSSBAND_FLOOD_TIME") or 6)
    print(f"CROSSBAND_SEED={seed}")  # noqa: T201
    heard: dict[Member, list[int]] = {}
    times: list[float] = []
    async with python("-c", SERVER) as server:
        url = (await server.says(r"http://\S+\n"))[0].rstrip()
        members = crowd(url, HONEST)
        for member in members:
            numbers = heard[member] = []

            def take(data: Any, numbers: list[int] = numbers) -> None:
                numbers.append(data[0])
                times.append(data[1])

            member.sink = take
        await connect(members)
        over = asyncio.Event()
        talks = [asyncio.create_task(talk(member, over)) for member in members]
        times.clear()
        await asyncio.sleep(seconds / 3)
        quiet = p99(times)
        async with python("-m", "tests.flood", url, str(seed), str(seconds)) as flood:
            await flood.says("begun\n")
            times.clear()
            said = await flood.says(r"{.*}\n", within=seconds + START)
            flooded = p99(times)
            assert await flood.exit_code() == 0
        print(  # noqa: T201
            f"p99 quiet {quiet * 1000:.1f} ms, flooded {flooded * 1000:.1f} ms, "
            f"{len(times)} numbers; connections: {said[0].rstrip()}"
        )
        over.set()
        await asyncio.gather(*talks)
        for member in members:
            assert await member.echo("still here") == "still here"
            assert not member.ended
            numbers = heard[member]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            await member.close()
        # Each that sends all the time has a turn of 2 ms; a machine with much else to do makes
        # several times as much of it. What has no turns keeps the others waiting for seconds.
        assert flooded - quiet < 1.0
