"""A clock that stands still while the machine does not let this process run.

A promise in milliseconds can then be held exactly on a busy machine: what is measured is what
the program takes, by computing or by waiting, and not what its neighbours take.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

# Seconds between two looks at the clock. What passes between them beyond this, and beyond the
# processor time this process had, is the machine's.
TICK = 0.005


class Stopwatch:
    """Runs while its context is held; `time` is in seconds.

    A thread looks at the clock, so that an event loop that is blocked does not stop it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._elapsed = 0.0
        self._seen = time.perf_counter()
        self._processor = time.process_time()
        # Seconds the machine kept to itself.
        self.stalled = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def time(self) -> float:
        """Return the time that has passed for this process."""
        with self._lock:
            now, processor = time.perf_counter(), time.process_time()
            gap = now - self._seen
            ours = min(gap, TICK + processor - self._processor)
            self._elapsed += ours
            self.stalled += gap - ours
            self._seen, self._processor = now, processor
            return self._elapsed

    def _run(self) -> None:
        while not self._over.wait(TICK):
            self.time()
