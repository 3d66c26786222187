"""How the tests wait for programs: nothing of an end is lost."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.children import Child

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


async def test_nothing_of_a_child_outlives_the_body() -> None:
    program = "import os, time; os.fork(); os.write(1, b'%d.' % os.getpid()); time.sleep(600)"
    async with Child(*ISOLATED, program) as child:
        found = await child.says(r"(\d+)\.(\d+)\.")
    assert child.returncode == -signal.SIGKILL
    for pid in found.groups():
        # Gone, or waiting for its new parent to notice.
        with contextlib.suppress(psutil.NoSuchProcess):
            assert psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_no_test_leaves_a_child_to_asyncio() -> None:
    tests = Path(__file__).parent
    users = [
        path.name
        for path in tests.rglob("*.py")
        if re.search(r"create_subprocess_(exec|shell)\(", path.read_text(encoding="utf-8"))
    ]
    assert users == []
