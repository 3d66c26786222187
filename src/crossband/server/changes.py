"""Which Python files below a directory change, for `--reload`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

# Seconds between two looks.
_INTERVAL: Final = 0.3
# Directories with code that nobody edits while a server runs, and with much of it.
_SKIPPED: Final = frozenset({"node_modules", "site-packages", "__pycache__"})


async def changes(directory: Path) -> AsyncIterator[str]:
    """Yield the name of a file whenever one is changed, added or removed.

    Several at once are one change. Hidden directories and virtual environments are skipped.
    """
    seen = _times(directory)
    while True:
        await asyncio.sleep(_INTERVAL)
        now = await asyncio.to_thread(_times, directory)
        changed = sorted(name for name, _ in now.items() ^ seen.items())
        if changed:
            seen = now
            yield changed[0]


def _times(directory: Path) -> dict[str, int]:
    """Return when each Python file below a directory was modified, in nanoseconds.

    Names are relative to the directory.
    """
    times: dict[str, int] = {}
    waiting = [str(directory)]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            # It has just been removed, or is not ours to read.
            continue
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.endswith(".py"):
                    name = os.path.relpath(entry.path, directory)
                    times[name] = entry.stat().st_mtime_ns
            except OSError:
                continue
    return times
