"""Programs in processes of their own: started, read and waited for, and none outlives its test.

Not by `asyncio.create_subprocess_exec`, which loses exit codes: its `send_signal` polls the child
first, and when the child has just ended, that takes its status away from the watcher, which then
reports 255 ("Unknown child process pid"). Here one `Popen` asks, under its own lock.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.clients.base import WAIT

# Seconds a program may take to start: Python with all imports, on a machine with much to do.
START = 60.0

# Ends what a test process that is killed leaves running: the children and theirs, such as the
# workers of hypercorn, which nothing else would end. It reads which process groups begin and
# end, until nobody is left to tell.
_WATCH: Final = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@functools.cache
def _watch() -> subprocess.Popen[bytes]:
    """Start that program, once in each test process, whose end is its own."""
    return subprocess.Popen(
        (sys.executable, "-ISc", _WATCH),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A signal to the group of the tests is not for it.
        start_new_session=True,
        bufsize=0,
    )


def watch(group: int) -> None:
    """Have a process group ended with this process, however that ends."""
    _tell_watch("+", group)


def unwatch(group: int) -> None:
    """Forget a process group that has ended: its number may be given to another."""
    _tell_watch("-", group)


def _tell_watch(mark: str, group: int) -> None:
    stdin = _watch().stdin
    assert stdin is not None
    stdin.write(f"{mark}{group}\n".encode())


class Child:
    """A program that runs while the body runs: `async with Child(command, argument) as child`.

    Standard output and error are one stream. `stdin` is what it reads, and `take` gets each line
    as it comes. What is left of its process group in the end is killed.
    """

    def __init__(
        self,
        *command: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        pass_fds: Sequence[int] = (),
        take: Callable[[str], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        # The beginning of the next line.
        self._line = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        # All that it printed.
        self.output = ""
        self._printed = asyncio.Event()
        # Its exit code, or minus the number of the signal that ended it.
        self._exit: asyncio.Future[int] = self._loop.create_future()
        # Done when nobody can print any more.
        self._silent: asyncio.Future[None] = self._loop.create_future()
        with tempfile.TemporaryFile() as script:
            script.write(stdin.encode())
            script.seek(0)
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                stdin=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        watch(self.pid)
        for target in (self._read, self._wait):
            threading.Thread(target=target, name=f"child {self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""
        return self._exit.result() if self._exit.done() else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await self.exit_code()
        unwatch(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal; a program that has ended takes none."""
        self._process.send_signal(number)

    async def says(self, pattern: str, *, within: float = START) -> re.Match[str]:
        """Wait until its output matches; fail with the output when it ends before."""
        try:
            async with asyncio.timeout(within):
                while (found := re.search(pattern, self.output)) is None:
                    if self._silent.done():
                        break
                    self._printed.clear()
                    await self._printed.wait()
        except TimeoutError:
            found = None
        assert found is not None, f"exit {self.returncode}, no {pattern!r} in:\n{self.output}"
        return found

    async def exit_code(self, *, within: float = WAIT) -> int:
        """Wait for its end, and for the last it printed."""
        async with asyncio.timeout(within):
            await asyncio.gather(self._exit, self._silent)
        return self._exit.result()

    # Each in a thread.

    def _wait(self) -> None:
        code = self._process.wait()
        self._tell(self._exit.set_result, code)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            while said := os.read(stdout.fileno(), 65_536):
                self._tell(self._hear, said)
        self._tell(self._fall_silent)

    def _tell(self, what: Callable[..., object], *args: object) -> None:
        # The test may have been given up, and its event loop closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *args)

    # In the event loop.

    def _hear(self, said: bytes) -> None:
        self.output += (text := self._decode(said))
        self._printed.set()
        if self._take is not None:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._take(line)

    def _fall_silent(self) -> None:
        self._silent.set_result(None)
        self._printed.set()
