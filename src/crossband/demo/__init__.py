"""The demo: one hub, and the pages that talk to it. The top layer: applications.

Each application has a namespace of its own, so that none hears the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from crossband.demo import chat
from crossband.demo.dashboard import Dashboard
from crossband.demo.pages import PAGES, Page
from crossband.standalone import create_hub

if TYPE_CHECKING:
    import os

    from crossband import Hub, Settings

# Those below the start page, by the name of their folder and path.
NAMES: Final = ("chat", "dashboard", "doors")


class Demo:
    """The hub's doors, and beside them the pages. An ASGI app.

    `directory` holds the built pages. The doors page talks to the hub's own namespace.
    """

    def __init__(self, hub: Hub, directory: str | os.PathLike[str] = PAGES) -> None:
        self.hub = hub
        self.chat = chat.install(hub.of("/chat"))
        self.dashboard = Dashboard(hub)
        pages = Path(directory)
        self._pages = Starlette(
            routes=[
                *self.dashboard.routes,
                *(Route(f"/{name}", _add_slash) for name in NAMES),
                *(Mount(f"/{name}", Page(pages / name)) for name in NAMES),
                Mount("/", Page(pages / "start")),
            ],
            lifespan=self._lifespan,
        )
        self._own = frozenset(route.path for route in self.dashboard.routes)

    @property
    def settings(self) -> Settings:
        return self.hub.settings

    async def start(self) -> None:
        await self.hub.start()

    async def stop(self) -> None:
        await self.hub.stop()

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        # Also what it refuses for its host.
        hub = scope["type"] != "lifespan" and (
            self._is_hubs(scope["type"], scope["path"]) or not self.hub.serves(scope)
        )
        await (self.hub if hub else self._pages)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.hub.lifespan(app), self.dashboard:
            yield

    def _is_hubs(self, kind: str, path: str) -> bool:
        if kind == "websocket":
            return True
        settings = self.settings
        return path not in self._own and any(
            door and (path == door or path.startswith(f"{door}/"))
            for door in (
                settings.socketio_path,
                settings.websocket_path,
                settings.events_path,
                settings.api_path,
                "/healthz",
                "/readyz",
            )
        )


def create_demo(directory: str | os.PathLike[str] = PAGES, **settings: Any) -> Demo:
    """Create the app of `crossband demo`. Takes the settings of `Hub`."""
    return Demo(create_hub(**settings), directory)


async def _add_slash(request: Request) -> RedirectResponse:
    # The pages' addresses are relative.
    return RedirectResponse(request.url.replace(path=f"{request.url.path}/"))
