"""How the tests wait for programs: nothing of an end is lost."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.children import Child
from tests.waiting import until

ISOLATED = (sys.executable, "-uISc")


async def test_exit_code_is_known_however_often_the_child_is_signalled() -> None:
    for _ in range(5):
        async with Child(*ISOLATED, "print('ready'); input()", stdin="") as child:
            # Some of these come when it has ended and nobody has asked for its status yet.
            while child.returncode is None:
                child.send_signal(signal.SIGCONT)
                await asyncio.sleep(0)
            assert await child.exit_code() == 1


async def test_output_is_complete_at_the_end() -> None:
    heard: list[str] = []
    program = "import sys; print(sys.stdin.read()); print('last', file=sys.stderr); sys.exit(3)"
    async with Child(*ISOLATED, program, stdin="line\n" * 1_000, take=heard.append) as child:
        assert await child.exit_code() == 3
    assert heard == ["line"] * 1_000 + ["", "last"]
    with pytest.raises(AssertionError, match="exit 3, no 'more' in:\n"):
        await child.says("more")


FORKS = "import os, time; os.fork(); os.write(1, b'%d.' % os.getpid()); time.sleep(600)"


def has_ended(pid: str) -> bool:
    """Tell whether a process is gone, or waits for its new parent to notice."""
    try:
        return psutil.Process(int(pid)).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


async def test_nothing_of_a_child_outlives_the_body() -> None:
    async with Child(*ISOLATED, FORKS) as child:
        found = await child.says(r"(\d+)\.(\d+)\.")
    assert child.returncode == -signal.SIGKILL
    # The output of one that is killed ends a moment before itself.
    await until(lambda: all(map(has_ended, found.groups())))


async def test_nothing_of_a_child_outlives_a_test_process_that_is_killed() -> None:
    program = f"""
import asyncio
from tests.children import Child

async def test():
    async with Child(*{ISOLATED}, {FORKS!r}) as child:
        print(*(await child.says(r"([0-9]+)[.]([0-9]+)[.]")).groups(), flush=True)
        await asyncio.sleep(600)

asyncio.run(test())
"""
    async with Child(sys.executable, "-c", program, cwd=Path(__file__).parents[1]) as process:
        found = await process.says(r"(\d+) (\d+)\n")
        assert not any(map(has_ended, found.groups()))
        process.send_signal(signal.SIGKILL)
        await until(lambda: all(map(has_ended, found.groups())))


def test_no_test_leaves_a_child_to_asyncio() -> None:
    tests = Path(__file__).parent
    users = [
        path.name
        for path in tests.rglob("*.py")
        if re.search(r"create_subprocess_(exec|shell)\(", path.read_text(encoding="utf-8"))
    ]
    assert users == []
