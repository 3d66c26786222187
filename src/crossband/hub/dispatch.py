"""Runs an event's middlewares, listeners and handler; also connect and disconnect."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Coroutine
from typing import Any, Final

from crossband.errors import (
    ConnectionRefused,
    EncodeError,
    EventError,
    InvalidMessage,
    UnknownEvent,
)
from crossband.handlers.callables import call, check_outcome
from crossband.handlers.events import Handler
from crossband.hub.answers import tell
from crossband.hub.incoming import Incoming
from crossband.hub.node import Emitted, emitted
from crossband.hub.sender import Sender
from crossband.names import RESERVED, check_name

logger: Final = logging.getLogger("crossband")


async def settle(handling: Coroutine[Any, Any, Any]) -> Any:
    """Run a handler, and return once all it emitted is published.

    For a broker elsewhere, where that takes time: the answer must not overtake the events.
    """
    mine = Emitted()
    emitted.set(mine)
    try:
        return await handling
    finally:
        await mine.published()


async def dispatch(socket: Sender, message: Incoming) -> Any:
    """Run an event's middlewares and handler; return the handler's result.

    Raises EventError with what to tell the sender.
    """
    namespace = socket.namespace
    registry = namespace.registry
    event = message.event
    if event in RESERVED:
        handler = namespace.reserved.get(event)
        if handler is not None:
            return await handler(socket, _args(message))
        raise EventError(
            code="invalid_message", path="$.type", reason="Reserved event name", event=event
        )
    schema = registry.events.get(event)
    if schema is None:
        try:
            check_name(event, "an event name")
        except EncodeError as error:
            raise InvalidMessage(str(error), path="$.type") from None
    if registry.event_uses or registry.any:
        args = _args(message)
        for function in registry.event_uses:
            outcome = await call(function, socket, event, args)
            if outcome is not None:
                check_outcome(function, outcome)
        for function in registry.any:
            await call(function, socket, event, args)
    if schema is None:
        if registry.any:
            return None
        raise UnknownEvent()
    bound = schema.bind(message.raws, message.attachments, single=message.single)
    result = schema.handler(socket, *bound)
    if schema.is_async or inspect.isawaitable(result):
        result = await result
    return result


def _args(message: Incoming) -> list[Any]:
    try:
        return message.decode()
    except (ValueError, RecursionError) as error:
        raise EventError(
            code="invalid_message", path="$", reason=str(error) or "Nested too deeply"
        ) from None


async def connected(socket: Sender) -> None:
    """Run the connect handlers. Raises ConnectionRefused if one refuses the client."""
    for function in socket.namespace.registry.connect:
        await _notify(socket, "connect", function, socket)


async def disconnected(socket: Sender, reason: str) -> None:
    """Run the disconnect handlers."""
    for function in socket.namespace.registry.disconnect:
        await _notify(socket, "disconnect", function, socket, reason)


async def _notify(socket: Sender, what: str, function: Handler, *args: Any) -> None:
    try:
        await call(function, *args)
    except EventError as error:
        # At a disconnect there is no client left to tell.
        if what == "connect":
            if isinstance(error, ConnectionRefused):
                raise
            tell(socket, error, what)
    except Exception:
        logger.exception("a %s handler failed for %s", what, socket)
        if what == "connect":
            tell(socket, EventError(code="internal_error"), what)
