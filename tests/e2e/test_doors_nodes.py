"""The doors page on three nodes behind a real nginx, which sends each request to the next one."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.e2e.test_doors_page import DOORS, Doors
from tests.nginx import NGINX, behind_nginx

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(NGINX is None, reason="no nginx (make test installs it)"),
]


async def test_doors_agree_and_catch_up_through_any_node(page: Page, tmp_path: Path) -> None:
    nodes: set[str] = set()
    async with behind_nginx(tmp_path, "demo") as (nginx, _):
        page.on("response", lambda response: nodes.add(response.headers.get("x-node", "")))
        await page.goto(f"{nginx.url}/doors/")
        doors = Doors(page)
        await doors.are_open()
        contents: list[str] = []
        for turn in range(4):
            for door in doors.all:
                contents.append(f"{door.name} {turn}")
                await door.send(contents[-1])
        for name in DOORS:
            door = doors[name]
            await door.cut()
            for other in doors.others(name):
                contents.append(f"{other.name} while {name} was away")
                await other.send(contents[-1])
            await door.restore()
        for door in doors.all:
            await door.shows(*contents)
            await expect(door.gap).to_have_count(0)
        await doors.agree()
        # Of all nodes, whichever answers.
        await expect(page.locator('[data-count="total"]')).to_have_text("3")
        await doors.picture("doors-three-nodes")
    assert len(nodes - {""}) == 3
