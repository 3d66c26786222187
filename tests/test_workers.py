"""Several processes without a broker say that they do not hear each other; one says nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossband import Hub, MemoryBroker
from crossband.workers import worker_processes
from tests.children import Child

APPLICATION = """
import sys

from crossband import Hub

app = Hub()


@app.on_start
def start():
    # One write, of several processes into one pipe.
    sys.stdout.write("worker started\\n")
"""
WARNING = "this is one of 2 worker processes, AND THEY DO NOT HEAR EACH OTHER"


@pytest.mark.parametrize(
    ("command", "workers"),
    [
        ("uvicorn --port 0 --workers 2 several:app", 2),
        ("uvicorn --port 0 --reload several:app", 1),
        ("hypercorn --bind 127.0.0.1:0 --workers 2 several:app", 2),
        ("hypercorn --bind 127.0.0.1:0 several:app", 1),
        ("crossband serve several:app --port 0", 1),
    ],
)
async def test_each_of_several_workers_warns_at_its_start(
    command: str, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "several.py").write_text(APPLICATION)
    # Which makes workers of uvicorn only, and only where it is not told otherwise.
    env = {"WEB_CONCURRENCY": "2", "PYTHONPATH": ":".join(sys.path)}
    if command.startswith("uvicorn"):
        del env["WEB_CONCURRENCY"]
    async with Child(sys.executable, "-m", *command.split(), cwd=tmp_path, env=env) as child:
        # The warning comes after the function of on_start, in one process.
        await child.says(f"(?s)(worker started.*){{{workers}}}")
        if workers > 1:
            await child.says(f"(?s)({WARNING}.*){{{workers}}}")
        else:
            await child.says("(?i)running on|serves")
        assert child.output.count("DO NOT HEAR") == (workers if workers > 1 else 0)


def called_by(module: str, function: str, **local: Any) -> int:
    """Return what is found from within a function of a server's module."""
    source = f"def {function}(ask, {', '.join(local)}): return ask()"
    space: dict[str, Any] = {"__name__": module}
    exec(source, space)
    made: Callable[..., int] = space[function]
    return made(worker_processes, **local)


def test_processes_are_counted_as_the_server_tells() -> None:
    assert worker_processes() == 1
    several = SimpleNamespace(num_workers=4, workers=3)
    assert called_by("gunicorn.arbiter", "spawn_worker", self=several) == 4
    assert called_by("uvicorn._subprocess", "subprocess_started", config=several) == 3
    assert called_by("hypercorn.asyncio.run", "asyncio_worker", config=several) == 3
    # In one process uvicorn has the number from WEB_CONCURRENCY, for which it forks none.
    assert called_by("uvicorn.server", "serve", config=several) == 1
    reloading = SimpleNamespace(workers=3, should_reload=True)
    assert called_by("uvicorn._subprocess", "subprocess_started", config=reloading) == 1


async def test_workers_with_a_broker_of_their_own_are_not_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("crossband.workers.worker_processes", lambda: 2)

    class Joined(MemoryBroker):
        """Stands for one that joins processes."""

    async with Hub().lifespan():
        assert WARNING in caplog.text
    caplog.clear()
    async with Hub(Joined()).lifespan():
        assert not caplog.records
