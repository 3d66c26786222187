"""What a fault strikes: an engine, nodes that publish, nginx before them, clients of every door."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import httpx

from stress.ledger import SOURCE, Story
from tests.children import Child
from tests.clients import NodeRunner
from tests.engines import Cluster, Engine, Sentinels, Servers, free_port
from tests.front import Front
from tests.nginx import Nginx
from tests.targets import Target, population

# Above the process ids, which are the other sources.
BARRIERS: Final = 10_000_000 * SOURCE
# At the beginning of what is logged.
TIME: Final = re.compile(r"^[-\d]+ [:,\d]+ ")
# Seconds for what takes one at most when all is well.
PATIENCE: Final = 90.0


class Node:
    """One node, or several that a parent keeps: `crossband serve`, always at the same port."""

    def __init__(self, site: Site, broker: str, workers: int) -> None:
        self._site = site
        self._broker = broker
        self.workers = workers
        self.port = free_port()
        # None while it does not run.
        self._child: Child | None = None
        # The processes that serve, and whether each has heard that the switch is off and has
        # nothing on its way any more.
        self.hushed: dict[int, bool] = {}

    @property
    def serving(self) -> set[int]:
        """The ids of the processes that serve."""
        self.hushed = {pid: hushed for pid, hushed in self.hushed.items() if alive(pid)}
        return set(self.hushed)

    def silent(self) -> bool:
        """Whether it publishes no more."""
        return bool(self.serving) and all(self.hushed.values())

    async def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._child = Child(
            *(sys.executable, "-m", "crossband", "serve", "stress.node:hub"),
            *("--port", str(self.port), "--log-level", "warning"),
            *("--workers", str(self.workers)),
            env={
                "CROSSBAND_BROKER": self._broker,
                "CROSSBAND_API_KEYS": self._site.key,
                "STRESS_SWITCH": str(self._site.switch),
                "STRESS_RATE": str(self._site.rate),
            },
            take=self._take,
        )
        await self.until(lambda: len(self.serving) == self.workers)
        # Its port is open by then, or in a moment.
        await self.until(self._listens)

    def _listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, which must hold before the node ends."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                assert self._child is not None
                assert self._child.returncode is None, self._child.output
                await asyncio.sleep(0.02)

    def _take(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        if what == "published":
            self._site.published.add(int(rest))
        elif what == "failed":
            self._site.failed.append(rest)
        elif what in {"started", "hushed"}:
            self.hushed[int(rest)] = what == "hushed"
        elif line:
            self._site.log[f"{self.port}: {TIME.sub('', line)}"] += 1

    def signal(self, number: int) -> None:
        """Send a signal to the one that was started: a parent, where there are workers."""
        assert self._child is not None
        self._child.send_signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to all its processes."""
        assert self._child is not None
        os.killpg(self._child.pid, number)

    async def ended(self) -> None:
        """Wait for its end."""
        assert self._child is not None
        async with self._child:
            await self._child.exit_code(within=PATIENCE)
        self._child = None
        self.hushed.clear()

    async def close(self) -> None:
        if self._child is not None:
            self.signal_all(signal.SIGKILL)
            await self.ended()


def alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Site(contextlib.AbstractAsyncContextManager["Site"]):
    """All of it, started: `async with Site(servers, nodes=4, …) as site`."""

    def __init__(
        self,
        servers: Servers,
        *,
        nodes: int,
        rate: float,
        crowd: dict[str, int],
        seed: int,
        pace: float = 1.0,
    ) -> None:
        self.servers = servers
        # How long faults last, in proportion.
        self.pace = pace
        self._size = nodes
        # Numbers a second, of each node.
        self.rate = rate
        self._crowd = crowd
        self._seed = seed
        self.key = secrets.token_hex()
        # One for each; none where the servers are told of by others.
        self.links: list[Front] = []
        self.nodes: list[Node] = []
        self.targets: list[Target] = []
        # The same, by name.
        self.clients: dict[str, Target] = {}
        # What was published since the last barrier, and what was not.
        self.published: set[int] = set()
        self.failed: list[str] = []
        # What the nodes logged, and how often.
        self.log: Counter[str] = Counter()
        self._barriers = 0
        self._stack = contextlib.AsyncExitStack()

    @property
    def engine(self) -> Engine:
        """The only server."""
        assert isinstance(self.servers, Engine)
        return self.servers

    @property
    def sentinels(self) -> Sentinels:
        assert isinstance(self.servers, Sentinels)
        return self.servers

    @property
    def cluster(self) -> Cluster:
        assert isinstance(self.servers, Cluster)
        return self.servers

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.switch = directory / "switch"
            # The first two share a parent, if there are three.
            trees = [2, *[1] * (self._size - 2)] if self._size > 2 else [1] * self._size
            for workers in trees:
                node = Node(self, await self._broker(stack), workers)
                stack.push_async_callback(node.close)
                self.nodes.append(node)
            await asyncio.gather(*(node.start() for node in self.nodes))
            self._nginx = await stack.enter_async_context(
                Nginx(directory, *(node.port for node in self.nodes))
            )
            runner = NodeRunner()
            stack.callback(runner.close)
            self.targets = population(runner, self._nginx.url, self._seed, self._crowd)
            self.clients = {
                f"{target.kind} {number}": target for number, target in enumerate(self.targets)
            }
            for target in self.targets:
                await stack.enter_async_context(target)
            # A few at a time: what is tested is not the start.
            for start in range(0, len(self.targets), 20):
                group = self.targets[start : start + 20]
                await asyncio.gather(*(target.start() for target in group))
            # From here on everybody has a cursor.
            await self.stories()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def _broker(self, stack: contextlib.AsyncExitStack) -> str:
        """Return the URL of the broker for one node: over a link of its own, if that can be."""
        if not isinstance(self.servers, Engine):
            return self.servers.url
        link = await stack.enter_async_context(Front([self.servers.url]))
        self.links.append(link)
        return urlsplit(self.servers.url)._replace(netloc=f"127.0.0.1:{link.port}").geturl()

    async def pause(self, seconds: float) -> None:
        """Let a part of a fault last."""
        await asyncio.sleep(seconds * self.pace)

    async def hush(self) -> None:
        """Have all nodes stop publishing, and wait until nothing is on its way."""
        for node in self.nodes:
            node.hushed = dict.fromkeys(node.hushed, False)
        self.switch.unlink(missing_ok=True)
        for node in self.nodes:
            await node.until(functools.partial(Node.silent, node))

    async def barrier(self) -> int:
        """Publish a number that is behind all others, and return it."""
        async with (
            asyncio.timeout(PATIENCE),
            httpx.AsyncClient(verify=False, base_url=self._nginx.url) as http,
        ):
            while True:
                self._barriers += 1
                number = BARRIERS + self._barriers
                with contextlib.suppress(httpx.HTTPError):
                    answer = await http.post(
                        "/api/broadcast",
                        json={"event": "number", "data": number},
                        headers={"Authorization": f"Bearer {self.key}"},
                    )
                    if answer.status_code == 200:
                        return number
                    assert answer.status_code >= 500, answer.text
                await asyncio.sleep(0.1)

    async def stories(self) -> tuple[dict[str, Story], int]:
        """Return what each client heard since the last barrier, and the next barrier."""
        end = await self.barrier()
        # Who does not get there is named by what it heard.
        await asyncio.gather(
            *(asyncio.wait_for(target.reach(end), PATIENCE) for target in self.targets),
            return_exceptions=True,
        )
        stories: dict[str, Story] = {}
        for name, target in self.clients.items():
            stories[name] = target.heard
            target.heard = []
        return stories, end
