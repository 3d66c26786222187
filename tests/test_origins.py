"""Which pages may use a hub: one table of origins, the same at every door."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import pytest

from crossband import Hub
from tests.clients.base import WAIT
from tests.conftest import Serve

SITE: Final = "https://app.example.com"
KEY: Final = "a-publisher's-key"

UPGRADE: Final = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
ENGINE: Final = "/socket.io/?EIO=4&transport="

# By door: method, path, more header lines, body. `{sid}` and `{session}` are a stream's,
# `{engine}` a polling session's.
DOORS: Final = {
    "websocket": ("GET", "/ws", UPGRADE, ""),
    "Socket.IO websocket": ("GET", ENGINE + "websocket", UPGRADE, ""),
    "polling handshake": ("GET", ENGINE + "polling", "", ""),
    "polling post": ("POST", ENGINE + "polling&sid={engine}", "", "40"),
    "upgrade": ("GET", ENGINE + "websocket&sid={engine}", UPGRADE, ""),
    "event stream": ("GET", "/events", "", ""),
    "back-channel": ("POST", "/events/{sid}?session={session}", "", '{"type":"echo"}'),
    "publishing": ("POST", "/api/broadcast", f"X-API-Key: {KEY}\r\n", '{"event":"news"}'),
    "status": ("GET", "/api/status", "", ""),
}
PAGES_OF_APPLICATIONS: Final = ("file://", "ionic://localhost", "vscode-webview://0f2v9kq3")
# `{host}` is the server's own, with its port.
ALLOWED: Final = {
    **{f"{origin}, as listed": origin for origin in PAGES_OF_APPLICATIONS},
    "none": "",
    "same origin": "http://{host}",
    "same origin behind TLS": "https://{host}",
    "of the list": SITE,
    "null, as listed": "null",
}
REFUSED: Final = {
    "other site": "https://evil.example.com",
    "longer name": SITE + ".evil.com",
    "longer by a dot": SITE + ".",
    "other port": SITE + ":8443",
    "other scheme": "http://app.example.com",
    "listed with a path": SITE + "/",
    "other case": "https://APP.example.com",
    "own host with a path": "http://{host}/page",
    "own host with a user": "http://evil@{host}",
    "own host of another port": "http://127.0.0.1:1",
    "no scheme": "{host}",
    "other protocol": "ftp://{host}",
    "other application": "capacitor://localhost",
    "a file, with its path": "file:///",
    "other extension": "vscode-webview://0F2V9KQ3",
    "two origins": SITE + " https://evil.example.com",
    "star": "*",
    "not a URL": "http://[",
}


async def ask(
    port: int, method: str, path: str, lines: str = "", body: str = "", host: str | None = None
) -> tuple[int, Mapping[str, list[str]], str]:
    """Send one request as bytes; return status, headers and the beginning of the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        connection = "" if "Upgrade" in lines else "Connection: close\r\n"
        host = f"127.0.0.1:{port}" if host is None else host
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{connection}{lines}"
        if body:
            head += f"Content-Length: {len(body)}\r\nContent-Type: text/plain\r\n"
        writer.write(f"{head}\r\n{body}".encode("latin-1"))
        async with asyncio.timeout(WAIT):
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *rest = answer.splitlines()
            headers: dict[str, list[str]] = {}
            for line in filter(None, rest):
                name, _, value = line.partition(":")
                headers.setdefault(name.lower(), []).append(value.strip())
            content = b""
            if status.split()[1] != "101" and "text/event-stream" not in str(headers):
                content = await reader.read()
        return int(status.split()[1]), headers, content.decode()
    finally:
        writer.transport.abort()


@pytest.fixture
def hub() -> Hub:
    hub = Hub(cors_origins=(SITE, "null", *PAGES_OF_APPLICATIONS), api_keys=(KEY,))
    hub.on("echo", lambda socket: "echo")
    return hub


class Sessions:
    """An event stream and polling sessions, for the doors that need one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writer: asyncio.StreamWriter | None = None

    async def fill(self, path: str) -> str:
        if "{engine}" in path:
            _, _, body = await ask(self.port, "GET", ENGINE + "polling")
            path = path.replace("{engine}", body.partition('"sid":"')[2].partition('"')[0])
        if "{sid}" in path:
            reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.write(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(WAIT):
                text = (await reader.readuntil(b'"session":"')).decode()
                session = (await reader.readuntil(b'"')).decode().rstrip('"')
            path = path.replace("{session}", session)
            path = path.replace("{sid}", text.partition('"sid":"')[2].partition('"')[0])
        return path

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("door", DOORS)
async def test_every_door_knows_the_same_origins(
    door: str, lane: bool, hub: Hub, serve: Serve
) -> None:
    server = await serve(hub, lane=lane)
    method, path, lines, body = DOORS[door]
    wrong = []
    for name, form in {**ALLOWED, **REFUSED}.items():
        sessions = Sessions(server.port)
        origin = form.format(host=f"127.0.0.1:{server.port}")
        more = f"Origin: {origin}\r\n" if origin else ""
        filled = await sessions.fill(path)
        status, headers, content = await ask(server.port, method, filled, lines + more, body)
        allowed = headers.get("access-control-allow-origin")
        if name in ALLOWED:
            good = status in (101, 200)
            if "Upgrade" not in lines:
                good &= allowed == (
                    [origin] if name == "of the list" or name.endswith("as listed") else None
                )
                good &= "Origin" in headers.get("vary", [])
        else:
            good = status == 403 and allowed is None
            good &= "origin" in content.lower() or '"Forbidden"' in content
        if not good:
            wrong.append((name, status, dict(headers), content))
        sessions.close()
    assert not wrong


@pytest.mark.parametrize("door", ["polling handshake", "event stream", "status"])
async def test_any_origin_is_let_in_without_credentials(door: str, serve: Serve) -> None:
    server = await serve(Hub(cors_origins=("*",)))
    method, path, lines, body = DOORS[door]
    for origin in (SITE, "null"):
        more = f"Origin: {origin}\r\n"
        status, headers, _ = await ask(server.port, method, path, lines + more, body)
        assert status == 200
        assert headers["access-control-allow-origin"] == ["*"]
        assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("path", [ENGINE + "polling", "/events", "/api/broadcast"])
async def test_preflight_answers_what_was_asked_and_to_whom(
    path: str, hub: Hub, serve: Serve
) -> None:
    server = await serve(hub)
    asked = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-one\r\n"
    status, headers, _ = await ask(server.port, "OPTIONS", path, f"Origin: {SITE}\r\n{asked}")
    assert status == 204
    assert headers["access-control-allow-origin"] == [SITE]
    assert headers["access-control-allow-credentials"] == ["true"]
    assert headers["access-control-allow-headers"] == ["x-one"]
    assert set(headers["vary"]) == {"Origin", "Access-Control-Request-Headers"}
    status, headers, _ = await ask(
        server.port, "OPTIONS", path, f"Origin: https://evil.example.com\r\n{asked}"
    )
    assert status == 403
    assert "access-control-allow-origin" not in headers


PATHS: Final = {
    **DOORS,
    "health": ("GET", "/healthz", "", ""),
    "readiness": ("GET", "/readyz", "", ""),
    "nothing": ("GET", "/nope", "", ""),
    "preflight": ("OPTIONS", "/events", "Access-Control-Request-Method: POST\r\n", ""),
    "WebSocket nowhere": ("GET", "/nope", UPGRADE, ""),
}


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "asgi"])
@pytest.mark.parametrize("path", PATHS)
async def test_every_path_is_for_the_allowed_hosts(path: str, lane: bool, serve: Serve) -> None:
    hub = Hub(allowed_hosts=("chat.example.com", "::1"), api_keys=(KEY,))
    server = await serve(hub, lane=lane)
    method, target, lines, body = PATHS[path]
    # Refused before a session is looked for.
    target = target.format(sid="_", session="s" * 20, engine="e")
    evil = f"127.0.0.1:{server.port}"
    for host in (evil, "evil.example", "chat.example.com.evil.example", "", "::1", "chat", "["):
        status, headers, content = await ask(server.port, method, target, lines, body, host)
        assert (status, '"host_not_allowed"' in content) == (400, True), host
        assert headers["content-type"] == ["application/json"]
    for host in ("chat.example.com", f"Chat.Example.com:{server.port}", f"[::1]:{server.port}"):
        status, _, content = await ask(server.port, method, target, lines, body, host)
        assert (status, "host_not_allowed" in content) != (400, True), host
        assert status in (101, 200, 204) or "{" in PATHS[path][1] or target == "/nope"


@pytest.mark.parametrize("door", DOORS)
async def test_page_of_a_name_that_leads_here_is_refused(door: str, serve: Serve) -> None:
    method, target, lines, body = DOORS[door]
    target = target.format(sid="_", session="s" * 20, engine="e")
    server = await serve(Hub(allowed_hosts=("localhost",), api_keys=(KEY,)))
    # By its name it is of the same origin, as the browser sees it; a GET has no Origin even.
    for origin in ("Origin: http://evil.example\r\n", ""):
        status, _, content = await ask(
            server.port, method, target, lines + origin, body, "evil.example"
        )
        assert status == 400
        assert "Host not allowed: evil.example. " in content


async def test_two_hosts_are_none_of_those_allowed(serve: Serve) -> None:
    server = await serve(Hub(allowed_hosts=("localhost",)))
    two = "localhost\r\nHost: localhost"
    status, _, _ = await ask(server.port, "GET", "/healthz", host=two)
    assert status == 400
