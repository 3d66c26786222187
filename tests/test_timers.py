"""Many deadlines from one timer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from crossband.timers import Alarms, Deadlines
from tests.clients.base import WAIT


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
