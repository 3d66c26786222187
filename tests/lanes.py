"""A hub with and without the lane: what a server offers it must make no difference."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from crossband import Hub
from crossband.transports.lane import EXTENSION


class PlainASGI(Hub):
    """A hub on a server that offers no lane, as plain uvicorn and hypercorn."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.get("extensions", {}).pop(EXTENSION, None)
        await super().__call__(scope, receive, send)


HUBS = pytest.mark.parametrize("kind", [Hub, PlainASGI], ids=["lane", "asgi"])
