"""The JavaScript client in a page: cut, reloaded, restarted; and behind a refusing proxy."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Page

from crossband import Broker, Hub, MemoryBroker, Socket
from crossband.server import Server
from tests.nginx import NGINX, ROOT, Nginx, documented

CLIENT: Final = ROOT / "clients/js/dist/crossband.min.js"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(not CLIENT.is_file(), reason="not built (make test builds it)"),
    pytest.mark.skipif(NGINX is None, reason="no nginx (make test installs it)"),
]

PAGE: Final = """<!doctype html>
<link rel="icon" href="data:,">
<script type="module">
  import { connect } from "./crossband.min.js";
  globalThis.client = connect("/", { persist: true, reconnectionDelay: 100 });
  globalThis.numbers = [];
  globalThis.story = [];
  client.on("number", (number) => numbers.push(number));
  client.on("connect", ({ transport, recovered }) => story.push(`${transport} ${recovered}`));
  client.on("gap", ({ reason }) => story.push(`gap ${reason}`));
  client.on("shutdown", () => story.push("shutdown"));
  client.on("question", (text, ack) => ack(`${text}, yes`));
</script>
"""
# Refuses what asks for an upgrade, as some company's proxy does.
REFUSING: Final = "if ($http_upgrade) { return 403; }"
FILES: Final = "location /page/ {{ alias {}/; }}"


def make_hub(broker: Broker | None = None) -> Hub:
    hub = Hub(broker)

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("news")

    @hub.on("echo")
    async def echo(socket: Socket, text: str) -> str:
        return text

    @hub.on("ask me")
    async def ask_me(socket: Socket) -> Any:
        return await socket.emit_with_ack("question", "Well")

    return hub


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "page"
    directory.mkdir()
    (directory / "index.html").write_text(PAGE, encoding="utf-8")
    shutil.copy(CLIENT, directory)
    (tmp_path / "nginx").mkdir()
    return directory


@pytest_asyncio.fixture(loop_scope="session")
async def hub() -> AsyncIterator[Hub]:
    yield make_hub()


async def until(page: Page, expression: str) -> None:
    try:
        await page.wait_for_function(expression)
    except Exception as error:
        error.add_note(str(await page.evaluate("[client.state, numbers, story]")))
        raise


async def test_every_message_once_over_offline_mode_reload_and_restart(
    files: Path, hub: Hub, page: Page
) -> None:
    server = await Server(hub).__aenter__()
    try:
        proxy = Nginx(files.parent / "nginx", server.port, server=FILES.format(files))
        async with proxy as nginx:
            await page.goto(f"{nginx.url}/page/index.html")
            await until(page, "client?.connected")
            assert await page.evaluate("client.transport") == "websocket"
            sid = await page.evaluate("client.id")
            await hub.to("news").emit("number", 0)
            await until(page, "numbers.length === 1")

            await page.context.set_offline(True)
            await until(page, "!client.connected")
            for number in (1, 2):
                await hub.to("news").emit("number", number)
            await page.context.set_offline(False)
            await until(page, "numbers.length === 3")
            await hub.to("news").emit("number", 3)
            await until(page, "numbers.length === 4")
            assert await page.evaluate("[numbers, client.id]") == [[0, 1, 2, 3], sid]

            # A new page goes on where the old one ended.
            await page.goto("about:blank")
            await hub.to("news").emit("number", 4)
            await page.goto(f"{nginx.url}/page/index.html")
            await until(page, "numbers.length === 1")
            assert await page.evaluate("[numbers, story, client.id]") == [
                [4],
                ["websocket true"],
                sid,
            ]

            await server.__aexit__(None, None, None)
            await until(page, "!client.connected")
            again = make_hub()
            server = await Server(again, port=server.port).__aenter__()
            await until(page, "client.connected && story.some((each) => each.startsWith('gap'))")
            await again.to("news").emit("number", 5)
            await until(page, "numbers.length === 2")
            assert await page.evaluate("numbers") == [4, 5]
            assert "shutdown" in await page.evaluate("story")
    finally:
        await server.__aexit__(None, None, None)


async def test_behind_a_proxy_that_refuses_upgrades_it_talks_over_the_event_stream(
    files: Path, hub: Hub, page: Page
) -> None:
    async with (
        Server(hub) as server,
        Nginx(
            files.parent / "nginx",
            server.port,
            http=documented(),
            server=REFUSING + FILES.format(files),
        ) as nginx,
    ):
        await page.goto(f"{nginx.url}/page/index.html")
        await until(page, "client?.connected")
        assert await page.evaluate("story") == ["sse false"]
        assert await page.evaluate("client.emitWithAck('echo', 'hé')") == "hé"
        assert await page.evaluate("client.emitWithAck('ask me')") == "Well, yes"
        await hub.to("news").emit("number", 0)
        await until(page, "numbers.length === 1")
        await page.context.set_offline(True)
        await until(page, "!client.connected")
        await hub.to("news").emit("number", 1)
        await page.context.set_offline(False)
        await until(page, "numbers.length === 2")
        assert await page.evaluate("[numbers, story.at(-1)]") == [[0, 1], "sse true"]


async def test_stream_and_its_back_channel_work_through_any_node(files: Path, page: Page) -> None:
    memory = MemoryBroker()
    hubs = [make_hub(memory), make_hub(memory.peer()), make_hub(memory.peer())]
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server(hub)) for hub in hubs]
        ports = [server.port for server in servers]
        own = REFUSING + FILES.format(files)
        nginx = await stack.enter_async_context(
            Nginx(files.parent / "nginx", *ports, http=documented(), server=own)
        )
        await page.goto(f"{nginx.url}/page/index.html")
        await until(page, "client?.connected")
        assert await page.evaluate("story") == ["sse false"]
        for number in range(20):
            assert (
                await page.evaluate("n => client.emitWithAck('echo', n)", f"{number}")
                == f"{number}"
            )
            assert await page.evaluate("client.emitWithAck('ask me')") == "Well, yes"
            await hubs[number % 3].to("news").emit("number", number)
        await until(page, "numbers.length === 20")
        assert await page.evaluate("numbers") == [*range(20)]
