"""What all pages of the demo have in common: one header, and nothing of them cut or overlapping."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from playwright.async_api import Browser, Page, expect

from crossband.demo import create_demo
from crossband.demo.pages import PAGES
from crossband.server import Server
from tests.clients import PythonSocketIOClient
from tests.e2e.conftest import PATIENCE

NAMES: Final = {"start": "", "doors": "doors/", "chat": "chat/", "dashboard": "dashboard/"}
TITLES: Final = {
    "start": "Start",
    "doors": "Three doors",
    "chat": "Chat",
    "dashboard": "Dashboard",
}
LONG: Final = "Donaudampfschifffahrtsgesellschaftskap"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        not all((PAGES / name / "index.html").is_file() for name in NAMES),
        reason="not built (make test builds them)",
    ),
]

# Where the parts of the header are, and how they look: all but which page is the current one.
HEADER: Final = """() => [...document.querySelectorAll(
        ".masthead, .brand, .brand svg, .pages, .pages a")].map((part) => {
    const { x, y, width, height } = part.getBoundingClientRect();
    const { fontSize, fontWeight, fontFamily, paddingTop } = getComputedStyle(part);
    const own = part.matches(".masthead") ? [x, y, width] : [x, y, width, height];
    return [part.textContent.trim().slice(0, 9), ...own.map(Math.round),
            fontSize, fontWeight, fontFamily, paddingTop].join(" ");
})"""

# Elements that hide a part of what is in them, sideways, and texts that leave the window.
CUT: Final = """() => {
    // One's own name in the header: the list of people has it whole.
    const seen = (element) => element.checkVisibility({ visibilityProperty: true })
        && !element.closest(".unseen, .skip, .chart, .me bdi");
    const cut = [...document.querySelectorAll("body *")].filter((element) => seen(element)
        && getComputedStyle(element).overflowX !== "visible"
        && element.scrollWidth > element.clientWidth + 1
        // With a visible hint that there is more.
        && !(element.matches(".scroll") && element.previousElementSibling?.matches(".hint:not([hidden])")));
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const outside = [];
    while (walker.nextNode()) {
        const text = walker.currentNode;
        if (!text.data.trim() || !seen(text.parentElement) || text.parentElement.closest(".scroll")) continue;
        const range = document.createRange();
        range.selectNodeContents(text);
        for (const { left, right, width } of range.getClientRects())
            if (width > 0 && (left < 0 || right > innerWidth)) outside.push(text.data.trim());
    }
    return [...cut.map((element) => element.outerHTML.slice(0, 120)), ...outside];
}"""  # noqa: E501

# Note what a canvas writes, and where: in its own pixels.
WRITINGS: Final = """
    globalThis.writings = new Map();
    const write = CanvasRenderingContext2D.prototype.fillText;
    const clear = CanvasRenderingContext2D.prototype.clearRect;
    CanvasRenderingContext2D.prototype.clearRect = function (...area) {
        writings.set(this.canvas, []);
        return clear.apply(this, area);
    };
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
        const { width } = this.measureText(text);
        const { e, f } = this.getTransform();
        const left = e + x - { left: 0, start: 0, center: width / 2, right: width, end: width }[this.textAlign];
        const size = parseFloat(this.font);
        const top = f + y - { top: 0, middle: size / 2, bottom: size }[this.textBaseline];
        writings.get(this.canvas)?.push({ text, left, top, right: left + width, bottom: top + size });
        return write.call(this, text, x, y);
    };
"""  # noqa: E501
BADLY_WRITTEN: Final = """() => [...writings].flatMap(([canvas, written]) => written.filter((one) =>
    one.left < 0 || one.right > canvas.width || one.top < 0 || one.bottom > canvas.height
    || written.some((other) => other !== one && one.text && other.text
        && one.left < other.right && other.left < one.right
        && one.top < other.bottom && other.top < one.bottom)).map(({ text }) => text))"""


async def open_page(browser: Browser, server: Server, name: str, width: int) -> Page:
    # What looks at the page is code that its policy forbids to everybody else.
    context = await browser.new_context(viewport={"width": width, "height": 844}, bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    page = await context.new_page()
    await page.add_init_script(WRITINGS)
    await show(page, server, name)
    return page


async def show(page: Page, server: Server, name: str) -> None:
    await page.goto(f"{server.url}/{NAMES[name]}")
    await expect(page.get_by_role("heading", level=1)).to_be_attached()


@pytest.mark.parametrize("width", [390, 820, 1280])
async def test_header_is_the_same_on_all_pages(
    server: Server, browser: Browser, width: int
) -> None:
    headers = {}
    page = await open_page(browser, server, "start", width)
    for name, title in TITLES.items():
        if name != "start":
            await show(page, server, name)
        if name == "chat":
            await page.get_by_label("Your name").fill("Ada")
            await page.get_by_role("button", name="Join").click()
            await expect(page.get_by_test_id("me")).to_have_text("Ada")
        current = page.locator("[aria-current=page]")
        await expect(current).to_have_text([title])
        assert await current.evaluate("link => link.href") == page.url.partition("#")[0]
        headers[name] = await page.evaluate(HEADER)
    await page.context.close()
    assert len(headers["start"]) == 8
    for name, header in headers.items():
        assert header == headers["start"], name


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize("name", NAMES)
async def test_nothing_is_cut(server: Server, browser: Browser, name: str, width: int) -> None:
    page = await open_page(browser, server, name, width)
    get = page.get_by_test_id
    if name == "doors":
        for door in ("socketio", "websocket", "sse"):
            await expect(get(f"door-{door}")).to_have_attribute("data-state", "connected")
        await get("door-sse").get_by_test_id("input").fill(LONG * 3)
        await get("door-sse").get_by_test_id("send").click()
        await expect(get("message")).to_have_count(3)
        # Beside its line, not in it.
        assert await page.evaluate(
            """() => [...document.querySelectorAll(".lane:not(.ruler)")].every((lane) => {
                const text = document.createRange();
                text.selectNodeContents(lane.querySelector(".lane-name"));
                return text.getBoundingClientRect().right + 4
                    < lane.querySelector(".line").getBoundingClientRect().left;
            })"""
        )
    elif name == "chat":
        await page.get_by_label("Your name").fill(LONG)
        await page.get_by_role("button", name="Join").click()
        await get("input").fill(f"https://example.com/{LONG * 8}")
        await get("input").press("Enter")
        await expect(page.locator("[data-delivery=received]")).to_have_count(1)
        if width < 860:
            await page.get_by_role("button", name="person here").click()
        await expect(get("people").get_by_text(LONG)).to_be_visible()
    elif name == "dashboard":
        await page.get_by_text("The newest values as a table").click()
        await expect(
            page.get_by_role("region", name="The newest values").locator("td")
        ).not_to_have_count(0)
    else:
        await expect(get("state")).to_have_attribute("data-state", "connected")
    # What follows a resize is drawn.
    await page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    found = await page.evaluate(CUT)
    assert found == [], json.dumps(found, indent=1)
    await page.context.close()


@pytest.mark.parametrize("width", [390, 820, 1280])
async def test_no_label_of_an_axis_is_cut(server: Server, browser: Browser, width: int) -> None:
    page = await open_page(browser, server, "dashboard", width)
    labels = "[...writings.values()].map(written => written.length)"
    await page.wait_for_function(f"{labels}.filter(count => count > 3).length === 4")
    assert await page.evaluate(BADLY_WRITTEN) == []
    await page.context.close()


async def test_no_two_people_look_alike(server: Server, browser: Browser) -> None:
    people = [PythonSocketIOClient() for _ in range(24)]
    for number, person in enumerate(people):
        await person.connect(server.url, "/chat")
        await person.call("user:register", {"name": f"Guest {number}"})
        await person.call("room:join", {"room": "general"})
    page = await open_page(browser, server, "chat", 1280)
    await page.get_by_label("Your name").fill("Ada")
    await page.get_by_role("button", name="Join").click()
    plates = page.get_by_test_id("people").locator(".plate")
    await expect(plates).to_have_count(25)
    looks: list[list[str]] = await plates.evaluate_all(
        """plates => plates.map(plate => {
            const { backgroundColor, borderRadius, color } = getComputedStyle(plate);
            return [backgroundColor, borderRadius, color];
        })"""
    )
    assert len({tuple(look) for look in looks}) == 25
    # As far as the colours go, it is they.
    colours = {look[0] for look in looks}
    assert len(colours) >= 10
    page_has = await page.evaluate(
        """() => ["--socketio", "--alarm"].map((name) => {
            const probe = document.createElement("i");
            probe.style.color = `var(${name})`;
            document.body.append(probe);
            return getComputedStyle(probe).color;
        })"""
    )
    assert colours.isdisjoint(page_has)
    await page.context.close()
    for person in people:
        await person.close()


SWITCHED_OFF: Final[dict[str, tuple[str, str, str]]] = {
    "socketio_path": ("doors", "door-socketio", "Switched off"),
    "websocket_path": ("doors", "door-websocket", "Switched off"),
    "events_path": ("dashboard", "state", "Switched off"),
}


@pytest.mark.parametrize("setting", SWITCHED_OFF)
async def test_door_that_is_switched_off_is_told(page: Page, setting: str) -> None:
    name, part, told = SWITCHED_OFF[setting]
    settings: dict[str, Any] = {setting: None}
    async with Server(create_demo(**settings)) as server:
        await page.goto(f"{server.url}/{name}/")
        await expect(page.get_by_test_id(part)).to_contain_text(told)
        await page.goto(f"{server.url}/doors/")
        await expect(page.locator(".door[data-state=connected]")).to_have_count(2)
        await expect(page.locator(".door[data-state=off]")).to_have_count(1)
        await page.goto(f"{server.url}/chat/")
        notice = page.get_by_test_id("notice")
        if setting == "socketio_path":
            await expect(notice).to_contain_text("switched off")
        else:
            await expect(page.get_by_test_id("state")).to_have_text("Connected")
        await page.goto(f"{server.url}/")
        commands = page.get_by_test_id("command")
        await expect(commands.first).to_contain_text(" listen ")
        stream = commands.filter(has_text="curl -N")
        await expect(stream).to_be_visible(visible=setting != "events_path")


async def test_pages_find_doors_at_other_paths(page: Page) -> None:
    paths = {"socketio_path": "/a/io", "websocket_path": "/b", "events_path": "/c/stream"}
    async with Server(create_demo(**paths)) as server:
        await page.goto(f"{server.url}/doors/")
        await expect(page.locator(".door[data-state=connected]")).to_have_count(3)
        await page.get_by_test_id("door-sse").get_by_test_id("send").click()
        await expect(page.get_by_test_id("message")).to_have_count(3)
        await page.goto(f"{server.url}/chat/")
        await expect(page.get_by_test_id("state")).to_have_text("Connected")
        await page.goto(f"{server.url}/dashboard/")
        await expect(page.get_by_test_id("state")).to_have_text("Live")


async def test_start_page_of_a_server_without_status_is_not_alarmed(page: Page) -> None:
    async with Server(create_demo(api_path=None)) as server:
        await page.goto(server.url)
        await expect(page.get_by_test_id("state")).to_contain_text("does not publish its numbers")
        await page.get_by_test_id("station-doors").click()
        await expect(page.locator(".door[data-state=connected]")).to_have_count(3)
