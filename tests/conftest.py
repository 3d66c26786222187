"""Fixtures of every test: servers in this event loop, and real clients of every door."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from crossband.server import Server
from tests.clients import CLIENTS, Client, NewClient, NodeRunner, OfficialClient

if TYPE_CHECKING:
    from playwright.async_api import Browser

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


# Files and folders that take longest: they begin first, and no process is left with one of them
# when the others are done.
LONGEST: Final = (
    "e2e",
    "test_docs.py",
    "test_stress.py",
    "test_shutdown.py",
    "test_hostile.py",
    "cli/test_commands.py",
    "server",
    "test_workers.py",
    "test_states.py",
    "test_auth_doors.py",
    "test_typing.py",
    "examples/test_classic.py",
    "test_limits.py",
    "publisher",
    "test_typing.py",
    "test_any_node.py",
    "test_nginx_nodes.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # xdist would begin with the files of most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    missing = [path for path in places if not path.exists()]
    assert not missing, missing

    def place(item: pytest.Item) -> int:
        found = (places.get(path) for path in (item.path, item.path.parent))
        return min((each for each in found if each is not None), default=len(places))

    items.sort(key=place)


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
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serve]:
    """Start servers by awaiting it with an app; they are stopped after the test."""
    async with AsyncExitStack() as stack:

        async def start(app: Any, **options: Any) -> Server:
            return await stack.enter_async_context(Server(app, **options))

        yield start
        # A second for a last poll, which nobody sends any more.
        monkeypatch.setattr("crossband.transports.engineio.registry.LINGER_TIME_AT_STOP", 0)


@pytest.fixture(scope="session")
def node() -> Iterator[NodeRunner]:
    """Return the Node process that holds the official clients."""
    runner = NodeRunner()
    yield runner
    runner.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Return Chromium; tests that use it run in the event loop of the session."""
    # Not imported where no page is tested.
    from tests.chromium import chromium

    async with chromium() as browser:
        yield browser


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
