"""A real nginx before servers: on a free port, in a directory of its own, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from crossband.names import new_id
from tests.children import Child
from tests.engines import shared

ROOT: Final = Path(__file__).parents[1]
# Debian has it where only root looks.
NGINX: Final = shutil.which("nginx", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))


def documented(upstream: str | None = None) -> str:
    """Return the configuration of docs/how-to/nginx.md, for one node or with another upstream.

    That is the page's first which has this text.
    """
    text = (ROOT / "docs/how-to/nginx.md").read_text(encoding="utf-8")
    http, *upstreams = re.findall(r"^```nginx\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if upstream is None:
        return str(http)
    chosen = next(block for block in upstreams if upstream in block)
    changed, count = re.subn(r"^upstream .*?^}\n", chosen, http, flags=re.MULTILINE | re.DOTALL)
    assert count == 1
    return changed


class Nginx:
    """Runs nginx while the body runs: `async with Nginx(directory, server.port) as nginx`.

    `http` is the content of an `http` block; its port 80 becomes a free one, and the servers of
    its upstream those at the ports given. `server` is put into its server block.
    """

    def __init__(
        self, directory: Path, *ports: int, http: str | None = None, server: str = ""
    ) -> None:
        self._directory = directory
        self._targets = ports
        self._http = documented() if http is None else http
        self._server = server
        self.port = 0
        # None until it is started.
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        assert NGINX is not None, "scripts/setup nginx installs it"
        # It inherits a socket that listens, as it does when it replaces itself: no moment at which
        # the port is free, and none at which a connection is refused.
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            self.port = listening.getsockname()[1]
            configuration = self._directory / "nginx.conf"
            configuration.write_text(self._configuration(), encoding="utf-8")
            (self._directory / "logs").mkdir()
            arguments = ("-p", str(self._directory), "-c", str(configuration))
            self._child = Child(
                *(NGINX, *arguments, "-e", "logs/error.log"),
                env={"NGINX": f"{listening.fileno()};"},
                pass_fds=[listening.fileno()],
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._child is not None
        async with self._child:
            self._child.send_signal(signal.SIGTERM)
            code = await self._child.exit_code()
        assert code == 0, self._child.output + self.errors()

    def errors(self) -> str:
        """Return what nginx wrote into its error log."""
        return (self._directory / "logs/error.log").read_text(encoding="utf-8")

    def _configuration(self) -> str:
        servers = "\n".join(f"server 127.0.0.1:{port};" for port in self._targets)
        http, count = re.subn(r"(server 127\.0\.0\.1:800\d;\s*)+", f"{servers}\n", self._http)
        assert count == 1
        listen = f"listen 127.0.0.1:{self.port};\n{self._server}"
        http, count = re.subn(r"listen 80;", lambda _: listen, http)
        assert count == 1
        temporary = "\n".join(
            f"{module}_temp_path temp_{module};"
            for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # As root it would give its workers another user, who may not read the directory.
        user = "user root;" if os.geteuid() == 0 else ""
        return (
            f"daemon off;\n{user}\npid nginx.pid;\nworker_processes 1;\n"
            f"events {{ worker_connections 1024; }}\n"
            f"http {{\naccess_log off;\ndefault_type text/plain;\n"
            f"types {{ text/html html; text/javascript js; }}\n{temporary}\n{http}}}\n"
        )


@contextlib.asynccontextmanager
async def behind_nginx(
    directory: Path, *command: str, upstream: str = "127.0.0.1:8003"
) -> AsyncIterator[tuple[Nginx, list[Child]]]:
    """Serve by three processes of one hub, which share a Redis, behind nginx.

    The command is one of `crossband`, such as `serve app:hub`; `upstream` chooses one of those
    that are documented. Responses have the header X-Node, which says where they come from.
    """
    broker = f"{shared().url}?prefix={new_id()}"
    arguments = (sys.executable, "-m", "crossband", *command, "--port", "0", "--broker", broker)
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(Child(*arguments, cwd=directory)) for _ in range(3)
        ]
        ports = [int((await node.says(r"http://127\.0\.0\.1:(\d+)"))[1]) for node in nodes]
        nginx = await stack.enter_async_context(
            Nginx(
                directory,
                *ports,
                http=documented(upstream),
                server="add_header X-Node $upstream_addr always;",
            )
        )
        yield nginx, nodes
