"""Asks the other nodes for their clients, or to do something with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from crossband.broker import Bus
from crossband.errors import EventError
from crossband.hub import messages
from crossband.hub.messages import (
    Choice,
    Disconnect,
    Done,
    Fetched,
    Gathered,
    Join,
    Leave,
    Message,
    Profile,
)

logger: Final = logging.getLogger("crossband")

T = TypeVar("T")

# Seconds another node may take to answer: ten times what a busy one takes.
ANSWER_TIME: Final = 5.0
# Seconds for a count, which somebody waits for: a node that hangs must not hold up a publisher or
# a client that connects.
COUNT_TIME: Final = 1.0
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

    An unreadable answer does not count. Raises EncodeError if the question is too large.
    """
    answers = await bus.ask(messages.encode_fitting(message), to, timeout=timeout)
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


async def carry_out(
    bus: Bus, message: Join | Leave | Disconnect, to: Sequence[str] | None = None
) -> None:
    """Let some nodes, or all others, act. Raises EventError for the first that failed.

    A node that is alive and does not answer is asked again: a message is lost if a connection
    drops, and doing it twice does no harm.
    """
    failed: Done | None = None
    for _ in range(2):
        given, missing = await ask(bus, message, Done, to=to, timeout=ANSWER_TIME / 2)
        for _, done in given:
            if failed is None and done.code is not None:
                failed = done
        to = sorted(missing & bus.members)
        if not to:
            break
    if failed is not None:
        raise EventError(failed.error, code=failed.code or "refused", **failed.details)


async def count(bus: Bus, choice: Choice) -> int:
    """Return how many of these sockets other nodes have."""
    given, _ = await ask(bus, messages.Count(choice), int, timeout=COUNT_TIME)
    return sum(number for _, number in given)


async def profiles(bus: Bus, choice: Choice) -> list[tuple[str, Profile]]:
    """Return these sockets of other nodes, each with its node."""
    given, _ = await ask(bus, messages.Fetch(choice), Fetched)
    pages = await asyncio.gather(*(_pages(bus, choice, node, page) for node, page in given))
    return [
        (node, profile) for (node, _), found in zip(given, pages, strict=True) for profile in found
    ]


async def _pages(bus: Bus, choice: Choice, node: str, page: Fetched) -> list[Profile]:
    """Return the sockets of a page and of all that follow it."""
    found = page.profiles
    while page.more and page.profiles:
        after = page.profiles[-1].id
        given, _ = await ask(bus, messages.Fetch(choice, after), Fetched, to=[node])
        if not given:
            break
        page = given[0][1]
        found += page.profiles
    return found


async def gather(bus: Bus, message: messages.Gather) -> tuple[list[Any], int]:
    """Return acknowledgements of other nodes' clients, and how many are missing.

    A node that does not answer counts as one missing client.
    """
    given, missing = await ask(bus, message, Gathered, timeout=message.timeout + ANSWER_TIME)
    answers = [answer for _, gathered in given for answer in gathered.answers]
    return answers, len(missing) + sum(gathered.missing for _, gathered in given)
