"""One worker: it serves on the sockets of its parent, and lives no longer than that.

A worker is the command of its parent, run again, with the link to the parent in its environment.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, Self

from starlette.types import ASGIApp

from crossband.server import Server
from crossband.server.orders import (
    Begin,
    Broker,
    Order,
    Ready,
    Report,
    Serve,
    Serving,
    Show,
    Stop,
    WantBroker,
    line,
    read_order,
)
from crossband.workers import WORKER_VARIABLE

# Seconds a worker may take beyond its hubs' `shutdown_timeout`, for what `process` allows when
# all is closed.
_REST: Final = 3.0


class Worker:
    """The worker that this process is: its link to the parent."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lines = link.makefile("rb")
        begin = self._read()
        if not isinstance(begin, Begin):
            # The parent has ended meanwhile.
            sys.exit(1)
        self.number: Final = begin.number
        self.workers: Final = begin.workers
        self.port: Final = begin.port
        self.api_key: Final = begin.api_key
        self.listeners: Final = [_listener(number, begin.port) for number in begin.listeners]
        self._broker: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # None until its event loop runs.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: WorkerStop | None = None
        # Whether another worker serves in its place when it stops.
        self.replaced: bool = False
        self._allowed = asyncio.Event()
        self._show: Callable[[str], None] = lambda note: None
        # Longest time to stop, once the parent is gone.
        self._stop_time = _REST
        # In a thread, because the event loop does not run yet, or may be blocked.
        threading.Thread(target=self._listen, name="link to the parent", daemon=True).start()

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return this process's worker; None if it is not one."""
        number = os.environ.pop(WORKER_VARIABLE, None)
        if number is None:
            return None
        link = socket.socket(fileno=int(number))
        # Programs that the application starts are not workers.
        link.set_inheritable(False)
        return cls(link)

    def want_broker(self) -> str | None:
        """Ask the parent for its broker's URL; None if it has none."""
        self._tell(WantBroker())
        return self._broker.get()

    def run(self, server: WorkerServer, show: Callable[[str], None]) -> None:
        """Serve until told to stop, or until the parent is gone.

        `show` prints the banner, with a note on the workers: for one worker, when all serve.
        """
        self._show = show
        server.run(lambda _: self._tell(Serving()))

    def make_stop(self) -> WorkerStop:
        """Return how it is stopped, on the event loop that serves."""
        self._loop = asyncio.get_running_loop()
        self._stop = WorkerStop()
        return self._stop

    async def allowed(self, stop_time: float) -> None:
        """Wait until the parent lets it take connections, or stops it.

        `stop_time` is how many seconds a graceful stop may take.
        """
        assert self._stop is not None
        self._stop_time = stop_time + _REST
        self._tell(Ready(self._stop_time))
        waits = [asyncio.create_task(event.wait()) for event in (self._allowed, self._stop.made)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _tell(self, report: Report) -> None:
        try:
            self._link.sendall(line(report))
        except OSError:
            # The parent is gone, and `_listen` knows.
            pass

    def _read(self) -> Order | None:
        """Return the next order; None when the parent is gone."""
        try:
            told = self._lines.readline()
        except OSError:
            return None
        return read_order(told) if told.endswith(b"\n") else None

    # In a thread.

    def _listen(self) -> None:
        while (order := self._read()) is not None:
            if isinstance(order, Broker):
                self._broker.put(order.url)
            elif isinstance(order, Stop):
                self.replaced = order.replaced
                self._end()
            else:
                self._in_loop(self._obey, order)
        self._outlive_nobody()

    def _end(self) -> None:
        if self._stop is None:
            # It is still being imported, and serves nobody.
            os._exit(0)
        self._in_loop(self._stop.made.set)

    def _outlive_nobody(self) -> None:
        """End, as the parent has ended without telling."""
        if self._stop is None or self._stop.made.is_set():
            os._exit(1)
        # Even a blocked event loop must not keep the process alive.
        timer = threading.Timer(self._stop_time, os._exit, (1,))
        timer.daemon = True
        timer.start()
        self._end()

    def _in_loop(self, call: Callable[..., object], *args: object) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(call, *args)
            except RuntimeError:
                # It is closed: the process is about to end.
                pass

    # In the event loop.

    def _obey(self, order: Order) -> None:
        if isinstance(order, Serve):
            self._allowed.set()
        elif isinstance(order, Show):
            self._show(order.note)


class WorkerStop:
    """How a worker is stopped: by its parent, or by SIGTERM alone.

    A terminal's Ctrl-C and hang-up, and systemd's SIGTERM, reach the parent and its workers at
    once. The parent decides, so a second signal forces nothing here: the parent does.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.made: asyncio.Event = asyncio.Event()

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._on_term)
        # Not SIG_IGN, which programs that the application starts would inherit.
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        # The parent blocks it until here: before, it would raise KeyboardInterrupt.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGHUP))

    def close(self) -> None:
        """Nothing is to be undone."""

    def _on_term(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.made.set)


class WorkerServer(Server):
    """A server on its parent's sockets, which takes connections when its parent lets it."""

    def __init__(self, worker: Worker, app: ASGIApp, **options: Any) -> None:
        super().__init__(app, **options)
        self._worker = worker

    async def _bind(self) -> list[socket.socket]:
        if self._worker.port is not None:
            self.port: int = self._worker.port
        return list(self._worker.listeners)

    def _unbind(self) -> None:
        """Leave the file of the unix socket, which is the parent's."""

    async def stop(self) -> None:
        if self._uvicorn is not None:
            self._uvicorn.replaced = self._worker.replaced
        await super().stop()

    async def _before_accepting(self) -> None:
        await self._worker.allowed(self._stop_time)

    def _make_stop(self) -> WorkerStop:
        return self._worker.make_stop()


def _listener(number: int, port: int | None) -> socket.socket:
    # The protocol is given for TCP, because asyncio sets TCP_NODELAY only then.
    protocol = -1 if port is None else socket.IPPROTO_TCP
    sock = socket.socket(-1, -1, protocol, fileno=number)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
