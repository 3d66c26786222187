"""What the page tests share: Chromium, a page in it, the demo.

CROSSBAND_SCREENSHOTS names a directory to leave pictures in, for people to look at.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from crossband.demo import Demo, create_demo
from crossband.demo.pages import PAGES
from crossband.server import Server

# Milliseconds, a guard against hanging. A door that lost its server tries again after at most 5 s
# and half of it.
PATIENCE: Final = 30_000

# What only the styles ask for: no page has to be loaded again for the other.
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
AXE: Final = Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js"

expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where the pages are not built."""
    here = Path(__file__).parent
    missing = [name for name in ("start", "doors") if not (PAGES / name / "index.html").is_file()]
    for item in items:
        if missing and here in item.path.parents:
            reason = f"not built: {', '.join(missing)} (make test builds them)"
            item.add_marker(pytest.mark.skip(reason=reason))


async def picture(page: Page, name: str) -> None:
    """Leave a picture of what is to be seen."""
    directory = os.environ.get("CROSSBAND_SCREENSHOTS")
    if directory:
        path = Path(directory, f"{name}.png")
        await page.screenshot(path=path, animations="disabled")


async def has_no_serious_barrier(page: Page, name: str | None = None) -> None:
    """Run axe over what is shown, in both colour schemes; `name` is that of the pictures.

    The page's policy must be off: the checker is injected.
    """
    if not await page.evaluate("'axe' in globalThis"):
        await page.add_script_tag(path=AXE)
    for scheme in SCHEMES:
        await page.emulate_media(color_scheme=scheme)
        # Colours half way are those of neither.
        await page.evaluate(
            """Promise.allSettled(document.getAnimations()
                .filter((each) => each instanceof CSSTransition).map((each) => each.finished))"""
        )
        found = await page.evaluate(
            "axe.run({ resultTypes: ['violations'] }).then(({ violations }) => violations)"
        )
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert serious == [], scheme + json.dumps(
            [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious], indent=1
        )
        if name is not None:
            await picture(page, f"{name}-{scheme}")


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    # Drawing what moves takes as much CPU time as all else; a test that wants it asks for it.
    context = await browser.new_context(
        viewport={"width": 1400, "height": 900}, reduced_motion="reduce"
    )
    # What a page test waits for comes at once, or not at all.
    context.set_default_timeout(PATIENCE)
    page = await context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    await context.close()
    assert failures == []


@pytest.fixture
def demo() -> Demo:
    return create_demo()


@pytest_asyncio.fixture(loop_scope="session")
async def server(demo: Demo) -> AsyncIterator[Server]:
    async with Server(demo) as server:
        yield server
