"""Several processes of any server: joined by a broker, or each says that they are not."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from crossband import Hub, MemoryBroker
from crossband.errors import StartError
from crossband.workers import worker_processes
from tests.children import Child
from tests.clients.base import WAIT
from tests.engines import Engine, free_port

APPLICATION = """
import sys

from crossband import Hub

app = Hub(api_keys=["secret"])


@app.on_start
def start():
    # One write, of several processes into one pipe.
    sys.stdout.write("worker started\\n")
"""
WARNING = "this is one of 2 worker processes, AND THEY DO NOT HEAR EACH OTHER"
UVICORN = "uvicorn --port {port} --workers 2 several:app"
HYPERCORN = "hypercorn --bind 127.0.0.1:{port} --workers 2 several:app"
GRANIAN = "granian --interface asgi --port {port} --workers 2 several:app"
GUNICORN = "gunicorn --bind 127.0.0.1:{port} --workers 2 --no-control-socket several:app"
SEVERAL = [
    UVICORN,
    HYPERCORN,
    GRANIAN,
    f"{GUNICORN} --worker-class asgi",
    f"{GUNICORN} --worker-class uvicorn.workers.UvicornWorker",
]


def started(command: str, port: int, directory: Path, **env: str) -> Child:
    """Start a server that serves the application."""
    (directory / "several.py").write_text(APPLICATION)
    words = command.format(port=port).split()
    env |= {"PYTHONPATH": ":".join(sys.path), "PYTHONWARNINGS": "ignore"}
    return Child(sys.executable, "-m", *words, cwd=directory, env=env)


@pytest.mark.parametrize("command", SEVERAL)
async def test_each_of_several_workers_warns_at_its_start(command: str, tmp_path: Path) -> None:
    async with started(command, 0, tmp_path) as child:
        await child.says(f"(?s)({WARNING}.*){{2}}")
        assert child.output.count("worker started") == child.output.count("DO NOT HEAR") == 2


@pytest.mark.parametrize(
    "command",
    [
        "uvicorn --port 0 --reload several:app",
        "hypercorn --bind 127.0.0.1:0 several:app",
        "granian --interface asgi --port 0 several:app",
        "gunicorn --bind 127.0.0.1:0 --worker-class asgi --no-control-socket several:app",
        "crossband serve several:app --port 0",
        "crossband serve several:app --port 0 --workers 2",
    ],
)
async def test_one_worker_and_joined_workers_do_not_warn(command: str, tmp_path: Path) -> None:
    # Which makes workers of uvicorn and gunicorn, and only where they are not told otherwise.
    env = {} if "uvicorn" in command or "gunicorn" in command else {"WEB_CONCURRENCY": "2"}
    async with started(command, 0, tmp_path, **env) as child:
        # The warning would come after the function of on_start.
        await child.says(f"(?s)(worker started.*){{{1 + ('--workers' in command)}}}")
        await child.says("(?i)running on|serves|started worker|server listening")
        assert "DO NOT HEAR" not in child.output


@pytest.mark.parametrize(
    "command", [*SEVERAL, "crossband serve several:app --port {port} --workers 2"]
)
async def test_workers_of_any_server_are_joined_by_the_broker_of_the_environment(
    command: str, tmp_path: Path
) -> None:
    port = free_port()
    with Engine() as engine:
        async with (
            started(command, port, tmp_path, CROSSBAND_BROKER=engine.url) as child,
            contextlib.AsyncExitStack() as stack,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False) as http,
        ):
            await child.says("(?s)(worker started.*){2}")
            clients = []
            async with asyncio.timeout(WAIT):
                # The system says which worker takes a connection.
                while True:
                    with contextlib.suppress(OSError):
                        client = await stack.enter_async_context(
                            connect(f"ws://127.0.0.1:{port}/ws")
                        )
                        assert "welcome" in str(await client.recv())
                        clients.append(client)
                        status = (await http.get("/api/status?nodes=all")).json()
                        if (
                            sum(node["clients"]["total"] > 0 for node in status["nodes"].values())
                            == 2
                        ):
                            break
            answer = await http.post(
                "/api/broadcast",
                json={"event": "news", "data": 1},
                headers={"Authorization": "Bearer secret"},
            )
            assert answer.json()["clients"] == len(clients)
            for client in clients:
                assert '"news"' in str(await client.recv())
            assert "DO NOT HEAR" not in child.output


BROKERS = """
import os

from starlette.applications import Starlette
from starlette.routing import Mount

from crossband import Hub

at_import = os.environ.get("CROSSBAND_BROKER")
open_hub, named_hub = Hub(), Hub("memory://")
named = Starlette(routes=[Mount("/named", named_hub)], lifespan=named_hub.lifespan)
both = Starlette(routes=[Mount("/open", open_hub), *named.routes], lifespan=named_hub.lifespan)


@named_hub.on_start
def tell() -> None:
    brokers = [type(hub.broker).__name__ for hub in (open_hub, named_hub)]
    print(f"at import {at_import};", *brokers, flush=True)
"""


@pytest.mark.parametrize(
    ("target", "options", "env", "toml", "said"),
    [
        ("both", "", "", "", "at import None; MemoryBroker MemoryBroker"),
        ("both", "--broker {url}", "", "", "at import {url}; RedisBroker MemoryBroker"),
        ("both", "", "{url}", "", "at import {url}; RedisBroker MemoryBroker"),
        ("both", "", "", "{url}", "at import {url}; RedisBroker MemoryBroker"),
        # The first one wins.
        ("both", "--broker {url}", "redis://nowhere.invalid", "", "at import {url}; RedisBroker"),
        ("both", "", "{url}", "redis://nowhere.invalid", "at import {url}; RedisBroker"),
        # Told where nothing comes of it.
        ("named", "--broker {url}", "", "", "--broker is not used: brokers:named names its own"),
        # An engine starts only where a hub needs it.
        ("both", "--workers 2", "", "", "at import None; RedisBroker MemoryBroker"),
        ("named", "--workers 2", "", "", r"2 workers \(pid [\d, ]+\)\n"),
        ("both", "--workers 2", "{url}", "", r"2 workers \(pid [\d, ]+\)\n"),
    ],
)
async def test_code_then_option_then_environment_then_file_then_engine_name_the_broker(
    target: str, options: str, env: str, toml: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "brokers.py").write_text(BROKERS)
    with Engine() as engine:
        url = engine.url
        variables = {"CROSSBAND_BROKER": env.format(url=url)} if env else {}
        if toml:
            (tmp_path / "c.toml").write_text(f'broker = "{toml.format(url=url)}"')
            options += " --config c.toml"
        words = f"serve brokers:{target} --port 0 {options.format(url=url)}".split()
        variables |= {"PYTHONPATH": ":".join(sys.path)}
        child = Child(sys.executable, "-m", "crossband", *words, cwd=tmp_path, env=variables)
        async with child:
            await child.says(said.format(url=url) if "{url}" in said else said)
            await child.says("serves brokers")
            assert ("private" in child.output) == (said.endswith("None; RedisBroker MemoryBroker"))


async def test_wrong_url_in_the_environment_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CROSSBAND_BROKER", "http://localhost")
    with pytest.raises(StartError, match="CROSSBAND_BROKER: no broker for 'http'"):
        await Hub().start()
    # Whose code names one does not read it.
    async with Hub("memory://").lifespan():
        pass


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
    assert called_by("granian.server.common", "_spawn_workers", self=several) == 3
    assert called_by("crossband.server.worker", "run", self=several) == 3
    # In one process uvicorn has the number from WEB_CONCURRENCY, for which it forks none.
    assert called_by("uvicorn.server", "serve", config=several) == 1
    reloading = SimpleNamespace(workers=3, should_reload=True)
    assert called_by("uvicorn._subprocess", "subprocess_started", config=reloading) == 1


def test_workers_of_granian_that_are_not_forked_are_counted_as_its_command_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["granian", *words, "main:app"])
        return called_by("multiprocessing.spawn", "_main")

    assert count("--workers", "3") == 1
    monkeypatch.setitem(sys.modules, "granian.server.mp", SimpleNamespace())
    assert count("--workers", "3") == 3
    assert count("--workers=4") == 4
    assert count() == 1
    monkeypatch.setenv("GRANIAN_WORKERS", "2")
    assert count() == 2


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
