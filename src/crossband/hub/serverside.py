"""Events between the servers themselves: `server_emit`, and the handlers of `on_server`.

They go over the bus, not through the log: to every other node that is alive now, once or not at
all, and no client sees them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from crossband.errors import AckTimeout, EventError
from crossband.handlers.events import EventSchema
from crossband.hub import messages
from crossband.hub.dispatch import settle
from crossband.hub.messages import Replied, ServerEvent
from crossband.hub.node import Node
from crossband.hub.others import ask
from crossband.names import check_name
from crossband.protocol import payload

logger: Final = logging.getLogger("crossband")

_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _event(namespace: str, event: str, args: Sequence[Any]) -> ServerEvent:
    return ServerEvent(namespace, check_name(event, "an event name"), payload.encode(args))


def server_emit(node: Node, namespace: str, event: str, args: Sequence[Any]) -> None:
    """Send an event to all other nodes; see `Namespace.server_emit`."""
    body = messages.encode_fitting(_event(namespace, event, args))
    node.act(functools.partial(node.bus.tell, body))


async def server_ask(
    node: Node, namespace: str, event: str, args: Sequence[Any], timeout: float
) -> list[Any]:
    """Ask all other nodes; see `Namespace.server_emit_with_ack`."""
    given, missing = await ask(node.bus, _event(namespace, event, args), Replied, timeout=timeout)
    responses = [_answer(replied) for _, replied in given]
    if missing:
        raise AckTimeout(
            f"{len(responses)} of {len(responses) + len(missing)} servers answered {event!r} "
            f"within {timeout:g} s; not {', '.join(sorted(missing))}",
            responses,
        )
    return responses


def _answer(replied: Replied) -> Any:
    """Return one value as it is, several as a list, as acknowledgements of clients are."""
    values = payload.decode(replied.payload)
    if len(values) == 1:
        return values[0]
    return values or None


async def handle(schema: EventSchema, message: ServerEvent) -> bytes | None:
    """Run the handler of an event; return its answer, or None if it failed."""
    try:
        raws = _raws.decode(message.payload.json)
        args = schema.bind(raws, message.payload.attachments)
        result = await settle(_run(schema, args))
        return messages.encode(Replied(payload.encode_answer(result)))
    except EventError as error:
        logger.error("the server event %r is refused: %s", message.event, error)
    except asyncio.CancelledError:
        raise
    except Exception:
        logger.exception("the handler of the server event %r failed", message.event)
    return None


async def _run(schema: EventSchema, args: Sequence[Any]) -> Any:
    result = schema.handler(*args)
    if schema.is_async or inspect.isawaitable(result):
        result = await result
    return result
