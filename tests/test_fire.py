"""Recovery under fire: clients of every door, cut at random, and the whole of a numbered stream.

`CROSSBAND_SEED=<n>` replays the cuts of a run; each run says its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from crossband import Broker, Hub, MemoryBroker, Socket
from tests.clients import NodeRunner
from tests.conftest import Serve
from tests.far import Engine, FarBroker
from tests.front import Front
from tests.targets import CROWD, LAST_WORDS, Heard, Target, population

pytestmark = pytest.mark.node

# Numbered events a second.
RATE = 50


class FireHub(Hub):
    """A hub that takes every client into the room `fire`, and tells when all have gathered."""

    def __init__(
        self, size: int, broker: Broker | None = None, first: FireHub | None = None, **settings: Any
    ) -> None:
        # EventSource waits `retry` before it comes back. The official client that is cut
        # between two transports has stopped polling, and notices by the heartbeat only.
        super().__init__(broker, retry=0.3, ping_interval=3.0, ping_timeout=3.0, **settings)
        # Nodes count together.
        self._first = first or self
        self.gathered = asyncio.Event()
        self._awaited = size
        self.on("connect", self._connect)

    async def _connect(self, socket: Socket) -> None:
        # A recovered client is in its rooms already.
        if not socket.recovered:
            await socket.join("fire")
            first = self._first
            first._awaited -= 1
            if first._awaited == 0:
                first.gathered.set()


async def publish(hubs: Sequence[Hub], until: float) -> tuple[int, float]:
    """Send numbers at their rate, to all and to a room, and unrecorded noise, from any node.

    Returns their count, and by how many seconds one was late at most.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    late = 0.0
    for number in itertools.count():
        # On a slow machine the rate drops; it makes up for nothing by a burst.
        due = max(due + 1 / RATE, loop.time())
        if due > until:
            return number, late
        await asyncio.sleep(due - loop.time())
        late = max(late, loop.time() - due)
        hub = hubs[number // 3 % len(hubs)]
        emission = (hub.to("fire") if number % 2 else hub).emit("number", number)
        if number % 3 == 2 or len(hubs) == 1:
            # Those before it were emitted by the same node: they need no waiting for.
            await emission
        if number % 10 == 0:
            # Ends in a string, which the official client takes for its cursor. Were they equal,
            # numbers could come twice: nobody knows which of them it had last.
            await hub.volatile.emit("noise", f"not-a-cursor {number}")
            await hub.to("elsewhere").emit("number", -1)
    raise AssertionError("itertools.count() ends never")


def judge(heard: list[Heard], count: int) -> str | None:
    """Say what is wrong with what a client heard; None when every hole is a gap it was told of."""
    expected = 0
    told = False
    for item in heard:
        if isinstance(item, str):
            told = True
        elif item == expected or (told and item > expected):
            expected = item + 1
            told = False
        else:
            what = "doubled or out of order" if item < expected else "lost without a gap"
            return f"{what}: {item} where {expected} was due"
    if expected != count and not told:
        return f"ends at {expected - 1}, not {count - 1}"
    return None


@dataclass
class Fire:
    """What came of a run."""

    targets: list[Target]
    # Numbers sent.
    count: int
    # Seconds a number was late at most: how busy the machine was.
    late: float
    # Seconds from the last number until everybody had it.
    settling: float

    def heard_gaps(self) -> Counter[str]:
        """Count the gaps by their reason and the kind of client."""
        return Counter(
            f"{item} ({target.kind})"
            for target in self.targets
            for item in target.heard
            if isinstance(item, str)
        )

    def failures(self) -> list[str]:
        """Name the clients that lost or doubled something."""
        judged = ((target.kind, judge(target.heard, self.count)) for target in self.targets)
        return [f"{kind}: {problem}" for kind, problem in judged if problem is not None]

    def report(self) -> str:
        """Tell the counts, which are of interest even where nothing went wrong."""
        cuts: Counter[str] = Counter()
        for target in self.targets:
            cuts[target.kind] += target.cuts
        gaps = self.heard_gaps()
        retries = Counter(f"{t.kind}: {reason}" for t in self.targets for reason in t.retries)
        losses = Counter(f"{t.kind}: {reason}" for t in self.targets for reason in t.losses)
        return (
            f"  {len(self.targets)} clients, {self.count} numbers, {cuts.total()} cuts, "
            f"{gaps.total()} gaps, {len(self.failures())} failures, "
            f"{self.late:.1f} s late at most, all there after {self.settling:.1f} s\n"
            f"  cuts: {count_of(cuts)}\n  gaps: {count_of(gaps)}\n"
            f"  other losses: {count_of(losses)}\n"
            f"  failed reconnections: {count_of(retries)}\n"
        )


def count_of(counter: Counter[str]) -> str:
    return ", ".join(f"{what} {number}" for what, number in counter.items()) or "none"


async def run(
    hubs: Sequence[FireHub],
    url: str,
    node: NodeRunner,
    *,
    seed: int,
    crowd: dict[str, int],
    seconds: float,
    pause: float,
) -> Fire:
    """Hold the crowd under fire for so many seconds, each cut every `pause` on average."""
    loop = asyncio.get_running_loop()
    targets = population(node, url, seed, crowd)
    async with contextlib.AsyncExitStack() as stack:
        for target in targets:
            await stack.enter_async_context(target)
        # A few at a time: what is tested is not the start.
        for start in range(0, len(targets), 20):
            await asyncio.gather(*(target.start() for target in targets[start : start + 20]))
        async with asyncio.timeout(LAST_WORDS):
            await hubs[0].gathered.wait()
        until = loop.time() + seconds
        async with asyncio.TaskGroup() as tasks:
            # Some numbers come after the last cut.
            publishing = tasks.create_task(publish(hubs, until + 1))
            for target in targets:
                tasks.create_task(target.suffer(until, pause))
        count, late = publishing.result()
        sent = loop.time()
        # Who does not get there is named by what it heard.
        await asyncio.gather(
            *(asyncio.wait_for(target.reach(count - 1), LAST_WORDS) for target in targets),
            return_exceptions=True,
        )
        return Fire(targets, count, late, loop.time() - sent)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Write to the terminal, captured or not."""

    def say(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(text)

    return say


@pytest.fixture
def seed(say: Callable[[str], None]) -> int:
    seed = int(os.environ.get("CROSSBAND_SEED") or secrets.randbelow(10**9))
    say(f"\nunder fire: CROSSBAND_SEED={seed}\n")
    return seed


async def test_every_client_hears_every_number_once_in_order(
    serve: Serve, node: NodeRunner, seed: int, say: Callable[[str], None]
) -> None:
    seconds = float(os.environ.get("CROSSBAND_FIRE_TIME") or 0)
    crowd = CROWD if seconds else {kind: size // 2 for kind, size in CROWD.items()}
    hub = FireHub(sum(crowd.values()))
    server = await serve(hub)
    seconds = seconds or 8.0
    fire = await run([hub], server.url, node, seed=seed, crowd=crowd, seconds=seconds, pause=2.0)
    say(fire.report())
    assert not fire.failures()
    # The default history is 20 s of these numbers: nobody was away for so long.
    assert not fire.heard_gaps()
    assert all(target.heard == list(range(fire.count)) for target in fire.targets)


async def test_holes_of_a_short_history_are_told_as_gaps(
    serve: Serve, node: NodeRunner, seed: int, say: Callable[[str], None]
) -> None:
    # A fifth of a second of numbers: many are away for longer.
    crowd = {kind: max(4, size // 5) for kind, size in CROWD.items()}
    hub = FireHub(sum(crowd.values()), history_size=10)
    server = await serve(hub)
    fire = await run([hub], server.url, node, seed=seed, crowd=crowd, seconds=5.0, pause=1.0)
    say(fire.report())
    assert not fire.failures()
    # Of every kind there was somebody who missed something, and knew. Who was cut before it heard
    # of its new session is told that the old one's offset is unknown.
    assert set(fire.heard_gaps()) >= {f"expired ({kind})" for kind in crowd}


def owner_of(line: str, hubs: Sequence[FireHub], random: Random) -> int:
    """Choose a node: that of a polling session, which no other one has; else any."""
    if found := re.search(r"[?&]sid=([^&\s]+)", line):
        for number, hub in enumerate(hubs):
            if hub._routes._engine.registry.find(found[1]) is not None:
                return number
    return random.randrange(len(hubs))


@contextlib.asynccontextmanager
async def cut_at_random(
    hub: FireHub, engine: Engine, brokers: Sequence[FarBroker], random: Random
) -> AsyncIterator[None]:
    """Once all clients have gathered: lose replies, and cut the nodes from their broker."""

    async def cut() -> None:
        await hub.gathered.wait()
        engine.forgets = 0.01
        while True:
            await asyncio.sleep(random.expovariate(2))
            random.choice(brokers).cut(random.uniform(0, 0.3))

    cutting = asyncio.create_task(cut())
    try:
        yield
    finally:
        cutting.cancel()


@pytest.mark.parametrize("broker", ["memory", "elsewhere"])
async def test_clients_that_hop_between_nodes_hear_every_number_once_in_order(
    broker: str, serve: Serve, node: NodeRunner, seed: int, say: Callable[[str], None]
) -> None:
    seconds = float(os.environ.get("CROSSBAND_FIRE_TIME") or 0)
    crowd = {kind: max(3, size // (2 if seconds else 6)) for kind, size in CROWD.items()}
    random = Random(f"{seed}/{broker}")
    async with contextlib.AsyncExitStack() as stack:
        brokers: list[Broker]
        if broker == "memory":
            memory = MemoryBroker()
            brokers = [memory, memory.peer()]
        else:
            engine = Engine(MemoryBroker(), seed=seed, delay=0.01)
            far = [engine.node(), engine.node(), engine.node()]
            brokers = [*far]
        first = FireHub(sum(crowd.values()), brokers[0])
        hubs = [first, *(FireHub(0, other, first) for other in brokers[1:])]
        urls = [(await serve(hub)).url for hub in hubs]
        front = Front(urls, lambda line: owner_of(line, hubs, random))
        await stack.enter_async_context(front)
        if broker == "elsewhere":
            await stack.enter_async_context(cut_at_random(first, engine, far, random))
        seconds = seconds or 3.0
        fire = await run(hubs, front.url, node, seed=seed, crowd=crowd, seconds=seconds, pause=0.6)
    say(fire.report())
    assert not fire.failures()
    if broker == "memory":
        assert not fire.heard_gaps()
        assert all(target.heard == list(range(fire.count)) for target in fire.targets)
    # Who shows noise for its cursor, while the node that sent it cannot be asked, is told so.
    assert all(gap.startswith("unknown (socket.io-client") for gap in fire.heard_gaps())
    # They did come back at the other nodes.
    assert all(hub._core.traffic.delivered for hub in hubs)
