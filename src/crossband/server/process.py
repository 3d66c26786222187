"""Runs a server as its own process: event loop, garbage collector, signals, exit."""

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
from typing import Any, Final, Protocol, TypeVar

from crossband.hub.runner import places

logger: Final = logging.getLogger("crossband")

# Seconds for what is left when all is closed: a handler in a thread cannot be cancelled, and
# Python would wait for it forever.
_REST_TIME: Final = 1.0
# Seconds after which a stop that still runs logs how to end it at once.
_QUICK_STOP: Final = 1.0
# Connections are long-lived objects. With Python's default threshold of 700, the youngest are
# scanned at every tenth connect, which is a tenth of a connect's cost.
GC_THRESHOLDS: Final = (20_000, 20, 20)


class Stop(Protocol):
    """How the process is asked to stop."""

    # Set when it is.
    made: asyncio.Event

    def listen(self) -> None:
        """Handle the signals, in place of their current handlers."""

    def close(self) -> None:
        """Stop what still runs of this."""


class StopRequest:
    """Handles SIGINT and SIGTERM: the first stops the server, the second the process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.made: asyncio.Event = asyncio.Event()
        # In a thread, as the event loop may be blocked.
        self._told = _later(
            _QUICK_STOP, logger.info, "stopping; a second Ctrl-C or SIGTERM ends it at once"
        )

    def listen(self) -> None:
        """Handle the signals, in place of their current handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def close(self) -> None:
        """No longer log how to end the process at once."""
        self._told.cancel()

    def _on_signal(self, *_: object) -> None:
        # From now on not even a blocked event loop can keep the process alive.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._force(number))
        if self._told.ident is None:
            self._told.start()
        self._loop.call_soon_threadsafe(self.made.set)

    def _force(self, number: int) -> None:
        os._exit(128 + number)


S = TypeVar("S", bound=Stop)


def run(serve: Callable[[S], Coroutine[Any, Any, None]], make_stop: Callable[[], S]) -> None:
    """Run a server until it returns, soon after it is asked to stop.

    Ends the process with status 0 if a thread does not end, or a task ignores its cancellation.
    A second signal ends it at once, with status 128 plus the signal's number.
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
            runner.run(_serve(serve, make_stop))
            last_resort.start()
    finally:
        if last_resort is not None:
            last_resort.cancel()
        for number, handler in handlers.items():
            # None means a handler outside Python, which cannot be put back.
            if handler is not None:
                signal.signal(number, handler)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


async def _serve(
    serve: Callable[[S], Coroutine[Any, Any, None]], make_stop: Callable[[], S]
) -> None:
    stop = make_stop()
    stop.listen()
    try:
        await serve(stop)
    finally:
        stop.close()


def _later(seconds: float, call: Callable[..., None], *args: Any) -> threading.Timer:
    """Return a timer, not yet started, that does not keep the process alive."""
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    return timer


def _leave_rest(loop: asyncio.AbstractEventLoop) -> None:
    # asyncio cancels the remaining tasks and waits for them, then for the threads.
    tasks = [task for task in asyncio.all_tasks(loop) if task.cancelling()]
    if tasks:
        logger.warning(
            "tasks ignored their cancellation and are cut: %s",
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
    if sys.platform == "win32":  # uvloop does not exist for Windows
        return None
    import uvloop

    return uvloop.new_event_loop
