"""Clients under fire: of every door, cut at random, with all the numbers and gaps they hear."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

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

# Seconds that all clients have, after the last cut, to hear the last number.
LAST_WORDS = 30.0
# Seconds for which a client tries to come back.
PATIENCE = 60.0
# A number, or the reason of a gap.
Heard = int | str


@dataclass
class Target(contextlib.AbstractAsyncContextManager["Target"]):
    """One client under fire."""

    kind: str
    random: Random
    url: str
    cuts: int = 0
    # How connections ended; of a client in this process, those that nobody cut.
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
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while loop.time() < deadline:
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
        self._reached.clear()
        if self.heard and (self.heard[-1] == last or isinstance(self.heard[-1], str)):
            self._reached.set()
        async with asyncio.TaskGroup() as tasks:
            living = tasks.create_task(self._live(math.inf, math.inf))
            await self._reached.wait()
            living.cancel()
        self._last = math.inf

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
            told = await self._node.ask("heard", client=self._client)
            self.heard += told["heard"]
            self.losses += told["losses"]

    async def __aexit__(self, *_: object) -> None:
        await self._node.ask("close", client=self._client)
        self._node.forget(self._client)


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
