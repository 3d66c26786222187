"""Catches the signals that end a server before the server sees them.

Knows `signal` and an event loop. What happens on a signal is a callback.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final

# Seconds a signal waits beyond the drain before the server gets it too.
FAREWELL_TIME: Final = 1.0
SignalHandler = Callable[[int, FrameType | None], Any]


class StopSignals:
    """Puts its own handlers for SIGINT and SIGTERM in front of the server's.

    Servers wait for open streams before they tell an application to shut down, and event
    streams do not end by themselves; uvicorn closes WebSockets before the hub can say why.
    So the first signal calls `stop`, and is passed on to the server when that has finished, or
    after FAREWELL_TIME plus what `drain` returns, in seconds. A second signal is passed on at
    once, as is one that comes while `stopping` returns True for another reason.
    """

    def __init__(
        self,
        stop: Callable[[], Coroutine[Any, Any, None]],
        *,
        stopping: Callable[[], bool],
        drain: Callable[[], float],
    ) -> None:
        self._stop = stop
        self._stopping = stopping
        self._drain = drain
        # The loop that `stop` runs on. None while there is nothing to stop.
        self._loop: asyncio.AbstractEventLoop | None = None
        # By signal: our handler and the one before it.
        self._handlers: dict[int, tuple[SignalHandler, SignalHandler]] = {}
        # Passes on the signal that waits for `stop`; None when no signal waits.
        self._pass_on: Callable[[], None] | None = None
        # Strong references: the event loop keeps only weak ones.
        self._tasks: set[asyncio.Task[None]] = set()

    def chain(self) -> None:
        """Catch the signals from now on, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            # With SIG_DFL there is no server here that shuts down gracefully.
            if callable(previous) and number not in self._handlers:
                handler = functools.partial(self._on_signal, previous)
                self._handlers[number] = handler, previous
                signal.signal(number, handler)

    def unchain(self) -> None:
        """Put the server's handlers back."""
        self._loop = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number, (handler, previous) in self._handlers.items():
            # Someone may have chained another handler onto ours; then ours only passes on.
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)
        self._handlers.clear()

    def _on_signal(self, previous: SignalHandler, number: int, frame: FrameType | None) -> None:
        loop = self._loop
        if loop is None or loop.is_closed() or (self._stopping() and self._pass_on is None):
            previous(number, frame)
            return
        if self._pass_on is not None:
            # The second signal: stop waiting.
            pass_on, self._pass_on = self._pass_on, None
            pass_on()
            previous(number, frame)
            return
        self._pass_on = functools.partial(previous, number, None)
        loop.call_soon_threadsafe(lambda: self._run(self._stop_then_pass_on()))

    async def _stop_then_pass_on(self) -> None:
        stopping = self._run(self._stop())
        await asyncio.wait({stopping}, timeout=FAREWELL_TIME + self._drain())
        pass_on, self._pass_on = self._pass_on, None
        if pass_on is not None:
            asyncio.get_running_loop().call_soon(pass_on)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
