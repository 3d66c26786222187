"""What has to be there before a run: compiled programs, the peers' packages, nginx.

Everything goes to build/bench/, which is not in git. Packages come from wherever pip and npm
are configured to look.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contenders import PAYLOAD, Contender

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"

Say = Callable[[str], None]

_NGINX = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr crit;
load_module {module};
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path tmp;
    proxy_temp_path tmp;
    fastcgi_temp_path tmp;
    uwsgi_temp_path tmp;
    scgi_temp_path tmp;
    keepalive_requests 1000000000;
    nchan_max_reserved_memory 64M;
    nchan_message_buffer_length 1000;
    nchan_message_timeout 2m;
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        nchan_channel_id all;
        nchan_subscriber_first_message newest;
        location = /ws {{ nchan_subscriber websocket; }}
        location = /events {{ nchan_subscriber eventsource; }}
        location = /publish {{ nchan_publisher http; }}
    }}
}}
"""


class Missing(Exception):
    """A contender that cannot run here; the message says what is missing."""


class Toolbox:
    """Builds and installs what contenders need, each thing once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        BUILD.mkdir(parents=True, exist_ok=True)

    def compile(self, name: str) -> Path:
        """Compile a C program unless it is there; return its path."""
        source = HERE / "native" / f"{name}.c"
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
        program = BUILD / f"{name}-{digest}"
        if not program.exists():
            compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise Missing("a C compiler (cc) is missing")
            _run([compiler, "-O2", "-o", str(program), str(source)])
        return program

    def command(self, contender: Contender) -> tuple[list[str], dict[str, str]]:
        """Return how a contender is started: its command and what its environment adds.

        Raises Missing.
        """
        match contender.runtime:
            case "native":
                return [str(self.compile(contender.program)), PAYLOAD], {}
            case "here":
                return [
                    *(sys.executable, "-m", f"benchmarks.servers.{contender.program}", PAYLOAD),
                ], {"PYTHONPATH": str(ROOT / "src")}
            case "peers":
                python = self._python_peers()
                return [str(python), "-m", f"benchmarks.servers.{contender.program}", PAYLOAD], {}
            case "node":
                node, modules = self._node_peers()
                program = HERE / "servers" / f"{contender.program}.cjs"
                return [node, str(program), PAYLOAD], {"NODE_PATH": str(modules)}
            case _:
                return self._nginx(), {}

    def redis(self) -> str:
        """Return the path of the server that nodes share. Raises Missing."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise Missing("redis-server is not installed")
        return program

    def _python_peers(self) -> Path:
        wanted = (HERE / "peers" / "requirements.txt").read_text()
        home = BUILD / "venv"
        python = home / "bin" / "python"
        stamp = home / ".installed"
        if not _holds(stamp, wanted):
            self._say("installing the Python peers")
            venv.create(home, with_pip=True, clear=True)
            _run(
                [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "-r",
                    "benchmarks/peers/requirements.txt",
                ]
            )
            stamp.write_text(wanted)
        return python

    def _node_peers(self) -> tuple[str, Path]:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise Missing("Node.js is missing")
        wanted = (HERE / "peers" / "package.json").read_text()
        home = BUILD / "node"
        if not _holds(home / "package.json", wanted):
            self._say("installing the Node.js peers")
            home.mkdir(exist_ok=True)
            (home / "package.json").unlink(missing_ok=True)
            staged = home / "staged"
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            (staged / "package.json").write_text(wanted)
            _run([npm, "install", "--no-package-lock", "--no-audit", "--no-fund"], staged)
            shutil.rmtree(home / "node_modules", ignore_errors=True)
            (staged / "node_modules").rename(home / "node_modules")
            (staged / "package.json").rename(home / "package.json")
        # The program itself: a node from a Python package is a wrapper that starts it.
        return _run([node, "-p", "process.execPath"]).strip(), home / "node_modules"

    def _nginx(self) -> list[str]:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        # Where Debian's libnginx-mod-nchan puts it.
        module = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
        if program is None or not module.exists():
            raise Missing("nginx with nchan is not installed (libnginx-mod-nchan)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run = BUILD / f"nginx-{port}"
        run.mkdir(exist_ok=True)
        (run / "nginx.conf").write_text(_NGINX.format(module=module, port=port))
        return [program, "-p", f"{run}/", "-c", "nginx.conf", "-e", "stderr"]


def versions() -> dict[str, str]:
    """Return the versions of the peers, as they are pinned."""
    pinned = dict(
        re.findall(
            r"^([\w-]+)==(\S+)", (HERE / "peers" / "requirements.txt").read_text(), re.MULTILINE
        )
    )
    package = json.loads((HERE / "peers" / "package.json").read_text())
    pinned |= package["dependencies"]
    if node := shutil.which("node"):
        pinned["node"] = _run([node, "--version"]).strip().removeprefix("v")
    return dict(sorted(pinned.items()))


def commit() -> str:
    """Return the commit that is measured, with a mark when files differ from it."""
    try:
        name = _run(["git", "rev-parse", "--short", "HEAD"]).strip()
        dirty = _run(["git", "status", "--porcelain", "--", "src"]).strip()
    except (OSError, RuntimeError):
        return "unknown"
    return f"{name}, with changes" if dirty else name


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def _run(command: Sequence[str], where: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
