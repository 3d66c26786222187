"""Recovery under fire: clients of every door, cut at random, and the whole of a numbered stream.

`CROSSBAND_SEED=<n>` replays the cuts of a run; each run says its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from crossband import Broker, Hub, MemoryBroker, Socket
from tests.clients import (
    Client,
    EventStreamClient,
    NodeRunner,
    OfficialClient,
    OfficialPollingClient,
    OfficialUpgradingClient,
    OfficialWebSocketClient,
    PythonSocketIOClient,
    WebSocketClient,
)
from tests.conftest import Serve
from tests.far import Engine, FarBroker
from tests.front import Front

pytestmark = pytest.mark.node

# Numbered events a second.
RATE = 50
# Seconds that all clients have, after the last cut, to hear the last number.
LAST_WORDS = 30.0
# How often a client tries to come back.
TRIES = 10
# A number, or the reason of a gap.
Heard = int | str


@dataclass
class Target(contextlib.AbstractAsyncContextManager["Target"]):
    """One client under fire."""

    kind: str
    random: Random
    url: str
    cuts: int = 0
    # How connections ended that nobody cut.
    losses: list[str] = field(default_factory=list)
    # Why coming back failed, each time it did: on a busy machine there are timeouts.
    retries: list[str] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)

    async def start(self) -> None:
        """Connect."""
        raise NotImplementedError

    async def suffer(self, until: float, pause: float) -> None:
        """Be cut at random times, `pause` seconds apart on average, until that loop time."""
        raise NotImplementedError

    async def reach(self, last: int) -> None:
        """Wait for that number, which was sent, or a gap in its place; then fill `heard`."""
        raise NotImplementedError

    def next_cut(self, pause: float) -> float:
        """Choose when to be cut next, in seconds from now."""
        return self.random.expovariate(1 / pause)


class PythonTarget(Target):
    """A client in this process, that comes back by itself after a while away."""

    def __init__(self, client: Client, random: Random, url: str) -> None:
        super().__init__(client.kind, random, url)
        self.client = client
        client.sink = self._hear
        # The number that ends it, once known, and whether it was heard.
        self._last = math.inf
        self._reached = asyncio.Event()

    def _hear(self, name: str, data: Any) -> None:
        if name == "number":
            self.heard.append(data)
            if data >= self._last:
                self._reached.set()
        elif name == "gap":
            self.heard.append(data["reason"])
            if self._last != math.inf:
                # What it still had coming is in the gap.
                self._reached.set()

    async def start(self) -> None:
        await self.client.connect(self.url)

    async def suffer(self, until: float, pause: float) -> None:
        while await self._live(self.next_cut(pause), until):
            self.cuts += 1
            if isinstance(self.client, WebSocketClient) and self.random.random() < 0.25:
                # No reset reaches the server: to it, the client is there until it is back.
                await self.client.desert()
            else:
                await self.client.cut()
            await asyncio.sleep(self.random.uniform(0, 1.0))
            while self.random.random() < 0.25:
                await self._come_back_in_vain()
            await self._come_back()

    async def _come_back(self) -> None:
        """Resume; try again after a failure, as clients do."""
        for _ in range(TRIES):
            try:
                await self.client.resume()
            except Exception as error:
                if isinstance(error, AssertionError):
                    raise
                self.retries.append(repr(error))
                await asyncio.sleep(0.2)
            else:
                return
        raise AssertionError(f"{self.kind}: cannot come back: {self.retries}")

    async def _live(self, seconds: float, until: float) -> bool:
        """Live on, reconnecting; False when `until` comes before the next cut does."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            # The pace of the fire: what is waited for is time itself, or a lost connection.
            with contextlib.suppress(TimeoutError):
                when = min(end, until)
                async with asyncio.timeout_at(None if when == math.inf else when):
                    await self.client.gone.wait()
            if not self.client.gone.is_set():
                return end < until
            self.losses.append(self.client.farewell)
            await self._come_back()

    async def _come_back_in_vain(self) -> None:
        """Be cut while coming back: in the handshake, at the welcome, in the replay."""
        self.cuts += 1
        if self.client.kind == "python-socketio":
            # Its connect() cannot be given up half-way.
            await self._come_back()
            await self.client.cut()
            return
        resuming = asyncio.create_task(self.client.resume())
        await asyncio.wait([resuming], timeout=self.random.uniform(0, 0.02))
        if resuming.done():
            if resuming.exception() is None:
                await self.client.cut()
        else:
            resuming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await resuming

    async def reach(self, last: int) -> None:
        self._last = last
        if self.heard and (self.heard[-1] == last or isinstance(self.heard[-1], str)):
            self._reached.set()
        async with asyncio.TaskGroup() as tasks:
            living = tasks.create_task(self._live(math.inf, math.inf))
            await self._reached.wait()
            living.cancel()

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()


class NodeTarget(Target):
    """An official client, that reconnects by its own means."""

    def __init__(self, node: NodeRunner, kind: str, random: Random, url: str) -> None:
        super().__init__(kind, random, url)
        self._node = node
        self._client = node.new_client(lambda message: None)

    async def start(self) -> None:
        options: dict[str, Any]
        if self.kind == "EventSource":
            url = f"{self.url}/events"
            # Half of them come back with a session, half with nothing but their cursor.
            if self.random.random() < 0.5:
                url += f"?session={self.random.randbytes(12).hex()}"
            options = {
                "kind": "eventsource",
                "url": url,
                "events": ["welcome", "number", "gap", "noise"],
            }
        else:
            options = {
                "kind": "socketio",
                "url": self.url,
                "namespace": "/",
                "transports": OFFICIAL[self.kind].transports,
                "reconnection": {"reconnectionDelay": 200, "reconnectionDelayMax": 1000},
            }
        await self._node.ask("open", client=self._client, record="number", **options)
        assert (await self._node.ask("connect", client=self._client))["connected"]

    async def suffer(self, until: float, pause: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() + (wait := self.next_cut(pause)) < until:
            await asyncio.sleep(wait)
            self.cuts += 1
            # Whatever it is doing: connected, away, polling, upgrading, catching up.
            await self._node.ask("cut", client=self._client, torn=False)

    async def reach(self, last: int) -> None:
        try:
            await self._node.ask("until", wait=LAST_WORDS, client=self._client, last=last)
        finally:
            self.heard = (await self._node.ask("heard", client=self._client))["heard"]

    async def __aexit__(self, *_: object) -> None:
        await self._node.ask("close", client=self._client)
        self._node.forget(self._client)


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


def population(node: NodeRunner, url: str, seed: int, sizes: dict[str, int]) -> list[Target]:
    """Make so many clients of each kind."""
    targets: list[Target] = []
    for kind, size in sizes.items():
        for index in range(size):
            # One source of chance for each, so that one client's luck is not another's.
            random = Random(f"{seed}/{kind}/{index}")
            if kind in PYTHON:
                targets.append(PythonTarget(PYTHON[kind](), random, url))
            else:
                targets.append(NodeTarget(node, kind, random, url))
    return targets


class HastyPythonSocketIOClient(PythonSocketIOClient):
    """Tries again soon: the library does not notice that it was closed before it was answered."""

    patience = 3


PYTHON: dict[str, Callable[[], Client]] = {
    "websocket": functools.partial(WebSocketClient, compressed=False),
    "sse": EventStreamClient,
    "python-socketio": HastyPythonSocketIOClient,
}
OFFICIAL: dict[str, type[OfficialClient]] = {
    client.kind: client
    for client in (OfficialPollingClient, OfficialWebSocketClient, OfficialUpgradingClient)
}
# 200 clients; the Node process takes its half of a machine with two cores.
CROWD = {
    "websocket": 45,
    "sse": 35,
    "python-socketio": 10,
    "socket.io-client polling": 25,
    "socket.io-client websocket": 30,
    "socket.io-client upgrading": 25,
    "EventSource": 30,
}


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
