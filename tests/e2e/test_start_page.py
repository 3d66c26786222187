"""The start page of `crossband demo` in Chromium; whether everybody can use it and the doors."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from crossband.demo import Demo
from crossband.invocation import program
from crossband.server import Server
from tests.children import Child
from tests.clients import WebSocketClient
from tests.e2e.conftest import has_no_serious_barrier, picture

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_clients_of_each_page_are_counted_as_they_come_and_go(
    server: Server, page: Page, browser: Browser
) -> None:
    await page.goto(server.url)
    counts = {
        name: page.get_by_test_id(f"station-{name}").locator(".live")
        for name in ("doors", "chat", "dashboard")
    }
    await expect(page.get_by_test_id("state")).to_contain_text("The server has been up")
    await expect(counts["doors"]).to_have_text("0 clients")
    await expect(counts["chat"]).to_have_text("0 pages open")
    await expect(counts["dashboard"]).to_have_text("0 pages open")

    context = await browser.new_context()
    for name in counts:
        await (await context.new_page()).goto(f"{server.url}/{name}/")
    # The doors page is three of them.
    await expect(counts["doors"]).to_have_text("3 clients")
    await expect(counts["chat"]).to_have_text("1 page open")
    await expect(counts["dashboard"]).to_have_text("1 page open")
    await context.close()
    await expect(counts["doors"]).to_have_text("0 clients")
    await expect(counts["dashboard"]).to_have_text("0 pages open")


async def test_every_page_leads_to_the_others(server: Server, page: Page) -> None:
    await page.goto(server.url)
    for name, title in (("doors", "Three doors"), ("chat", "Chat"), ("dashboard", "Dashboard")):
        await page.get_by_test_id(f"station-{name}").press("Enter")
        await page.wait_for_url(f"{server.url}/{name}/")
        here = page.get_by_role("navigation", name="Demo").get_by_role("link", name=title)
        await expect(here).to_have_attribute("aria-current", "page")
        await page.get_by_role("link", name="Start").click()
        await page.wait_for_url(f"{server.url}/")


async def test_server_that_is_gone_is_told_and_its_numbers_marked(demo: Demo, page: Page) -> None:
    async with Server(demo) as server:
        await page.goto(server.url)
        await expect(page.get_by_test_id("state")).to_have_attribute("data-state", "connected")
    state = page.get_by_role("status")
    await expect(state).to_contain_text("The server does not respond")
    await expect(page.locator('.live[data-state="stale"]')).to_have_count(3)
    await picture(page, "start-gone")
    async with Server(demo, port=server.port):
        await expect(state).to_contain_text("The server has been up")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", ["", "doors/"])
async def test_page_fits_and_has_no_serious_barrier(
    server: Server, browser: Browser, path: str, width: int
) -> None:
    context = await browser.new_context(viewport={"width": width, "height": 844}, bypass_csp=True)
    page = await context.new_page()
    await page.goto(f"{server.url}/{path}")
    if path:
        await page.get_by_test_id("door-sse").get_by_test_id("send").click()
        await expect(page.get_by_test_id("message")).to_have_count(3)
        await page.get_by_test_id("door-socketio").get_by_test_id("cut").click()
    else:
        await expect(page.get_by_test_id("state")).to_have_attribute("data-state", "connected")
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    name = f"{path.strip('/') or 'start'}-{width}"
    await has_no_serious_barrier(page, name)
    await context.close()


@pytest.mark.parametrize("clipboard", ["granted", "refused", "absent"])
async def test_commands_are_copied_and_it_is_said(
    server: Server, browser: Browser, clipboard: str
) -> None:
    context = await browser.new_context()
    await context.clock.install()
    await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    page = await context.new_page()
    if clipboard == "refused":
        await page.add_init_script("Clipboard.prototype.writeText = () => Promise.reject('no')")
    elif clipboard == "absent":
        # As on plain http elsewhere than on localhost.
        await page.add_init_script("Clipboard.prototype.writeText = undefined")
    await page.goto(server.url)
    commands = page.get_by_test_id("command")
    buttons = page.get_by_test_id("copy")
    await expect(commands).to_have_count(3)
    await expect(buttons).to_have_count(3)
    await expect(commands.nth(1)).to_have_text(f"curl -N {server.url}/events/dashboard")
    for number in range(3):
        button = buttons.nth(number)
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(button).to_have_text("Copied")
        await expect(page.get_by_role("status").filter(has_text="Copied")).not_to_have_count(0)
        await expect(button).to_be_focused()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied == await commands.nth(number).text_content()
        # It is shown for two seconds only.
        await context.clock.fast_forward(2_000)
        await expect(button).to_have_text("Copy")
    await context.close()


async def test_commands_work_where_the_server_runs(server: Server, page: Page) -> None:
    await page.goto(server.url)
    command = page.get_by_test_id("command").first
    await expect(command).to_have_text(f"{program()} listen {server.url}/")
    text = await command.text_content()
    assert text is not None
    async with Child("sh", "-c", f"{text} --count 1") as listening:
        # Until it is there, nobody hears.
        count = page.get_by_test_id("station-doors").locator(".live")
        await expect(count).to_have_text("1 client")
        sender = WebSocketClient()
        await sender.connect(server.url)
        await sender.call("chat:message", {"content": "it works"})
        await listening.says("it works")
        assert await listening.exit_code() == 0
        await sender.close()
