"""What clients of raw WebSockets and event streams send, as events of their sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from crossband.errors import EventError, InvalidMessage
from crossband.hub.incoming import Incoming
from crossband.hub.namespace import Socket
from crossband.protocol import envelope
from crossband.protocol.payload import Payload

# A binary frame of a plain namespace, as an argument whose value is attached.
_ATTACHED: Final = msgspec.Raw(b'{"_placeholder":true,"num":0}')


def plain_message(
    data: str | bytes, reply: Callable[[Payload | EventError], None] | None = None
) -> Incoming:
    """Return the event `message` of a plain namespace, with text or bytes."""
    if isinstance(data, bytes):
        return Incoming("message", [_ATTACHED], [data], None, reply)
    return Incoming("message", [msgspec.Raw(msgspec.json.encode(data))], (), None, reply)


def answer_envelope(
    socket: Socket, message: envelope.Message, reply: Callable[[Any], None] | None = None
) -> bool:
    """Pass an envelope to its socket; True if it was an acknowledgement, now settled.

    Raises EventError for an invalid one.
    """
    data = message.data
    raws = [] if isinstance(data, msgspec.UnsetType) else [data]
    if not message.is_ack:
        socket.inbox.receive(
            socket, Incoming(message.type, raws, (), message.id, reply, single=True)
        )
        return False
    if message.id is None:
        raise InvalidMessage("An acknowledgement needs its id", path="$.id")
    if not socket.owes(message.id):
        raise EventError(code="unknown_ack", id=message.id)
    try:
        answer = msgspec.json.decode(raws[0]) if raws else None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidMessage("Nested too deeply", path="$.data") from None
    socket.acknowledge(message.id, answer)
    return True
