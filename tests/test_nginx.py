"""Every door through a real nginx, configured as docs/how-to/nginx.md says."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from crossband import Hub, Socket
from crossband.server import Server
from tests.clients import CLIENTS, NewClient
from tests.nginx import NGINX, Nginx, documented

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(NGINX is None, reason="no nginx (make test installs it)"),
]


def make_hub() -> Hub:
    hub = Hub(ping_interval=0.2, keepalive_interval=0.2, api_keys=["key"])

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("news")

    @hub.on("echo")
    async def echo(socket: Socket, text: str) -> str:
        await socket.emit("echoed", text)
        return text

    return hub


@pytest.mark.parametrize("kind", CLIENTS)
async def test_every_door_passes_through_and_nothing_is_buffered(
    tmp_path: Path, new_client: NewClient, kind: str
) -> None:
    hub = make_hub()
    async with Server(hub) as server, Nginx(tmp_path, server.port) as nginx:
        client = new_client(kind)
        await client.connect(nginx.url)
        await client.settled()
        # One small event at a time, and the next only when it is there: a proxy that waits
        # for more to send would wait for ever.
        for number in range(5):
            await hub.to("news").emit("number", number)
            assert (await client.next_event("number")).data == number
        assert await client.call("echo", "hé") == "hé"
        assert (await client.next_event("echoed")).data == "hé"
        await client.cut()
        await hub.to("news").emit("number", 5)
        await client.resume()
        assert (await client.next_event("number")).data == 5
        # An official client whose server goes in the midst of its upgrade never closes.
        await client.settled()
        assert client.data_of("number") == [*range(6)]


async def test_idle_connection_outlives_the_timeout_of_the_proxy(
    tmp_path: Path, new_client: NewClient
) -> None:
    hub = make_hub()
    http = documented().replace("proxy_read_timeout 60s", "proxy_read_timeout 1s")
    client = new_client("websocket")
    async with (
        Server(hub) as server,
        Nginx(tmp_path, server.port, http=http) as nginx,
        httpx.AsyncClient(verify=False) as stream,
    ):
        await client.connect(nginx.url)
        comments = 0
        async with stream.stream("GET", f"{nginx.url}/events") as response:
            async for line in response.aiter_lines():
                comments += line == ":"
                # Twice the timeout, with nothing but the hub's signs of life.
                if comments == 10:
                    break
        assert await client.call("echo", "still here") == "still here"


async def test_page_behind_the_proxy_is_of_the_same_origin(tmp_path: Path) -> None:
    hub = make_hub()
    async with (
        Server(hub) as server,
        Nginx(tmp_path, server.port) as nginx,
        httpx.AsyncClient(verify=False) as http,
    ):
        for origin, status in ((nginx.url, 200), ("http://elsewhere.test", 403)):
            headers = {"Origin": origin}
            async with http.stream("GET", f"{nginx.url}/events", headers=headers) as response:
                assert response.status_code == status
