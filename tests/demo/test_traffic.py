"""The traffic that the dashboard's button makes: real, and bounded by the server."""

from __future__ import annotations

import pytest

from crossband import Hub
from crossband.demo.traffic import Traffic
from crossband.server import Server
from tests.clients import EventFailed, NewClient, Refused
from tests.conftest import Serve

BURST = 5


@pytest.fixture
async def server(serve: Serve) -> Server:
    hub = Hub()
    # What is used up does not come back while a test runs.
    Traffic(hub, clients=3, burst=BURST, rate=0.001)
    return await serve(hub)


@pytest.mark.parametrize("kind", ["websocket", "sse", "python-socketio"])
async def test_what_one_says_all_hear(server: Server, new_client: NewClient, kind: str) -> None:
    speaker, hearer = new_client("websocket"), new_client(kind)
    for client in (speaker, hearer):
        await client.connect(server.url, "/traffic")
    await speaker.emit("say", 7)
    assert (await hearer.next_event("said")).data == 7
    assert (await speaker.next_event("said")).data == 7


async def test_no_more_clients_than_its_bound(server: Server, new_client: NewClient) -> None:
    clients = [new_client("websocket") for _ in range(3)]
    for client in clients:
        await client.connect(server.url, "/traffic")
    with pytest.raises(Refused):
        await new_client("websocket").connect(server.url, "/traffic")
    # Other namespaces have nothing to do with it.
    await new_client("websocket").connect(server.url, "/")


async def test_no_more_messages_than_its_bound(server: Server, new_client: NewClient) -> None:
    speakers = [new_client("websocket") for _ in range(2)]
    for client in speakers:
        await client.connect(server.url, "/traffic")
    # All clients share it: more of them may say no more.
    for number in range(BURST):
        await speakers[number % 2].call("say", number)
    for client in speakers:
        with pytest.raises(EventFailed) as failure:
            await client.call("say", 1)
        assert failure.value.code == "rate_limited"
        assert failure.value.error["retryAfter"] > 0
