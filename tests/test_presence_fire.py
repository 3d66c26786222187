"""Presence under fire: clients that come, go and hop between three nodes while connections break.

`CROSSBAND_SEED=<n>` replays the choices of a run; each run says its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

import pytest

from crossband import BrokerUnavailable, Hub, Identity, MemoryBroker, Socket
from crossband.broker import Broker
from crossband.broker.redis import RedisBroker
from crossband.handshake import Handshake
from tests.clients import Client, Event, EventFailed, NewClient, Refused
from tests.clients.base import WAIT
from tests.conftest import Serve
from tests.engines import Engine as Redis
from tests.far import Engine

# Clients, of which the first half are anonymous, and the others two tabs of each user.
CLIENTS = 16
STEPS = 12
ROOMS = ("red", "green", "blue")


class Fire:
    """Brokers, and a task that breaks their connections."""

    def __init__(
        self, brokers: list[Broker], burn: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self.brokers = brokers
        self._burn = burn
        # None while it does not burn.
        self._task: asyncio.Task[None] | None = None

    def light(self) -> None:
        self._task = asyncio.create_task(self._burn())

    async def put_out(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None


def authenticate(handshake: Handshake) -> Identity | None:
    token = handshake.query.get("token")
    return Identity(token[0]) if token else None


@contextlib.asynccontextmanager
async def fire(kind: str, chance: Random) -> AsyncIterator[Fire]:
    """Return three brokers, and what makes their connections break."""

    async def cut(engine: Engine) -> None:
        engine.forgets = 0.01
        try:
            while True:
                await asyncio.sleep(0.02 * chance.random())
                node = chance.choice(list(engine.nodes.values()))
                node.cut(0.02 * chance.random())
        finally:
            engine.forgets = 0.0

    async def kill(engine: Redis) -> None:
        while True:
            await asyncio.sleep(0.05)
            what = chance.choice(["normal", "pubsub"])
            engine.command("CLIENT", "KILL", "TYPE", what, "SKIPME", "yes")

    async with contextlib.AsyncExitStack() as stack:
        brokers: list[Broker]
        if kind == "redis":
            redis = stack.enter_context(Redis("redis"))
            brokers = [RedisBroker(redis.url) for _ in range(3)]
            burn = functools.partial(kill, redis)
        else:
            engine = Engine(MemoryBroker(), seed=chance.randrange(1_000))
            brokers = [engine.node() for _ in range(3)]
            burn = functools.partial(cut, engine)
        burning = Fire(brokers, burn)
        stack.push_async_callback(burning.put_out)
        yield burning


async def settle(socket: Socket) -> None:
    await socket.namespace.members("red")


class Someone:
    """A client that does things at random, and knows what it did."""

    def __init__(self, client: Client, urls: list[str], chance: Random, user: str | None) -> None:
        self.client = client
        self.user = user
        self._urls = urls
        self._chance = chance
        self.rooms: set[str] = set()
        # How often it joined and left, by event and room.
        self.did: Counter[tuple[str, str]] = Counter()

    @property
    def id(self) -> str:
        return self.user or self.client.sid

    async def live(self) -> None:
        auth = {} if self.user is None else {"token": self.user}
        await self._admitted(self.client.connect(self._urls[0], auth=auth))
        for _ in range(STEPS):
            await self._step()

    async def _saved(self) -> None:
        """Wait until the store has the session of the client, and all that it did."""
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    await self.client.call("settle")
                    return
                except EventFailed as failure:
                    if failure.code != "unavailable":
                        raise

    async def _step(self) -> None:
        chance = self._chance
        if chance.random() < 0.4:
            await self._saved()
            sid = self.client.sid
            await self.client.cut()
            self.client.url = chance.choice(self._urls)
            await self._admitted(self.client.resume())
            assert self.client.recovered
            assert self.client.sid == sid
            return
        room = chance.choice(ROOMS)
        if room in self.rooms:
            await self.client.call("leave", room)
            self.rooms.discard(room)
            self.did["presence:leave", room] += 1
        else:
            await self.client.call("join", room)
            self.rooms.add(room)
            self.did["presence:join", room] += 1

    async def _admitted(self, attempt: Any) -> None:
        """Try until the broker can be reached."""
        async with asyncio.timeout(WAIT):
            while True:
                try:
                    await attempt
                    return
                except Refused as refusal:
                    if refusal.status != 503:
                        raise
                attempt = self.client.resume()


def follow(events: list[Event]) -> dict[str, set[str]]:
    """Return who is where in the end; each event must fit what was known before it."""
    rooms: dict[str, set[str]] = {room: set() for room in ROOMS}
    for event in events:
        there, member = rooms[event.data["room"]], event.data["member"]["id"]
        if event.name == "presence:join":
            assert member not in there, event
            there.add(member)
        else:
            assert event.name == "presence:leave", event
            assert member in there, event
            there.discard(member)
        assert len(there) == event.data["count"], event
    return rooms


@pytest.mark.parametrize("kind", ["elsewhere", "redis"])
async def test_nobody_flaps_while_connections_break(
    kind: str, serve: Serve, new_client: NewClient, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("CROSSBAND_SEED", secrets.randbelow(1_000_000)))
    with capsys.disabled():
        sys.stdout.write(f"\n{kind}: CROSSBAND_SEED={seed}\n")
    chance = Random(seed)
    async with fire(kind, chance) as burning:
        hubs = []
        for broker in burning.brokers:
            # Nobody is away for so long.
            hub = Hub(broker, authenticate=authenticate, history_age=600.0)
            hub.presence(lambda room: True, grace=600)
            hub.on("join", Socket.join)
            hub.on("leave", Socket.leave)
            hub.on("settle", settle)
            hubs.append(hub)
        urls = [(await serve(hub)).url for hub in hubs]
        burning.light()
        kinds = ("websocket", "sse")
        half = CLIENTS // 2
        people = [
            Someone(
                new_client(kinds[number % 2]),
                urls,
                Random(chance.random()),
                None if number < half else f"user {number // 2}",
            )
            for number in range(CLIENTS)
        ]
        watcher = Someone(new_client("websocket"), urls, chance, None)
        await watcher._admitted(watcher.client.connect(urls[2], rooms=ROOMS))
        await asyncio.gather(*(someone.live() for someone in people))
        await burning.put_out()

        # The truth, from all nodes, once they are in touch again.
        truth = {
            room: {someone.id for someone in (watcher, *people) if room in someone.rooms}
            | {watcher.client.sid}
            for room in ROOMS
        }

        async def members(hub: Hub, room: str) -> set[str]:
            with contextlib.suppress(BrokerUnavailable):
                return {member.id for member in (await hub.members(room)).members}
            return set()

        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT
        for hub in hubs:
            for room in ROOMS:
                while (found := await members(hub, room)) != truth[room]:
                    assert loop.time() < deadline, (room, found ^ truth[room], found)
                    await asyncio.sleep(0.05)
        async with asyncio.timeout(WAIT):
            while True:
                with contextlib.suppress(BrokerUnavailable):
                    await hubs[0].to("red").emit("the end")
                    break
        await watcher.client.next_event("the end")
        events = [event for event in watcher.client.log if event.name.startswith("presence:")]
        assert follow(events) == truth
        assert watcher.client.gaps == []
        # Whoever is one client joined and left as often as it did, and no more.
        told = Counter((each.data["member"]["id"], each.name, each.data["room"]) for each in events)
        for someone in people[:half]:
            for (event, room), times in someone.did.items():
                log = [
                    (each.name, each.data["room"])
                    for each in events
                    if each.data["member"]["id"] == someone.id
                ]
                assert told[someone.id, event, room] == times, (someone.did, log)
