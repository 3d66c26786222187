"""A server under load: its processes, the load generator's, and what a measurement returns."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

import msgspec

from benchmarks import machine
from benchmarks.contenders import PAYLOAD, Contender
from benchmarks.install import ROOT, Toolbox
from benchmarks.redis import Redis

# Seconds for a server to answer, and to end.
START_TIME = 30.0
STOP_TIME = 10.0


class BenchmarkError(Exception):
    """A measurement that could not be made; the message says why."""


class Reply(msgspec.Struct, frozen=True):
    """What the load generator saw; latencies in nanoseconds, client_cpu in seconds."""

    count: int = 0
    rounds: int = 0
    seconds: float = 0.0
    p50: int = 0
    p99: int = 0
    max: int = 0
    extra: int = 0
    client_cpu: float = 0.0


class _Ports(msgspec.Struct):
    port: int
    control: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. Costs in nanoseconds of the server's CPU time, latencies in seconds."""

    count: int
    seconds: float
    cpu: int
    p50: float
    p99: float
    # Share of a core that the load generator took: near 1, it was the bottleneck.
    client_busy: float
    # Bytes per unit, where memory is asked for.
    memory: float = 0.0

    @classmethod
    def of(cls, reply: Reply, cpu: int, *, memory: float = 0.0) -> Self:
        """Set what the load generator saw beside what the server took."""
        return cls(
            count=reply.count,
            seconds=reply.seconds,
            cpu=cpu,
            p50=reply.p50 / 1e9,
            p99=reply.p99 / 1e9,
            client_busy=reply.client_cpu / reply.seconds,
            memory=memory,
        )

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.count / self.seconds

    @property
    def cost(self) -> float:
        """CPU time per unit, in microseconds."""
        return self.cpu / self.count / 1000


class Run:
    """One server, or two nodes, with the load generator, from start to stop."""

    def __init__(self, contender: Contender, toolbox: Toolbox) -> None:
        self.contender = contender
        self._client_program = toolbox.compile("client")
        self._command, self._environment = toolbox.command(contender)
        # What nodes share; None without any.
        self._redis_program = toolbox.redis() if contender.through else None
        self._redis: Redis | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        # Clients are on the first, publications are made on the last. Empty before launch() and
        # after stop().
        self._servers: list[subprocess.Popen[bytes]] = []
        # None before ready() and after stop().
        self._client: subprocess.Popen[bytes] | None = None
        # Where publications are asked for.
        self._control = 0

    def __enter__(self) -> Self:
        try:
            self.launch()
            self.ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Start the server's process, or those of the nodes and of what they share."""
        if self._redis_program is None:
            self._start(self._command)
            return
        assert self.contender.through is not None
        redis = self._redis = Redis(self._redis_program, self._log)
        if redis.ready():
            for _ in range(2):
                self._start([*self._command, self.contender.through, str(redis.path)])

    def _start(self, command: list[str]) -> None:
        self._servers.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        )

    def ready(self) -> None:
        """Wait until the server answers, and start its load generator.

        Raises BenchmarkError.
        """
        if not self._servers:
            raise BenchmarkError(f"{self.contender.name} has no Redis:\n{self._said()}")
        ports = [self._ports(server) for server in self._servers]
        self._control = ports[-1].control
        command = [str(self._client_program), str(ports[0].port), str(self._control), PAYLOAD]
        if self.contender.control_path is not None:
            command.append(self.contender.control_path)
        self._client = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def stop(self) -> None:
        """End all processes."""
        if self._client is not None:
            assert self._client.stdin is not None
            assert self._client.stdout is not None
            self._client.kill()
            self._client.wait()
            self._client.stdin.close()
            self._client.stdout.close()
            self._client = None
        for server in self._servers:
            assert server.stdout is not None
            # Those that need not would wait for clients that are gone.
            server.send_signal(signal.SIGTERM if self.contender.parent else signal.SIGKILL)
            try:
                server.wait(STOP_TIME)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            server.stdout.close()
        self._servers.clear()
        if self._redis is not None:
            self._redis.stop()
            self._redis = None
        self._log.close()

    def _ports(self, server: subprocess.Popen[bytes]) -> _Ports:
        assert server.stdout is not None
        if self.contender.runtime == "nginx":
            return self._nginx_ports()
        line = server.stdout.readline()
        if not line:
            server.wait(STOP_TIME)
            raise BenchmarkError(f"{self.contender.name} did not start:\n{self._said()}")
        ports = msgspec.json.decode(line, type=_Ports)
        if self.contender.parent:
            # Its processes are still starting.
            self._wait_for(ports.control)
        return ports

    def _nginx_ports(self) -> _Ports:
        port = int(self._command[2].rstrip("/").rpartition("-")[2])
        self._wait_for(port)
        return _Ports(port, port)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + START_TIME
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise BenchmarkError(f"{self.contender.name} did not start:\n{self._said()}")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:].strip()

    # -- the server ------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process that clients are connected to."""
        return self._servers[0].pid

    @property
    def publisher(self) -> int:
        """The process that publications are made in: another one if there are two nodes."""
        return self._servers[-1].pid

    def ask(self, line: str) -> Reply:
        """Send a line to the publisher itself, and return its answer. Raises BenchmarkError."""
        with (
            socket.create_connection(("127.0.0.1", self._control)) as control,
            control.makefile("rb") as answers,
        ):
            control.sendall(line.encode() + b"\n")
            answer = answers.readline()
        if not answer:
            raise BenchmarkError(f"{self.contender.name}: {self._said()}")
        return msgspec.json.decode(answer, type=Reply)

    def settle(self) -> None:
        machine.settle(self.pid)

    # -- the load generator ----------------------------------------------------------------

    def order(self, command: str) -> Reply:
        """Send a command and wait for its answer. Raises BenchmarkError."""
        assert self._client is not None
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        try:
            self._client.stdin.write(command.encode() + b"\n")
            self._client.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._client.stdout.readline()
        if not line:
            raise BenchmarkError(f"{self.contender.name}: {self._said()}")
        return msgspec.json.decode(line, type=Reply)

    def connect(self, group: int, door: str, count: int, *, concurrency: int = 32) -> Reply:
        """Open connections, `concurrency` at a time, each up to its welcome."""
        protocol, path = ("http", "/") if door == "http" else self.contender.doors[door]
        return self.order(f"connect {group} {protocol} {count} {concurrency} {path}")

    def measure(self, command: str) -> Sample:
        """Run a command and set its figures beside the server's CPU time."""
        before = machine.cpu_time(self.pid)
        reply = self.order(command)
        return Sample.of(reply, machine.cpu_time(self.pid) - before)


def raise_file_limit() -> int:
    """Allow as many files as the system lets us; return the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
