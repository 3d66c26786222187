"""What a starting server prints: the addresses of its doors, and a command to try each."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from crossband import __version__
from crossband.invocation import program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from crossband.mounts import Mounted
    from crossband.server import Server
    from crossband.settings import Settings


def show(
    server: Server,
    hubs: Sequence[Mounted],
    title: str,
    *,
    generated_key: str | None = None,
    page: bool = False,
    note: str | None = None,
    workers: str = "",
) -> None:
    """Print the banner to standard output, at once even into a pipe.

    `workers` says which processes serve, if not this one.

    If that fails, log it: the server runs without a banner too.
    """
    try:
        _show(
            server, hubs, title, generated_key=generated_key, page=page, note=note, workers=workers
        )
    except OSError as exc:
        close_output()
        logging.getLogger("crossband").warning(
            "serving %s, but cannot write to standard output: %s", server.url, exc.strerror
        )


def close_output() -> None:
    """Discard unwritten output, on which Python would fail again when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(
    server: Server,
    hubs: Sequence[Mounted],
    title: str,
    *,
    generated_key: str | None,
    page: bool,
    note: str | None,
    workers: str,
) -> None:
    if not sys.stdout.isatty():
        _one_line(server, title, generated_key, workers)
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    _line(console, "\n", (f"Crossband {__version__}", "bold"), f"  {title}\n")
    for mounted in hubs:
        settings: Settings = mounted.hub.settings
        if server.uds is not None:
            _unix(console, server.uds, mounted.path, settings)
        else:
            _doors(console, server.url, mounted.path, settings, page=page)
            url = server.url + mounted.path
            _publish(console, url, settings, generated_key, page=page)
    if note is not None:
        console.print(f"  {note}\n", style="dim")
    if server.uds is None and server.host in ("0.0.0.0", "::", ""):
        console.print("  Listening on every address of this machine.\n", style="dim")
    if workers:
        console.print(f"  {workers}.\n", style="dim")
    console.print("  Ctrl-C stops it.\n", style="dim")
    console.file.flush()


def _one_line(server: Server, title: str, generated_key: str | None, workers: str) -> None:
    """Print only what a log file needs: nobody copies commands from there."""
    facts = f"; {workers}" if workers else ""
    facts += "" if generated_key is None else f"; API key of this run: {generated_key}"
    sys.stdout.write(f"Crossband {__version__} {title} at {server.url}{facts}\n")
    sys.stdout.flush()


def _doors(
    console: Console, server_url: str, mount: str, settings: Settings, *, page: bool
) -> None:
    url = server_url + mount
    if page:
        _entry(console, "Page", f"{url}/", "open it in a browser, twice")
    if settings.websocket_path:
        websocket = "ws" + url.removeprefix("http") + settings.websocket_path
        _entry(console, "WebSocket", websocket, f"{program()} listen {websocket}")
    if settings.socketio_path:
        # To the official client, the path of a URL is a namespace: the door's is an option.
        path = mount + settings.socketio_path.rstrip("/")
        options = "" if path == "/socket.io" else f', {{ path: "{path}/" }}'
        _entry(console, "Socket.IO", f"{server_url}{path}/", f'io("{server_url}"{options})')
    if settings.events_path:
        events = url + settings.events_path
        _entry(console, "SSE", events, f"curl -N {events}")
    if settings.api_path:
        status = f"curl {url}{settings.api_path}/status"
        _entry(console, "HTTP API", f"{url}{settings.api_path}", _status(settings, status))


def _status(settings: Settings, command: str) -> str | None:
    key = " -H 'X-API-Key: …'" if settings.status == "key" else ""
    return None if settings.status == "off" else command + key


def _publish(
    console: Console, url: str, settings: Settings, generated_key: str | None, *, page: bool
) -> None:
    if not settings.api_path:
        return
    api = "" if settings.api_path == "/api" else f"{settings.api_path}/broadcast"
    command = f'{program()} publish {url}{api} chat:message \'{{"from": "me", "content": "hi"}}\''
    if generated_key is not None:
        _entry(console, "API key", generated_key, f"{command} --api-key {generated_key}")
        if not page:
            own = "made for this run; --api-keys or CROSSBAND_API_KEYS sets your own"
            _line(console, (f"{'':13}{own}\n", "dim"))
    elif settings.api_keys:
        _entry(console, "Publish", f"{command} --api-key …", None)
    else:
        console.print(
            "  No API key is set, so nobody can publish over HTTP (--api-keys).\n", style="dim"
        )


def _unix(console: Console, path: str, mount: str, settings: Settings) -> None:
    curl = f"curl --unix-socket {path}"
    _entry(console, "Socket", path, None)
    if settings.events_path:
        events = mount + settings.events_path
        _entry(console, "SSE", events, f"{curl} -N http://localhost{events}")
    if settings.api_path:
        api = mount + settings.api_path
        status = f"{curl} http://localhost{api}/status"
        _entry(console, "HTTP API", api, _status(settings, status))


def _entry(console: Console, name: str, address: str, attempt: str | None) -> None:
    _line(console, "  ", (f"{name:<11}", "bold cyan"), address)
    if attempt is not None:
        _line(console, " " * 13, (attempt, "dim"))
    console.print()


def _line(console: Console, *parts: str | tuple[str, str]) -> None:
    from rich.text import Text

    console.print(Text.assemble(*parts))
