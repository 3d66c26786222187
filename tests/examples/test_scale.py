"""examples/scale: nginx, three nodes and Redis by its command, and its page in several tabs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import typer
from playwright.async_api import Browser, Page, expect

from crossband import cli
from tests.children import START, Child
from tests.e2e.conftest import has_no_serious_barrier
from tests.nginx import NGINX

SCALE: Final = Path(__file__).parents[2] / "examples/scale"
CLIENT: Final = SCALE.parents[1] / "clients/js/dist/presence.js"
NODES: Final = 3
# Milliseconds, a guard against hanging.
PATIENCE: Final = START * 1_000


class Site:
    """All of it, as it runs."""

    def __init__(self, child: Child, url: str) -> None:
        self.child = child
        self.url = url

    def pid(self, name: str) -> int:
        """Return the process that a part runs in now."""
        found: list[str] = re.findall(
            rf"^{name} +runs: kill -9 (\d+)", self.child.output, re.MULTILINE
        )
        return int(found[-1])

    def kill(self, name: str) -> None:
        """Kill a part; it is started again."""
        os.kill(self.pid(name), signal.SIGKILL)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Site]:
    """Start it by its command; it stops well."""
    async with Child(sys.executable, "start.py", "--port", "0", cwd=SCALE) as child:
        found = await child.says(r"Open (http://127\.0\.0\.1:\d+)")
        # Before nginx asks one: it would leave out for a while who is not there yet.
        for number in range(1, NODES + 1):
            await child.says(rf"node {number} +Crossband \S+ serves")
        yield Site(child, found[1])
        child.send_signal(signal.SIGTERM)
        assert await child.exit_code(within=START) == 0, child.output
        assert "Traceback" not in child.output, child.output


async def node_of(tab: Page) -> int:
    """Return the number of the node that a tab is on."""
    shown = await tab.locator("#node").text_content()
    assert shown is not None
    return int(shown.removeprefix("node "))


async def cursors(tab: Page) -> list[str]:
    """Return the cursors that a tab shows, the oldest first."""
    return (await tab.locator("#ticks code").all_text_contents())[::-1]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.skipif(NGINX is None, reason="no nginx (make test installs it)")
@pytest.mark.skipif(not CLIENT.is_file(), reason="not built: clients/js (make test builds it)")
async def test_tabs_move_between_nodes_and_miss_nothing(browser: Browser) -> None:
    expect.set_options(timeout=PATIENCE)
    async with running() as site, contextlib.AsyncExitStack() as stack:
        tabs = []
        for _ in range(NODES):
            tab = await browser.new_page()
            stack.push_async_callback(tab.close)
            await tab.goto(site.url)
            await expect(tab.locator("#node")).to_have_text(re.compile(r"node \d"))
            tabs.append(tab)
        # One after the other, as nginx takes them in turns.
        assert sorted([await node_of(tab) for tab in tabs]) == [1, 2, 3]
        for tab in tabs:
            await expect(tab.locator("#tabs li")).to_have_count(NODES)
        await has_no_serious_barrier(tabs[-1], "scale")

        moving = tabs[0]
        before = await node_of(moving)
        site.kill(f"node {before}")
        await expect(moving.locator("#log")).to_contain_text("resumed: nothing missed")
        after = await node_of(moving)
        assert after != before
        # Nobody has left meanwhile, and all see where it is now.
        for tab in tabs:
            await expect(tab.locator(f"#tabs .node-{after}")).to_have_count(2)
            await expect(tab.locator("#tabs li")).to_have_count(NODES)
        # The node that was killed is back.
        await expect(moving.locator(f"#ticks .node-{before}").first).to_be_visible()
        seen = [await cursors(tab) for tab in tabs]
        common = set.intersection(*map(set, seen))
        assert common
        assert len({tuple(cursor for cursor in each if cursor in common) for each in seen}) == 1
        for tab in tabs:
            await expect(tab.locator("#missed")).to_have_text("0")
            await expect(tab.locator("#twice")).to_have_text("0")

        # It keeps nothing on disk.
        site.kill("redis")
        for tab in tabs:
            await expect(tab.locator("#log")).to_contain_text("gap: lost")
            await expect(tab.locator("#state")).to_have_text("connected")
            await expect(tab.locator("#missed")).to_have_text("0")


def test_compose_file_runs_the_same() -> None:
    compose = (SCALE / "compose.yaml").read_text(encoding="utf-8")
    configuration = (SCALE / "nginx.conf").read_text(encoding="utf-8")
    nodes = re.findall(r"^  (node\d):$", compose, re.MULTILINE)
    assert nodes == re.findall(r"^    server (\w+):8000;$", configuration, re.MULTILINE)
    assert len(nodes) == NODES
    for path in re.findall(r"^      - (\S+?):", compose, re.MULTILINE):
        assert (SCALE / path).exists() or path == "../../clients/js/dist", path
    dockerfile = (SCALE / "Dockerfile").read_text(encoding="utf-8")
    for paths in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        assert all((SCALE.parents[1] / path).exists() for path in paths.split())
    (command,) = re.findall(r"^CMD (\[.+\])$", dockerfile, re.MULTILINE)
    program, name, *arguments = json.loads(command)
    assert program == "crossband"
    assert arguments[-2:] == ["--port", "8000"]
    commands = typer.main.get_command(cli.app)
    commands.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
