"""The private engine: found, started, kept alive, stopped, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from crossband.errors import StartError
from crossband.server import engine as module
from crossband.server.engine import Engine, find_engine
from crossband.server.exits import ending
from tests.children import Child
from tests.clients.base import WAIT


async def command(engine: Engine, *words: str) -> str:
    """Send a command over its unix socket; return the beginning of its reply."""
    reader, writer = await asyncio.open_unix_connection(engine.path)
    try:
        writer.write(" ".join(words).encode() + b"\r\n")
        return (await reader.read(65_536)).decode()
    finally:
        writer.close()


async def back(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Wait until it says that it is back."""
    async with asyncio.timeout(WAIT):
        # There is nothing to wait for: hubs see their connections end, and try again.
        while "the private engine is back" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def end_of(pid: int) -> None:
    process = psutil.Process(pid)
    _, alive = await asyncio.to_thread(psutil.wait_procs, [process], timeout=WAIT)
    assert not alive


@pytest.fixture(params=["redis-server", "valkey-server"])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of each: Redis from PATH, Valkey from the package."""
    if request.param == "valkey-server":
        monkeypatch.setenv("PATH", "")
    found = find_engine()
    assert found is not None
    assert found.endswith(request.param)
    return found


async def test_it_is_private_and_evicts_nothing(program: str) -> None:
    engine = Engine(program=program)
    await engine.start()
    try:
        assert engine.version.split()[0] in program
        assert engine.url == f"unix://{engine.path}"
        assert stat.S_IMODE(engine.path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(engine.path.stat().st_mode) == 0o700
        assert "noeviction" in await command(engine, "CONFIG", "GET", "maxmemory-policy")
        assert psutil.Process(engine.pid).net_connections("inet") == []
    finally:
        await engine.stop()
    assert not engine.path.parent.exists()


async def test_killed_engine_starts_again_with_what_it_kept(
    program: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(tmp_path / "state", program)
    await engine.start()
    try:
        await command(engine, "SET", "key", "value")
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await back(engine, caplog)
        assert "value" in await command(engine, "GET", "key")
    finally:
        await engine.stop()
    again = Engine(tmp_path / "state", program)
    await again.start()
    try:
        assert "value" in await command(again, "GET", "key")
    finally:
        await again.stop()


async def test_signals_for_the_whole_group_do_not_end_it(program: str) -> None:
    engine = Engine(program=program)
    await engine.start()
    try:
        assert engine.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pid, number)
        assert "PONG" in await command(engine, "PING")
    finally:
        await engine.stop()


OWNER = """
import asyncio
from crossband.server.engine import Engine

async def main():
    engine = Engine()
    await engine.start()
    print("engine", engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_it_ends_with_a_killed_owner() -> None:
    env = {"PYTHONPATH": ":".join(sys.path)}
    async with Child(sys.executable, "-c", OWNER, env=env) as owner:
        pid = int((await owner.says(r"engine (\d+)"))[1])
        owner.send_signal(signal.SIGKILL)
        await end_of(pid)


async def test_state_has_one_engine_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RELEASE_TIME", 0.0)
    engine = Engine(tmp_path)
    await engine.start()
    try:
        with pytest.raises(StartError, match="another server keeps its state in"):
            await Engine(tmp_path).start()
    finally:
        await engine.stop()


async def test_state_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StartError, match=r"cannot keep state in .*: File exists"):
        await Engine(tmp_path / "state").start()


async def test_the_last_words_of_one_that_does_not_start_are_told(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(StartError, match="redis-server does not start: out of luck"):
        await Engine(program=str(program)).start()


async def test_what_to_install_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_engine", lambda: None)
    with pytest.raises(StartError, match=r"pip install 'crossband\[workers\]'"):
        await Engine().start()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "ended with exit code 3"),
        (-9, "was ended by SIGKILL"),
        # As a shell says it.
        (137, "was ended by SIGKILL"),
        (255, "ended with exit code 255"),
    ],
)
def test_ends_are_said_in_words(code: int, words: str) -> None:
    assert ending(code) == words
