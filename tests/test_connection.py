"""A connection's outbox, without a network."""

from __future__ import annotations

import asyncio

from crossband.codecs import Wire
from crossband.connection import Ticker
from crossband.errors import CloseCode
from tests.clients.base import WAIT
from tests.link import Link


def link(limit: int) -> Link:
    return Link(Ticker(asyncio.get_running_loop()), limit=limit)


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
