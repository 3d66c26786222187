"""What the memory broker bounds beyond the contract."""

from __future__ import annotations

from collections import Counter

import pytest

from crossband import MemoryBroker, Publication
from crossband.broker import Session, memory
from crossband.errors import Gap
from crossband.names import new_id
from crossband.protocol import payload
from tests.census import returns_to


async def test_logs_of_namespaces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_LOGS", 3)
    broker = MemoryBroker()
    cursors = {}
    for name in ("/a", "/b", "/c"):
        cursors[name] = broker.publish(Publication(name, "x", payload.encode([])))
    # Used again, so that /b is the one idle longest.
    broker.publish(Publication("/a", "x", payload.encode([])))
    broker.publish(Publication("/d", "x", payload.encode([])))
    assert len(await broker.history("/a", str(cursors["/a"]))) == 1
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
    assert len(await broker.history("/", first)) == 1
    # Who began to listen before anything was published is told what came.
    assert await broker.history("/quiet", quiet) == []
    broker.publish(Publication("/quiet", "x", payload.encode([3])))
    assert len(await broker.history("/quiet", quiet)) == 1
    assert broker.head("/quiet") != quiet


async def test_what_is_too_old_goes_while_nothing_happens() -> None:
    now = 0.0
    # Looked at each tenth of a second, which is of the real clock.
    broker = MemoryBroker(history_age=0.2, clock=lambda: now)
    await broker.start(lambda publication: None)

    def kept() -> Counter[str]:
        entries = sum(len(log._entries) for log in broker._logs.values())
        return +Counter(entries=entries, sessions=len(broker._waiting))

    for number in range(3):
        broker.publish(Publication("/a", "x", payload.encode([number])))
        session = Session("/a", f"key-{number}", "sid", set(), {}, broker.head("/a"))
        broker.save_session(session, connected=False)
        now += 0.05
    assert kept() == {"entries": 3, "sessions": 3}
    now = 0.22
    await returns_to(Counter(entries=2, sessions=2), kept)
    now = 1.0
    await returns_to(Counter(), kept)
    assert broker._sweeping is None
    await broker.stop()


async def test_private_events_go_with_their_session() -> None:
    now = 0.0
    broker = MemoryBroker(history_age=0.2, clock=lambda: now)
    await broker.start(lambda publication: None)
    # So that the age of what they were sent is not what ends it.
    log = broker._log("/a")
    log.private._age = 1_000.0

    def kept() -> Counter[str]:
        return +Counter(logs=len(log.private._logs), ids=len(broker._ids))

    def send(sid: str) -> None:
        for number in range(3):
            broker.publish(Publication("/a", "x", payload.encode([number]), (sid,)))

    sessions = [
        Session("/a", f"key {number}", new_id(), set(), {}, broker.head("/a"), "Ada")
        for number in range(4)
    ]
    for session in sessions:
        broker.save_session(session, connected=True)
        send(session.sid)
        send(new_id())
    assert kept() == {"logs": 4, "ids": 4}
    broker.drop_session("/a", sessions[0].key)
    await returns_to(Counter(logs=3, ids=3), kept)
    broker.save_session(sessions[1], connected=False)
    now += 0.3
    await returns_to(Counter(logs=2, ids=2), kept)
    # Its key is another client's by now.
    successor = Session("/a", sessions[2].key, new_id(), set(), {}, broker.head("/a"))
    broker.save_session(successor, connected=True)
    await returns_to(Counter(logs=1, ids=2), kept)
    broker.drop_sessions("Ada")
    await returns_to(Counter(ids=1), kept)
    # Taken by somebody who never saved it again.
    assert await broker.take_session("/a", successor.key) is successor
    send(successor.sid)
    assert kept() == {"logs": 1, "ids": 1}
    now += memory.LONGEST_TAKE
    await returns_to(Counter(), kept)
    assert broker._sweeping is None
    await broker.stop()
