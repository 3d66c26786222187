"""Deadlines, outboxes and acknowledgements, without a network."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from crossband.codecs import Wire
from crossband.errors import CloseCode, CrossbandError, Disconnected
from crossband.session import Acks, Alarms, Deadlines, Ticker
from tests.clients.base import WAIT
from tests.link import Link


def link(limit: int) -> Link:
    return Link(Ticker(asyncio.get_running_loop()), limit=limit)


async def test_deadline_that_starts_anew_does_not_delay_the_others() -> None:
    loop = asyncio.get_running_loop()
    fired: list[str] = []
    both = asyncio.Event()

    def action(item: str) -> None:
        fired.append(item)
        if item == "first":
            deadlines.add(item)
        else:
            both.set()

    deadlines = Deadlines[str](loop, 1.6, action)
    deadlines.add("first")
    loop.call_later(0.8, deadlines.add, "second")
    # Put off by the first one's new delay, the second fired at 3.2 and not at 2.4.
    loop.call_later(3.1, fired.append, "too late")
    async with asyncio.timeout(WAIT):
        await both.wait()
    deadlines.close()
    assert fired == ["first", "second"]


async def test_deadline_added_again_starts_anew() -> None:
    loop = asyncio.get_running_loop()
    fired = asyncio.Event()
    deadlines = Deadlines[str](loop, 0.1, lambda _: fired.set())
    deadlines.add("item")
    loop.call_later(0.05, deadlines.add, "item")
    started = loop.time()
    async with asyncio.timeout(WAIT):
        await fired.wait()
    assert loop.time() - started >= 0.149


async def test_alarms_go_off_at_their_own_times() -> None:
    loop = asyncio.get_running_loop()
    fired: list[str] = []
    done = asyncio.Event()

    def action(item: str) -> None:
        fired.append(item)
        if item == "bad":
            raise RuntimeError("boom")
        if item == "last":
            done.set()

    now = loop.time()
    alarms = Alarms[str](loop, action, clock=loop.time)
    for item, delay in (("last", 0.2), ("first", 0.05), ("bad", 0.1), ("gone", 0.1)):
        alarms.add(item, now + delay)
    # Put off, brought forward, and put back where it was.
    for item, delay in (("first", 9.0), ("first", 0.01), ("last", 0.01), ("last", 0.2)):
        alarms.add(item, now + delay)
    alarms.discard("gone")
    alarms.discard("never there")
    async with asyncio.timeout(WAIT):
        await done.wait()
    assert fired == ["first", "bad", "last"]
    assert loop.time() - now >= 0.19


async def test_alarm_that_sets_itself_again_goes_on() -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    done = asyncio.Event()

    def action(item: str) -> None:
        times.append(loop.time())
        if len(times) == 3:
            done.set()
        else:
            alarms.add(item, loop.time() + 0.02)

    alarms = Alarms[str](loop, action, clock=loop.time)
    # Long past: at the next tick.
    alarms.add("item", 0.0)
    async with asyncio.timeout(WAIT):
        await done.wait()
    assert times == sorted(times)


async def test_many_that_come_and_go_leave_nothing_in_alarms() -> None:
    loop = asyncio.get_running_loop()
    alarms = Alarms[object](loop, lambda item: None, clock=loop.time)
    stays = object()
    alarms.add(stays, loop.time() + 1_000)
    fleeting: weakref.WeakSet[Any] = weakref.WeakSet()
    for _ in range(1_000):
        item = asyncio.Event()
        fleeting.add(item)
        alarms.add(item, loop.time() + 1_000)
        alarms.discard(item)
    del item
    gc.collect()
    assert len(fleeting) < 100
    alarms.discard(stays)
    gc.collect()
    assert not fleeting


async def test_failing_deadline_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    fired = asyncio.Event()

    def action(item: str) -> None:
        if item == "bad":
            raise RuntimeError("boom")
        fired.set()

    deadlines = Deadlines[str](asyncio.get_running_loop(), 0.01, action)
    deadlines.add("bad")
    deadlines.add("good")
    async with asyncio.timeout(WAIT):
        await fired.wait()
    assert "a deadline's action failed" in caplog.text


async def test_one_message_over_the_outbox_limit_is_sent() -> None:
    peer = link(10)
    peer.push(Wire("x" * 11))
    await peer.flushed.wait()
    assert not peer.closed


async def test_full_outbox_closes_the_connection() -> None:
    peer = link(10)
    peer.push(Wire("x" * 8))
    peer.push(Wire("x" * 8))
    assert peer.code is CloseCode.SLOW_CLIENT
    assert not peer.queue
    peer.push(Wire("x"))
    assert not peer.queue


async def test_much_at_once_is_not_slowness() -> None:
    peer = link(limit=10)
    peer.stalled = False
    for _ in range(100):
        peer.push(Wire("x" * 8))
    assert not peer.closed
    peer.take()
    assert peer.taken == ["x" * 8] * 100


async def test_drained_waits_until_all_is_written_or_closed() -> None:
    peer = link(100)
    peer.push(Wire("x" * 8))
    waiting = asyncio.create_task(peer.drained())
    await peer.flushed.wait()
    assert not waiting.done()
    peer.take()
    async with asyncio.timeout(WAIT):
        await waiting
    peer.push(Wire("y"))
    waiting = asyncio.create_task(peer.drained())
    peer.flushed.clear()
    await peer.flushed.wait()
    peer.close(CloseCode.NORMAL, "", now=True)
    async with asyncio.timeout(WAIT):
        await waiting
        await peer.drained()


async def test_acks_are_bounded_and_fail_when_the_client_leaves() -> None:
    acks = Acks(limit=1)
    answer = acks.expect(1)
    with pytest.raises(CrossbandError, match="owes 1 acknowledgement"):
        acks.expect(2)
    acks.fail()
    with pytest.raises(Disconnected):
        await answer
    assert not acks.resolve(1, "late")


async def test_batch_leaves_in_the_outbox_what_may_still_be_dropped() -> None:
    peer = link(4_000)
    for _ in range(30):
        peer.push(Wire("x" * 100))
    # A quarter of the outbox at most, where that is less than 64 KiB.
    assert sum(wire.size for wire in peer.take_batch()) == 1_000
    assert len(peer.queue) == 20
    peer.push(Wire("x" * 1_000))
    del peer.queue[:-1]
    # One message is taken whatever its size.
    assert [wire.size for wire in peer.take_batch()] == [1_000]
    assert not peer.take_batch()
