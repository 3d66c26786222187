"""How many processes of a server this one is among: each has a hub of its own."""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

logger = logging.getLogger("crossband")


def warn_of_workers() -> None:
    """Warn where this is one of several processes, for a hub whose broker does not join them."""
    workers = worker_processes()
    if workers > 1:
        logger.warning(
            "this is one of %d worker processes, AND THEY DO NOT HEAR EACH OTHER: each has "
            "clients, rooms and a history of its own, and an event reaches the clients of one "
            "process only. Run one worker: more need a broker that joins them, which this "
            "version does not have",
            workers,
        )


def worker_processes() -> int:
    """Return how many worker processes the server of the running call has; 1 if it has none.

    Servers hand that on to no application, but each calls it from a function that knows:
    uvicorn's and hypercorn's of the worker process, and gunicorn's that forks it.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        workers = _told_by(frame.f_globals.get("__name__", ""), frame.f_code.co_name, frame)
        if workers is not None:
            return workers
        frame = frame.f_back
    return 1


def _told_by(module: str, function: str, frame: FrameType) -> int | None:
    if module == "uvicorn._subprocess" and function == "subprocess_started":
        config: Any = frame.f_locals.get("config")
        # To reload, uvicorn has one process, whatever it was told.
        return 1 if getattr(config, "should_reload", False) else _count(config, "workers")
    if module == "gunicorn.arbiter" and function == "spawn_worker":
        # Its number may be changed by signals (TTIN, TTOU).
        return _count(frame.f_locals.get("self"), "num_workers")
    if module.startswith("hypercorn.") and "worker" in function:
        return _count(frame.f_locals.get("config"), "workers")
    return None


def _count(holder: Any, name: str) -> int | None:
    value = getattr(holder, name, None)
    return value if isinstance(value, int) else None
