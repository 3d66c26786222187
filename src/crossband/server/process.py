"""A process of its own for a server: event loop, garbage collector, signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

from crossband.hub.runner import places

logger: Final = logging.getLogger("crossband")

# Seconds for what is left when all is closed: a handler in a thread cannot be cancelled, and
# Python would wait for it, for ever.
_REST_TIME: Final = 1.0
# Seconds of a stop after which it is told how to end it at once: nobody wonders before.
_QUICK_STOP: Final = 1.0
# Connections are objects that stay: Python's own threshold of 700 has the youngest of them
# walked at every tenth connect, a tenth of what connects cost.
GC_THRESHOLDS: Final = (20_000, 20, 20)


class StopRequest:
    """Hears SIGINT and SIGTERM: the first asks the server to stop, the second ends the process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.made: Final = asyncio.Event()
        # By a thread, as the event loop may be blocked.
        self._told = _later(
            _QUICK_STOP, logger.info, "stopping; Ctrl-C or SIGTERM again ends it at once"
        )

    def listen(self) -> None:
        """Hear the signals, instead of whoever hears them now."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def close(self) -> None:
        """Do not tell any more how to end the process at once."""
        self._told.cancel()

    def _on_signal(self, *_: object) -> None:
        # From now on not even a blocked event loop keeps the process.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os._exit(128 + number))
        if self._told.ident is None:
            self._told.start()
        self._loop.call_soon_threadsafe(self.made.set)


def run(serve: Callable[[StopRequest], Coroutine[Any, Any, None]]) -> None:
    """Run a server until it returns, which it does soon after it is asked to stop.

    Ends the process with 0 where a thread does not end by itself, or a task goes on although
    it is cancelled. A second signal ends it at once, with 128 and the signal's number.
    """
    last_resort: threading.Timer | None = None
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            last_resort = _later(_REST_TIME, _leave_rest, runner.get_loop())
            runner.run(_serve(serve))
            last_resort.start()
    finally:
        if last_resort is not None:
            last_resort.cancel()
        for number, handler in handlers.items():
            # None is one that is not Python's, which cannot be put back.
            if handler is not None:
                signal.signal(number, handler)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _serve(serve: Callable[[StopRequest], Coroutine[Any, Any, None]]) -> None:
    stop = StopRequest()
    stop.listen()
    try:
        await serve(stop)
    finally:
        stop.close()


def _later(seconds: float, call: Callable[..., None], *args: Any) -> threading.Timer:
    """Return a timer, not started, that does not keep the process."""
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    return timer


def _leave_rest(loop: asyncio.AbstractEventLoop) -> None:
    # asyncio cancels what is left, and waits for it; then for the threads.
    tasks = [task for task in asyncio.all_tasks(loop) if task.cancelling()]
    if tasks:
        logger.warning(
            "tasks went on although they were cancelled, and are cut: %s",
            places(tasks) or len(tasks),
        )
    else:
        logger.warning("threads of handlers did not end in time and are cut")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":  # uvloop does not exist there
        return None
    import uvloop

    return uvloop.new_event_loop
