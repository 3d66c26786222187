"""The contract of a broker, as tests: every broker is a parameter here and passes them all.

A broker joins by an entry in `BROKERS`: a factory that takes the history's size, bytes and age
and the clock, and gives a function that makes one more node of a cluster, not started.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import pytest

from crossband import Broker, MemoryBroker, Publication, Session
from crossband.broker import HISTORY_PAGE
from crossband.broker.redis import RedisBroker
from crossband.errors import Gap
from crossband.names import new_id
from crossband.protocol import payload
from tests.engines import Servers, shared, shared_cluster, shared_sentinels
from tests.far import far

CURSOR = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


# The brokers of several nodes that share one log.
Cluster = Callable[[], Broker]
Factory = Callable[[int, int, float, Clock], Cluster]


def memory(size: int, limit: int, age: float, clock: Clock) -> Cluster:
    first = MemoryBroker(history_size=size, history_bytes=limit, history_age=age, clock=clock)
    made: list[Broker] = []

    def node() -> Broker:
        made.append(first.peer() if made else first)
        return made[-1]

    return node


def redis(servers: Callable[[], Servers]) -> Factory:
    """Return a factory of brokers at servers that all tests share."""

    def factory(size: int, limit: int, age: float, clock: Clock) -> Cluster:
        url = f"{servers().url}?prefix={new_id()}"
        start = clock.now
        return lambda: RedisBroker(
            url,
            history_size=size,
            history_bytes=limit,
            history_age=age,
            skew=lambda: clock.now - start,
        )

    return factory


# Behind a network: late, cut, and asked twice.
BROKERS: dict[str, Factory] = {
    "memory": memory,
    "far": lambda size, limit, age, clock: far(size, limit, age, clock, seed=1).node,
    "redis": redis(lambda: shared("redis")),
    "valkey": redis(lambda: shared("valkey")),
    "sentinel": redis(shared_sentinels),
    "cluster": redis(shared_cluster),
}


class Node:
    """A started broker and what it delivered here."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self.broker = broker
        self.clock = clock
        self.delivered: list[Publication] = []
        self.losses: list[str] = []

    def deliver(self, publication: Publication) -> None:
        self.delivered.append(publication)

    def lost(self, namespace: str, sid: str | None = None) -> None:
        self.losses.append(namespace)

    def taken(self, namespace: str, key: str, take: int) -> None:
        raise AssertionError

    async def start(self, *namespaces: str) -> Node:
        await self.broker.start(self)
        await self.attach("/", *namespaces)
        return self

    async def attach(self, *namespaces: str) -> None:
        for namespace in namespaces:
            attaching = self.broker.attach(namespace)
            if attaching is not None:
                await attaching

    async def post(self, publication: Publication, *, record: bool = True) -> str | None:
        cursor = self.broker.publish(publication, record=record)
        if isinstance(cursor, asyncio.Future):
            return await cursor
        return cursor

    async def publish(
        self, number: int, namespace: str = "/", *, room: str | None = None, record: bool = True
    ) -> str | None:
        rooms = () if room is None else (room,)
        publication = Publication(namespace, "number", payload.encode([number]), rooms)
        return await self.post(publication, record=record)

    async def recorded(self, number: int, namespace: str = "/") -> str:
        cursor = await self.publish(number, namespace)
        assert cursor is not None
        return cursor

    async def send(self, number: int, *sids: str, namespace: str = "/") -> str:
        """Publish to some sockets alone, as `socket.emit` and `to(sid)` do."""
        publication = Publication(namespace, "number", payload.encode([number]), sids)
        cursor = await self.post(publication)
        assert cursor is not None
        return cursor

    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> list[Publication]:
        found: list[Publication] = []
        while True:
            page = await self.broker.history(namespace, after, sid, limit=limit)
            assert len(page.publications) <= limit
            found += page.publications
            positions = [publication.position for publication in found]
            assert positions == sorted(set(positions))
            assert not positions or positions[-1] <= page.position
            if page.last:
                return found
            after = page.cursor

    async def missed(
        self, after: str, namespace: str = "/", *, sid: str | None = None
    ) -> list[int]:
        return numbers(await self.history(namespace, after, sid))


def numbers(publications: list[Publication]) -> list[int]:
    return [payload.decode(publication.payload)[0] for publication in publications]


@pytest.fixture(params=BROKERS)
async def new_cluster(
    request: pytest.FixtureRequest,
) -> AsyncIterator[Callable[..., Callable[[], Node]]]:
    nodes: list[Node] = []

    def cluster(size: int = 100, age: float = 60.0, limit: int = 1_000) -> Callable[[], Node]:
        clock = Clock()
        make = BROKERS[request.param](size, limit, age, clock)

        def node() -> Node:
            nodes.append(Node(make(), clock))
            return nodes[-1]

        return node

    yield cluster
    for node in nodes:
        await node.broker.stop()


@pytest.fixture
def new_node(new_cluster: Callable[..., Callable[[], Node]]) -> Callable[..., Node]:
    return lambda *args: new_cluster(*args)()


@pytest.fixture
def cluster(new_cluster: Callable[..., Callable[[], Node]]) -> Callable[[], Node]:
    return new_cluster(10, 60.0)


@pytest.fixture
async def node(cluster: Callable[[], Node]) -> Node:
    return await cluster().start("/chat", "/one", "/two", "/other", "/nobody")


class TestOrder:
    async def test_every_publication_is_delivered_in_order_with_its_cursor(
        self, node: Node
    ) -> None:
        cursors = [await node.publish(number) for number in range(5)]
        assert numbers(node.delivered) == [0, 1, 2, 3, 4]
        assert [publication.cursor for publication in node.delivered] == cursors

    async def test_cursors_are_unique_and_plain(self, node: Node) -> None:
        cursors = [await node.recorded(number) for number in range(50)]
        assert len(set(cursors)) == 50
        assert all(CURSOR.fullmatch(cursor) for cursor in cursors)

    async def test_head_is_the_cursor_of_the_last_one_delivered(self, node: Node) -> None:
        before = node.broker.head("/")
        assert CURSOR.fullmatch(before)
        last = await node.publish(1)
        assert node.broker.head("/") == last != before

    async def test_publication_keeps_everything_it_was_given(self, node: Node) -> None:
        given = Publication(
            "/chat", "file", payload.encode(["a", b"\x00\xff"]), ("one", "two"), ("three",)
        )
        start = node.broker.head("/chat")
        cursor = await node.post(given)
        for seen in (*node.delivered, *await node.history("/chat", start)):
            assert seen == given.at(str(cursor), 1)
            assert payload.decode(seen.payload) == ["a", b"\x00\xff"]
        assert len(node.delivered) == 1

    async def test_namespaces_have_orders_of_their_own(self, node: Node) -> None:
        one = await node.recorded(1, "/one")
        await node.publish(2, "/two")
        await node.publish(3, "/one")
        assert await node.missed(one, "/one") == [3]
        with pytest.raises(Gap, match="unknown"):
            await node.missed(one, "/two")

    async def test_unrecorded_publication_is_delivered_and_forgotten(self, node: Node) -> None:
        first = await node.recorded(1)
        assert await node.publish(2, record=False) is None
        await node.publish(3)
        assert numbers(node.delivered) == [1, 2, 3]
        assert node.delivered[1].cursor is None
        assert await node.missed(first) == [3]

    async def test_many_publishers_at_once_share_one_order(self, node: Node) -> None:
        start = node.broker.head("/")
        await asyncio.gather(*(node.publish(number) for number in range(10)))
        delivered = numbers(node.delivered)
        assert sorted(delivered) == list(range(10))
        assert await node.missed(start) == delivered


class TestHistory:
    async def test_what_came_after_a_cursor_is_returned_oldest_first(self, node: Node) -> None:
        cursors = [await node.recorded(number) for number in range(5)]
        assert await node.missed(cursors[1]) == [2, 3, 4]

    async def test_nothing_is_missed_at_the_head(self, node: Node) -> None:
        assert await node.missed(node.broker.head("/")) == []
        assert await node.missed(await node.recorded(1)) == []

    async def test_head_of_an_empty_log_is_a_place_to_start(self, node: Node) -> None:
        start = node.broker.head("/")
        await node.publish(1)
        assert await node.missed(start) == [1]

    async def test_history_contains_only_what_was_delivered(self, node: Node) -> None:
        start = node.broker.head("/")
        for number in range(5):
            await node.publish(number)
            assert await node.missed(start) == numbers(node.delivered)

    async def test_history_is_bounded_by_count(self, node: Node) -> None:
        cursors = [await node.recorded(number) for number in range(15)]
        assert await node.missed(cursors[4]) == list(range(5, 15))
        with pytest.raises(Gap, match="expired"):
            await node.missed(cursors[3])

    async def test_history_is_bounded_by_bytes(self, node: Node) -> None:
        async def record(value: str | bytes) -> str:
            cursor = await node.post(Publication("/", "big", payload.encode([value])))
            assert cursor is not None
            return cursor

        def sized(size: int) -> str:
            # As JSON, in a list, and quoted.
            return "x" * (size - 4)

        start = node.broker.head("/")
        cursors = [await record(sized(400)), await record(sized(600))]
        assert len(await node.history("/", start)) == 2
        cursors.append(await record(sized(5)))
        with pytest.raises(Gap, match="expired"):
            await node.history("/", start)
        assert len(await node.history("/", cursors[0])) == 2
        # What is attached counts.
        cursors.append(await record(bytes(900)))
        assert len(await node.history("/", cursors[1])) == 2
        # Even the newest goes when it is larger than all that may be kept.
        cursors.append(await record(bytes(1_000)))
        assert await node.history("/", cursors[4]) == []
        with pytest.raises(Gap, match="expired"):
            await node.history("/", cursors[3])
        assert node.delivered[-1].cursor == cursors[4]
        await record(sized(1_000))
        assert len(await node.history("/", cursors[4])) == 1

    async def test_history_is_bounded_by_age(self, node: Node) -> None:
        old = await node.recorded(1)
        expired = await node.recorded(2)
        node.clock.now += 61
        young = await node.recorded(3)
        # The cursor of the last one that expired still has everything after it.
        assert await node.missed(expired) == [3]
        assert await node.missed(young) == []
        with pytest.raises(Gap, match="expired"):
            await node.missed(old)

    async def test_age_counts_without_new_publications(self, node: Node) -> None:
        start = node.broker.head("/")
        last = await node.recorded(1)
        node.clock.now += 61
        with pytest.raises(Gap, match="expired"):
            await node.missed(start)
        assert await node.missed(last) == []

    @pytest.mark.parametrize(
        "cursor",
        [
            "",
            "-",
            "nonsense",
            "0-0",
            "9" * 10_000,
            "\u0661-\u0661",
            "a-1\n",
            "{epoch}",
            "{epoch}-",
            "{epoch}--1",
            "{epoch}-+1",
            "{epoch}-01",
            "{epoch}-1 ",
            "{epoch}-²",
            "{epoch}-999999",
            "{epoch}-" + "9" * 5_000,
            " {head}",
            "{head}\x00",
        ],
    )
    async def test_cursor_it_never_gave_is_unknown(self, node: Node, cursor: str) -> None:
        head = await node.recorded(1)
        shown = cursor.format(epoch=head.rpartition("-")[0], head=head)
        with pytest.raises(Gap, match="unknown"):
            await node.history("/", shown)

    async def test_namespace_that_never_published_knows_no_cursor(self, node: Node) -> None:
        with pytest.raises(Gap, match="unknown"):
            await node.history("/nobody", await node.recorded(1))

    async def test_cursor_of_another_start_is_unknown(
        self, node: Node, new_node: Callable[..., Node]
    ) -> None:
        old = [await node.recorded(number) for number in range(3)]
        restarted = new_node()
        await restarted.start()
        for number in range(3):
            await restarted.publish(number)
        for cursor in old:
            with pytest.raises(Gap, match="unknown"):
                await restarted.history("/", cursor)


class TestPrivate:
    """What is sent to single sockets, which pushes nothing of others out of the history."""

    @pytest.fixture
    async def node(self, new_node: Callable[..., Node]) -> Node:
        # A broker may count more than an event's data here.
        made = new_node(10, 60.0, 100_000)
        return await made.start("/other")

    @pytest.fixture
    def new_session(self, node: Node) -> Callable[..., Session]:
        def make(*rooms: str) -> Session:
            sid = new_id()
            made = Session("/", f"key of {sid}", sid, set(rooms), {}, node.broker.head("/"))
            made.owner = node.broker.bus.node
            node.broker.sessions.save(made)
            return made

        return make

    async def test_own_events_come_back_in_their_places(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada, bob = new_session(), new_session()
        start = node.broker.head("/")
        for number in (1, 4):
            await node.publish(number)
            middle = await node.send(number + 1, ada.sid)
            await node.send(number + 2, bob.sid)
        assert numbers(node.delivered) == [1, 2, 3, 4, 5, 6]
        assert await node.missed(start, sid=ada.sid) == [1, 2, 4, 5]
        assert await node.missed(start, sid=bob.sid) == [1, 3, 4, 6]
        assert await node.missed(start) == [1, 4]
        assert await node.missed(middle, sid=ada.sid) == []
        assert await node.missed(middle, sid=bob.sid) == [6]

    async def test_cursors_have_one_order_whoever_an_event_is_for(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada, bob = new_session(), new_session()
        cursors = [await node.send(1, ada.sid), await node.send(2, bob.sid)]
        cursors += [await node.send(3, new_id()), await node.recorded(4)]
        assert len(set(cursors)) == 4
        assert node.broker.head("/") == cursors[-1]
        # Each is a place to go on from, for everybody.
        for place, cursor in enumerate(cursors):
            assert await node.missed(cursor, sid=ada.sid) == ([4] if place < 3 else [])

    async def test_one_session_pushes_nothing_out_for_another(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada, bob = new_session(), new_session()
        start = node.broker.head("/")
        await node.publish(1)
        await node.send(2, ada.sid)
        for number in range(100):
            await node.send(number, bob.sid)
            await node.send(number, new_id())
        assert await node.missed(start) == [1]
        assert await node.missed(start, sid=ada.sid) == [1, 2]
        with pytest.raises(Gap, match="expired"):
            await node.missed(start, sid=bob.sid)

    async def test_own_events_are_bounded_by_count(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        cursors = [await node.send(number, ada.sid) for number in range(11)]
        assert await node.missed(cursors[0], sid=ada.sid) == list(range(1, 11))
        cursors.append(await node.send(11, ada.sid))
        with pytest.raises(Gap, match="expired"):
            await node.missed(cursors[0], sid=ada.sid)
        assert await node.missed(cursors[1], sid=ada.sid) == list(range(2, 12))
        # What the others are for is all there.
        assert await node.missed(cursors[0]) == []

    async def test_own_events_are_bounded_by_age(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        start = node.broker.head("/")
        old = await node.send(1, ada.sid)
        node.clock.now += 61
        await node.send(2, ada.sid)
        with pytest.raises(Gap, match="expired"):
            await node.missed(start, sid=ada.sid)
        assert await node.missed(old, sid=ada.sid) == [2]
        node.clock.now += 61
        with pytest.raises(Gap, match="expired"):
            await node.missed(old, sid=ada.sid)

    async def test_own_events_are_kept_while_the_session_is_away_or_taken(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        start = await node.send(1, ada.sid)
        node.broker.sessions.release(ada)
        await node.send(2, ada.sid)
        taken = await node.broker.sessions.take(ada, ada.owner)
        assert taken is not None
        await node.send(3, ada.sid)
        node.broker.sessions.release(taken)
        await node.send(4, ada.sid)
        assert await node.broker.sessions.take(ada, "another") is not None
        assert await node.missed(start, sid=ada.sid) == [2, 3, 4]

    async def test_client_that_takes_over_its_own_session_keeps_its_events(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        start = await node.send(1, ada.sid)
        taken = await node.broker.sessions.take(ada, ada.owner)
        assert taken is not None
        # Its old connection saves it once more, and is then ended.
        node.broker.sessions.save(ada)
        await node.send(2, ada.sid)
        node.broker.sessions.drop(ada)
        node.broker.sessions.save(taken)
        assert await node.missed(start, sid=ada.sid) == [2]

    async def test_event_for_several_sockets_comes_back_to_each(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada, bob, eve = new_session(), new_session(), new_session()
        start = node.broker.head("/")
        await node.send(1, ada.sid, bob.sid)
        for number in range(100):
            await node.send(number, eve.sid, new_id())
        for sid, missed in ((ada.sid, [1]), (bob.sid, [1]), (None, [])):
            assert await node.missed(start, sid=sid) == missed

    async def test_room_of_a_socket_that_others_joined_is_like_any_room(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        guest = new_session(ada.sid)
        start = node.broker.head("/")
        await node.send(1, ada.sid)
        for sid in (ada.sid, guest.sid, None):
            assert await node.missed(start, sid=sid) == [1]
        guest.rooms.clear()
        node.broker.sessions.save(guest)
        await node.send(2, ada.sid)
        assert await node.missed(start, sid=ada.sid) == [1, 2]
        assert await node.missed(start, sid=guest.sid) == [1]

    async def test_namespaces_have_private_events_of_their_own(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        start = node.broker.head("/")
        elsewhere = node.broker.head("/other")
        await node.send(1, ada.sid)
        await node.send(2, ada.sid, namespace="/other")
        assert await node.missed(start, sid=ada.sid) == [1]
        assert await node.missed(elsewhere, "/other", sid=ada.sid) == []

    async def test_unrecorded_private_event_is_forgotten(
        self, node: Node, new_session: Callable[..., Session]
    ) -> None:
        ada = new_session()
        start = node.broker.head("/")
        publication = Publication("/", "number", payload.encode([1]), (ada.sid,))
        assert await node.post(publication, record=False) is None
        assert numbers(node.delivered) == [1]
        assert await node.missed(start, sid=ada.sid) == []


class TestLife:
    async def test_publishing_after_stop_reaches_nobody(self, node: Node) -> None:
        await node.broker.stop()
        await node.publish(1)
        assert node.delivered == []

    async def test_stopping_twice_is_harmless(self, node: Node) -> None:
        await node.broker.stop()
        await node.broker.stop()
