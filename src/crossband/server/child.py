"""One worker, as its parent sees it: a process, and the link to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from crossband.errors import StartError
from crossband.server.exits import exit_of
from crossband.server.orders import (
    Begin,
    Order,
    Ready,
    Report,
    Serving,
    Stop,
    line,
    read_report,
)
from crossband.workers import WORKER_VARIABLE

logger: Final = logging.getLogger("crossband")

# Seconds that a worker may take longer to stop than it says itself before it is killed.
_PATIENCE: Final = 2.0
# The signals that reach a worker before it can handle them, if its terminal sends them to all.
_TERMINALS: Final = (signal.SIGINT, signal.SIGHUP)


class Child:
    """A worker process. `want_broker` is called when it wants a broker."""

    def __init__(
        self, begin: Begin, want_broker: Callable[[Child], Coroutine[Any, Any, None]]
    ) -> None:
        self.number: Final = begin.number
        self.ready: Final = asyncio.Event()
        self.serving: Final = asyncio.Event()
        self._want_broker = want_broker
        # Seconds that it may take to stop; before it is ready, it has nothing to stop.
        self._stop_time = 0.0
        self._link, theirs = socket.socketpair()
        # It unblocks them when it handles them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINALS)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - it is our own
                    # The command of this process, with the interpreter's own options.
                    [sys.executable, *sys.orig_argv[1:]],
                    env={**os.environ, WORKER_VARIABLE: str(theirs.fileno())},
                    pass_fds=(theirs.fileno(), *begin.listeners),
                )
        except OSError as error:
            self._link.close()
            raise StartError(f"cannot start a worker: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        # Its exit code.
        self.ended: Final = exit_of(self._process)
        # The socket's buffer is empty, and has room for all orders.
        self._link.sendall(line(begin))
        self._link.setblocking(False)
        self._listening = asyncio.create_task(self._listen())

    @property
    def pid(self) -> int:
        return self._process.pid

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"

    def tell(self, order: Order) -> None:
        """Send it an order. One that has ended takes none."""
        try:
            self._link.send(line(order))
        except OSError:
            pass

    async def first_of(
        self, wait: Coroutine[Any, Any, object], *, timeout: float | None = None
    ) -> bool:
        """Wait for something, for its end, or for `timeout` seconds: True if it was the first."""
        waiting = asyncio.create_task(wait)
        try:
            waits: set[asyncio.Future[Any]] = {waiting, self.ended}
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return waiting.done()
        finally:
            waiting.cancel()

    async def stop(self, *, replaced: bool = False) -> None:
        """Stop it gracefully, as all or `replaced`; kill it if it takes longer than it may."""
        if not self.ready.is_set():
            # It serves nobody.
            self.kill()
        self.tell(Stop(replaced))
        try:
            async with asyncio.timeout(self._stop_time + _PATIENCE):
                await asyncio.shield(self.ended)
        except TimeoutError:
            logger.warning("%s does not stop in time and is killed", self)
            self.kill()
            await self.ended

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        rest = b""
        with self._link, contextlib.suppress(OSError):
            while data := await loop.sock_recv(self._link, 65_536):
                *lines, rest = (rest + data).split(b"\n")
                for told in lines:
                    await self._hear(read_report(told))

    async def _hear(self, report: Report) -> None:
        if isinstance(report, Ready):
            self._stop_time = report.stop_time
            self.ready.set()
        elif isinstance(report, Serving):
            self.serving.set()
        else:
            await self._want_broker(self)
