"""The Socket.IO door, over its WebSocket transport."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec

from crossband.client.doors import add_query
from crossband.client.errors import Lost, Refused, error_text
from crossband.client.link import connect, messages
from crossband.client.listener import MAX_MESSAGE, Event, Listener, Notice
from crossband.client.values import encode, object_of
from crossband.protocol import engineio, socketio
from crossband.protocol.payload import Payload, reconstruct

# Tells a cursor at the end of a Socket.IO event from the event's own last string.
_CURSOR: Final = re.compile(r"[A-Za-z0-9.]+-[0-9]+")


async def stream(listener: Listener) -> AsyncGenerator[Event | Notice, None]:
    """Yield what the door sends until the connection ends. Raises Refused or Lost."""
    url = add_query(listener.url, [("EIO", engineio.VERSION), ("transport", "websocket")])
    decoder = socketio.Decoder(max_attachments=1_000, max_bytes=MAX_MESSAGE)
    auth: dict[str, Any] = {}
    if listener.session is not None:
        auth["pid"] = listener.session
    if listener.offset is not None:
        auth["offset"] = listener.offset
    async with connect(listener, url) as connection:
        async for message in messages(connection):
            packet: socketio.Packet | None
            if isinstance(message, str):
                engine = engineio.decode_packet(message)
                if engine.type is engineio.PacketType.OPEN:
                    await connection.send(
                        engineio.MESSAGE
                        + socketio.encode_connect_request(listener.namespace, auth or None)
                    )
                elif engine.type is engineio.PacketType.PING:
                    await connection.send(engineio.PONG + str(engine.data))
                elif engine.type is engineio.PacketType.CLOSE:
                    break
                if engine.type is not engineio.PacketType.MESSAGE:
                    continue
                packet = decoder.feed(engine.data)
            else:
                packet = decoder.feed(message)
            if packet is None:
                continue
            if packet.type is socketio.PacketType.CONNECT:
                pid = object_of(packet.data).get("pid")
                recovered = pid is not None and pid == listener.session
                notice = listener.connected(recovered)
                listener.session = pid
                yield notice
                for room in listener.rooms if not recovered else ():
                    # Without an acknowledgement: failures come as an `error` event, also if the
                    # hub has no rooms to join.
                    payload = Payload(msgspec.json.encode([room]))
                    await connection.send(
                        engineio.MESSAGE
                        + socketio.encode_event(listener.namespace, "room:join", payload)
                    )
            elif packet.type is socketio.PacketType.CONNECT_ERROR:
                raise Refused(f"refused: {error_text(object_of(packet.data))}")
            elif packet.type is socketio.PacketType.DISCONNECT:
                raise Lost("the server disconnected this client")
            else:
                yield _read(listener, packet)
    raise Lost("the connection ended")


def _read(listener: Listener, packet: socketio.Packet) -> Event | Notice:
    name, raws = socketio.split_event(packet)
    args = _args(raws, packet.attachments)
    first = args[0] if args and isinstance(args[0], dict) else {}
    # An application may have its own events with these names.
    if name == "gap" and first.keys() == {"reason", "offset"}:
        return listener.missed(first)
    if name == "error" and "code" in first:
        return Notice("error", error_text(first))
    if name == "server:shutdown":
        return Notice("shutdown", f"the server is stopping: {first.get('message')}")
    offset = None
    # With a pid, recorded events end with their cursor; others may end with their own string.
    cursor = args[-1] if args and listener.session is not None and packet.id is None else None
    if isinstance(cursor, str) and _CURSOR.fullmatch(cursor):
        del args[-1]
        offset = cursor if cursor != listener.offset else None
        listener.offset = cursor
    data = None if not args else args[0] if len(args) == 1 else args
    return Event(name, encode(data), offset)


def _args(raws: list[msgspec.Raw], attachments: tuple[bytes, ...]) -> list[Any]:
    args = [msgspec.json.decode(raw) for raw in raws]
    return reconstruct(args, attachments) if attachments else args
