"""Follows a stream forever: connection after connection, each resuming the last."""

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

# Seconds before the first attempt to reconnect, doubled each time, and their maximum.
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 10.0


def stream(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Connect once and follow until the connection ends. Raises Refused or Lost."""
    # Imported here, because httpx loads slower than all else, and only one door needs it.
    if listener.door is Door.SSE:
        from crossband.client import sse

        return sse.stream(listener)
    if listener.door is Door.SOCKETIO:
        from crossband.client import socketio

        return socketio.stream(listener)
    from crossband.client import websocket

    return websocket.stream(listener)


async def follow(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Follow a stream forever; reconnect whenever it is cut.

    Raises Refused, or Lost if not even the first attempt connected.
    """
    ever = False
    # The last failure, so that an outage is reported once and not at every attempt.
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
        # Random over half the delay, so that a restarted server's clients spread out.
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(delay * 2, MAX_DELAY)
