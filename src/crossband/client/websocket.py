"""The raw WebSocket door: envelopes, or bare text and bytes from a plain namespace."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from crossband.client.errors import Lost, error_text
from crossband.client.link import connect, messages
from crossband.client.listener import Event, Listener, Notice
from crossband.client.values import decode_object, encode


async def stream(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Yield what the door sends until the connection ends. Raises Refused or Lost."""
    async with connect(listener, listener.address("session", "lastEventId")) as connection:
        async for message in messages(connection):
            if isinstance(message, bytes):
                yield Event("message", encode(message), None)
                continue
            try:
                frame = decode_object(message)
            except msgspec.DecodeError:
                # A plain namespace sends bare text.
                yield Event("message", encode(message), None)
                continue
            kind = frame.get("type")
            if kind == "welcome":
                yield listener.welcomed(frame)
            elif kind == "gap":
                yield listener.missed(frame)
            elif kind == "error":
                yield Notice("error", error_text(frame))
            elif kind == "server:shutdown":
                yield Notice("shutdown", f"the server is stopping: {frame.get('message')}")
            elif isinstance(kind, str):
                offset = frame.get("offset")
                listener.offset = offset or listener.offset
                # An event whose name is a word of the envelope, such as "ack".
                named = frame.get("event") if kind == "event" else None
                yield Event(
                    named if isinstance(named, str) else kind, encode(frame.get("data")), offset
                )
            else:
                yield Event("message", encode(frame), None)
    raise Lost("the connection ended")
