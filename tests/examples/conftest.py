"""Runs the programs of `examples/classic` by the command that each says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.clients.base import WAIT

CLASSIC = Path(__file__).parents[2] / "examples" / "classic"


@dataclass
class Program:
    """An example in a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    # What it printed.
    output: list[str]
    reader: asyncio.Task[None]

    async def stop(self) -> None:
        """Send SIGTERM, and see it leave with its clients told and nothing gone wrong."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(WAIT):
            await self.reader
            code = await self.process.wait()
        printed = "".join(self.output)
        # uvicorn, once it has stopped gracefully, dies of the signal it was sent.
        assert code in (0, -signal.SIGTERM), printed
        assert "Traceback" not in printed, printed


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
            process = await asyncio.create_subprocess_exec(
                *arguments,
                cwd=CLASSIC,
                env={**os.environ, **settings, "PYTHONUNBUFFERED": "1"},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output: list[str] = []
            address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            async def read() -> None:
                assert process.stdout is not None
                async for line in process.stdout:
                    output.append(line.decode())
                    found = re.search(r"//127\.0\.0\.1:\d+", output[-1])
                    if found is not None and not address.done():
                        address.set_result(f"http:{found[0]}")
                if not address.done():
                    address.set_exception(RuntimeError("".join(output)))

            reader = asyncio.create_task(read())
            try:
                async with asyncio.timeout(WAIT):
                    program = Program(process, await address, output, reader)
            except BaseException:
                if process.returncode is None:
                    process.kill()
                await reader
                await process.wait()
                raise
            stack.push_async_callback(program.stop)
            return program

        yield start


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=WAIT) as client:
        yield client
