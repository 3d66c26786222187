"""Real servers that fail: every publication reaches every node once, in one order, or in a gap."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from crossband.broker import Publication
from crossband.broker.redis import RedisBroker
from crossband.broker.redis.feed import Feed
from crossband.broker.redis.keys import Keys
from crossband.errors import BrokerUnavailable, Gap
from crossband.names import new_id
from crossband.protocol import payload
from tests.clients.base import WAIT
from tests.engines import Cluster as EngineCluster
from tests.engines import Engine, Sentinels, shared
from tests.front import Front
from tests.waiting import until


class Witness:
    """A node that publishes numbers, and notes what it is given."""

    def __init__(self, url: str, number: int, *, age: float = 60.0) -> None:
        self.url = url
        self.broker = RedisBroker(url, history_age=age)
        # What the keys of its namespace begin with.
        self.base = Keys(url.partition("prefix=")[2]).base("/")
        self.id = number
        self.numbers = itertools.count()
        # What came, in order; None where it was told of a loss.
        self.seen: list[str | None] = []
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self._pending: list[tuple[str, asyncio.Future[str | None]]] = []

    def deliver(self, publication: Publication) -> None:
        self.seen.append(payload.decode(publication.payload)[0])

    def lost(self, namespace: str, sid: str | None = None) -> None:
        self.seen.append(None)

    def taken(self, namespace: str, key: str, take: int) -> None:
        raise AssertionError

    async def start(self) -> Witness:
        await self.broker.start(self)
        attaching = self.broker.attach("/")
        if attaching is not None:
            await attaching
        return self

    def publish(self) -> None:
        """Publish a number without waiting."""
        text = f"{self.id}.{next(self.numbers)}"
        publication = Publication("/", "number", payload.encode([text]))
        self._pending.append((text, self.broker.publish(publication)))

    async def settle(self) -> None:
        """Wait until everything is published or has failed."""
        pending, self._pending = self._pending, []
        for text, future in pending:
            try:
                assert await future is not None
                self.acknowledged.append(text)
            except BrokerUnavailable:
                self.refused.append(text)

    @property
    def losses(self) -> int:
        return self.seen.count(None)

    @property
    def delivered(self) -> list[str]:
        return [text for text in self.seen if text is not None]


class Cluster:
    """Some nodes, and what must be true of them."""

    def __init__(self, nodes: list[Witness]) -> None:
        self.nodes = nodes

    async def publish(self, rounds: int, between: Callable[[int], None] | None = None) -> None:
        """Publish from all nodes at once, in rounds; `between` makes the trouble."""
        chance = random.Random(rounds)
        for number in range(rounds):
            for node in self.nodes:
                for _ in range(chance.randint(0, 5)):
                    node.publish()
            if between is not None:
                between(number)
            await asyncio.sleep(0.002)

    async def agree(self) -> None:
        """Wait until all nodes have all; check that it is the same, in the same order."""
        for node in self.nodes:
            await node.settle()
        # Behind all that was published: so each of them has what came before, or was told.
        for node in self.nodes:
            node.publish()
            await node.settle()
        last = {node.acknowledged[-1] for node in self.nodes}
        async with asyncio.timeout(WAIT):
            for node in self.nodes:
                await until(lambda node=node: last <= set(node.delivered))  # type: ignore[misc]
        for node in self.nodes:
            assert len(node.delivered) == len(set(node.delivered)), "something came twice"
        self._in_one_order()

    def _in_one_order(self) -> None:
        for one, other in itertools.combinations(self.nodes, 2):
            both = set(one.delivered) & set(other.delivered)
            assert [text for text in one.delivered if text in both] == [
                text for text in other.delivered if text in both
            ]

    def has_all_or_gaps(self) -> None:
        """Check that what a node lacks was acknowledged before a loss that it was told of."""
        acknowledged = {text for node in self.nodes for text in node.acknowledged}
        for node in self.nodes:
            if acknowledged - set(node.delivered):
                assert node.losses

    def has_all(self) -> None:
        """Check that nobody lost anything."""
        acknowledged = {text for node in self.nodes for text in node.acknowledged}
        for node in self.nodes:
            assert node.losses == 0
            assert acknowledged <= set(node.delivered)
        assert len({tuple(node.delivered) for node in self.nodes}) == 1


@contextlib.asynccontextmanager
async def cluster(url: str, count: int = 3, *, age: float = 60.0) -> AsyncIterator[Cluster]:
    url = f"{url}?prefix={new_id()}"
    nodes = [Witness(url, number, age=age) for number in range(count)]
    try:
        for node in nodes:
            await node.start()
        yield Cluster(nodes)
    finally:
        for node in nodes:
            await node.broker.stop()


async def test_all_nodes_agree_on_one_order() -> None:
    async with cluster(shared().url) as nodes:
        await nodes.publish(50)
        await nodes.agree()
        nodes.has_all()
        assert not any(node.refused for node in nodes.nodes)


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_cut_connections_lose_nothing(kind: str) -> None:
    with Engine() as engine:

        def cut(number: int) -> None:
            if number % 10 == 9:
                engine.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

        async with cluster(engine.url) as nodes:
            await nodes.publish(100, cut)
            await nodes.agree()
            nodes.has_all()
            assert not any(node.refused for node in nodes.nodes)


async def test_forgotten_scripts_are_sent_again() -> None:
    with Engine() as engine:
        async with cluster(engine.url) as nodes:
            await nodes.publish(50, lambda _: engine.command("SCRIPT", "FLUSH"))
            await nodes.agree()
            nodes.has_all()


async def test_restart_with_its_data_loses_nothing() -> None:
    with Engine(save=True, settings=["appendfsync always"]) as engine:
        async with cluster(engine.url) as nodes:
            before = nodes.nodes[0].broker.head("/")
            await nodes.publish(20)
            engine.kill()
            await nodes.publish(20)
            await asyncio.to_thread(engine.start)
            await nodes.publish(20)
            await nodes.agree()
            nodes.has_all()
            # Cursors from before are worth as much as ever.
            page = await nodes.nodes[1].broker.history("/", before)
            seen = [payload.decode(each.payload)[0] for each in page.publications]
            assert seen == nodes.nodes[1].delivered[: len(seen)]


async def test_restart_without_its_data_is_told() -> None:
    with Engine() as engine:
        async with cluster(engine.url) as nodes:
            await nodes.publish(20)
            await nodes.agree()
            before = nodes.nodes[0].broker.head("/")
            known = {node: len(node.acknowledged) for node in nodes.nodes}
            engine.kill()
            await asyncio.to_thread(engine.start)
            await nodes.publish(20)
            await nodes.agree()
            assert [node.losses for node in nodes.nodes] == [1, 1, 1]
            # Nobody missed the beginning of what there is now.
            later = {text for node in known for text in node.acknowledged[known[node] :]}
            assert all(later <= set(node.delivered) for node in nodes.nodes)
            with pytest.raises(Gap, match="unknown"):
                await nodes.nodes[0].broker.history("/", before)


async def test_beginning_of_a_new_log_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine() as engine:
        async with cluster(engine.url, 2) as nodes:
            one, two = nodes.nodes
            await nodes.publish(5)
            await nodes.agree()
            top = Feed.top

            async def late_top(feed: Feed) -> list[Any]:
                # This node knows that the log is lost; before it begins one, another has.
                if feed is two.broker._feeds["/"]:
                    one.publish()
                    await one.settle()
                return await top(feed)

            monkeypatch.setattr(Feed, "top", late_top)
            engine.command("FLUSHALL")
            two.broker._feeds["/"].read()
            await until(lambda: two.losses)
            await nodes.agree()
            assert one.acknowledged[-2] in two.delivered


async def test_server_that_does_not_say_who_it_is_is_another_with_each_connection() -> None:
    acl = "~* &* +@all -info"
    with Engine(user="app", password="secret", acl=acl) as engine:
        node = await Witness(engine.url, 0).start()
        try:
            publications = [
                Publication(namespace, "number", payload.encode([1])) for namespace in ("/", "/a")
            ]
            before = [await node.broker.publish(each) for each in publications]
            again = [await node.broker.publish(each) for each in publications]
            engine.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            # What is on its way is sent again as it was.
            await node.broker.publish(Publication("/b", "number", payload.encode([1])))
            after = [await node.broker.publish(each) for each in publications]
            for one, two, three in zip(before, again, after, strict=True):
                assert one is not None
                assert two is not None
                assert three is not None
                generations = [cursor.rpartition("-")[0] for cursor in (one, two, three)]
                assert generations[0] == generations[1] != generations[2]
        finally:
            await node.broker.stop()


async def test_failover_that_loses_nothing_is_not_told() -> None:
    with Sentinels() as servers:
        async with cluster(servers.url) as nodes:
            await nodes.publish(20)
            await nodes.agree()
            before = nodes.nodes[0].broker.head("/")
            await asyncio.to_thread(servers.fail_over)
            await nodes.publish(20)
            await nodes.agree()
            nodes.has_all()
            assert (await nodes.nodes[0].broker.history("/", before)).last


async def test_failover_to_a_replica_that_is_behind_is_told() -> None:
    with Sentinels() as servers:
        async with cluster(servers.url) as nodes:
            one = nodes.nodes[0]
            await nodes.publish(20)
            await nodes.agree()
            shared_head = one.broker.head("/")
            await asyncio.to_thread(servers.lag)
            await nodes.publish(5)
            for node in nodes.nodes:
                await node.settle()
            lost_head = one.broker.head("/")
            assert lost_head != shared_head
            await asyncio.to_thread(servers.lose_primary)
            await nodes.publish(20)
            await nodes.agree()
            assert [node.losses for node in nodes.nodes] == [1, 1, 1]
            # Who saw what is lost is told, and so is who would have missed it.
            for cursor in (lost_head, shared_head):
                with pytest.raises(Gap, match="unknown"):
                    await one.broker.history("/", cursor)


async def test_log_that_had_nothing_yet_where_it_goes_on_is_a_loss() -> None:
    with Engine() as engine:
        async with cluster(engine.url) as nodes:
            meta, log = (f"{nodes.nodes[0].base}{name}" for name in ("meta", "log"))
            # As a replica has it that is behind, and will be another server.
            engine.command("COPY", meta, "behind")
            if engine.command("HEXISTS", "behind", "replid"):
                engine.command("HSET", "behind", "replid", "another")
            await nodes.publish(5)
            await nodes.agree()
            engine.command("COPY", "behind", meta, "REPLACE")
            engine.command("DEL", log)
            # More than there were.
            await nodes.publish(20)
            await nodes.agree()
            assert [node.losses for node in nodes.nodes] == [1, 1, 1]
            nodes.has_all_or_gaps()


async def test_full_server_refuses_publications_and_serves_on() -> None:
    with Engine(settings=["maxmemory-policy noeviction"]) as engine:
        async with cluster(engine.url) as nodes:
            one = nodes.nodes[0]
            await nodes.publish(5)
            await nodes.agree()
            start = one.broker.head("/")
            engine.command("CONFIG", "SET", "maxmemory", "1")
            one.publish()
            await one.settle()
            assert len(one.refused) == 1
            with pytest.raises(BrokerUnavailable, match="Redis is full: give it more memory"):
                await one.broker.publish(Publication("/", "number", payload.encode(["x"])))
            assert (await nodes.nodes[1].broker.history("/", start)).publications == []
            engine.command("CONFIG", "SET", "maxmemory", "0")
            await nodes.publish(5)
            await nodes.agree()
            nodes.has_all()


async def test_too_few_replicas_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("crossband.broker.redis.commands.PATIENCE", 0.5)
    with Engine() as engine:
        async with cluster(engine.url) as nodes:
            one = nodes.nodes[0]
            engine.command("CONFIG", "SET", "min-replicas-to-write", "1")
            with pytest.raises(BrokerUnavailable, match="Redis has too few replicas"):
                await one.broker.publish(Publication("/", "number", payload.encode(["x"])))
            assert "Redis has too few replicas" in str(one.broker.problem)
            assert "Redis has too few replicas" in caplog.text
            engine.command("CONFIG", "SET", "min-replicas-to-write", "0")
            await nodes.publish(5)
            await nodes.agree()
            nodes.has_all()


async def test_isolated_primary_is_left_and_its_loss_told() -> None:
    with Sentinels() as servers:
        async with cluster(servers.url) as nodes:
            await nodes.publish(20)
            await nodes.agree()
            # It stops, another takes its place, and it goes on as if nothing had happened: it
            # takes publications until the sentinels find it.
            isolating = asyncio.ensure_future(asyncio.to_thread(servers.isolate_primary))
            while not isolating.done():
                await nodes.publish(5)
            await isolating
            await nodes.publish(20)
            await nodes.agree()
            nodes.has_all_or_gaps()


async def test_slot_that_moves_loses_nothing() -> None:
    with EngineCluster() as servers:
        async with cluster(servers.url) as nodes:
            key = nodes.nodes[0].base
            for _ in range(3):
                moving = asyncio.ensure_future(asyncio.to_thread(servers.move, key))
                while not moving.done():
                    await nodes.publish(5)
                await moving
                await nodes.publish(5)
            await nodes.agree()
            nodes.has_all()


async def test_link_that_goes_dead_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("QUIET", 0.1), ("DEAF", 0.5)):
        monkeypatch.setattr(f"crossband.broker.redis.subscription.{name}", seconds)
    monkeypatch.setattr("crossband.broker.redis.commands.REPLY_TIME", 0.5)
    with Engine() as engine:
        async with Front([engine.url]) as link, cluster(engine.url) as nodes:
            options = nodes.nodes[0].url.partition("?")[2]
            lonely = await Witness(f"redis://127.0.0.1:{link.port}?{options}", 9).start()
            nodes.nodes.append(lonely)
            await nodes.publish(10)
            await nodes.agree()
            link.die()
            await nodes.publish(10)
            link.revive()
            await nodes.publish(10)
            await nodes.agree()
            nodes.has_all()


async def test_channel_that_a_server_drops_is_subscribed_to_again() -> None:
    with EngineCluster() as servers:
        async with cluster(servers.url) as nodes:
            key = nodes.nodes[0].base
            owner, slot = servers.owner(key), servers.slot(key)
            # As happens behind a move, when a server is told once more that the slot is its own.
            owner.command("CLUSTER", "SETSLOT", slot, "NODE", owner.command("CLUSTER", "MYID"))
            await until(lambda: owner.command("PUBSUB", "SHARDNUMSUB", key)[1] == len(nodes.nodes))
            await nodes.publish(5)
            await nodes.agree()
            nodes.has_all()
