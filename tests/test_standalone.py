"""The standalone hub from its clients' side, and the demo's page files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from crossband import Hub
from crossband.standalone import Demo, create_demo, create_hub
from tests.clients import Client, EventFailed, NewClient
from tests.conftest import Serve

KINDS = ["websocket", "sse", "python-socketio"]


@pytest.fixture(params=KINDS)
async def clients(
    request: pytest.FixtureRequest, serve: Serve, new_client: NewClient
) -> tuple[Client, Client]:
    """Return two clients of one door, on a standalone hub of their own."""
    server = await serve(create_hub())
    pair = new_client(request.param), new_client(request.param)
    for client in pair:
        await client.connect(server.url)
    return pair


# Rooms and chat.


@pytest.mark.parametrize("form", ["news", {"room": "news"}])
async def test_join_and_leave_by_name_or_object(clients: tuple[Client, Client], form: Any) -> None:
    one, other = clients
    assert await one.call("room:join", form) == {"status": "joined", "room": "news", "members": 1}
    assert (await other.call("room:join", form))["members"] == 2
    assert (await other.call("room:join", form))["members"] == 2
    assert await one.call("room:leave", form) == {"status": "left", "room": "news"}
    assert (await other.call("room:join", form))["members"] == 1


async def test_message_reaches_the_room_and_its_sender(clients: tuple[Client, Client]) -> None:
    one, _ = clients
    for client in clients:
        await client.call("room:join", "news")
    answer = await one.call("room:message", {"room": "news", "data": {"n": [1, None, "é"]}})
    assert answer == {"status": "received"}
    for client in clients:
        event = await client.next_event("room:message")
        assert event.data == {"from": one.sid, "room": "news", "data": {"n": [1, None, "é"]}}
        assert event.offset is not None


async def test_message_stays_in_its_room(clients: tuple[Client, Client]) -> None:
    one, other = clients
    await one.call("room:join", "news")
    await one.call("room:message", {"room": "news", "data": "for the room"})
    await one.call("chat:message", {"content": "for everybody"})
    # In one order: had the room's message been meant for it, it would be here by now.
    assert (await other.next_event("chat:message")).data == {
        "from": one.sid,
        "content": "for everybody",
    }
    assert other.data_of("room:message") == []


async def test_chat_in_a_room(clients: tuple[Client, Client]) -> None:
    one, _ = clients
    for client in clients:
        await client.call("room:join", "news")
    await one.call("chat:message", {"content": "hi", "room": "news"})
    for client in clients:
        event = await client.next_event("chat:message")
        assert event.data == {"from": one.sid, "room": "news", "content": "hi"}


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("room:message", {"room": "news", "data": 1}),
        ("chat:message", {"room": "news", "content": "hi"}),
    ],
)
async def test_only_members_send_to_a_room(
    clients: tuple[Client, Client], event: str, data: dict[str, Any]
) -> None:
    one, other = clients
    await other.call("room:join", "news")
    with pytest.raises(EventFailed) as caught:
        await one.call(event, data)
    assert caught.value.error == {
        "code": "not_in_room",
        "error": "Not in this room; join it first",
        "room": "news",
        "event": event,
    }
    await other.call("chat:message", {"content": "end"})
    await other.next_event("chat:message")
    assert other.data_of("room:message") == []


async def test_room_of_another_client_cannot_be_joined(clients: tuple[Client, Client]) -> None:
    one, other = clients
    with pytest.raises(EventFailed, match="own room"):
        await one.call("room:join", other.sid)
    with pytest.raises(EventFailed, match="own room"):
        await one.call("room:leave", one.sid)
    assert (await one.call("room:join", one.sid))["status"] == "joined"


@pytest.mark.parametrize(
    ("event", "data", "path"),
    [
        ("room:join", 5, "$"),
        ("room:join", "", "$"),
        ("room:join", "a" * 257, "$"),
        ("room:join", "a\x00b", "$"),
        ("room:join", "a\n", "$"),
        ("room:join", {"name": "news"}, "$"),
        ("room:join", {"room": ["news"]}, "$.room"),
        ("room:leave", None, "$"),
        ("room:message", {"room": "news"}, "$"),
        ("room:message", {"room": "a\n", "data": 1}, "$.room"),
        ("chat:message", "hi", "$"),
        ("chat:message", {"content": 5}, "$.content"),
        ("chat:message", {"content": "hi", "room": 5}, "$.room"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_path(
    clients: tuple[Client, Client], event: str, data: Any, path: str
) -> None:
    one, other = clients
    with pytest.raises(EventFailed) as caught:
        await one.call(event, data)
    assert caught.value.code == "invalid_message"
    assert caught.value.error["path"] == path
    assert caught.value.error["reason"]
    # Nobody is worse off for it.
    await one.call("chat:message", {"content": "still here"})
    assert (await other.next_event("chat:message")).data["content"] == "still here"


async def test_doors_meet(serve: Serve, new_client: NewClient) -> None:
    server = await serve(create_hub())
    clients = [new_client(kind) for kind in KINDS]
    for client in clients:
        await client.connect(server.url)
    for sender in clients:
        await sender.call("chat:message", {"content": sender.kind})
        for receiver in clients:
            event = await receiver.next_event("chat:message")
            assert event.data == {"from": sender.sid, "content": sender.kind}


def test_settings_are_the_hubs() -> None:
    hub = create_hub(api_keys=("key",), history_size=7)
    assert isinstance(hub, Hub)
    assert hub.settings.history_size == 7
    assert set(hub.events) == {"room:join", "room:leave", "room:message", "chat:message"}
    with pytest.raises(ValueError, match="histroy_size"):
        create_hub(histroy_size=7)


# The page.

INDEX = "<!doctype html><title>doors</title><script src=assets/app-1a2b.js></script>"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a built page, with a secret beside it."""
    pages = tmp_path / "pages"
    (pages / "assets").mkdir(parents=True)
    (pages / "index.html").write_text(INDEX)
    (pages / "assets/app-1a2b.js").write_text("let it = 'é';", encoding="utf-8")
    (pages / "assets/icon-3c4d.svg").write_text("<svg/>")
    (pages / "escape").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("secret")
    return pages


@pytest.fixture
async def http(directory: Path, serve: Serve) -> Any:
    server = await serve(create_demo(directory))
    async with httpx.AsyncClient(base_url=server.url) as client:
        yield client


async def test_page_is_at_the_root(http: httpx.AsyncClient) -> None:
    response = await http.get("/")
    assert (response.status_code, response.text) == (200, INDEX)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_unchanged_page_is_not_sent_again(http: httpx.AsyncClient) -> None:
    tag = (await http.get("/")).headers["etag"]
    response = await http.get("/", headers={"If-None-Match": tag})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["cache-control"] == "no-cache"
    changed = await http.get("/", headers={"If-None-Match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/assets/app-1a2b.js", "text/javascript; charset=utf-8"),
        ("/assets/icon-3c4d.svg", "image/svg+xml"),
    ],
)
async def test_assets_have_their_type_and_stay_cached(
    http: httpx.AsyncClient, path: str, kind: str
) -> None:
    response = await http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    assert "immutable" in response.headers["cache-control"]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/assets/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/.%00./secret.txt",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/escape",
        "/nothing",
        f"/{'a' * 5000}",
        "/assets",
    ],
)
async def test_nothing_else_is_served(http: httpx.AsyncClient, path: str) -> None:
    # On a raw connection: clients tidy paths before they send them.
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"secret" not in answer
    assert b"immutable" not in answer


async def test_page_is_only_read(http: httpx.AsyncClient) -> None:
    response = await http.post("/", content=b"{}")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"


async def test_doors_are_behind_the_page(
    directory: Path, serve: Serve, new_client: NewClient
) -> None:
    server = await serve(create_demo(directory))
    for kind in KINDS:
        client = new_client(kind)
        await client.connect(server.url)
        assert await client.call("chat:message", {"content": "hi"}) == {"status": "received"}
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/api/status")).json()["clients"]["total"] == len(KINDS)
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        # A name that only begins like a door is the page's.
        assert (await http.get("/apiary")).headers["content-type"].startswith("text/plain")


async def test_page_that_is_not_built_says_how(tmp_path: Path, serve: Serve) -> None:
    directory = tmp_path / "pages"
    server = await serve(create_demo(directory))
    async with httpx.AsyncClient(base_url=server.url) as http:
        response = await http.get("/")
        assert response.status_code == 404
        assert "make run" in response.text
        assert response.headers["cache-control"] == "no-store"
        assert (await http.get("/assets/app.js")).status_code == 404
        # Built meanwhile, it appears.
        directory.mkdir()
        (directory / "index.html").write_text(INDEX)
        assert (await http.get("/")).text == INDEX


async def test_demo_starts_and_stops_its_hub(directory: Path) -> None:
    hub = create_hub()
    demo = Demo(hub, directory)
    assert demo.settings is hub.settings
    await demo.start()
    assert hub.started
    await demo.stop()
    assert not hub.started
