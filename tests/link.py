"""A connection without a wire: what the hub pushes stays in a list."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from crossband import Hub
from crossband.codecs import ENVELOPE, Codec
from crossband.connection import Connection, Ticker
from crossband.errors import CloseCode
from crossband.handshake import Handshake
from crossband.hub.attempt import Resume
from crossband.hub.core import Core
from crossband.hub.namespace import Socket
from tests.bare import BareHub
from tests.clients.base import WAIT


class Link(Connection):
    """A connection whose peer takes what is written when the test says so, or at once."""

    def __init__(self, ticker: Ticker, *, limit: int = 1_048_576, stalled: bool = True) -> None:
        super().__init__(ticker, limit=limit)
        self.stalled = stalled
        self.code: CloseCode | None = None
        self.flushed = asyncio.Event()
        # All that the peer took.
        self.taken: list[str | bytes] = []

    @property
    def transport(self) -> str:
        return "websocket"

    @property
    def behind(self) -> bool:
        return self.stalled and bool(self.queue)

    def flush(self) -> None:
        if not self.stalled:
            self.take()
        self.flushed.set()

    def close(self, code: CloseCode, reason: str, *, now: bool = False) -> None:
        self.closed = True
        self.code = code
        if now:
            self.discard_queue()

    def take(self) -> None:
        """Let the peer take all that waits."""
        for wire in self.queue:
            self.taken.extend(wire.messages)
        self.taken_all()

    async def messages(self, count: int) -> list[dict[str, Any]]:
        """Wait until the peer took this many envelopes; return them all."""
        async with asyncio.timeout(WAIT):
            while len(self.taken) < count:
                self.flushed.clear()
                await self.flushed.wait()
        return [json.loads(message) for message in self.taken]


def handshake(**query: list[str]) -> Handshake:
    return Handshake("websocket", {}, query, "127.0.0.1", time.time())


async def join(
    hub: Core | BareHub | Hub,
    connection: Connection,
    namespace: str = "/",
    *,
    codec: Codec = ENVELOPE,
    resume: Resume | None = None,
) -> Socket:
    """Let a client in, as a door does."""
    core = hub if isinstance(hub, Core) else hub._core
    admission = await core.admit(
        connection, namespace, handshake(), codec, resume=resume or Resume()
    )
    admission.open()
    return admission.socket
