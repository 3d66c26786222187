"""What the kernel knows of a process, and what a reader should know of the machine. Linux only."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants (nginx serves in a child)."""
    yield pid
    for children in PROC.glob(f"{pid}/task/*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def cpu_time(pid: int) -> int:
    """Return the nanoseconds a process was on a core: all threads, user and kernel.

    The kernel adds up what a thread ran when it stops running, so the figure is exact for a
    process that waits.
    """
    total = 0
    for member in family(pid):
        for schedstat in PROC.glob(f"{member}/task/*/schedstat"):
            total += int(schedstat.read_text().split()[0])
    return total


def resident(pid: int) -> int:
    """Return the bytes of memory in use (RSS), shared pages included."""
    total = 0
    for member in family(pid):
        # Counted page by page; statm may be off by what each core has not reported yet.
        rollup = (PROC / f"{member}/smaps_rollup").read_text()
        match = re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)
        assert match is not None
        total += int(match[1]) * 1024
    return total


def settle(pid: int, *, patience: float = 15.0) -> None:
    """Wait until a process does next to nothing: under 1 ms of CPU time in 0.1 s."""
    deadline = time.monotonic() + patience
    before = cpu_time(pid)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = cpu_time(pid)
        if now - before < 1_000_000:
            return
        before = now


def describe() -> dict[str, str | int]:
    """Return what the figures depend on, without the machine's name."""
    model = re.search(r"^model name\s*:\s*(.+)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model[1].strip() if model else platform.machine(),
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
