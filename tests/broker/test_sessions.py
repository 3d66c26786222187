"""The contract of a session store, as tests: in memory, and behind a hostile network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from crossband import Publication, Session
from crossband.broker import Broker, SessionStore
from crossband.broker.sessions import LEASE, MAX_REVOKED, check_plain, pack, unpack
from tests.broker.test_conformance import BROKERS, Clock, Cluster
from tests.clients.base import WAIT


class Text(str):
    """Text of another class."""

    __slots__ = ()


class Ear:
    """Hears which sessions its node has lost."""

    def __init__(self) -> None:
        self.taken_from: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()

    def deliver(self, publication: Publication) -> None:
        raise AssertionError

    def lost(self, namespace: str, sid: str | None = None) -> None:
        raise AssertionError

    def taken(self, namespace: str, key: str, take: int) -> None:
        self.taken_from.put_nowait((namespace, key, take))


class Nodes:
    """Two nodes of a cluster, and its clock."""

    def __init__(self, make: Cluster, clock: Clock) -> None:
        self.clock = clock
        self.one: Broker = make()
        self.two: Broker = make()
        self.ear = Ear()

    @property
    def store(self) -> SessionStore:
        return self.one.sessions

    def session(self, key: str = "key", sid: str = "sid", **fields: Any) -> Session:
        return Session(
            "/", key, sid, {"room"}, {"name": "Ada"}, "cursor-0", owner=self.one.bus.node, **fields
        )

    async def find(self, key: str = "key", namespace: str = "/") -> Session | None:
        return plain(await self.store.find(namespace, key))


def plain(found: Session | None) -> Session | None:
    """Return a session without the number of the attempt that found it."""
    return None if found is None else msgspec.structs.replace(found, attempt=0)


@pytest.fixture(params=BROKERS)
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    clock = Clock()
    nodes = Nodes(BROKERS[request.param](10, 1_000, 60.0, clock), clock)
    await nodes.one.start(nodes.ear)
    await nodes.two.start(Ear())
    yield nodes
    await nodes.one.stop()
    await nodes.two.stop()


async def test_saved_session_is_found_and_left_where_it_is(nodes: Nodes) -> None:
    nodes.store.save(nodes.session())
    for _ in range(2):
        assert await nodes.find() == nodes.session()
    assert await nodes.find("other") is None
    assert await nodes.find(namespace="/other") is None


async def test_session_is_found_from_every_node(nodes: Nodes) -> None:
    nodes.store.save(nodes.session())
    # Seen once what was queued before has arrived.
    assert await nodes.find() is not None
    assert plain(await nodes.two.sessions.find("/", "key")) == nodes.session()


async def test_taken_session_is_the_takers_with_the_next_number(nodes: Nodes) -> None:
    nodes.store.release(nodes.session())
    assert await nodes.find() is not None
    found = await nodes.two.sessions.find("/", "key")
    assert found is not None
    taken = await nodes.two.sessions.take(found, nodes.two.bus.node)
    assert taken is not None
    # It says who had it.
    assert (taken.owner, taken.take) == (nodes.one.bus.node, 1)
    assert (taken.sid, taken.rooms, taken.data) == ("sid", {"room"}, {"name": "Ada"})
    kept = await nodes.find()
    assert kept is not None
    assert (kept.owner, kept.take) == (nodes.two.bus.node, 1)


async def test_of_many_who_take_it_each_has_a_number_of_its_own(nodes: Nodes) -> None:
    session = nodes.session()
    nodes.store.release(session)
    assert await nodes.find() is not None
    taken = await asyncio.gather(
        *(broker.sessions.take(session, broker.bus.node) for broker in (nodes.one, nodes.two) * 5)
    )
    numbers = [one.take for one in taken if one is not None]
    assert sorted(numbers) == list(range(1, 11))
    # The last one has it.
    kept = await nodes.find()
    assert kept is not None
    assert kept.take == 10


async def test_of_several_attempts_the_one_that_found_it_last_has_it(nodes: Nodes) -> None:
    nodes.store.release(nodes.session())
    early = await nodes.one.sessions.find("/", "key")
    late = await nodes.two.sessions.find("/", "key")
    assert early is not None
    assert late is not None
    assert early.attempt < late.attempt
    taken = await nodes.two.sessions.take(late, nodes.two.bus.node)
    assert taken is not None
    # The early one is slow, and its client is gone by now.
    assert await nodes.one.sessions.take(early, nodes.one.bus.node) is None
    kept = await nodes.find()
    assert kept is not None
    assert (kept.owner, kept.take) == (nodes.two.bus.node, 1)
    # One that comes later still gets it.
    later = await nodes.one.sessions.find("/", "key")
    assert later is not None
    assert await nodes.one.sessions.take(later, nodes.one.bus.node) is not None
    # A session that is dropped and begins anew knows nothing of them.
    later.owner, later.take = nodes.one.bus.node, 2
    nodes.store.drop(later)
    nodes.store.release(nodes.session())
    anew = await nodes.one.sessions.find("/", "key")
    assert anew is not None
    assert anew.attempt == 1


@pytest.mark.parametrize("what", ["save", "release", "drop"])
async def test_what_an_earlier_owner_says_is_ignored(nodes: Nodes, what: str) -> None:
    first = nodes.session()
    nodes.store.save(first)
    assert await nodes.find() is not None
    taken = await nodes.two.sessions.take(first, nodes.two.bus.node)
    assert taken is not None
    taken.owner = nodes.two.bus.node
    taken.rooms = {"new"}
    nodes.two.sessions.save(taken)
    assert plain(await nodes.two.sessions.find("/", "key")) == taken
    first.rooms = {"stale"}
    getattr(nodes.store, what)(first)
    assert await nodes.find() == taken
    # Nor does it begin to expire.
    nodes.clock.now += LEASE - 1
    nodes.two.sessions.renew(nodes.two.bus.node)
    assert plain(await nodes.two.sessions.find("/", "key")) == taken


async def test_node_is_told_that_another_has_taken_what_it_saves(nodes: Nodes) -> None:
    first = nodes.session()
    nodes.store.save(first)
    found = await nodes.find()
    assert found is not None
    # Taken by its own node: an earlier connection's calls are ignored, and that is all.
    again = await nodes.one.sessions.take(found, nodes.one.bus.node)
    assert again is not None
    nodes.store.save(first)
    assert await nodes.find() is not None
    taken = await nodes.two.sessions.take(again, nodes.two.bus.node)
    assert taken is not None
    # What ends is not told of: its client has gone.
    nodes.store.release(again)
    nodes.store.drop(again)
    nodes.store.save(again)
    async with asyncio.timeout(WAIT):
        assert await nodes.ear.taken_from.get() == ("/", "key", 1)
    assert nodes.ear.taken_from.empty()


async def test_session_of_another_socket_is_not_taken(nodes: Nodes) -> None:
    nodes.store.save(nodes.session(sid="old"))
    seen = await nodes.find()
    assert seen is not None
    nodes.store.save(nodes.session(sid="new"))
    assert await nodes.store.take(seen, nodes.one.bus.node) is None
    nodes.store.drop(nodes.session(sid="new"))
    assert await nodes.store.take(nodes.session(sid="new"), nodes.one.bus.node) is None


async def test_session_expires_with_the_history(nodes: Nodes) -> None:
    nodes.store.release(nodes.session("early"))
    assert await nodes.find("early") is not None
    nodes.clock.now += 30
    nodes.store.release(nodes.session("late"))
    assert await nodes.find("late") is not None
    nodes.clock.now += 31
    assert await nodes.find("early") is None
    assert await nodes.find("late") is not None


async def test_sessions_of_a_node_that_lives_do_not_expire(nodes: Nodes) -> None:
    nodes.store.save(nodes.session())
    for _ in range(50):
        nodes.clock.now += LEASE - 1
        nodes.store.renew(nodes.one.bus.node)
        assert await nodes.find() is not None


async def test_sessions_of_a_node_that_died_expire_after_the_history(nodes: Nodes) -> None:
    lost = nodes.session()
    lost.owner = "a node that was killed"
    nodes.store.save(lost)
    assert await nodes.find() is not None
    nodes.clock.now += LEASE + 59
    # As if its client had left when its node did.
    assert await nodes.find() is not None
    nodes.clock.now += 2
    assert await nodes.find() is None


async def test_session_of_a_dead_node_can_be_taken(nodes: Nodes) -> None:
    lost = nodes.session()
    lost.owner = "a node that was killed"
    nodes.store.save(lost)
    nodes.clock.now += LEASE + 1
    taken = await nodes.store.take(lost, nodes.one.bus.node)
    assert taken is not None
    assert taken.take == 1
    for _ in range(20):
        nodes.clock.now += LEASE - 1
        nodes.store.renew(nodes.one.bus.node)
        assert await nodes.find() is not None


async def test_expiry_starts_anew_at_each_release(nodes: Nodes) -> None:
    session = nodes.session()
    nodes.store.release(session)
    assert await nodes.find() is not None
    nodes.clock.now += 50
    nodes.store.save(session)
    assert await nodes.find() is not None
    nodes.clock.now += LEASE - 1
    nodes.store.renew(nodes.one.bus.node)
    nodes.store.release(session)
    assert await nodes.find() is not None
    nodes.clock.now += 50
    assert await nodes.find() is not None


@pytest.mark.parametrize("what", ["save", "release"])
async def test_dropped_session_is_gone(nodes: Nodes, what: str) -> None:
    session = nodes.session()
    getattr(nodes.store, what)(session)
    nodes.store.drop(session)
    assert await nodes.find() is None
    nodes.store.drop(session)


async def test_revoked_users_sessions_are_gone_together(nodes: Nodes) -> None:
    for key, user in (("home", "alice"), ("away", "alice"), ("hers", "bob"), ("none", None)):
        session = nodes.session(key, key, user=user, asked=frozenset({"news"}))
        (nodes.store.save if key == "home" else nodes.store.release)(session)
    assert await nodes.find("none") is not None
    revocation = await nodes.two.sessions.revoke("alice", 1_000.0)
    assert (revocation.user, revocation.time) == ("alice", 1_000.0)
    assert (await nodes.two.sessions.revoke("nobody", 1_001.0)).number > revocation.number > 0
    for key, user in (("home", None), ("away", None), ("hers", "bob")):
        found = await nodes.find(key)
        assert (found.user if found is not None else None) == user
    anonymous = await nodes.find("none")
    assert anonymous is not None
    assert anonymous.asked == {"news"}


async def test_revocations_are_known_to_nodes_that_were_away(nodes: Nodes) -> None:
    assert await nodes.store.revocations() == []
    first = await nodes.store.revoke("alice", 1.0)
    second = await nodes.store.revoke("bob", 2.0)
    third = await nodes.store.revoke("alice", 3.0)
    # Of each user the last.
    assert await nodes.two.sessions.revocations() == [second, third]
    assert await nodes.two.sessions.revocations(second.number) == [third]
    assert await nodes.two.sessions.revocations(third.number) == []
    assert first.number < second.number < third.number


async def test_revocations_are_bounded(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossband.broker.memory_sessions.MAX_REVOKED", 3)
    monkeypatch.setattr("crossband.broker.redis.sessions.MAX_REVOKED", 3)
    for number in range(5):
        await nodes.store.revoke(f"user-{number}", float(number))
    assert [each.user for each in await nodes.store.revocations()] == [
        "user-2",
        "user-3",
        "user-4",
    ]
    assert MAX_REVOKED > 3


PLAIN: list[Any] = [
    None,
    True,
    -(2**63),
    2**64 - 1,
    1.5,
    "Žluťoučký 🐎",
    b"\x00\xff",
    [1, [2, {"a": [None]}]],
    {"a": {"b": b"c"}},
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
async def test_plain_data_comes_back_as_it_was(nodes: Nodes, value: Any) -> None:
    check_plain(value, "it")
    session = nodes.session()
    session.data = {"value": value}
    nodes.store.release(session)
    assert await nodes.find() is not None
    found = await nodes.two.sessions.find("/", "key")
    assert found is not None
    taken = await nodes.two.sessions.take(found, nodes.two.bus.node)
    assert taken is not None
    assert taken.data == {"value": value}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"it cannot be kept: builtins.object is not plain data"),
        ({1, 2}, r"builtins.set is not plain"),
        ([1, (2, {3})], r"it\[1\]\[1\] cannot be kept"),
        ({"a": {1: 2}}, r"it\['a'\] has the key 1: keys are text"),
        (2**64, r"more than 64 bits"),
        (float("nan"), r"it is nan"),
        (float("-inf"), r"it is -inf"),
        ("a\ud800", r"half of a surrogate pair"),
        ({"a": {"\ud800": 1}}, r"the key '\\ud800' of it\['a'\] holds half of a surrogate pair"),
        ({Text("a"): 1}, r"it has the key 'a': keys are text"),
        (complex(1), r"builtins.complex"),
    ],
    ids=[
        "object",
        "set",
        "deep",
        "key",
        "large",
        "nan",
        "infinite",
        "surrogate",
        "key of a surrogate",
        "key of another class",
        "complex",
    ],
)
def test_what_is_not_plain_is_told(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        check_plain(value, "it")


def test_unfit_key_is_left_out_as_an_unfit_value_is(caplog: pytest.LogCaptureFixture) -> None:
    session = Session("/", "key", "sid", set(), {"good": 1, "\ud800": 2}, "cursor-0")
    session.data["bad"] = {"\ud800": 3}
    assert unpack(pack(session)).data == {"good": 1}
    assert len(caplog.messages) == 2


def test_what_holds_itself_is_told() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="contains itself"):
        check_plain(circle, "it")


def test_session_is_kept_without_what_became_unfit(caplog: pytest.LogCaptureFixture) -> None:
    session = Session("/", "key", "sid", set(), {"good": 1, "bad": [object()]}, "cursor-0")
    assert unpack(pack(session)).data == {"good": 1}
    assert "a session loses a value: socket.data['bad'][0] cannot be kept" in caplog.text
    assert session.data.keys() == {"good", "bad"}
    assert msgspec.msgpack.decode(pack(session))["sid"] == "sid"
