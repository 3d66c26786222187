"""The chat on its own: the hub with its handlers, and the built page beside it."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from crossband import Hub
from crossband.demo import chat

# Built by `npm run dist`.
PAGE = Path(__file__).with_name("dist")

hub = Hub()
# Your own rooms, or none of these arguments at all.
chat.install(
    hub.of("/chat"),
    rooms={
        "general": "Whatever is on your mind",
        "support": "Questions, and who knows the answer",
        "off-topic": "Everything that fits nowhere else",
    },
)


def to_the_page(_: object) -> RedirectResponse:
    return RedirectResponse("chat/")


app = Starlette(
    routes=[
        Route("/", to_the_page),
        Mount("/chat", StaticFiles(directory=PAGE, html=True, check_dir=False)),
        # All other paths belong to the hub: /socket.io/, /ws, /events, /api/status.
        Mount("/", hub),
    ],
    lifespan=hub.lifespan,
)
