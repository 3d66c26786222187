"""The demo's page files, and the doors behind them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from crossband import __version__
from crossband.demo import NAMES, Demo, create_demo
from crossband.invocation import program
from crossband.standalone import create_hub
from tests.clients import NewClient
from tests.conftest import Serve

KINDS = ["websocket", "sse", "python-socketio"]
INDEX = "<!doctype html><title>{}</title><script src=assets/app-1a2b.js></script>"
# Where each page is.
ROOTS = {"start": "", **{name: f"/{name}" for name in NAMES}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return built pages, with a secret beside them."""
    for name in ROOTS:
        page = tmp_path / "pages" / name
        (page / "assets").mkdir(parents=True)
        (page / "index.html").write_text(INDEX.format(name))
        (page / "assets/app-1a2b.js").write_text("let it = 'é';", encoding="utf-8")
        (page / "assets/icon-3c4d.svg").write_text("<svg/>")
        (page / "escape").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "pages"


@pytest.fixture
async def http(directory: Path, serve: Serve) -> Any:
    server = await serve(create_demo(directory))
    async with httpx.AsyncClient(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize("name", ROOTS)
async def test_page_is_at_its_path(http: httpx.AsyncClient, name: str) -> None:
    response = await http.get(f"{ROOTS[name]}/")
    assert (response.status_code, response.text) == (200, INDEX.format(name))
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", NAMES)
async def test_path_of_a_page_without_its_slash_leads_there(
    http: httpx.AsyncClient, name: str
) -> None:
    response = await http.get(f"/{name}?a=b", follow_redirects=True)
    assert response.text == INDEX.format(name)
    assert response.url.path == f"/{name}/"
    assert response.url.query == b"a=b"


async def test_unchanged_page_is_not_sent_again(http: httpx.AsyncClient) -> None:
    tag = (await http.get("/")).headers["etag"]
    response = await http.get("/", headers={"If-None-Match": tag})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["cache-control"] == "no-cache"
    changed = await http.get("/", headers={"If-None-Match": '"other"'})
    assert changed.status_code == 200


@pytest.mark.parametrize("root", ROOTS.values())
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/assets/app-1a2b.js", "text/javascript; charset=utf-8"),
        ("/assets/icon-3c4d.svg", "image/svg+xml"),
    ],
)
async def test_assets_have_their_type_and_stay_cached(
    http: httpx.AsyncClient, root: str, path: str, kind: str
) -> None:
    response = await http.get(root + path)
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
        "/doors/../../secret.txt",
        "/doors/%2e%2e/start/index.html",
        "/doors/%2fetc/passwd",
        "/doors/escape",
        "/start/",
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
        for name, root in ROOTS.items():
            response = await http.get(f"{root}/")
            assert response.status_code == 404
            assert "make run" in response.text
            assert response.headers["cache-control"] == "no-store"
            assert (await http.get(f"{root}/assets/app.js")).status_code == 404
            # Built meanwhile, it appears.
            (directory / name).mkdir(parents=True)
            (directory / name / "index.html").write_text(INDEX.format(name))
            assert (await http.get(f"{root}/")).text == INDEX.format(name)


async def test_demo_starts_and_stops_its_hub(directory: Path) -> None:
    hub = create_hub()
    demo = Demo(hub, directory)
    assert demo.settings is hub.settings
    await demo.start()
    assert hub.started
    await demo.stop()
    assert not hub.started


async def test_every_path_is_for_the_allowed_hosts(directory: Path, serve: Serve) -> None:
    server = await serve(create_demo(directory, allowed_hosts=("localhost",)))
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/", "/chat/", "/chat", "/api/metrics", "/api/status", "/healthz", "/nope"):
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["code"]) == (400, "host_not_allowed"), path
        refused = await client.post("/api/notify", json={"title": "a"})
        assert refused.json()["code"] == "host_not_allowed"
        allowed = await client.get("/", headers={"Host": f"localhost:{server.port}"})
        assert allowed.status_code == 200


async def test_pages_are_told_where_the_doors_are(directory: Path, serve: Serve) -> None:
    server = await serve(create_demo(directory, socketio_path=None, websocket_path="/other"))
    async with httpx.AsyncClient(base_url=server.url) as client:
        response = await client.get("/api/demo")
    assert response.json() == {
        "version": __version__,
        "command": program(),
        "doors": {"socketio": None, "websocket": "/other", "sse": "/events"},
    }
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("command", [".venv/bin/crossband", "/home/ada/bin/crossband"])
async def test_path_of_this_machine_is_told_on_this_machine_only(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("crossband.demo.program", lambda: command)
    assert (await http.get("/api/demo")).json()["command"] == command
    response = await http.get("/api/demo", headers={"Host": "demo.example"})
    assert response.json()["command"] == "crossband"


@pytest.mark.parametrize("off", ["socketio_path", "websocket_path", "events_path", "api_path"])
async def test_demo_is_served_with_a_door_switched_off(
    directory: Path, serve: Serve, off: str
) -> None:
    server = await serve(create_demo(directory, **{off: None}))
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/", "/doors/", "/chat/", "/dashboard/", "/api/metrics", "/api/demo"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.post("/api/notify", json={"message": "a"})).status_code == 200


async def test_start_page_stays_where_a_door_is_at_the_root(directory: Path, serve: Serve) -> None:
    server = await serve(create_demo(directory, websocket_path="/"))
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/")).text == INDEX.format("start")
