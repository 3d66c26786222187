"""The chat's page in Chromium: two people and a script talk, through cuts and restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from crossband import Member
from crossband.broker import Presence
from crossband.demo import Demo, create_demo
from crossband.demo.pages import PAGES
from crossband.server import Server
from tests.clients import PythonSocketIOClient
from tests.e2e.conftest import PATIENCE, has_no_serious_barrier, picture

MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        not (PAGES / "chat/index.html").is_file(), reason="not built: chat (make test builds it)"
    ),
]


class Visitor:
    """Somebody at the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        get = page.get_by_test_id
        self.messages = get("message")
        self.contents = self.messages.locator(".content")
        self.input, self.notice, self.typing = get("input"), get("notice"), get("typing")
        self.people, self.total, self.presence = get("people"), get("total"), get("presence")

    async def enter(self, url: str, name: str) -> None:
        await self.page.goto(f"{url}/chat/")
        await self.page.get_by_label("Your name").fill(name)
        await self.page.get_by_role("button", name="Join").click()
        await expect(self.page.get_by_role("heading", name="general")).to_be_visible()
        await self.is_connected()

    async def is_connected(self) -> None:
        await expect(self.page.get_by_test_id("state")).to_have_attribute("data-state", "connected")

    async def say(self, content: str) -> None:
        await self.input.fill(content)
        await self.input.press("Enter")

    async def shows(self, *contents: str) -> None:
        """Wait until exactly this was said, in this order, and all of it is with the server."""
        await expect(self.contents).to_have_text(contents)
        await expect(self.page.locator("[data-delivery=received]")).to_have_count(len(contents))


@pytest_asyncio.fixture(loop_scope="session")
async def other(browser: Browser) -> AsyncIterator[Page]:
    context = await browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(PATIENCE)
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def script(server: Server) -> AsyncIterator[PythonSocketIOClient]:
    client = PythonSocketIOClient()
    await client.connect(server.url, "/chat")
    await client.call("user:register", {"name": "Script"})
    await client.call("room:join", {"room": "general"})
    yield client
    await client.close()


async def tell(client: PythonSocketIOClient, content: str) -> None:
    await client.call("chat:message", {"room": "general", "content": content})


async def test_two_browsers_and_a_script_talk(
    server: Server, page: Page, other: Page, script: PythonSocketIOClient
) -> None:
    ada, bob = Visitor(page), Visitor(other)
    await ada.enter(server.url, "Ada")
    await bob.enter(server.url, "Bob")
    await expect(ada.presence.last).to_contain_text("Bob")
    await expect(ada.total).to_have_text("3")
    await ada.say("from Ada")
    await expect(bob.contents).to_have_text(["from Ada"])
    await bob.say("from Bob")
    await expect(ada.contents).to_have_count(2)
    await tell(script, "from the script")
    for visitor in (ada, bob):
        await visitor.shows("from Ada", "from Bob", "from the script")
    heard = [await script.next_event("chat:message") for _ in range(3)]
    assert [event.data["user"]["name"] for event in heard] == ["Ada", "Bob", "Script"]
    await picture(page, "chat")
    await picture(other, "chat-phone")


async def test_typing_notice_ends_after_three_seconds(
    server: Server, page: Page, script: PythonSocketIOClient
) -> None:
    ada = Visitor(page)
    await ada.enter(server.url, "Ada")
    await ada.input.press_sequentially("hm")
    assert (await script.next_event("user:typing")).data["user"]["name"] == "Ada"
    await script.emit("chat:typing", {"room": "general"})
    await expect(ada.typing).to_contain_text("Script")
    began = await page.evaluate("performance.now()")
    await expect(ada.typing).to_be_empty(timeout=5_000)
    assert await page.evaluate("performance.now()") - began > 2_000


async def test_second_tab_is_the_same_user(
    server: Server, page: Page, script: PythonSocketIOClient
) -> None:
    ada = Visitor(page)
    await ada.enter(server.url, "Ada")
    await expect(ada.total).to_have_text("2")
    second = Visitor(await page.context.new_page())
    await second.page.goto(f"{server.url}/chat/")
    await second.is_connected()
    await expect(second.total).to_have_text("2")
    await second.say("from the second tab")
    await ada.shows("from the second tab")
    await second.page.close()
    await ada.say("from the first")
    await ada.shows("from the second tab", "from the first")
    told = [
        (event.name, event.data["member"]["info"]["name"])
        for event in script.log
        if event.name.startswith("presence:") and event.data["room"] == "general"
    ]
    assert told == [("presence:join", "Script"), ("presence:join", "Ada")]


async def test_network_cut_loses_and_doubles_nothing(
    server: Server, page: Page, script: PythonSocketIOClient
) -> None:
    ada = Visitor(page)
    await ada.enter(server.url, "Ada")
    await ada.say("before")
    await ada.shows("before")
    context: BrowserContext = page.context
    await context.set_offline(True)
    await expect(ada.notice).to_contain_text("offline")
    await tell(script, "meanwhile")
    await ada.say("written offline")
    await expect(page.locator("[data-delivery=sending]")).to_have_count(1)
    await picture(page, "chat-offline")
    await context.set_offline(False)
    await ada.shows("before", "meanwhile", "written offline")
    await expect(ada.notice).to_have_count(0)
    assert [data["content"] for data in script.data_of("chat:message")][:2] == [
        "before",
        "meanwhile",
    ]
    for expected in ("before", "meanwhile", "written offline"):
        assert (await script.next_event("chat:message")).data["content"] == expected
    assert script.unread("chat:message") == 0


async def test_restart_of_the_server_loses_and_doubles_nothing(page: Page, other: Page) -> None:
    ada, bob = Visitor(page), Visitor(other)
    async with Server(create_demo()) as server:
        await ada.enter(server.url, "Ada")
        await bob.enter(server.url, "Bob")
        await ada.say("before")
        await bob.shows("before")
    await expect(ada.notice).to_be_visible()
    await ada.say("written while it was away")
    async with Server(create_demo(), port=server.port):
        await ada.is_connected()
        await bob.is_connected()
        for visitor in (ada, bob):
            await visitor.shows("before", "written while it was away")
        await bob.say("after")
        for visitor in (ada, bob):
            await visitor.shows("before", "written while it was away", "after")


async def test_markup_is_text_and_text_has_its_own_direction(
    server: Server, page: Page, script: PythonSocketIOClient
) -> None:
    ada = Visitor(page)
    await ada.enter(server.url, MARKUP)
    await tell(script, MARKUP)
    await tell(script, "שלום 👩‍🚀")
    await ada.shows(MARKUP, "שלום 👩‍🚀")
    await expect(ada.people).to_contain_text(MARKUP)
    assert await page.locator("main img, main b").count() == 0
    direction = await ada.contents.last.evaluate("each => getComputedStyle(each).direction")
    assert direction == "rtl"


async def test_paste_of_64_kib_is_told_and_not_sent(server: Server, page: Page) -> None:
    ada = Visitor(page)
    await ada.enter(server.url, "Ada")
    await ada.say("x" * 65_536)
    await expect(page.get_by_test_id("length")).to_contain_text("65,536 characters")
    await expect(page.get_by_test_id("send")).to_have_attribute("aria-disabled", "true")
    await expect(ada.messages).to_have_count(0)
    await ada.say("👩" * 4_000)
    await ada.shows("👩" * 4_000)


SAY_ALL = """async (box, words) => {
  const { set } = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
  for (const word of words) {
    set.call(box, word);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    // React renders in between.
    await new Promise((resolve) => setTimeout(resolve));
    box.form.requestSubmit();
    await new Promise((resolve) => setTimeout(resolve));
  }
}"""


async def test_burst_goes_out_by_itself(server: Server, page: Page) -> None:
    ada = Visitor(page)
    await ada.enter(server.url, "Ada")
    words = [f"{number}" for number in range(10)]
    # Typed in one go: key by key a busy machine would be slow enough to need no slowing down.
    await ada.input.evaluate(SAY_ALL, words)
    await expect(page.locator("[data-delivery=slowed]")).to_contain_text("goes out by itself")
    await ada.shows(*words)


async def test_name_that_is_taken_is_told(
    server: Server, page: Page, script: PythonSocketIOClient
) -> None:
    await page.goto(f"{server.url}/chat/")
    await page.get_by_label("Your name").fill("script")
    await page.get_by_role("button", name="Join").click()
    await expect(page.get_by_role("alert")).to_contain_text("Choose another")


def guest(demo: Demo, number: int) -> None:
    """Let somebody be in the room, as on another node: a thousand connections are not needed."""
    broker = demo.hub.broker
    member = Member(f"guest-{number}", {"name": f"Guest {number}", "colour": number})
    broker.presence.save(
        Presence("/chat", f"_{number:019}", {"general": member}, broker.bus.node, grace=600)
    )


async def test_thousand_users_are_listed(demo: Demo, server: Server, page: Page) -> None:
    ada = Visitor(page)
    # Most are there when she comes, the others follow.
    for number in range(990):
        guest(demo, number)
    await ada.enter(server.url, "Ada")
    await expect(ada.total).to_have_text("991")
    for number in range(990, 1_000):
        guest(demo, number)
    await expect(ada.total).to_have_text("1,001")
    await expect(ada.people.get_by_role("listitem")).to_have_count(1_001)
    for name in ("777", "997"):
        await page.get_by_label("Find somebody").fill(f"guest {name}")
        await expect(ada.people.get_by_role("listitem")).to_have_text(f"GGuest {name}")
    await picture(page, "chat-thousand")


@pytest.mark.parametrize("width", [390, 1280])
async def test_page_has_no_serious_barrier(
    server: Server, browser: Browser, script: PythonSocketIOClient, width: int
) -> None:
    # The checker is injected, which the page's policy forbids to everybody else.
    context = await browser.new_context(viewport={"width": width, "height": 800}, bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    ada = Visitor(await context.new_page())
    await ada.page.goto(f"{server.url}/chat/")
    await expect(ada.page.get_by_label("Your name")).to_be_visible()
    await has_no_serious_barrier(ada.page)
    await ada.enter(server.url, "Ada")
    await tell(script, "hello, see https://example.com")
    await ada.shows("hello, see https://example.com")
    await has_no_serious_barrier(ada.page)
    assert await ada.page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 500:
        await ada.page.get_by_role("button", name="people here").click()
        await expect(ada.people).to_be_visible()
        await has_no_serious_barrier(ada.page)
        await ada.page.keyboard.press("Escape")
    await context.set_offline(True)
    await expect(ada.notice).to_be_visible()
    await ada.input.fill("x" * 5_000)
    await has_no_serious_barrier(ada.page)
    await context.close()
