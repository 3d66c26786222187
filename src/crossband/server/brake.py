"""The brake on what dies and is started again: at once if it ran for a while, else ever later."""

from __future__ import annotations

import time
from typing import Final

# Seconds that a process must have run for its end not to count as part of a crash loop.
_RAN: Final = 10.0
# Seconds before the first start that waits; each further one waits twice as long, at most so
# long: 2 s for what did run, and 30 s for what cannot start, such as without its database.
_FIRST: Final = 0.5
_LONGEST: Final = 2.0
_LONGEST_FAILED: Final = 30.0


class Brake:
    """Says how long to wait before the next start; made when the process has started."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        # How often it has ended early in a row.
        self._early = 0

    def begin(self) -> None:
        """Note that the process has started again."""
        self._began = time.monotonic()

    def pause(self, *, failed: bool = False) -> float:
        """Return seconds to wait, now that it ended, or `failed` to start.

        Nothing the first time: whoever restarts at once what was killed once loses least.
        """
        if not failed and time.monotonic() - self._began >= _RAN:
            self._early = 0
        self._early += 1
        if self._early == 1:
            return 0.0
        longest = _LONGEST_FAILED if failed else _LONGEST
        return min(_FIRST * 2.0 ** (self._early - 2), longest)
