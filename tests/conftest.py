"""Fixtures of every test: servers in this event loop, and real clients of every door."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from crossband.server import Server
from tests.clients import CLIENTS, Client, NewClient, NodeRunner, OfficialClient

Serve = Callable[..., Awaitable[Server]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# Shells start background jobs with SIGINT ignored, and children inherit that: none could be
# interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other than asyncio's own, by test file: what shows the whole server runs on uvloop, as
# `crossband serve` does.
LOOPS: dict[str, Mapping[str, LoopFactory]] = {}
if sys.platform != "win32":
    import uvloop

    LOOPS["test_fire.py"] = {"uvloop": uvloop.new_event_loop}
    for name in ("test_scenario.py", "test_hostile.py", "test_leaks.py"):
        LOOPS[name] = {
            "asyncio": asyncio.new_event_loop,
            "uvloop": uvloop.new_event_loop,
        }


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the five thousand tests out of every garbage collection, which would walk them all."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    return LOOPS.get(item.path.name, {"asyncio": asyncio.new_event_loop})


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Leave the level of Crossband's log as it was: commands that ran in this process set it."""
    log = logging.getLogger("crossband")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers by awaiting it with an app; they are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(app: Any, **options: Any) -> Server:
            return await stack.enter_async_context(Server(app, **options))

        yield start


@pytest.fixture(scope="session")
def node() -> Iterator[NodeRunner]:
    """Return the Node process that holds the official clients."""
    runner = NodeRunner()
    yield runner
    runner.close()


@pytest.fixture
async def new_client(request: pytest.FixtureRequest) -> AsyncIterator[NewClient]:
    """Make clients by kind, a key of `CLIENTS`; all are closed after the test."""
    made: list[Client] = []

    def make(kind: str) -> Client:
        driver = CLIENTS[kind]
        if issubclass(driver, OfficialClient):
            client: Client = driver(request.getfixturevalue("node"))
        else:
            client = driver()
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()
