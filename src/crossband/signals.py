"""Hearing the signals that end a server before the server does.

Knows `signal` and an event loop. What is to be done at a signal is a callback.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final

# Seconds a signal waits beyond the drain, before the server hears it too.
FAREWELL_TIME: Final = 1.0
SignalHandler = Callable[[int, FrameType | None], Any]


class StopSignals:
    """Puts its own handlers of SIGINT and SIGTERM before the server's.

    Servers wait for open streams before they tell an application to shut down, and event
    streams do not end by themselves; uvicorn closes WebSockets before anybody could say why.
    So the first signal calls `stop`, and the server hears it when that has ended, or after
    FAREWELL_TIME and what `drain` returns, in seconds. A second signal, and one that comes
    while `stopping` returns True for another reason, the server hears at once.
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
        # Where `stop` is called. None while nothing is to be stopped.
        self._loop: asyncio.AbstractEventLoop | None = None
        # By signal: our handler and the one before it.
        self._handlers: dict[int, tuple[SignalHandler, SignalHandler]] = {}
        # Passes on the signal that waits for `stop`; None when none does.
        self._pass_on: Callable[[], None] | None = None
        # Held, or the event loop may forget them.
        self._tasks: set[asyncio.Task[None]] = set()

    def chain(self) -> None:
        """Hear the signals first from now on, on behalf of the running event loop."""
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            # SIG_DFL: nobody serves here who wants to stop gently.
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
            # Another one may have been put over ours: then ours only passes on.
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)
        self._handlers.clear()

    def _on_signal(self, previous: SignalHandler, number: int, frame: FrameType | None) -> None:
        loop = self._loop
        if loop is None or loop.is_closed() or (self._stopping() and self._pass_on is None):
            previous(number, frame)
            return
        if self._pass_on is not None:
            # The second signal: no more patience.
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
