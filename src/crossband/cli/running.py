"""How a command's server runs: alone, as the parent of workers, or as one of those workers."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crossband.asgi import names_broker
from crossband.cli import settings
from crossband.server import ASGIApp, LogLevel, Server
from crossband.workers import BROKER_VARIABLE

if TYPE_CHECKING:
    from crossband.mounts import Mounted
    from crossband.server.worker import Worker

# At "info" uvicorn logs what the banner already says better, and at "debug" every message, with
# the tokens and session keys in it.
_SERVER_LEVELS: Final[dict[str, LogLevel]] = {"info": "warning", "debug": "info"}


def log_to_stderr(where: settings.Listen, worker: Worker | None = None) -> None:
    name = "" if worker is None else f"worker {worker.number}: "
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)s {name}%(name)s: %(message)s",
    )
    logging.getLogger("crossband").setLevel(where.log_level.upper())


def name_broker(url: str | None) -> None:
    """Name the broker of hubs whose code names none, before their code is imported.

    By the environment, so that what the application starts, such as a publisher in a process of
    its own, finds it too.
    """
    if url is not None:
        os.environ[BROKER_VARIABLE] = url


def join(hubs: Sequence[Mounted], worker: Worker | None) -> None:
    """Name the broker of a worker's parent, if one of its hubs has none."""
    named = BROKER_VARIABLE in os.environ or all(names_broker(each.hub) for each in hubs)
    if worker is not None and not named:
        name_broker(worker.want_broker())


def serve(
    served: ASGIApp,
    hubs: Sequence[Mounted],
    where: settings.Listen,
    worker: Worker | None,
    show: Callable[[Server, str], None],
) -> None:
    """Serve in this process until it is stopped.

    `show` prints the banner, with a note on the workers. Raises StartError, and TypeError and
    ValueError for settings that the server refuses.
    """
    options: dict[str, Any] = {
        "host": where.host,
        "port": where.port,
        "uds": where.uds,
        "uds_mode": int(where.uds_mode, 8),
        "log_level": _SERVER_LEVELS.get(where.log_level, where.log_level),
        "ssl_certfile": where.ssl_certfile,
        "ssl_keyfile": where.ssl_keyfile,
        "root_path": where.root_path,
        "forwarded_allow_ips": where.forwarded_allow_ips,
        "keep_alive": where.keep_alive,
        "access_log": where.access_log,
    }
    if worker is None:
        Server(served, **options).run(lambda server: show(server, ""))
    else:
        from crossband.server.worker import WorkerServer

        server = WorkerServer(worker, served, **options)
        worker.run(server, lambda note: show(server, note))


def supervise(
    where: settings.Listen, processes: settings.Processes, api_key: str, directory: Path
) -> None:
    """Keep workers serving until this process is stopped; `directory` has the application.

    Raises StartError and WorkersFailed.
    """
    from crossband.server.changes import changes
    from crossband.server.engine import Engine
    from crossband.server.parent import Parent

    log_to_stderr(where)
    Parent(
        workers=processes.workers,
        host=where.host.removeprefix("[").removesuffix("]"),
        port=where.port,
        uds=where.uds,
        uds_mode=int(where.uds_mode, 8),
        api_key=api_key,
        engine=Engine(None if processes.state is None else Path(processes.state)),
        may_lack=processes.workers == 1 and processes.state is None,
        changes=changes(directory) if processes.reload else None,
    ).run()
