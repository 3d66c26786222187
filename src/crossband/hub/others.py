"""Asks the other nodes for their clients, or to do something with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from crossband.broker import Bus
from crossband.errors import EventError
from crossband.hub import messages
from crossband.hub.messages import Choice, Done, Gathered, Message, Profile

logger: Final = logging.getLogger("crossband")

T = TypeVar("T")

# Seconds another node may take to answer: ten times what a busy one takes.
ANSWER_TIME: Final = 5.0
# Seconds for each of three tries, while a client waits to be admitted.
PATIENCE: Final = (0.3, 0.6, 1.2)


async def ask(
    bus: Bus,
    message: Message,
    answer: type[T],
    *,
    to: Sequence[str] | None = None,
    timeout: float = ANSWER_TIME,
) -> tuple[list[tuple[str, T]], set[str]]:
    """Ask some nodes, or all others; return each one's answer, and who did not answer.

    An unreadable answer does not count.
    """
    answers = await bus.ask(messages.encode(message), to, timeout=timeout)
    given = []
    for node, body in answers.given.items():
        try:
            given.append((node, msgspec.msgpack.decode(body, type=answer)))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            logger.error("dropped an answer of node %s: %s", node, error)
            answers.missing.add(node)
    if answers.missing:
        logger.warning(
            "no answer from %s to %r",
            ", ".join(sorted(answers.missing)),
            type(message).__name__.lower(),
        )
    return given, answers.missing


async def ask_one(bus: Bus, message: Message, answer: type[T], node: str) -> T | None:
    """Ask the node that a client came from; return None if it cannot be reached.

    Asks again when no answer comes: a message is lost if a connection drops meanwhile.
    """
    for patience in PATIENCE:
        given, _ = await ask(bus, message, answer, to=[node], timeout=patience)
        if given:
            return given[0][1]
        if node not in bus.members:
            break
    return None


async def carry_out(bus: Bus, message: Message, to: Sequence[str] | None = None) -> None:
    """Let some nodes, or all others, act. Raises EventError for the first that failed."""
    given, _ = await ask(bus, message, Done, to=to)
    for _, done in given:
        if done.code is not None:
            raise EventError(done.error, code=done.code, **done.details)


async def count(bus: Bus, choice: Choice) -> int:
    """Return how many of these sockets other nodes have."""
    given, _ = await ask(bus, messages.Count(choice), int)
    return sum(number for _, number in given)


async def profiles(bus: Bus, choice: Choice) -> list[tuple[str, Profile]]:
    """Return these sockets of other nodes, each with its node."""
    given, _ = await ask(bus, messages.Fetch(choice), list[Profile])
    return [(node, profile) for node, found in given for profile in found]


async def gather(bus: Bus, message: messages.Gather) -> tuple[list[Any], int]:
    """Return acknowledgements of other nodes' clients, and how many are missing.

    A node that does not answer counts as one missing client.
    """
    given, missing = await ask(bus, message, Gathered, timeout=message.timeout + ANSWER_TIME)
    answers = [answer for _, gathered in given for answer in gathered.answers]
    return answers, len(missing) + sum(gathered.missing for _, gathered in given)
