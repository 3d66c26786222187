"""A Redis server that nodes share: on a Unix socket, in memory only."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

# Seconds for it to listen.
START_TIME = 10.0


class Redis:
    """A server process, from its creation to `stop`."""

    def __init__(self, program: str, log: IO[bytes]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="crossband-bench-"))
        self.path = self._directory / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(self.path), "--save", ""]
        self._process = subprocess.Popen(
            [program, *options, "--dir", str(self._directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def ready(self) -> bool:
        """Wait until it listens; return whether it does."""
        deadline = time.monotonic() + START_TIME
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.path)) == 0:
                    return True
            time.sleep(0.005)
        return False

    def stop(self) -> None:
        """End it and what it kept."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
