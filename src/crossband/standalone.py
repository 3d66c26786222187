"""The hub for teams without Python handlers, and the demo that shows it on a page.

Rooms and chat for any client; everything else is published over HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from crossband.asgi import Hub
from crossband.errors import EventError
from crossband.hub.base import is_socket_id
from crossband.hub.socket import Socket

if TYPE_CHECKING:
    import os

    from starlette.types import Scope

    from crossband.settings import Settings

# As the doors' own names: 1 to 256 characters, none of them a control character.
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]

PAGES: Final = Path(__file__).with_name("pages")


class RoomRef(msgspec.Struct):
    """A room, as an object."""

    room: Name


class RoomMessage(msgspec.Struct):
    """Anything, for everybody in a room."""

    room: Name
    data: Any


class ChatMessage(msgspec.Struct):
    """A line of chat, for a room or for everybody."""

    content: str
    room: Name | None = None


def create_hub(**settings: Any) -> Hub:
    """Create the hub that `crossband serve` runs without a target.

    Takes the settings of `Hub`. Clients may join and leave rooms, send to the rooms they are
    in, and chat with everybody.
    """
    hub = Hub(**settings)

    @hub.on("room:join")
    async def join(socket: Socket, room: Name | RoomRef) -> dict[str, Any]:
        """Join a room, given as its name or as `{"room": name}`."""
        name = room if isinstance(room, str) else room.room
        # Every socket is in the room of its own id, which its messages show to others.
        if name != socket.id and is_socket_id(name):
            raise EventError("A client's own room cannot be joined", room=name)
        await socket.join(name)
        members = await hub.to(name).fetch_sockets()
        return {"status": "joined", "room": name, "members": len(members)}

    @hub.on("room:leave")
    async def leave(socket: Socket, room: Name | RoomRef) -> dict[str, Any]:
        """Leave a room; leaving one that was never joined is no error."""
        name = room if isinstance(room, str) else room.room
        if name == socket.id:
            raise EventError("A client cannot leave its own room", room=name)
        await socket.leave(name)
        return {"status": "left", "room": name}

    @hub.on("room:message")
    async def room_message(socket: Socket, message: RoomMessage) -> dict[str, str]:
        """Send data to everybody in a room, the sender included."""
        _require_member(socket, message.room)
        await hub.to(message.room).emit(
            "room:message", {"from": socket.id, "room": message.room, "data": message.data}
        )
        return {"status": "received"}

    @hub.on("chat:message")
    async def chat_message(socket: Socket, message: ChatMessage) -> dict[str, str]:
        """Send a line to a room, or to everybody; the sender gets it as well."""
        if message.room is None:
            await hub.emit("chat:message", {"from": socket.id, "content": message.content})
        else:
            _require_member(socket, message.room)
            await hub.to(message.room).emit(
                "chat:message",
                {"from": socket.id, "room": message.room, "content": message.content},
            )
        return {"status": "received"}

    return hub


def _require_member(socket: Socket, room: str) -> None:
    if room not in socket.rooms:
        raise EventError("Not in this room; join it first", code="not_in_room", room=room)


class Demo:
    """A hub with a page at `/` that talks to its doors. An ASGI app.

    Whatever is not the hub's is a file of the page. `directory` holds the built page.
    """

    def __init__(self, hub: Hub, directory: str | os.PathLike[str] = PAGES) -> None:
        self.hub = hub
        # Starlette answers its own 404 and 405; StaticFiles alone raises them.
        self._pages = Starlette(routes=[Mount("/", _Pages(directory))])

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
        page = scope["type"] == "http" and not self._is_door(scope["path"])
        await (self._pages if page else self.hub)(scope, receive, send)

    def _is_door(self, path: str) -> bool:
        settings = self.settings
        return any(
            path == door or path.startswith(f"{door}/")
            for door in (
                settings.socketio_path.rstrip("/"),
                settings.websocket_path.rstrip("/"),
                settings.events_path.rstrip("/"),
                settings.api_path.rstrip("/"),
                "/healthz",
                "/readyz",
            )
        )


def create_demo(directory: str | os.PathLike[str] = PAGES, **settings: Any) -> Demo:
    """Create the app of `crossband demo`: the standalone hub, and the page at `/`."""
    return Demo(create_hub(**settings), directory)


_NOT_BUILT: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Crossband</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
  code { background: #8882; padding: .1em .3em; border-radius: .2em }
</style>
<h1>The server runs; this page is not built yet</h1>
<p>The demo page is built from its sources once. In a checkout of Crossband, run</p>
<p><code>make run</code></p>
<p>which builds it and starts this server. The doors work without it:
<a href="api/status"><code>/api/status</code></a>,
<a href="events"><code>/events</code></a>, <code>/ws</code> and <code>/socket.io/</code>.</p>
</html>
"""  # noqa: E501


class _Pages(StaticFiles):
    """The page's files; those without a hash in their name are revalidated by ETag."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        # The directory may appear while the server runs.
        super().__init__(directory=directory, html=True, check_dir=False)
        self._index = Path(directory) / "index.html"

    async def check_config(self) -> None:
        """Accept a directory that is not there yet; requests then find nothing."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path == "." and scope["method"] in ("GET", "HEAD") and not self._index.is_file():
            return HTMLResponse(_NOT_BUILT, status_code=404, headers={"Cache-Control": "no-store"})
        response = await super().get_response(path, scope)
        # Names under assets/ carry a hash of their content (Vite).
        forever = path.startswith("assets") and response.status_code != 404
        cache = "public, max-age=31536000, immutable" if forever else "no-cache"
        response.headers.setdefault("Cache-Control", cache)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response
