"""Workers that are killed one after another, under clients of every door: nothing lost or doubled.

`CROSSBAND_FIRE_TIME=30` kills for 30 s under 200 clients; `CROSSBAND_SEED=<n>` replays the chances.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import signal
import sys
from pathlib import Path
from random import Random

import pytest

from crossband import Hub
from tests.clients import NodeRunner
from tests.server.test_parent import Served, serving
from tests.targets import CROWD, LAST_WORDS, population

pytestmark = pytest.mark.node

# Numbers a second.
RATE = 20
# Seconds between two kills.
PAUSE = 1.0
APPLICATION = """
import os

from crossband import Hub

hub = Hub(retry=0.3)


@hub.on_start
def tell_broker() -> None:
    print("broker", os.environ["CROSSBAND_BROKER"], flush=True)
"""


async def kill_workers(served: Served, random: Random, until: float) -> int:
    """Kill a worker that serves, again and again; return how many were killed."""
    loop = asyncio.get_running_loop()
    dead: set[int] = set()
    while loop.time() < until:
        await asyncio.sleep(PAUSE)
        begun = re.findall(r"worker \d+ \(pid (\d+)\) serves", served.child.output)
        alive = sorted({*served.workers, *map(int, begun)} - dead)
        if alive:
            dead.add(pid := random.choice(alive))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return len(dead)


async def publish(hub: Hub, done: asyncio.Event) -> int:
    """Publish numbers from 0 until `done`; return how many."""
    for number in itertools.count():
        if done.is_set():
            return number
        await hub.emit("number", number)
        await asyncio.sleep(1 / RATE)
    raise AssertionError("itertools.count() ends never")


async def test_killed_workers_lose_and_double_nothing(tmp_path: Path, node: NodeRunner) -> None:
    seed = int(os.environ.get("CROSSBAND_SEED") or secrets.randbelow(10**9))
    seconds = float(os.environ.get("CROSSBAND_FIRE_TIME") or 0)
    crowd = CROWD if seconds else dict.fromkeys(CROWD, 3)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            serving(tmp_path, "--workers", "2", target="application:hub", source=APPLICATION)
        )
        broker = (await served.child.says(r"broker (unix://\S+)"))[1]
        # A node of the same hub, which nobody kills.
        publisher = Hub(broker)
        await stack.enter_async_context(publisher.lifespan())
        targets = population(node, served.url, seed, crowd)
        for target in targets:
            await stack.enter_async_context(target)
        for start in range(0, len(targets), 20):
            await asyncio.gather(*(target.start() for target in targets[start : start + 20]))
        # From here on everybody has a cursor.
        await publisher.emit("number", -1)
        await asyncio.gather(*(target.reach(-1) for target in targets))
        done = asyncio.Event()
        until = loop.time() + (seconds or 6 * PAUSE)
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publish(publisher, done))
            killing = tasks.create_task(kill_workers(served, Random(seed), until))
            suffering = [
                # Nobody else cuts it.
                tasks.create_task(target.suffer(until, 1e9))
                for target in targets
            ]
            await asyncio.gather(killing, *suffering)
            done.set()
        count = publishing.result()
        # Who does not get there is named by what it heard.
        await asyncio.gather(
            *(asyncio.wait_for(target.reach(count - 1), LAST_WORDS) for target in targets),
            return_exceptions=True,
        )
        wrong = {
            f"{target.kind} {index}": [*target.heard[:2], len(target.heard), *target.heard[-2:]]
            for index, target in enumerate(targets)
            if target.heard != [*range(-1, count)]
        }
        sys.stdout.write(
            f"seed {seed}: {killing.result()} killed, {count} numbers, {len(targets)} clients\n"
        )
        assert wrong == {}, (count, served.child.output)
