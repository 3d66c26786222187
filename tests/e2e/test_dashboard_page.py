"""The dashboard in Chromium: values move, notifications arrive, cuts are filled in."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from crossband import ConnectionRefused, Socket
from crossband.demo import Demo, create_demo
from crossband.demo.pages import PAGES
from crossband.server import Server
from tests.clients import WebSocketClient
from tests.e2e.conftest import PATIENCE, has_no_serious_barrier, picture

MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(
        not (PAGES / "dashboard/index.html").is_file(),
        reason="not built: dashboard (make test builds it)",
    ),
]


class Board:
    """The dashboard as somebody sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        get = page.get_by_test_id
        self.state, self.note, self.cut = get("state"), get("note"), get("cut")
        self.notifications = get("notification")
        self.message, self.outcome = get("message"), get("outcome")
        self.rows = page.get_by_role("region", name="The newest values").locator("tbody tr")

    async def open(self, url: str) -> None:
        await self.page.goto(f"{url}/dashboard/")
        await expect(self.state).to_have_text("Live")
        await self.page.get_by_text("The newest values as a table").click()

    async def measures(self, count: int) -> None:
        """Wait for so many values."""
        await expect(self.rows.nth(count - 1)).to_be_visible()

    async def times(self) -> list[str]:
        return await self.rows.locator("th").all_inner_texts()


async def notify(server: Server, message: str, **more: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        response = await http.post("/api/notify", json={"message": message, **more})
        assert response.status_code == 200


async def test_values_move_each_second(server: Server, page: Page) -> None:
    board = Board(page)
    await board.open(server.url)
    await board.measures(3)
    clients = page.get_by_test_id("panel-clients")
    await expect(page.get_by_test_id("clients-0")).to_have_text("0")
    before = await clients.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    client = WebSocketClient()
    await client.connect(server.url, "/")
    await expect(page.get_by_test_id("clients-0")).to_have_text("1")
    await client.close()
    await expect(page.get_by_test_id("clients-0")).to_have_text("0")
    assert await clients.locator("canvas").evaluate("canvas => canvas.toDataURL()") != before
    await expect(page.get_by_test_id("memory-0")).to_contain_text("MiB")
    await expect(clients.get_by_role("img")).to_have_attribute(
        "aria-label", "Connections, the last minutes: WebSocket 0, polling 0, event stream 1"
    )
    # The stream's own value each second.
    await expect(page.get_by_test_id("messages-0")).not_to_have_text("0")


async def test_traffic_moves_the_charts(server: Server, page: Page) -> None:
    board = Board(page)
    await board.open(server.url)
    await board.measures(2)
    traffic, note = page.get_by_test_id("traffic"), page.get_by_test_id("traffic-note")
    chart = page.get_by_test_id("panel-messages").locator("canvas")
    before = await chart.evaluate("canvas => canvas.toDataURL()")
    await traffic.press("Enter")
    await expect(note).to_contain_text("6 clients")
    await expect(page.get_by_test_id("clients-0")).to_have_text("5")
    await expect(page.get_by_test_id("clients-2")).to_have_text("2")
    # From clients: none but the traffic speaks.
    await expect(page.get_by_test_id("messages-1")).not_to_have_text("0")
    assert await chart.evaluate("canvas => canvas.toDataURL()") != before
    await picture(page, "dashboard-traffic")
    # By itself it ends after ten seconds.
    if await traffic.text_content() == "Stop the traffic":
        await traffic.click()
    await expect(note).to_have_text("The traffic is over.")
    await expect(page.get_by_test_id("clients-0")).to_have_text("0")
    await expect(traffic).to_have_text("Make some traffic")


async def test_traffic_that_the_server_refuses_is_told(
    server: Server, demo: Demo, page: Page
) -> None:
    @demo.traffic.namespace.use
    def refuse(socket: Socket) -> None:
        raise ConnectionRefused("There is enough traffic")

    board = Board(page)
    await board.open(server.url)
    await page.get_by_test_id("traffic").click()
    await expect(page.get_by_test_id("traffic-note")).to_contain_text("The traffic stopped")
    await expect(page.get_by_test_id("traffic")).to_have_text("Make some traffic")


async def test_notification_arrives_and_markup_is_text(server: Server, page: Page) -> None:
    board = Board(page)
    await board.open(server.url)
    await notify(server, MARKUP, title="<b>Disk</b>", level="warning")
    await expect(board.notifications).to_have_count(1)
    await expect(board.notifications).to_contain_text(MARKUP)
    await expect(board.notifications).to_contain_text("Warning")
    assert await page.locator("main img, main b").count() == 0
    await page.reload()
    await expect(board.notifications).to_have_count(1)


async def test_form_notifies_and_tells_what_is_wrong(server: Server, page: Page) -> None:
    board = Board(page)
    await board.open(server.url)
    await page.get_by_role("button", name="Notify everybody").click()
    await expect(board.outcome).to_contain_text("(422)")
    await expect(board.message).to_have_attribute("aria-invalid", "true")
    await expect(board.message).to_be_focused()
    await picture(page, "dashboard-refused")
    await board.message.fill("שלום 👩‍🚀")
    await page.get_by_role("button", name="Notify everybody").click()
    await expect(board.outcome).to_have_text("Sent to 1 page.")
    await expect(board.notifications).to_contain_text("שלום 👩‍🚀")
    await expect(board.message).to_have_value("")


async def test_values_of_a_network_cut_are_filled_in(server: Server, page: Page) -> None:
    board = Board(page)
    await board.open(server.url)
    await board.measures(2)
    witness = WebSocketClient()
    await witness.connect(server.url, "/dashboard")
    await page.context.set_offline(True)
    await expect(board.state).to_have_text("Connection lost")
    for _ in range(4):
        await witness.next_event("sample")
    await notify(server, "meanwhile")
    await picture(page, "dashboard-offline")
    await page.context.set_offline(False)
    await expect(board.note).to_contain_text("filled in")
    await expect(board.notifications).to_contain_text("meanwhile")
    await witness.close()
    await holds_every_value_once(server, board)


async def test_stream_that_was_cut_by_hand_goes_on_where_it_was(server: Server, page: Page) -> None:
    board = Board(page)
    await board.open(server.url)
    await board.measures(2)
    witness = WebSocketClient()
    await witness.connect(server.url, "/dashboard")
    await board.cut.click()
    await expect(board.state).to_have_text("Cut off")
    for _ in range(3):
        await witness.next_event("sample")
    await notify(server, "meanwhile")
    await witness.close()
    await board.cut.click()
    await expect(board.note).to_contain_text("filled in")
    await expect(board.notifications).to_have_count(1)
    await holds_every_value_once(server, board)
    await picture(page, "dashboard")


async def test_restart_of_the_server_is_told_and_values_go_on(page: Page) -> None:
    board = Board(page)
    async with Server(create_demo()) as server:
        await board.open(server.url)
        await board.measures(2)
        await notify(server, "before")
    await expect(board.state).to_have_text("Connection lost")
    before = await board.times()
    async with Server(create_demo(), port=server.port) as server:
        await expect(board.state).to_have_text("Live")
        await expect(board.note).to_contain_text("could not replay what was missed")
        await notify(server, "after")
        await expect(board.notifications).to_have_count(2)
        await board.measures(len(before) + 2)
        shown = await samples_of(server, board)
        await board.measures(len(before) + len(shown))
        # The values since may have come already.
        times = bare(await board.times())
        assert times[-len(before) - len(shown) :] == shown + bare(before)


def bare(times: list[str]) -> list[str]:
    """Return the times without what is said of values that came late."""
    return [time.removesuffix(" (filled in)") for time in times]


async def samples_of(server: Server, board: Board) -> list[str]:
    """Return the times of what the server has, as the page shows them, the newest first."""
    async with httpx.AsyncClient(base_url=server.url) as http:
        samples = (await http.get("/api/metrics")).json()["samples"]
    shown: list[str] = await board.page.evaluate(
        "times => times.map(time => new Date(time * 1000).toLocaleTimeString())",
        [sample["time"] for sample in reversed(samples)],
    )
    return shown


async def holds_every_value_once(server: Server, board: Board) -> None:
    """Compare with what the server has."""
    shown = await samples_of(server, board)
    await board.measures(len(shown))
    # The values since may have come already.
    assert bare(await board.times())[-len(shown) :] == shown
    assert any("filled in" in each for each in await board.times())


@pytest.mark.parametrize("width", [390, 1280])
async def test_page_has_no_serious_barrier(server: Server, browser: Browser, width: int) -> None:
    # The checker is injected, which the page's policy forbids to everybody else.
    context = await browser.new_context(viewport={"width": width, "height": 800}, bypass_csp=True)
    context.set_default_timeout(PATIENCE)
    page = await context.new_page()
    board = Board(page)
    await board.open(server.url)
    await board.measures(2)
    for level in ("info", "success", "warning", "error"):
        await notify(server, "hello", level=level)
    await expect(board.notifications).to_have_count(4)
    await page.get_by_role("button", name="Notify everybody").click()
    await expect(board.outcome).to_contain_text("(422)")
    await has_no_serious_barrier(page)
    await board.cut.click()
    await expect(board.state).to_have_text("Cut off")
    await has_no_serious_barrier(page)
    await board.cut.click()
    await expect(board.note).to_contain_text("Back after")
    await has_no_serious_barrier(page, f"dashboard-{width}")
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    await context.close()
