"""The ends of child processes: waited for in a thread, and said in words."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import threading


def exit_of(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """Return a future for the exit code of a process.

    asyncio's own subprocesses can lose it when one ends while it is sent a signal. The thread
    is a daemon, so that a process that does not end keeps nothing alive.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def tell(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    def wait() -> None:
        code = process.wait()
        # The loop is closed if nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, code)

    threading.Thread(target=wait, name=f"end of {process.pid}", daemon=True).start()
    return ended


def ending(code: int) -> str:
    """Say how a process ended, from its exit code: `Popen`'s, or a shell's for a signal."""
    number = -code if code < 0 else code - 128
    names = {each.value: each.name for each in signal.Signals}
    if number in names:
        return f"was ended by {names[number]}"
    return f"ended with exit code {code}"
