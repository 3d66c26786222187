"""Finds out what blocks the event loop: a thread that asks the loop for a sign of life.

While the loop answers, this costs four wakeups a second and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from types import FrameType
from typing import Final
from weakref import WeakKeyDictionary

from crossband.hub.traffic import Notices

logger: Final = logging.getLogger("crossband")

# Seconds without a sign of life before the loop counts as blocked.
PATIENCE: Final = 1.0
# Seconds between two checks.
TICK: Final = 0.25

# Modules whose frames call handlers: the first other frame below them is the handler's.
_CALLERS: Final = (
    *("crossband.asgi", "crossband.handlers.", "crossband.hub.", "crossband.lane."),
    *("crossband.server", "crossband.transports.", "asyncio.", "uvloop", "uvicorn.", "hypercorn."),
    *("starlette.", "fastapi.", "anyio."),
)
# Modules in which an idle loop waits.
_IDLE: Final = ("asyncio.", "selectors", "uvloop")


class Watchdog:
    """Watches one event loop from a thread of its own.

    Time counts as blocked only if this thread ran meanwhile or the loop's own thread used the
    processor: if the process was suspended or got no processor, no handler is to blame.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        patience: float = PATIENCE,
        tick: float = TICK,
    ) -> None:
        self._loop = loop
        self._patience = patience
        self._tick = tick
        # The loop's thread.
        self._thread_id = threading.get_ident()
        self._ended = threading.Event()
        self._notices = Notices()
        # Number of hubs on this loop.
        self.users = 0
        # When the loop last gave a sign of life; None while one is awaited.
        self._answered: float | None = 0.0
        # When it was asked, and its thread's processor time then.
        self._asked = 0.0, 0.0
        # Seconds since then in which this thread ran on time.
        self._waited = 0.0
        self._told = False
        # When this thread last checked, and the processor time of the loop's thread then.
        self._looked = time.monotonic(), time.thread_time()

    def start(self) -> None:
        """Start; call it on the loop's own thread."""
        threading.Thread(target=self._run, name="crossband-watchdog", daemon=True).start()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._tick):
            try:
                self.look(time.monotonic(), self._processor_time())
            except RuntimeError:
                # The loop is closed.
                return

    def _beat(self) -> None:
        self._answered = time.monotonic()

    def look(self, now: float, computed: float) -> None:
        """Ask the loop for a sign of life, or notice that one is overdue.

        `computed` is the processor time of the loop's thread. Raises RuntimeError if the loop is
        closed.
        """
        passed = now - self._looked[0]
        meanwhile = computed - self._looked[1]
        self._looked = now, computed
        late = passed >= 2 * self._tick
        # A call into C held the interpreter lock: the loop's thread has only just released it,
        # and is still at the same place.
        held = late and meanwhile >= self._patience and self._tell(passed, meanwhile)
        if self._answered is not None:
            if self._told:
                took = self._answered - self._asked[0]
                logger.warning("the event loop goes on, after %.1f s", took)
            self._ask()
        elif not self._loop.is_running():
            self._waited, self._asked = 0.0, self._looked
        elif held:
            self._told = True
        elif not self._told:
            # If late, this thread did not run either.
            self._waited += 0.0 if late else passed
            busy = computed - self._asked[1]
            if max(self._waited, busy) >= self._patience:
                self._told = self._tell(now - self._asked[0], busy)

    def _ask(self) -> None:
        self._answered = None
        self._told = False
        self._asked, self._waited = self._looked, 0.0
        self._loop.call_soon_threadsafe(self._beat)

    def _processor_time(self) -> float:
        """Return the processor time of the loop's thread; 0 if the system cannot tell."""
        if sys.platform in ("win32", "darwin"):
            return 0.0
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread_id))

    def _tell(self, blocked: float, computed: float) -> bool:
        """Log where the loop's thread is; return whether there was something to log."""
        frame = sys._current_frames().get(self._thread_id)
        if frame is None or _module(frame).startswith(_IDLE):
            return False
        if not self._notices.due((frame.f_code, frame.f_lineno), self._looked[0]):
            return False
        logger.warning(
            "the event loop has been blocked for %.1f s (%.1f s of it computing) by %s; no client "
            "is served meanwhile",
            blocked,
            min(computed, blocked),
            place_of(frame),
        )
        return True


_watchdogs: WeakKeyDictionary[asyncio.AbstractEventLoop, Watchdog] = WeakKeyDictionary()


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Watch the running loop, for one more hub."""
    watchdog = _watchdogs.get(loop)
    if watchdog is None:
        watchdog = _watchdogs[loop] = Watchdog(loop)
        watchdog.start()
    watchdog.users += 1


def unwatch(loop: asyncio.AbstractEventLoop) -> None:
    """Stop watching the loop, for one hub."""
    watchdog = _watchdogs.get(loop)
    if watchdog is not None:
        watchdog.users -= 1
        if not watchdog.users:
            del _watchdogs[loop]
            watchdog.end()


def place_of(frame: FrameType) -> str:
    """Return where a thread is: its handler, and what that has called.

    For example `report (/app/chat.py:31), in read (/usr/lib/python3.11/ssl.py:1100)`.
    """
    handler: FrameType | None = None
    outer: FrameType | None = frame
    while outer is not None and not _module(outer).startswith(_CALLERS):
        handler, outer = outer, outer.f_back
    if handler is None or handler is frame:
        return _where(frame)
    return f"{_where(handler)}, in {_where(frame)}"


def _where(frame: FrameType) -> str:
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
