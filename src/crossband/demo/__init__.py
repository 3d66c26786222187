"""The demo: one hub, and the pages that talk to it. The top layer: applications.

Each application has a namespace of its own, so that they do not hear each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from crossband import __version__
from crossband.demo import chat
from crossband.demo.dashboard import Dashboard
from crossband.demo.pages import PAGES, Page
from crossband.demo.traffic import Traffic
from crossband.invocation import program
from crossband.standalone import create_hub

if TYPE_CHECKING:
    import os

    from crossband import Hub, Settings

# Pages below the start page; also the names of their folders and paths.
NAMES: Final = ("chat", "dashboard", "doors")
# Addresses and hosts of a browser on the machine that the demo runs on.
_LOOPBACK: Final = frozenset(("127.0.0.1", "::1", "localhost"))


class Demo:
    """An ASGI app: the hub's doors, and the pages beside them.

    `directory` holds the built pages. The doors page talks to the hub's own namespace.
    """

    def __init__(self, hub: Hub, directory: str | os.PathLike[str] = PAGES) -> None:
        self.hub = hub
        self.chat: Final = chat.install(hub.of("/chat"))
        self.dashboard: Final = Dashboard(hub)
        self.traffic: Final = Traffic(hub)
        own = [*self.dashboard.routes, Route("/api/demo", self._serve_about, methods=["GET"])]
        pages = Path(directory)
        self._pages = Starlette(
            routes=[
                *own,
                *(Route(f"/{name}", _add_slash) for name in NAMES),
                *(Mount(f"/{name}", Page(pages / name)) for name in NAMES),
                Mount("/", Page(pages / "start")),
            ],
            lifespan=self._lifespan,
        )
        self._own = frozenset(route.path for route in own)

    @property
    def settings(self) -> Settings:
        return self.hub.settings

    async def start(self) -> None:
        await self.hub.start()

    async def stop(self) -> None:
        await self.hub.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The hub also gets requests that it refuses because of their host.
        hub = scope["type"] != "lifespan" and (
            self._is_hubs(scope["type"], scope["path"]) or not self.hub.serves(scope)
        )
        await (self.hub if hub else self._pages)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.hub.lifespan(app), self.dashboard:
            yield

    async def _serve_about(self, request: Request) -> JSONResponse:
        """Answer what pages cannot know: the doors' paths, null for one that is off."""
        settings = self.settings
        command = program()
        # A path on this machine is useful here only, and should not be shown elsewhere.
        here = request.client is not None and request.client.host in _LOOPBACK
        if "/" in command and not (here and request.url.hostname in _LOOPBACK):
            command = "crossband"
        about = {
            "version": __version__,
            "command": command,
            "doors": {
                "socketio": settings.socketio_path or None,
                "websocket": settings.websocket_path or None,
                "sse": settings.events_path or None,
            },
        }
        return JSONResponse(about, headers={"Cache-Control": "no-store"})

    def _is_hubs(self, kind: str, path: str) -> bool:
        if kind == "websocket":
            return True
        settings = self.settings
        doors = (
            settings.socketio_path,
            settings.websocket_path,
            settings.events_path,
            settings.api_path,
            "/healthz",
            "/readyz",
        )
        # A door that is off has no path; the root is the start page's.
        return path not in self._own and any(
            path == door or path.startswith(f"{door}/") for door in doors if door and door != "/"
        )


def create_demo(directory: str | os.PathLike[str] = PAGES, **settings: Any) -> Demo:
    """Create the app of `crossband demo`. Takes the settings of `Hub`."""
    return Demo(create_hub(**settings), directory)


async def _add_slash(request: Request) -> RedirectResponse:
    # The pages use relative URLs.
    return RedirectResponse(request.url.replace(path=f"{request.url.path}/"))
