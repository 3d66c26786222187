"""Idle connections in numbers, and the memory they cost: measured from outside, and given back.

`CROSSBAND_IDLE=max` takes as many as the process may open files, about 20,000 where that is
the limit; a number takes that many. The suite takes 1,000.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.clients import WebSocketClient
from tests.clients.base import WAIT
from tests.clients.raw import TEXT, frame, http, upgrade

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="counts files as Unix does")

MIB = 1_048_576
# Of the files a process may open: what else it has open.
SPARE = 300
# Clients that are let in together.
BATCH = 50
ROUNDS = 30

# Sessions of clients that are away are kept for a second, so that there is an end to wait for.
# Nobody here answers a ping.
SERVER = """
import contextlib, ctypes, gc
from crossband import Hub
from crossband.server import Server
from tests.census import survivors

hub = Hub(ping_interval=600.0, keepalive_interval=600.0, history_age=1.0, history_size=10)

@hub.on("connect")
async def connect(socket):
    await socket.join("everybody")

@hub.on("echo")
def echo(socket, data):
    return data

@hub.on("count")
def count(socket):
    gc.collect()
    # What is free in the midst of the heap is given back: what remains is held by somebody.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return {**survivors(), "sessions": len(hub.broker._memory.sessions._waiting)}

Server(hub).run(lambda server: print(server.url, flush=True))
"""


@dataclass
class Process:
    """The server."""

    url: str
    pid: int
    # Held by the clients so far.
    held: list[socket.socket] = field(default_factory=list)
    _sources: Iterator[str] = field(
        # A pair of addresses has 28,000 ports; and some of them wait for their old connections.
        default_factory=lambda: itertools.cycle(
            [f"127.0.0.{n}" for n in range(1, 9)] if sys.platform == "linux" else ["127.0.0.1"]
        )
    )

    @property
    def memory(self) -> int:
        """Bytes of memory in use."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def dial(self) -> socket.socket:
        sock = socket.socket()
        # The port is chosen with the destination known: addresses have that many each.
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((next(self._sources), 0))
        sock.settimeout(WAIT)
        sock.connect(("127.0.0.1", urlsplit(self.url).port))
        self.held.append(sock)
        return sock

    def release(self, *, cut: bool = False) -> None:
        """Close all that is held; a cut resets them, with no word to the server."""
        for sock in self.held:
            if cut:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self.held.clear()


@pytest.fixture
def server() -> Iterator[Process]:
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        hub = Process(process.stdout.readline().strip(), process.pid)
        try:
            yield hub
        finally:
            hub.release()
            process.kill()


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        chunk = sock.recv(65_536)
        assert chunk, data
        data += chunk
    return data


def exchange(socks: Sequence[socket.socket], request: bytes, mark: bytes) -> list[bytes]:
    """Send a request on each connection, and read each answer up to a mark."""
    for sock in socks:
        sock.sendall(request)
    return [read_until(sock, mark) for sock in socks]


def open_websockets(socks: Sequence[socket.socket]) -> None:
    exchange(socks, upgrade("/ws"), b'"welcome"')


def open_socketio(socks: Sequence[socket.socket]) -> None:
    exchange(socks, upgrade("/socket.io/?EIO=4&transport=websocket"), b'"maxPayload"')
    exchange(socks, frame(TEXT, b"40"), b"40{")


def open_streams(socks: Sequence[socket.socket]) -> None:
    exchange(socks, http("/events"), b'"session"')


def open_polls(socks: Sequence[socket.socket]) -> None:
    path = "/socket.io/?EIO=4&transport=polling"
    for sock, answer in zip(socks, exchange(socks, http(path), b'"maxPayload"'), strict=True):
        own = f"{path}&sid={json.loads(answer[answer.index(b'0{') + 1 :])['sid']}"
        exchange([sock], http(own, method="POST", body=b"40"), b"\r\n\r\nok")
        exchange([sock], http(own), b"40{")
        # This one waits for what does not come.
        sock.sendall(http(own))


DOORS: dict[str, Callable[[Sequence[socket.socket]], None]] = {
    "websocket": open_websockets,
    "socket.io": open_socketio,
    "sse": open_streams,
    "polling": open_polls,
}


def fill(server: Process, count: int, door: str) -> None:
    for start in range(0, count, BATCH):
        DOORS[door]([server.dial() for _ in range(min(BATCH, count - start))])


async def clients_of(client: WebSocketClient) -> dict[str, int]:
    """Count, inside the server, what clients have there; the one that asks among them."""
    counts: Any = await client.call("count")
    return {name: int(number) for name, number in counts.items()}


@contextlib.asynccontextmanager
async def observer(server: Process) -> AsyncIterator[WebSocketClient]:
    client = WebSocketClient()
    await client.connect(server.url)
    try:
        yield client
    finally:
        await client.close()


async def settled(observer: WebSocketClient, start: dict[str, int]) -> None:
    """Wait until the server has nothing of its clients any more."""
    now: dict[str, int] = {}
    try:
        async with asyncio.timeout(60):
            while True:
                now = await clients_of(observer)
                if now == start:
                    return
                # Nothing tells of what the server forgets.
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"left behind: {now}, not {start}") from None


def wanted() -> int:
    """Return how many connections to hold, having raised the limit of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 20_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    choice = os.environ.get("CROSSBAND_IDLE", "1000")
    return min(hard, 60_000) - SPARE if choice == "max" else int(choice)


@pytest.mark.timeout(600)
async def test_idle_connections_are_counted_and_given_back(server: Process) -> None:
    count = wanted() // len(DOORS)
    async with observer(server) as client:
        start = await clients_of(client)
        empty = server.memory
        peaks, rests = [], []
        for wave in (1, 2):
            for door in DOORS:
                before, began = server.memory, time.monotonic()
                fill(server, count, door)
                grown = server.memory - before
                print(  # noqa: T201
                    f"wave {wave}: {count:,} x {door}: {grown / count / 1024:.1f} KiB each, "
                    f"{count / (time.monotonic() - began):,.0f}/s"
                )
            peaks.append(server.memory)
            # Nobody was lost, and whoever asks is answered.
            assert (await clients_of(client))["Socket"] == count * len(DOORS) + start["Socket"]
            server.release()
            await settled(client, start)
            rests.append(server.memory)
    shown = ", ".join(f"{value / MIB:.1f}" for value in (empty, *peaks, *rests))
    print(f"MiB when empty, at two peaks, after each: {shown}")  # noqa: T201
    grown = peaks[0] - empty
    # Of the objects nothing is left. The allocator keeps pages that are partly in use, and
    # uses them again: what was lost in a wave would stand on top of the second one.
    assert max(rests) - empty < grown * 0.75 + 8 * MIB
    assert peaks[1] - peaks[0] < grown / 10 + 2 * MIB


async def test_rounds_of_connect_talk_and_cut_do_not_grow(server: Process) -> None:
    memory: list[int] = []
    async with observer(server) as client:
        start = await clients_of(client)
        for number in range(ROUNDS):
            for door in DOORS:
                fill(server, 10, door)
            talkers = server.held[:10]
            exchange(talkers, frame(TEXT, b'{"type":"echo","id":1,"data":"x"}'), b'"ack"')
            server.release(cut=number % 2 == 0)
            assert await client.call("echo", number) == number
            memory.append(server.memory)
        await settled(client, start)
    first, last = memory[ROUNDS // 2], max(memory[-5:])
    shown = ", ".join(f"{value / MIB:.1f}" for value in (memory[0], first, last, server.memory))
    print(f"MiB after the first round, half, all, and the rest: {shown}")  # noqa: T201
    assert last - first < 2 * MIB
