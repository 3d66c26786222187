"""What the memory broker bounds beyond the contract."""

from __future__ import annotations

from collections import Counter

import pytest

from crossband import MemoryBroker, Publication
from crossband.broker import Session, memory
from crossband.broker.memory import Memory
from crossband.broker.sessions import LEASE
from crossband.errors import Gap
from crossband.names import new_id
from crossband.protocol import payload
from tests.census import returns_to


class Ear:
    """Hears publications, and does nothing with them."""

    def deliver(self, publication: Publication) -> None:
        pass

    def lost(self, namespace: str, sid: str | None = None) -> None:
        pass

    def taken(self, namespace: str, key: str, take: int) -> None:
        pass


def memory_of(broker: MemoryBroker) -> Memory:
    return broker._memory


def own(broker: MemoryBroker, key: str, user: str | None = None) -> Session:
    """Return a session of a client of this broker's node."""
    head, node = broker.head("/a"), broker.bus.node
    return Session("/a", key, new_id(), set(), {}, head, user, owner=node)


async def test_logs_of_namespaces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 3)
    broker = MemoryBroker()
    cursors = {}
    for name in ("/a", "/b", "/c"):
        cursors[name] = broker.publish(Publication(name, "x", payload.encode([])))
    # Used again, so that /b is the one idle longest.
    broker.publish(Publication("/a", "x", payload.encode([])))
    broker.publish(Publication("/d", "x", payload.encode([])))
    assert len((await broker.history("/a", str(cursors["/a"]))).publications) == 1
    with pytest.raises(Gap, match="unknown"):
        await broker.history("/b", str(cursors["/b"]))
    # Made anew, its numbers start over under another epoch: old cursors are not misread.
    broker.publish(Publication("/b", "y", payload.encode([])))
    with pytest.raises(Gap, match="unknown"):
        await broker.history("/b", str(cursors["/b"]))


async def test_namespaces_that_were_only_named_take_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 2)
    broker = MemoryBroker()
    quiet = broker.head("/quiet")
    first = str(broker.publish(Publication("/", "x", payload.encode([1]))))
    broker.publish(Publication("/", "x", payload.encode([2])))
    heads = {broker.head(f"/{number}") for number in range(100)}
    assert len(heads) == 100
    assert len((await broker.history("/", first)).publications) == 1
    # Who began to listen before anything was published is told what came.
    assert (await broker.history("/quiet", quiet)).publications == []
    broker.publish(Publication("/quiet", "x", payload.encode([3])))
    assert len((await broker.history("/quiet", quiet)).publications) == 1
    assert broker.head("/quiet") != quiet


async def test_what_is_too_old_goes_while_nothing_happens() -> None:
    now = 0.0
    # Looked at each tenth of a second, which is of the real clock.
    broker = MemoryBroker(history_age=0.2, clock=lambda: now)
    await broker.start(Ear())

    def kept() -> Counter[str]:
        entries = sum(len(log._entries) for log in memory_of(broker)._logs.values())
        return +Counter(entries=entries, sessions=len(memory_of(broker).sessions._waiting))

    for number in range(3):
        broker.publish(Publication("/a", "x", payload.encode([number])))
        session = Session("/a", f"key-{number}", "sid", set(), {}, broker.head("/a"))
        broker.sessions.release(session)
        now += 0.05
    assert kept() == {"entries": 3, "sessions": 3}
    now = 0.22
    await returns_to(Counter(entries=2, sessions=2), kept)
    now = 1.0
    await returns_to(Counter(), kept)
    assert memory_of(broker)._sweeping is None
    await broker.stop()


async def test_private_events_go_with_their_session() -> None:
    now = 0.0
    broker = MemoryBroker(history_age=0.2, clock=lambda: now)
    await broker.start(Ear())
    # So that the age of what they were sent is not what ends it.
    log = memory_of(broker)._log("/a")
    log.private._age = 1_000.0

    def kept() -> Counter[str]:
        return +Counter(logs=len(log.private._logs), ids=len(memory_of(broker).sessions._ids))

    def send(sid: str) -> None:
        for number in range(3):
            broker.publish(Publication("/a", "x", payload.encode([number]), (sid,)))

    sessions = [own(broker, f"key {number}", "Ada") for number in range(4)]
    for session in sessions:
        broker.sessions.save(session)
        send(session.sid)
        send(new_id())
    assert kept() == {"logs": 4, "ids": 4}
    broker.sessions.drop(sessions[0])
    await returns_to(Counter(logs=3, ids=3), kept)
    broker.sessions.release(sessions[1])
    now += 0.3
    await returns_to(Counter(logs=2, ids=2), kept)
    # Its key is another client's by now.
    successor = own(broker, sessions[2].key)
    broker.sessions.save(successor)
    await returns_to(Counter(logs=1, ids=2), kept)
    await broker.sessions.revoke("Ada", 0.0)
    await returns_to(Counter(ids=1), kept)
    # Taken by a node that died.
    assert await broker.sessions.take(successor, "a node that was killed") is not None
    send(successor.sid)
    assert kept() == {"logs": 1, "ids": 1}
    now += LEASE + 1.0
    await returns_to(Counter(), kept)
    assert memory_of(broker)._sweeping is None
    await broker.stop()
