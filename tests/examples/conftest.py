"""Runs the programs of `examples/classic` by the command that each says of itself."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.children import Child
from tests.clients.base import WAIT

CLASSIC = Path(__file__).parents[2] / "examples" / "classic"


class Program(Child):
    """An example in a process of its own."""

    # Set once it has told it.
    url = ""

    async def stop(self) -> None:
        """Send SIGTERM, and see it leave with its clients told and nothing gone wrong."""
        self.send_signal(signal.SIGTERM)
        # uvicorn, once it has stopped gracefully, dies of the signal it was sent.
        assert await self.exit_code() in (0, -signal.SIGTERM), self.output
        assert "Traceback" not in self.output, self.output


Run = Callable[[str], Awaitable[Program]]


def command(name: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of a program's `Run:` line, on port 0."""
    found = re.search(r"^Run: (.+)$", (CLASSIC / f"{name}.py").read_text(), re.MULTILINE)
    assert found is not None, f"{name}.py does not say how to run it"
    words = shlex.split(found[1])
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    tool, *arguments = words[len(settings) :]
    if tool == "python":
        return [sys.executable, *arguments], {**settings, "PORT": "0"}
    return [sys.executable, "-m", tool, *arguments, "--port", "0"], settings


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """Start programs by name; each must stop well after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(name: str) -> Program:
            arguments, settings = command(name)
            program = Program(*arguments, cwd=CLASSIC, env={**settings})
            await stack.enter_async_context(program)
            program.url = "http:" + (await program.says(r"//127\.0\.0\.1:\d+"))[0]
            stack.push_async_callback(program.stop)
            return program

        yield start


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT) as client:
        yield client
