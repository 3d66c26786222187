"""Whoever blocks the event loop is named; nobody is where the process itself did not run."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from websockets.asyncio.client import connect

from crossband import Hub, Socket
from crossband.hub.watchdog import PATIENCE, TICK, Watchdog
from tests.clients.base import WAIT
from tests.conftest import Serve


class Heard(logging.Handler):
    """What Crossband logs, and an event for a thread that waits for some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.blocked = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if "has been blocked" in record.getMessage():
            self.blocked.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logging.getLogger("crossband").addHandler(handler)
    yield handler
    logging.getLogger("crossband").removeHandler(handler)


async def asked(url: str, event: str) -> None:
    """Send an event and wait for its acknowledgement."""
    async with connect(url.replace("http", "ws", 1) + "/ws", proxy=None) as websocket:
        await websocket.send(json.dumps({"type": event, "id": 1}))
        async with asyncio.timeout(3 * WAIT):
            while json.loads(await websocket.recv())["type"] != "ack":
                pass


@pytest.mark.parametrize(
    ("event", "lane"),
    # A second each: not all of both.
    [("plain", True), ("async", False), ("later", True)],
    ids=["plain-lane", "async-asgi", "later-lane"],
)
async def test_handler_that_blocks_the_loop_is_named_with_its_line(
    event: str, lane: bool, serve: Serve, heard: Heard
) -> None:
    hub = Hub()

    @hub.on("plain")
    def plain(socket: Socket) -> None:
        heard.blocked.wait(WAIT)

    @hub.on("async")
    async def in_its_first_step(socket: Socket) -> None:
        heard.blocked.wait(WAIT)

    @hub.on("later")
    async def after_a_wait(socket: Socket) -> None:
        await asyncio.sleep(0)
        heard.blocked.wait(WAIT)

    server = await serve(hub, lane=lane)
    await asked(server.url, event)
    (line,) = [line for line in heard.lines if "has been blocked" in line]
    name = hub.events[event].handler.__qualname__
    assert f"by {name} ({__file__}:" in line
    # And what it has called.
    assert f", in Event.wait ({threading.__file__}:" in line or "Condition.wait" in line


async def test_two_hubs_on_one_loop_are_watched_once(heard: Heard) -> None:
    def threads() -> int:
        return sum(each.name == "crossband-watchdog" for each in threading.enumerate())

    before = threads()
    async with Hub().lifespan(), Hub().lifespan():
        assert threads() == before + 1
        heard.blocked.wait(WAIT)
    assert sum("has been blocked" in line for line in heard.lines) == 1


def look(watchdog: Watchdog, now: float, computed: float = 0.0) -> float:
    """Look from another thread, which this one, the loop's, waits for."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(watchdog.look, now, computed).result()
    return now


async def test_loop_that_gives_no_sign_is_blocked_after_a_second(heard: Heard) -> None:
    watchdog = Watchdog(asyncio.get_running_loop())
    now = look(watchdog, time.monotonic())
    for _ in range(round(PATIENCE / TICK) - 1):
        now = look(watchdog, now + TICK)
    assert not heard.lines
    now = look(watchdog, now + TICK)
    assert len(heard.lines) == 1
    assert "blocked for 1.0 s (0.0 s of it computing) by " in heard.lines[0]
    # Told once; and that it goes on.
    now = look(watchdog, now + TICK)
    await asyncio.sleep(0)
    look(watchdog, now + TICK)
    assert len(heard.lines) == 2
    assert heard.lines[1].startswith("the event loop goes on")


async def test_suspended_process_blames_nobody(heard: Heard) -> None:
    watchdog = Watchdog(asyncio.get_running_loop())
    start = time.thread_time()
    now = look(watchdog, time.monotonic(), start)
    for _ in range(10):
        # Stopped and continued, or without a processor: this thread is late, too.
        now = look(watchdog, now + 60, start)
    assert not heard.lines


async def test_call_that_holds_the_interpreter_is_named(heard: Heard) -> None:
    watchdog = Watchdog(asyncio.get_running_loop())
    start = time.thread_time()
    now = look(watchdog, time.monotonic(), start)
    await asyncio.sleep(0)
    look(watchdog, now + 5, start + 4.9)
    (line,) = heard.lines
    assert "blocked for 5.0 s (4.9 s of it computing) by " in line
    assert test_call_that_holds_the_interpreter_is_named.__name__ in line


async def test_place_that_blocks_again_and_again_is_told_once_a_minute(heard: Heard) -> None:
    watchdog = Watchdog(asyncio.get_running_loop())
    start = time.thread_time()
    now = time.monotonic()
    for _ in range(30):
        now = look(watchdog, now + 5, start := start + 5)
        await asyncio.sleep(0)
    # The 150 s have three beginnings of a minute.
    assert len(heard.lines) == 3


async def test_loop_that_does_not_run_is_not_blocked(heard: Heard) -> None:
    loop = asyncio.new_event_loop()
    watchdog = Watchdog(loop)
    now = time.monotonic()
    for _ in range(20):
        now = look(watchdog, now + TICK)
    assert not heard.lines
    loop.close()
    with pytest.raises(RuntimeError):
        Watchdog(loop).look(now, 0.0)
