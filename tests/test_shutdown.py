"""The end of a server under load: all told, all closed, spread over the drain, exit in time.

Servers are processes of their own, ended by a signal, as an operator does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import websockets

from crossband.hub.drain import DRAIN_PACE
from tests.bare import BareHub
from tests.children import Child
from tests.clients.base import WAIT
from tests.clients.raw import Tcp, dialled, frame, http, upgrade
from tests.conftest import Serve
from tests.crowd import GOOD_ENDS, Member, connect, crowd

HUB = """
import asyncio, itertools, sys, threading, time
from crossband import Hub
from crossband.hub import drain
from crossband.server import Server

# Slow enough that a test process that is kept waiting by its machine sees the order of the ends.
drain.DRAIN_PACE = 10
hub = Hub(drain_time=float(sys.argv[-2]), shutdown_timeout=float(sys.argv[-1]))

@hub.on("echo")
def echo(socket, data):
    return data

@hub.on("start")
async def start(socket):
    async def publish():
        for number in itertools.count():
            hub.emit("number", number)
            await asyncio.sleep(0.05)
    hub.publishing = asyncio.create_task(publish())

@hub.on("hang")
async def hang(socket):
    print("hanging", flush=True)
    await asyncio.Event().wait()

@hub.on("block")
def block(socket):
    print("hanging", flush=True)
    time.sleep(600)

@hub.on("stubborn")
async def stubborn(socket):
    print("hanging", flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@hub.on("thread")
async def thread(socket):
    print("hanging", flush=True)
    await asyncio.to_thread(time.sleep, 600)

async def app(scope, receive, send):
    await hub(scope, receive, send)
"""

# How each server is run with that module; its standard output or error tells its address.
RUN = "import busy, sys; busy.Server(busy.hub, lane={}).run(lambda s: print(s.url, flush=True))"
# Seconds that a connection may be idle, other than the 5 that a busy machine exceeds.
KEEP_ALIVE = ("--timeout-keep-alive", "600")
SERVERS: dict[str, Sequence[str]] = {
    "lane": ("-c", RUN.format(True)),
    "no lane": ("-c", RUN.format(False)),
    "uvicorn": ("-m", "uvicorn", "--port", "0", "--no-access-log", *KEEP_ALIVE, "busy:app"),
    "hypercorn": ("-m", "hypercorn", "--bind", "127.0.0.1:0", "--keep-alive", "600", "busy:app"),
}


class Program(Child):
    """A server in a process of its own; `async with running(…)` starts it."""

    # Set once it has told it.
    url = ""


@contextlib.asynccontextmanager
async def running(
    directory: Path, server: str = "lane", *, drain_time: float = 2.0, shutdown_timeout: float = 60
) -> AsyncIterator[Program]:
    """Run the hub on a server, until it has told its address and then for the body."""
    (directory / "busy.py").write_text(
        HUB.replace("sys.argv[-2]", str(drain_time)).replace("sys.argv[-1]", str(shutdown_timeout))
    )
    async with Program(
        *(sys.executable, *SERVERS[server]),
        cwd=directory,
        env={"PYTHONPATH": os.pathsep.join([str(directory), *sys.path])},
    ) as program:
        program.url = (await program.says(r"http://127\.0\.0\.1:\d+"))[0]
        yield program


@contextlib.asynccontextmanager
async def talking(url: str, count: int) -> AsyncIterator[list[Member]]:
    """Hold a crowd that hears numbers and calls `echo` all the time."""
    members = crowd(url, count)
    await connect(members)
    async with dialled(url) as starter:
        starter.send(upgrade("/ws"))
        await starter.answer()
        starter.send(frame(0x1, b'{"type":"start"}'))
        for member in members:
            assert await member.echo("before") == "before"

    async def talk(member: Member) -> None:
        # Ended by the server, in the middle of it.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, AssertionError):
            while not member.ended:
                await member.echo("again")
                await asyncio.sleep(0.3)

    talks = [asyncio.create_task(talk(member)) for member in members]
    try:
        yield members
    finally:
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        for member in members:
            await member.close()


async def ask(url: str, request: bytes) -> tuple[int, bytes]:
    """Send a request on a connection of its own; return status and body."""
    async with dialled(url) as tcp, asyncio.timeout(WAIT):
        tcp.send(request)
        status, headers, body = await tcp.answer()
        if "chunked" in headers.get("transfer-encoding", ""):
            body = await tcp.reader.read()
        return status, body


async def newcomers_are_refused(url: str) -> None:
    assert await ask(url, http("/readyz")) == (503, b'{"status":"stopping"}')
    for request in (upgrade("/ws"), http("/socket.io/?EIO=4&transport=polling")):
        status, body = await ask(url, request)
        assert (status, b"shutting_down" in body) == (503, True), (status, body)
    # Any status but 200 would keep EventSource away for ever.
    status, body = await ask(url, http("/events", "Connection: close"))
    assert (status, b"event: server:shutdown\ndata: {" in body) == (200, True), (status, body)
    assert b"retry: 2000" in body


@pytest.mark.parametrize(
    ("server", "number"),
    [
        ("lane", signal.SIGTERM),
        ("lane", signal.SIGINT),
        ("no lane", signal.SIGTERM),
        ("uvicorn", signal.SIGTERM),
        ("hypercorn", signal.SIGTERM),
    ],
)
async def test_signal_under_load_tells_and_closes_everybody(
    server: str, number: signal.Signals, tmp_path: Path
) -> None:
    clients, drain = 40, 4.0
    async with (
        running(tmp_path, server, drain_time=drain) as program,
        talking(program.url, clients) as members,
    ):
        assert await ask(program.url, http("/readyz")) == (200, b'{"status":"ready"}')
        loop = asyncio.get_running_loop()
        start = loop.time()
        program.send_signal(number)
        first = [asyncio.create_task(member.gone()) for member in members]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)

        # Those whose turn has not come are served; newcomers are not.
        assert sum(not member.ended for member in members) > clients / 2
        if server != "hypercorn":
            # That one closes its listeners before the hub can hear of the end.
            await newcomers_are_refused(program.url)

        async with asyncio.timeout(drain + WAIT):
            await asyncio.gather(*first)
        code = await program.exit_code()
        took = loop.time() - start
        # uvicorn, once it has stopped gracefully, dies of the signal it was sent.
        assert code in ({0, -number} if server == "uvicorn" else {0})

        ends = Counter((member.door, member.ended, member.told) for member in members)
        if server == "hypercorn":
            # It takes no further poll, which would bring the close packet.
            ends["polling", "closed", True] += ends.pop(("polling", "cut", True), 0)
            # And a client between two polls is not told at all.
            ends["polling", "closed", True] += ends.pop(("polling", "cut", False), 0)
        assert ends == {(door, end, True): clients // 4 for door, end in GOOD_ENDS.items()}
        for member in members:
            assert member.numbers
            assert member.numbers == list(range(member.numbers[0], member.numbers[-1] + 1))
        slowly = [member for member in members if (server, member.door) != ("hypercorn", "polling")]
        times = sorted(member.ended_at - start for member in slowly)
        spread = times[-1] - times[0]
        print(f"{server}: spread over {spread:.2f} s, exit after {took:.2f} s")  # noqa: T201
        assert spread > drain / 2
        # In no quarter of the time most of them: this process is not always on time itself.
        most = max(sum(0 <= other - at < drain / 4 for other in times) for at in times)
        assert most < len(slowly) * 0.75
    assert "Traceback" not in program.output, program.output


async def test_what_does_not_end_is_cut_in_time(tmp_path: Path) -> None:
    timeout = 1.0
    async with running(tmp_path, shutdown_timeout=timeout) as program:
        reader: list[Tcp] = []
        # Neither reads, nor answers a close frame, nor ends its request, nor its handler.
        for request in (
            upgrade("/ws"),
            http("/events"),
            upgrade("/socket.io/?EIO=4&transport=websocket"),
            http("/api/broadcast", "Content-Length: 10", method="POST"),
            b"GET / HT",
        ):
            tcp = await Tcp.open(program.url)
            tcp.send(request)
            reader.append(tcp)
        await reader[0].answer()
        reader[0].send(frame(0x1, b'{"type":"hang"}'))
        await program.says("hanging")
        loop = asyncio.get_running_loop()
        start = loop.time()
        program.send_signal(signal.SIGTERM)
        assert await program.exit_code() == 0
        assert loop.time() - start >= timeout / 2
        for tcp in reader:
            async with asyncio.timeout(WAIT):
                await tcp.ended()
            await tcp.close()


async def test_handler_that_does_not_end_is_named(tmp_path: Path) -> None:
    async with (
        running(tmp_path, shutdown_timeout=0.5) as program,
        websockets.connect(f"ws{program.url[4:]}/ws") as first,
        websockets.connect(f"ws{program.url[4:]}/ws") as second,
        dialled(program.url) as idle,
    ):
        for client in (first, second):
            await client.send('{"type":"hang"}')
        idle.send(http("/healthz"))
        await idle.answer()
        await program.says("hanging\nhanging")
        program.send_signal(signal.SIGTERM)
        assert await program.exit_code() == 0
    said = program.output
    assert re.search(
        r"handlers did not end in time and are cancelled: 2 × hang \(busy\.py:\d+\)\n", said
    ), said
    # Those ended: the clients' with 1001, and the idle one, which nobody had come to ask.
    assert "connections" not in said


async def test_handler_that_goes_on_when_cancelled_is_named(tmp_path: Path) -> None:
    async with (
        running(tmp_path, shutdown_timeout=0.5) as program,
        dialled(program.url) as tcp,
    ):
        tcp.send(upgrade("/ws"))
        await tcp.answer()
        tcp.send(frame(0x1, b'{"type":"stubborn"}'))
        await program.says("hanging")
        program.send_signal(signal.SIGTERM)
        assert await program.exit_code() == 0
    said = program.output
    assert re.search(
        r"tasks ignored their cancellation and are cut: stubborn \(busy\.py:\d+\)", said
    ), said
    assert "threads" not in said


async def test_thread_of_a_handler_does_not_keep_the_process(tmp_path: Path) -> None:
    async with (
        running(tmp_path, shutdown_timeout=0.5) as program,
        dialled(program.url) as tcp,
    ):
        tcp.send(upgrade("/ws"))
        await tcp.answer()
        tcp.send(frame(0x1, b'{"type":"thread"}'))
        await program.says("hanging")
        program.send_signal(signal.SIGTERM)
        assert await program.exit_code() == 0
        await program.says("threads of handlers did not end in time and are cut")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("event", ["hang", "block", "drain"])
async def test_second_signal_exits_at_once(
    event: str, number: signal.Signals, tmp_path: Path
) -> None:
    async with (
        running(tmp_path, drain_time=300, shutdown_timeout=600) as program,
        contextlib.AsyncExitStack() as stack,
    ):
        if event == "drain":
            members = await stack.enter_async_context(talking(program.url, 40))
            program.send_signal(number)
            gone = [asyncio.create_task(member.gone()) for member in members]
            await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
        else:
            tcp = await stack.enter_async_context(dialled(program.url))
            tcp.send(upgrade("/ws"))
            await tcp.answer()
            tcp.send(frame(0x1, b'{"type":"%s"}' % event.encode()))
            await program.says("hanging")
            program.send_signal(number)
        program.send_signal(number)
        # Two signals of one number at once are one to the kernel: until the first was taken.
        exit_code = asyncio.create_task(program.exit_code())
        while not exit_code.done():
            program.send_signal(number)
            await asyncio.wait({exit_code}, timeout=0.1)
        assert await exit_code == 128 + number


async def test_hub_without_clients_stops_at_once(serve: Serve) -> None:
    hub = BareHub()
    assert hub.core.drain.seconds(0) == 0
    assert hub.core.drain.seconds(10) == 10 / DRAIN_PACE
    assert hub.core.drain.seconds(20_000) == hub.settings.drain_time
    hub.configure(drain_time=60.0)
    assert hub.core.drain.seconds(20_000) == hub.settings.shutdown_timeout / 2
