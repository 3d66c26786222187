"""How many worker processes the server runs: each has a hub of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Final

logger: Final = logging.getLogger("crossband")

# The broker's URL for hubs that name none.
BROKER_VARIABLE: Final = "CROSSBAND_BROKER"
# In our own workers: which of their open files is the link to their parent.
WORKER_VARIABLE: Final = "CROSSBAND_WORKER"


def warn_of_workers() -> None:
    """Warn if this is one of several processes that the hub's broker does not join."""
    workers = worker_processes()
    if workers > 1:
        logger.warning(
            "this is one of %d worker processes, AND THEY DO NOT HEAR EACH OTHER: each has "
            "clients, rooms and a history of its own, and an event reaches the clients of one "
            "process only. Set %s=redis://…, run one worker, or let `crossband serve --workers` "
            "join them",
            workers,
            BROKER_VARIABLE,
        )


def worker_processes() -> int:
    """Return how many worker processes the calling server has; 1 if it has none.

    Servers do not tell applications, but each calls them from a function that knows: in
    uvicorn and hypercorn the worker's main function, in gunicorn and granian the one that forks
    it. Where granian does not fork (macOS, Python 3.14), only its command says it.
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
        # With --reload, uvicorn runs one process, whatever `workers` says.
        return 1 if getattr(config, "should_reload", False) else _count(config, "workers")
    if module == "gunicorn.arbiter" and function == "spawn_worker":
        # Signals may change the number (TTIN, TTOU).
        return _count(frame.f_locals.get("self"), "num_workers")
    if module.startswith("hypercorn.") and "worker" in function:
        return _count(frame.f_locals.get("config"), "workers")
    if module == "granian.server.common" and function in ("_spawn_workers", "_respawn_workers"):
        return _count(frame.f_locals.get("self"), "workers")
    if module == "crossband.server.worker" and function == "run":
        return _count(frame.f_locals.get("self"), "workers")
    if module == "multiprocessing.spawn" and function == "_main" and _GRANIAN in sys.modules:
        return _granian_option(sys.argv, os.environ)
    return None


_GRANIAN: Final = "granian.server.mp"


def _granian_option(argv: Sequence[str], environ: Mapping[str, str]) -> int | None:
    """Return the number of workers that granian was asked for."""
    given = environ.get("GRANIAN_WORKERS", "")
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--workers":
            given = following
        elif word.startswith("--workers="):
            given = word.removeprefix("--workers=")
    return int(given) if given.isdecimal() else None


def _count(holder: Any, name: str) -> int | None:
    value = getattr(holder, name, None)
    return value if isinstance(value, int) else None
