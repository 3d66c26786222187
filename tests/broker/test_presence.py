"""The contract of a presence store, as tests: in memory, and behind a hostile network."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from crossband import Publication
from crossband.broker import Member, Members, Presence
from crossband.broker.sessions import LEASE
from crossband.names import JOIN, LEAVE, UPDATE
from crossband.protocol import payload
from tests.broker.test_conformance import BROKERS, Clock, Cluster
from tests.clients.base import WAIT

GRACE = 20.0


class Ear:
    """What one node is delivered, and whether it has all of it."""

    def __init__(self) -> None:
        self.heard: list[Publication] = []
        self._more = asyncio.Event()

    def deliver(self, publication: Publication) -> None:
        self.heard.append(publication)
        self._more.set()

    def lost(self, namespace: str, sid: str | None = None) -> None:
        raise AssertionError(namespace)

    def taken(self, namespace: str, key: str, take: int) -> None:
        raise AssertionError(key)

    async def until(self, position: int) -> None:
        async with asyncio.timeout(WAIT):
            while not self.heard or self.heard[-1].position < position:
                self._more.clear()
                await self._more.wait()


class Nodes:
    """Three nodes of a cluster, attached to `/`, and its clock."""

    def __init__(self, make: Cluster, clock: Clock) -> None:
        self.clock = clock
        self.brokers = [make() for _ in range(3)]
        self.ears = [Ear() for _ in self.brokers]

    async def start(self) -> None:
        for broker, ear in zip(self.brokers, self.ears, strict=True):
            await broker.start(ear)
            attaching = broker.attach("/")
            if attaching is not None:
                await attaching
        await self.renew(*range(len(self.brokers)))

    async def renew(self, *nodes: int) -> None:
        for node in nodes:
            await self.brokers[node].presence.renew("/", self.brokers[node].bus.node)

    def save(
        self,
        sid: str,
        rooms: dict[str, Member],
        *,
        node: int = 0,
        take: int = 0,
        connected: bool = True,
        user: str | None = None,
        grace: float = GRACE,
    ) -> None:
        broker = self.brokers[node]
        presence = Presence("/", sid, rooms, broker.bus.node, take, user, grace)
        broker.presence.save(presence, connected=connected)

    async def members(self, room: str = "room", *, node: int = 0, **page: Any) -> Members:
        return await self.brokers[node].presence.members("/", room, **page)

    async def ids(self, room: str = "room", *, node: int = 0) -> list[str]:
        return [member.id for member in (await self.members(room, node=node)).members]

    async def pass_time(self, seconds: float, *alive: int) -> None:
        """Let time pass for which only these nodes are alive."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + LEASE / 4)
            await self.renew(*alive)

    async def events(self, node: int = 0) -> list[tuple[str, str, str, int]]:
        """Return the event, room, member and count of all that is published so far."""
        position = max([(await self.members(node=each)).position for each in range(3)])
        if position:
            await self.ears[node].until(position)
        return [told(publication) for publication in self.ears[node].heard]


def told(publication: Publication) -> tuple[str, str, str, int]:
    (data,) = payload.decode(publication.payload)
    assert publication.rooms == (data["room"],)
    return publication.event, data["room"], data["member"]["id"], data["count"]


@pytest.fixture(params=BROKERS)
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    clock = Clock()
    nodes = Nodes(BROKERS[request.param](1_000, 1_000_000, 3_600.0, clock), clock)
    await nodes.start()
    yield nodes
    for broker in nodes.brokers:
        await broker.stop()


ADA, BOB = Member("ada"), Member("bob")


async def test_member_joins_once_and_leaves_once_over_all_its_clients(nodes: Nodes) -> None:
    nodes.save("tab1", {"room": ADA})
    assert await nodes.ids() == ["ada"]
    nodes.save("tab2", {"room": ADA}, node=1)
    assert await nodes.ids(node=1) == ["ada"]
    nodes.save("tab1", {})
    assert await nodes.ids() == ["ada"]
    nodes.save("tab2", {}, node=1)
    assert await nodes.ids(node=1) == []
    for node in range(3):
        assert await nodes.events(node) == [(JOIN, "room", "ada", 1), (LEAVE, "room", "ada", 0)]


async def test_events_are_in_the_order_of_what_the_node_publishes(nodes: Nodes) -> None:
    broker = nodes.brokers[0]
    for number in range(20):
        if number % 2:
            nodes.save(f"sid{number}", {"room": Member(f"m{number}")})
        else:
            broker.publish(Publication("/", "number", payload.encode([number]), ("room",)))
    position = (await nodes.members()).position
    await nodes.ears[2].until(position)
    heard = nodes.ears[2].heard
    assert [
        payload.decode(each.payload)[0] if each.event == "number" else int(told(each)[2][1:])
        for each in heard
    ] == list(range(20))
    assert [each.position for each in heard] == list(range(1, 21))
    assert all(each.cursor for each in heard)


async def test_snapshot_is_true_at_its_cursor_and_delivered_up_to_there(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA})
    nodes.save("b", {"room": BOB, "other": BOB})
    snapshot = await nodes.members()
    assert snapshot.members == [ADA, BOB]
    assert (snapshot.count, snapshot.next, snapshot.position) == (2, None, 3)
    assert len(nodes.ears[0].heard) == 3
    assert nodes.ears[0].heard[-1].cursor == snapshot.cursor
    nodes.save("a", {})
    await nodes.members()
    page = await nodes.brokers[0].history("/", snapshot.cursor)
    assert [told(each) for each in page.publications] == [(LEAVE, "room", "ada", 1)]


async def test_snapshot_of_an_empty_room(nodes: Nodes) -> None:
    snapshot = await nodes.members("nowhere")
    assert (snapshot.members, snapshot.count, snapshot.next) == ([], 0, None)
    assert snapshot.cursor == nodes.brokers[0].head("/")


async def test_pages_are_in_the_order_of_joining_and_miss_nobody(nodes: Nodes) -> None:
    for number in range(25):
        nodes.save(f"sid{number}", {"room": Member(f"m{number}")})
    found: list[str] = []
    after = 0
    while True:
        page = await nodes.members(after=after, limit=10)
        found += [member.id for member in page.members]
        if page.next is None:
            break
        after = page.next
        # Who left and came back is at the end.
        nodes.save("sid3", {})
        nodes.save("sid3", {"room": Member("m3")})
    assert found == [f"m{number}" for number in range(25)] + ["m3"]
    assert page.count == 25


async def test_changed_rooms_are_joined_and_left_in_one_call(nodes: Nodes) -> None:
    nodes.save("a", {"one": ADA, "two": ADA})
    nodes.save("a", {"two": ADA, "three": ADA})
    assert await nodes.events() == [
        (JOIN, "one", "ada", 1),
        (JOIN, "two", "ada", 1),
        (LEAVE, "one", "ada", 0),
        (JOIN, "three", "ada", 1),
    ]


async def test_client_that_becomes_another_member_leaves_as_the_first(nodes: Nodes) -> None:
    nodes.save("a", {"room": Member("a")})
    nodes.save("a", {"room": ADA})
    assert await nodes.ids() == ["ada"]
    assert await nodes.events() == [
        (JOIN, "room", "a", 1),
        (LEAVE, "room", "a", 0),
        (JOIN, "room", "ada", 1),
    ]


async def test_changed_info_is_told_once(nodes: Nodes) -> None:
    away = Member("ada", {"status": "away"})
    nodes.save("a", {"room": ADA})
    await nodes.members()
    nodes.save("b", {"room": ADA}, node=1)
    await nodes.members(node=1)
    nodes.save("a", {"room": away})
    await nodes.members()
    nodes.save("a", {"room": away})
    assert (await nodes.members()).members == [away]
    # The other client changed nothing, and so takes nothing back.
    nodes.save("b", {"room": ADA}, node=1)
    assert (await nodes.members(node=1)).members == [away]
    assert [event for event, *_ in await nodes.events()] == [JOIN, UPDATE]
    (data,) = payload.decode(nodes.ears[0].heard[-1].payload)
    assert data == {
        "room": "room",
        "member": {"id": "ada", "info": {"status": "away"}},
        "count": 1,
    }


async def test_client_that_is_cut_and_comes_back_never_left(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA})
    nodes.save("a", {"room": ADA}, connected=False)
    await nodes.pass_time(GRACE - 1, 0, 1, 2)
    assert await nodes.ids() == ["ada"]
    # On another node.
    nodes.save("a", {"room": ADA}, node=1, take=1)
    await nodes.members(node=1)
    await nodes.pass_time(3 * GRACE, 0, 1, 2)
    assert await nodes.ids() == ["ada"]
    assert await nodes.events() == [(JOIN, "room", "ada", 1)]


async def test_client_that_is_cut_leaves_after_its_grace(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA, "other": ADA})
    nodes.save("a", {"room": ADA, "other": ADA}, connected=False)
    await nodes.members()
    await nodes.pass_time(GRACE - 1, 0, 1, 2)
    assert await nodes.ids() == ["ada"]
    nodes.clock.now += 1
    # Whoever looks first, it leaves, and once.
    await asyncio.gather(*(nodes.renew(node) for node in (0, 1, 2, 0, 1, 2)))
    assert await nodes.ids(node=1) == []
    assert await nodes.events() == [
        (JOIN, "room", "ada", 1),
        (JOIN, "other", "ada", 1),
        (LEAVE, "room", "ada", 0),
        (LEAVE, "other", "ada", 0),
    ]


async def test_reading_the_members_lets_leave_who_is_due(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA})
    nodes.save("a", {"room": ADA}, connected=False)
    await nodes.members()
    nodes.clock.now += GRACE
    assert await nodes.ids(node=2) == []
    assert (await nodes.events())[-1] == (LEAVE, "room", "ada", 0)


async def test_clients_of_a_node_that_is_gone_leave_after_their_grace(nodes: Nodes) -> None:
    for number in range(30):
        nodes.save(f"sid{number}", {"room": Member(f"m{number}")}, node=number % 2)
    await nodes.members(node=0)
    await nodes.members(node=1)
    if nodes.brokers[1].publishes_at_once:
        # In one process a node is alive as long as it runs.
        await nodes.brokers[1].stop()
        await nodes.pass_time(GRACE - 1, 0, 2)
    else:
        await nodes.pass_time(LEASE + GRACE - LEASE / 4 - 1, 0, 2)
    assert len(await nodes.ids()) == 30
    # One comes back elsewhere in time, and another does.
    nodes.save("sid1", {"room": Member("m1")}, node=2, take=1)
    nodes.save("sid3", {"room": Member("m3")}, node=0, take=1)
    await nodes.members(node=2)
    await nodes.pass_time(LEASE, 0, 2)
    left = sorted(f"m{number}" for number in range(30) if number % 2 and number > 3)
    assert sorted(await nodes.ids()) == sorted(
        [f"m{number}" for number in range(0, 30, 2)] + ["m1", "m3"]
    )
    events = await nodes.events(2)
    assert sorted(member for event, _, member, _ in events if event == LEAVE) == left
    assert len(events) == 30 + len(left)


async def test_node_that_was_away_for_too_long_is_told(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA})
    nodes.save("b", {"room": BOB})
    await nodes.members()
    broker = nodes.brokers[0]
    assert await broker.presence.renew("/", broker.bus.node)
    if broker.publishes_at_once:
        return
    await nodes.pass_time(LEASE, 1, 2)
    # A call before it knows does not make it look as if nothing had been.
    nodes.save("c", {"room": Member("eve")})
    assert not await broker.presence.renew("/", broker.bus.node)
    nodes.save("a", {"room": ADA})
    nodes.save("c", {"room": Member("eve")})
    assert await nodes.ids() == ["ada", "bob", "eve"]
    assert await broker.presence.renew("/", broker.bus.node)
    await nodes.pass_time(LEASE + GRACE, 0, 1, 2)
    # Bob's connection had ended meanwhile, so the node did not save it again.
    assert await nodes.ids() == ["ada", "eve"]


async def test_earlier_owner_changes_nothing(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA})
    await nodes.members()
    nodes.save("a", {"room": ADA}, node=1, take=1)
    await nodes.members(node=1)
    nodes.save("a", {})
    nodes.save("a", {"room": ADA, "other": ADA}, connected=False)
    await nodes.members()
    await nodes.pass_time(3 * GRACE, 0, 1, 2)
    assert await nodes.ids() == ["ada"]
    assert await nodes.ids("other") == []
    assert await nodes.events() == [(JOIN, "room", "ada", 1)]


async def test_late_call_of_an_earlier_owner_brings_nobody_back(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA})
    await nodes.members()
    nodes.save("a", {"room": ADA}, node=1, take=1)
    nodes.save("a", {}, node=1, take=1)
    await nodes.members(node=1)
    nodes.save("a", {"room": ADA}, connected=False)
    assert await nodes.ids() == []
    # Its owner may.
    nodes.save("a", {"room": ADA}, node=1, take=1)
    nodes.save("a", {}, node=1, take=1)
    await nodes.members(node=1)
    await nodes.pass_time(2 * LEASE, 0, 1, 2)
    assert await nodes.events() == 2 * [(JOIN, "room", "ada", 1), (LEAVE, "room", "ada", 0)]


async def test_expelled_user_leaves_where_it_is_cut(nodes: Nodes) -> None:
    nodes.save("a", {"room": ADA}, user="ada")
    nodes.save("b", {"room": BOB}, user="bob")
    nodes.save("b", {"room": BOB}, user="bob", connected=False)
    nodes.save("c", {"other": ADA}, user="ada")
    nodes.save("c", {"other": ADA}, user="ada", connected=False)
    await nodes.members()
    nodes.brokers[1].presence.expel("/", "ada")
    await nodes.members(node=1)
    # A connected client has a node that ends it.
    assert await nodes.ids() == ["ada", "bob"]
    assert await nodes.ids("other") == []
    assert (await nodes.events())[-1] == (LEAVE, "other", "ada", 0)


async def test_namespaces_are_apart(nodes: Nodes) -> None:
    broker = nodes.brokers[0]
    await broker.presence.renew("/other", broker.bus.node)
    broker.presence.save(Presence("/other", "a", {"room": ADA}, broker.bus.node))
    assert (await broker.presence.members("/other", "room")).members == [ADA]
    assert await nodes.ids() == []


# A run of everything at once.


class Model:
    """What a client that applies every event sees: each is checked against what it knew."""

    def __init__(self) -> None:
        self.rooms: defaultdict[str, dict[str, Any]] = defaultdict(dict)

    def apply(self, publication: Publication) -> None:
        (data,) = payload.decode(publication.payload)
        members, member = self.rooms[data["room"]], data["member"]
        if publication.event == JOIN:
            assert member["id"] not in members
            members[member["id"]] = member["info"]
        elif publication.event == UPDATE:
            assert members[member["id"]] != member["info"]
            members[member["id"]] = member["info"]
        else:
            assert members.pop(member["id"]) == member["info"]
        assert len(members) == data["count"]


@pytest.mark.parametrize("seed", range(3))
async def test_snapshots_and_events_agree_whatever_happens(nodes: Nodes, seed: int) -> None:
    chance = random.Random(seed)
    takes: defaultdict[str, int] = defaultdict(int)
    homes: dict[str, int] = {}
    rooms = ("red", "green", "blue")
    snapshots: list[tuple[str, Members]] = []

    def move() -> None:
        sid = f"sid{chance.randrange(12)}"
        node = homes.setdefault(sid, chance.randrange(3))
        if chance.random() < 0.3:
            node = homes[sid] = chance.randrange(3)
            takes[sid] += 1
        member = Member(f"m{int(sid[3:]) // 2}", chance.choice(["here", "away"]))
        chosen = {room: member for room in rooms if chance.random() < 0.5}
        connected = chance.random() < 0.8
        nodes.save(sid, chosen, node=node, take=takes[sid], connected=connected)

    steps: list[Callable[[], None]] = [move] * 60
    for step in steps:
        step()
        if chance.random() < 0.3:
            nodes.clock.now += chance.random() * LEASE
            await nodes.renew(chance.randrange(3))
        if chance.random() < 0.3:
            room = chance.choice(rooms)
            snapshots.append((room, await nodes.members(room, node=chance.randrange(3))))
    await nodes.pass_time(2 * LEASE + 2 * GRACE, 0)
    position = max([(await nodes.members(node=node)).position for node in range(3)])
    model = Model()
    for ear in nodes.ears:
        await ear.until(position)
        assert [each.cursor for each in ear.heard] == [each.cursor for each in nodes.ears[0].heard]
    truths: dict[int, dict[str, dict[str, Any]]] = {0: {}}
    for publication in nodes.ears[0].heard:
        model.apply(publication)
        truths[publication.position] = {name: dict(had) for name, had in model.rooms.items()}
    assert snapshots
    for room, snapshot in snapshots:
        seen = {member.id: member.info for member in snapshot.members}
        assert seen == truths[snapshot.position].get(room, {})


def test_presence_is_plain_data() -> None:
    presence = Presence("/", "a", {"room": Member("ada", {"name": "Ada"})}, "node", 2, "ada", 5.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(presence), type=Presence) == presence
