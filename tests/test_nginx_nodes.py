"""Three processes of one hub behind a real nginx, which sends each request to the next of them."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from textwrap import dedent

import pytest

from tests.clients import CLIENTS, Client, NewClient
from tests.nginx import NGINX, behind_nginx

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(NGINX is None, reason="no nginx (make test installs it)"),
]

HUB = """
    import os
    from typing import Any

    from crossband import Hub, Socket

    hub = Hub()
    # What clients sent, in order.
    sent: dict[str, list[int]] = {}

    @hub.on("connect")
    async def connect(socket: Socket) -> None:
        await socket.join("all")

    @hub.on("echo")
    async def echo(socket: Socket, data: Any) -> Any:
        return data

    @hub.on("ask back")
    async def ask_back(socket: Socket, data: Any) -> Any:
        return await socket.emit_with_ack("question", data)

    @hub.on("send")
    async def send(socket: Socket, number: int) -> None:
        sent.setdefault(socket.id, []).append(number)

    @hub.on("sent")
    async def all_sent(socket: Socket) -> list[int]:
        return sent.pop(socket.id)

    @hub.on("pid")
    async def pid(socket: Socket) -> int:
        return os.getpid()

    @hub.on("publish")
    async def publish(socket: Socket, numbers: list[int]) -> None:
        for number in range(*numbers):
            await hub.to("all").emit("number", number)
"""
BLOB = bytes(range(256)) * 4
COUNT = 1_000


async def use(client: Client, url: str) -> None:
    """Do all that a client does, most of it a thousand times."""
    await client.connect(url)
    client.answer("question", lambda data: data)
    for text in ("hé", "x" * 60_000):
        assert await client.call("echo", text) == text
        assert await client.call("ask back", text) == text
    if client.binary:
        assert await client.call("echo", {"part": BLOB}) == {"part": BLOB}
        assert await client.call("ask back", {"part": BLOB}) == {"part": BLOB}
        large = "x" * 200_000
        assert await client.call("echo", large) == large
    for number in range(COUNT):
        await client.emit("send", number)
    assert await client.call("sent") == [*range(COUNT)]
    await client.call("publish", [0, COUNT])
    for number in range(COUNT):
        assert (await client.next_event("number")).data == number
    await client.settled()


@pytest.mark.parametrize("kind", CLIENTS)
async def test_every_client_works_through_round_robin(
    kind: str, tmp_path: Path, new_client: NewClient
) -> None:
    (tmp_path / "app.py").write_text(dedent(HUB))
    async with behind_nginx(tmp_path, "serve", "app:hub") as (nginx, _):
        await use(new_client(kind), nginx.url)


async def test_every_client_works_with_one_node_for_each_address(
    tmp_path: Path, new_client: NewClient
) -> None:
    (tmp_path / "app.py").write_text(dedent(HUB))
    async with behind_nginx(tmp_path, "serve", "app:hub", upstream="ip_hash") as (nginx, _):
        for kind in ("socket.io-client polling", "socket.io-client upgrading"):
            client = new_client(kind)
            await use(client, nginx.url)
            await client.close()


async def test_node_that_is_killed_costs_no_client_an_event(
    tmp_path: Path, new_client: NewClient
) -> None:
    (tmp_path / "app.py").write_text(dedent(HUB))
    async with behind_nginx(tmp_path, "serve", "app:hub") as (nginx, nodes):
        clients = [new_client(kind) for kind in CLIENTS for _ in range(3)]
        for client in clients:
            await client.connect(nginx.url)
            await client.settled()
        publisher = new_client("websocket")
        await publisher.connect(nginx.url)

        async def hear_all(client: Client) -> None:
            """Hear all numbers, and come back when cut, as clients do by themselves."""
            heard = 0
            while heard < 300:
                event = asyncio.ensure_future(client.next_event("number"))
                gone = asyncio.ensure_future(client.gone.wait())
                await asyncio.wait([event, gone], return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                if event.done():
                    assert event.result().data == heard, client.kind
                    heard += 1
                    continue
                event.cancel()
                await client.resume()
                assert client.recovered or not client.tells_recovered, client.kind

        async def publish(start: int, end: int) -> None:
            """Publish by a client that comes back too."""
            for number in range(start, end):
                while publisher.gone.is_set():
                    await publisher.resume()
                await publisher.call("publish", [number, number + 1])

        hearing = [asyncio.create_task(hear_all(client)) for client in clients]
        await publish(0, 150)
        # Not the publisher's own: what it awaits would be lost with it.
        survivor = await publisher.call("pid")
        next(node for node in nodes if node.pid != survivor).send_signal(signal.SIGKILL)
        await publish(150, 300)
        await asyncio.gather(*hearing)
        for client in clients:
            await client.settled()
            assert client.gaps == []
