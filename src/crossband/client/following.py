"""Following a stream for ever: one connection after another, each resuming the one before."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from typing import Final

from crossband.client.doors import Door
from crossband.client.errors import Lost, Refused
from crossband.client.listener import Event, Listener, Notice
from crossband.errors import ProtocolError

# Seconds before the first and, doubled each time, at most before a later attempt.
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 10.0


def stream(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Connect once and follow until the connection ends. Raises Refused or Lost."""
    # Imported here, because httpx takes longer than all else, and only one door needs it.
    if listener.door is Door.SSE:
        from crossband.client import sse

        return sse.stream(listener)
    if listener.door is Door.SOCKETIO:
        from crossband.client import socketio

        return socketio.stream(listener)
    from crossband.client import websocket

    return websocket.stream(listener)


async def follow(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Follow a stream for ever, coming back whenever it is cut.

    Raises Refused, and Lost when not even the first attempt connected.
    """
    ever = False
    # Of the last failure, so that an outage is told once and not at every attempt.
    told = ""
    delay = FIRST_DELAY
    while True:
        try:
            async with contextlib.aclosing(stream(listener)) as items:
                async for item in items:
                    if isinstance(item, Notice) and item.kind in ("connected", "resumed"):
                        ever = True
                        told = ""
                        delay = FIRST_DELAY
                    yield item
        except ProtocolError as exc:
            raise Refused(f"not what this door speaks: {exc}") from exc
        except Lost as exc:
            if not ever:
                raise
            if str(exc) != told:
                told = str(exc)
                yield Notice("lost", f"{told}; reconnecting…")
        # Spread over half the delay: a restarted server's clients do not all come at once.
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(delay * 2, MAX_DELAY)
