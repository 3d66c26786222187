"""A publisher in a real Celery worker, whose pool forks processes that share it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from crossband import Hub, Socket
from tests.children import Child
from tests.clients import NewClient
from tests.conftest import Serve
from tests.engines import Engine

TASKS = """
import os

from celery import Celery

from crossband.publisher import Publisher

app = Celery("tasks", broker=os.environ["CROSSBAND_BROKER"])
app.conf.worker_prefetch_multiplier = 1
publisher = Publisher(os.environ["CROSSBAND_BROKER"])
# Used before the pool forks.
publisher.to("reports").emit("loaded", os.getpid())


@app.task
def render(number):
    for percent in (0, 50, 100):
        publisher.to("reports").emit("progress", {"report": number, "percent": percent})
    return number
"""
SENDER = """
from tasks import render

for number in range(20):
    render.delay(number)
"""


async def test_tasks_publish_each_event_once_and_in_order(
    tmp_path: Path, serve: Serve, new_client: NewClient
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS, encoding="utf-8")
    (tmp_path / "sender.py").write_text(SENDER, encoding="utf-8")
    with Engine() as engine:
        hub = Hub(engine.url)

        @hub.on("connect")
        async def connect(socket: Socket) -> None:
            await socket.join("reports")

        client = new_client("websocket")
        await client.connect((await serve(hub)).url)
        env = {**os.environ, "CROSSBAND_BROKER": engine.url}
        worker = (sys.executable, "-m", "celery", "-A", "tasks", "worker")
        options = ("--pool", "prefork", "--concurrency", "3", "--loglevel", "INFO")
        async with Child(*worker, *options, cwd=tmp_path, env=env) as child:
            await child.says(r" ready\.")
            async with Child(sys.executable, "sender.py", cwd=tmp_path, env=env) as sender:
                assert await sender.exit_code() == 0, sender.output
            events = [(await client.next_event("progress")) for _ in range(60)]
        for report in range(20):
            mine = [event.data["percent"] for event in events if event.data["report"] == report]
            assert mine == [0, 50, 100]
        offsets = [event.offset for event in events]
        assert len(set(offsets)) == 60
        assert offsets == sorted(offsets, key=lambda text: int(str(text).rpartition("-")[2]))
        assert client.unread("progress") == 0
