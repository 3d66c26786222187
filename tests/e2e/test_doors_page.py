"""The doors page of `crossband demo` in Chromium: three doors, one order, cut and catch-up."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from crossband.demo import Demo, create_demo
from crossband.server import Server
from tests.e2e.conftest import picture

DOORS: Final = ("socketio", "websocket", "sse")
NAMES: Final = {"socketio": "Socket.IO", "websocket": "WebSocket", "sse": "EventSource"}

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Door:
    """One column of the page."""

    def __init__(self, page: Page, name: str) -> None:
        self.name = name
        self.root = page.get_by_test_id(f"door-{name}")
        self.messages = self.root.get_by_test_id("message")
        self.note = self.root.get_by_test_id("note")
        self.gap = self.root.get_by_test_id("gap")
        self.missed = self.root.get_by_test_id("missed")

    async def is_state(self, state: str) -> None:
        await expect(self.root).to_have_attribute("data-state", state)

    async def send(self, content: str, *, click: bool = False) -> None:
        """Type and send as a visitor does; returns when the server has acknowledged."""
        ack = self.root.get_by_test_id("ack")
        field = self.root.get_by_test_id("input")
        await field.fill(content)
        if click:
            await self.root.get_by_test_id("send").click()
        else:
            await field.press("Enter")
        await expect(ack).to_have_attribute("data-outcome", "received")
        await expect(ack).to_contain_text('{"status":"received"}')

    async def cut(self) -> None:
        await self.root.get_by_test_id("cut").click()
        await self.is_state("cut")

    async def restore(self) -> None:
        await self.root.get_by_test_id("cut").click()
        await self.is_state("connected")

    async def shows(self, *contents: str) -> None:
        """Wait until the door has heard exactly this, in this order."""
        await expect(self.messages.locator(".content")).to_have_text(contents)

    async def marks(self) -> list[str | None]:
        return await self._attributes("data-mark")

    async def offsets(self) -> list[str | None]:
        return await self._attributes("data-offset")

    async def _attributes(self, name: str) -> list[str | None]:
        found: list[str | None] = await self.messages.evaluate_all(
            "(messages, name) => messages.map(message => message.getAttribute(name))", name
        )
        return found

    async def is_flawless(self) -> None:
        """Nothing was heard twice and nothing out of order."""
        await expect(self.root.get_by_test_id("alarm")).to_be_hidden()
        offsets = await self.offsets()
        assert None not in offsets
        assert len(set(offsets)) == len(offsets)


class Doors:
    """The page, with all its doors open."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.all = [Door(page, name) for name in DOORS]

    def __getitem__(self, name: str) -> Door:
        return self.all[DOORS.index(name)]

    def others(self, name: str) -> list[Door]:
        return [door for door in self.all if door.name != name]

    async def are_open(self) -> None:
        for door in self.all:
            await door.is_state("connected")

    async def agree(self) -> None:
        """Every door shows the same messages, by their cursors, in the same order."""
        offsets = [await door.offsets() for door in self.all]
        assert offsets[0] == offsets[1] == offsets[2]
        for door in self.all:
            await door.is_flawless()

    async def picture(self, name: str) -> None:
        await picture(self.page, name)


@pytest_asyncio.fixture(loop_scope="session")
async def doors(server: Server, page: Page) -> Doors:
    await page.goto(f"{server.url}/doors/")
    doors = Doors(page)
    await doors.are_open()
    return doors


async def test_message_of_each_door_arrives_at_all_in_one_order(doors: Doors) -> None:
    for empty in await doors.page.get_by_test_id("empty").all():
        await expect(empty).to_be_visible()
    await doors.page.emulate_media(reduced_motion="no-preference")
    contents = []
    for turn in (1, 2):
        for door in doors.all:
            contents.append(f"{NAMES[door.name]} {turn}")
            await door.send(contents[-1], click=turn == 2)
    for door in doors.all:
        await door.shows(*contents)
        await expect(door.messages.locator(".sender")).to_have_text(list(NAMES.values()) * 2)
        assert set(await door.marks()) == {"live"}
    await doors.agree()
    await doors.picture("live")


async def test_messages_sent_at_once_are_in_one_order(doors: Doors) -> None:
    for number in range(5):
        for door in doors.all:
            field = door.root.get_by_test_id("input")
            await field.fill(f"{door.name} {number}")
            await field.press("Enter")
    for door in doors.all:
        await expect(door.messages).to_have_count(15)
    await doors.agree()


@pytest.mark.parametrize("name", DOORS)
async def test_cut_door_catches_up(doors: Doors, name: str) -> None:
    door = doors[name]
    first, second = doors.others(name)
    await door.send("before")
    await door.shows("before")
    await door.cut()
    await first.send("missed 1")
    await second.send("missed 2")
    await expect(door.note).to_contain_text("2 messages missed so far")
    await expect(door.missed).to_have_count(2)
    await door.shows("before")
    await doors.picture(f"{name}-cut")

    await door.restore()
    await door.shows("before", "missed 1", "missed 2")
    await expect(door.note).to_contain_text("2 messages caught up, in order")
    await expect(door.missed).to_have_count(0)
    assert await door.marks() == ["live", "caught-up", "caught-up"]
    await doors.picture(f"{name}-caught-up")

    await door.send("after")
    for each in doors.all:
        await each.shows("before", "missed 1", "missed 2", "after")
        await expect(each.gap).to_have_count(0)
    assert (await door.marks())[-1] == "live"
    await doors.agree()


@pytest.mark.parametrize("name", DOORS)
async def test_door_cut_before_it_heard_anything_catches_up(doors: Doors, name: str) -> None:
    door = doors[name]
    await door.cut()
    for other in doors.others(name):
        await other.send(f"by {other.name}")
    await door.restore()
    await door.shows(*(f"by {other.name}" for other in doors.others(name)))
    assert await door.marks() == ["caught-up", "caught-up"]
    await doors.agree()


@pytest.mark.parametrize("name", DOORS)
async def test_door_cut_twice_catches_up_twice(doors: Doors, name: str) -> None:
    door = doors[name]
    other = doors.others(name)[0]
    for round_ in ("1", "2"):
        await door.cut()
        await other.send(round_)
        await door.restore()
        await expect(door.messages).to_have_count(int(round_))
    await door.shows("1", "2")
    assert await door.marks() == ["caught-up", "caught-up"]
    await doors.agree()


async def test_doors_that_were_all_cut_catch_up(doors: Doors, demo: Demo) -> None:
    await doors["sse"].send("before")
    for door in doors.all:
        await door.shows("before")
        await door.cut()
    for number in (1, 2, 3):
        await demo.hub.emit("chat:message", {"content": f"from the server {number}"})
    for door in doors.all:
        await door.restore()
    for door in doors.all:
        await door.shows("before", *(f"from the server {number}" for number in (1, 2, 3)))
        assert await door.marks() == ["live", "caught-up", "caught-up", "caught-up"]
    await doors.agree()


async def test_restart_of_the_server_is_a_gap_at_every_door(page: Page) -> None:
    doors = Doors(page)
    async with Server(create_demo()) as server:
        await page.goto(f"{server.url}/doors/")
        await doors.are_open()
        for door in doors.all:
            await door.send(f"before, by {door.name}")
        for door in doors.all:
            await expect(door.messages).to_have_count(3)
    for door in doors.all:
        await door.is_state("reconnecting")
    await doors.picture("server-gone")

    async with Server(create_demo(), port=server.port):
        await doors.are_open()
        for door in doors.all:
            await expect(door.gap).to_have_count(1)
            await expect(door.gap).to_have_attribute("data-reason", "unknown")
            await expect(door.note).to_contain_text("gap")
        await doors.picture("gap")


@pytest.mark.parametrize("name", DOORS)
async def test_door_cut_right_after_a_gap_catches_up(page: Page, name: str) -> None:
    doors = Doors(page)
    door = doors[name]
    async with Server(create_demo()) as server:
        await page.goto(f"{server.url}/doors/")
        await doors.are_open()
        await door.send("before")
        await door.shows("before")
    await door.is_state("reconnecting")

    async with Server(create_demo(), port=server.port):
        await expect(door.gap).to_have_count(1)
        await doors.are_open()
        # The gap told the door its new cursor; no event has since.
        await door.cut()
        for other in doors.others(name):
            await other.send(f"by {other.name}")
        await door.restore()
        await door.shows("before", *(f"by {other.name}" for other in doors.others(name)))
        assert await door.marks() == ["live", "caught-up", "caught-up"]
        await expect(door.gap).to_have_count(1)
        await door.is_flawless()


async def test_clients_are_counted_by_transport(doors: Doors) -> None:
    count = doors.page.get_by_test_id
    await expect(count("clients-total")).to_have_text("3")
    await expect(count("clients-websocket")).to_have_text("2")
    await expect(count("clients-sse")).to_have_text("1")
    await doors["sse"].cut()
    await expect(count("clients-sse")).to_have_text("0")


async def test_keyboard_and_names_are_enough(doors: Doors) -> None:
    page = doors.page
    for name, title in NAMES.items():
        await page.get_by_role("textbox", name=f"Message to send over {title}").press("Enter")
        await expect(doors[name].root.get_by_test_id("ack")).to_contain_text("received")
        messages = page.get_by_role("log", name=f"Messages received over {title}")
        await expect(messages).to_be_visible()
    # Whoever types nothing sends the next word of the alphabet.
    await doors["sse"].shows("Alfa", "Bravo", "Charlie")
    await expect(page.get_by_role("status")).to_contain_text("Charlie, from EventSource.")

    await page.get_by_role("button", name="Cut this door: WebSocket").press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("WebSocket cut off.")
    restore = page.get_by_role("button", name="Restore this door: WebSocket")
    await expect(restore).to_be_focused()
    await doors["websocket"].root.get_by_test_id("input").press("Enter")
    await expect(doors["websocket"].root.get_by_test_id("ack")).to_contain_text("Not sent")
    await restore.press("Enter")
    await doors.are_open()


async def test_two_visitors_hear_each_other(doors: Doors, browser: Browser) -> None:
    second = await browser.new_page()
    await second.goto(doors.page.url)
    visitor = Doors(second)
    await visitor.are_open()
    await doors["websocket"].send("hello")
    for door in visitor.all:
        await door.shows("hello")
        await expect(door.messages.locator(".sender")).to_contain_text("visitor")
    await second.close()


async def test_nothing_is_asked_of_another_origin(server: Server, page: Page) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda websocket: asked.append(websocket.url))
    page.on("console", lambda message: complaints.append(message.text))
    await page.goto(f"{server.url}/doors/")
    await Doors(page).are_open()
    host = server.url.partition("://")[2]
    assert [url for url in asked if url.split("/")[2] != host] == []
    assert len(asked) > 5
    # A policy violation, a missing file or a failed connection would all be told here.
    assert complaints == []


@pytest.mark.parametrize("name", ["websocket", "sse"])
async def test_code_shown_for_a_door_works(
    server: Server, doors: Doors, demo: Demo, browser: Browser, name: str
) -> None:
    code = await doors[name].root.get_by_test_id("code").inner_text()
    arrived = asyncio.Event()
    demo.hub.on("connect", lambda _: arrived.set())
    context = await browser.new_context(bypass_csp=True)
    stranger = await context.new_page()
    # Any page of the same origin that has none of our scripts.
    await stranger.goto(f"{server.url}/healthz")
    await stranger.evaluate(
        """(code) => {
            globalThis.heard = [];
            globalThis.show = (from, content) => heard.push(content);
            (0, eval)(code.replace("const say", "globalThis.say"));
        }""",
        code,
    )
    await arrived.wait()
    await doors["socketio"].send("to the stranger")
    await stranger.wait_for_function("heard.includes('to the stranger')")
    await stranger.evaluate("void say('from the stranger')")
    await doors["socketio"].shows("to the stranger", "from the stranger")
    await stranger.wait_for_function("heard.length === 2")
    await context.close()


@pytest.mark.parametrize("width", [390, 820])
async def test_page_fits_a_narrow_screen(doors: Doors, width: int) -> None:
    await doors.page.set_viewport_size({"width": width, "height": 844})
    scroll_width = await doors.page.evaluate("document.documentElement.scrollWidth")
    assert scroll_width <= width
    boxes = [await door.root.bounding_box() for door in doors.all]
    tops = [box["y"] for box in boxes if box is not None]
    assert tops == sorted(set(tops))
    await doors.picture(f"{width}px")
