"""What a client is told about an event it sent: the answer, or an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from crossband.errors import (
    Disconnected,
    EncodeError,
    EventError,
    InvalidMessage,
    InvalidName,
    UnknownEvent,
)
from crossband.hub.incoming import Incoming
from crossband.hub.sender import Sender
from crossband.names import NAME_LENGTH
from crossband.protocol import payload
from crossband.protocol.payload import Payload
from crossband.protocol.socketio import is_number

logger: Final = logging.getLogger("crossband")


def cancelling() -> bool:
    """Return whether the current task itself is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def answer(socket: Sender, message: Incoming, result: Any) -> None:
    if message.ack_id is not None and message.reply is None:
        wire = socket.codec.answer(socket.namespace.name, message.ack_id, result)
        if socket.catching is None:
            socket.connection.push(wire)
        else:
            socket.catching.buffer.keep(wire)
        return
    # Encode even if no answer was asked for, so that the handler's mistake shows.
    data = payload.encode_answer(result)
    if message.reply is not None:
        message.reply(data)


def fail(socket: Sender, message: Incoming, error: BaseException, *, in_task: bool = True) -> None:
    # CancelledError can also come from something that the handler awaited.
    if in_task and isinstance(error, asyncio.CancelledError) and cancelling():
        code = "shutting_down"
        if not socket.namespace.node.out_of_time:
            code = "internal_error"
            logger.error("the handler of %r was cancelled for %s", message.event, socket)
        _refuse(socket, message, EventError(code=code))
        raise error
    if isinstance(error, Disconnected) and not socket.connected:
        # It asked its own client, which left: not a failure, and nobody waits for the answer.
        error = EventError(code="unknown_client")
    if isinstance(error, InvalidName):
        logger.warning(
            "the handler of %r for %s: %s",
            message.event,
            socket,
            error,
            exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
        )
        error = InvalidMessage(str(error))
    if not isinstance(error, EventError):
        logger.error("the handler of %r failed for %s", message.event, socket, exc_info=error)
        error = EventError(code="internal_error")
    _refuse(socket, message, error)


def _refuse(socket: Sender, message: Incoming, error: EventError) -> None:
    if socket.codec.like_node:
        if not socket.namespace.node.settings.answer_errors:
            return
        # Node leaves this to the client's timeout. A number comes from an enum that both ends
        # share: then it is worth an answer that this end does not know it.
        unknown = isinstance(error, UnknownEvent) and message.ack_id is not None
        if unknown and not is_number(message.event):
            logger.debug("no handler for %r, which %s sent", message.event, socket)
            return
    tell(socket, error, message.event, message.ack_id, message.reply)


def tell(
    socket: Sender,
    error: EventError,
    event: str,
    ack_id: int | None = None,
    reply: Callable[[Payload | EventError], None] | None = None,
) -> None:
    """Tell the client the outcome of an event."""
    event = event[:NAME_LENGTH]
    error.details.setdefault("event", event)
    try:
        wire = socket.codec.problem(socket.namespace.name, error.to_dict(), ack_id)
    except (EncodeError, TypeError, ValueError):
        logger.exception("the details of the error that answers %r have no JSON form", event)
        error = EventError(code="internal_error", event=event)
        wire = socket.codec.problem(socket.namespace.name, error.to_dict(), ack_id)
    if reply is not None:
        reply(error)
    else:
        socket.send(wire)
