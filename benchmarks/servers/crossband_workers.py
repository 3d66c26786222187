"""`crossband serve --workers 2`: what is measured is the parent, both workers and their engine."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from benchmarks.servers.control import Control, bind
from benchmarks.servers.crossband_hub import make_hub

WORKERS = 2
# In the environment, as the workers' command line is that of `crossband serve`.
PAYLOAD, CONTROL = "BENCHMARK_PAYLOAD", "BENCHMARK_CONTROL"

hub = make_hub()


@hub.on_start
async def open_control() -> None:
    """Open the control port, in the worker that comes first."""

    def fire(count: int) -> None:
        for _ in range(count):
            hub.to("all").emit("news", os.environ[PAYLOAD])

    loop = asyncio.get_running_loop()
    try:
        await loop.create_server(lambda: Control(fire), "127.0.0.1", int(os.environ[CONTROL]))
    except OSError:
        # The other worker has it.
        return


def free_port() -> int:
    with bind() as listener:
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    port, control = free_port(), free_port()
    os.environ |= {PAYLOAD: sys.argv[1], CONTROL: str(control)}
    sys.stdout.write(json.dumps({"port": port, "control": control}) + "\n")
    sys.stdout.flush()
    target = "benchmarks.servers.crossband_workers:hub"
    options = ["--port", str(port), "--workers", str(WORKERS)]
    os.execv(sys.executable, [sys.executable, "-m", "crossband", "serve", target, *options])  # noqa: S606


if __name__ == "__main__":
    main()
