"""What two nodes do together for one client, between the one it reached and its own.

The bus loses messages when a connection drops. That must end an exchange, as a broken TCP
connection would: its client then comes back and resumes from its cursor.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

from crossband.broker.bus import HEARTBEAT, SILENCE
from crossband.hub import messages
from crossband.hub.core import Core
from crossband.hub.messages import Check, Checked
from crossband.hub.others import ask

Answer = Awaitable[bytes | None] | bytes | None

M = TypeVar("M")

# Seconds between two looks at what is under way. An exchange is over if its other end is unknown
# at two of them.
CHECK_TIME: Final = HEARTBEAT
# Bytes of a body, or characters of frames, in one message: one of 4 bytes each still fits.
PIECE: Final = 1_048_576


class End(Protocol):
    """One end of an exchange."""

    # The other node.
    node: str
    # Of the node that began it. Set by `Exchanges.begin` there.
    number: int
    # Messages of this exchange that were sent and received, without questions and answers.
    sent: int
    received: int

    def lost(self) -> None:
        """End it here: the other node has gone, or a message was lost."""


class Exchanges:
    """The exchanges of this node with others, and who handles their messages."""

    def __init__(self, hub: Core) -> None:
        self.bus: Final = hub.node.bus
        self._numbers = itertools.count(1)
        # Begun here, by number; and elsewhere, by node and its number.
        self._begun: dict[int, End] = {}
        self._taken: dict[tuple[str, int], End] = {}
        # Those begun here that the other node did not know when it was asked last.
        self._doubtful: set[int] = set()
        # None while nothing begun here is under way.
        self._checking: asyncio.Task[None] | None = None
        self._handlers: dict[type, Callable[[str, Any], Answer]] = {}
        self.on(Check, self._compare)
        hub.cluster.exchanges = self

    def on(self, kind: type[M], handler: Callable[[str, M], Answer]) -> None:
        """Let a function handle one kind of message: it gets the sending node and the message."""
        self._handlers[kind] = handler

    def hear(self, sender: str, message: messages.Exchange) -> Answer:
        """Handle another node's message, and return the answer."""
        return self._handlers[type(message)](sender, message)

    def tell(self, message: messages.Exchange, node: str) -> None:
        """Send a message to a node."""
        self.bus.tell(messages.encode(message), node)

    # What is under way.

    def begin(self, end: End) -> None:
        """Keep the end of an exchange that begins here, and give it its number."""
        end.number = next(self._numbers)
        self._begun[end.number] = end
        if self._checking is None:
            self._checking = asyncio.ensure_future(self._check())

    def take(self, end: End) -> None:
        """Keep the end of an exchange that another node has begun."""
        self._taken[end.node, end.number] = end

    def end(self, end: End) -> None:
        """Forget an exchange that is over."""
        if self._begun.get(end.number) is end:
            del self._begun[end.number]
            self._doubtful.discard(end.number)
        elif self._taken.get((end.node, end.number)) is end:
            del self._taken[end.node, end.number]

    def begun(self, node: str, number: int) -> End | None:
        """Return this end of an exchange with a node that was begun here."""
        end = self._begun.get(number)
        return end if end is not None and end.node == node else None

    def taken(self, node: str, number: int) -> End | None:
        """Return this end of an exchange that another node has begun."""
        return self._taken.get((node, number))

    def left(self, node: str) -> None:
        """End what is under way with a node that has gone."""
        for end in [*self._begun.values(), *self._taken.values()]:
            if end.node == node:
                end.lost()

    # Messages that were lost.

    async def _check(self) -> None:
        try:
            while self._begun:
                await asyncio.sleep(CHECK_TIME)
                sent: defaultdict[str, dict[int, int]] = defaultdict(dict)
                for end in self._begun.values():
                    sent[end.node][end.number] = end.sent
                await asyncio.gather(*(self._check_with(*each) for each in sent.items()))
        finally:
            self._checking = None

    async def _check_with(self, node: str, sent: dict[int, int]) -> None:
        given, _ = await ask(self.bus, Check(sent), Checked, to=[node], timeout=SILENCE)
        # Where no answer comes, one of the two nodes is out of touch.
        known = given[0][1].sent if given else {}
        for number in sent:
            end = self._begun.get(number)
            if end is None:
                continue
            if number in known:
                # What one node sends another arrives in order: all of it was before the answer.
                if end.received < known[number]:
                    end.lost()
            elif given and number not in self._doubtful:
                # It may be that its last message is just being handled.
                self._doubtful.add(number)
            else:
                end.lost()

    def _compare(self, sender: str, check: Check) -> bytes:
        known = {}
        for number, sent in check.sent.items():
            end = self._taken.get((sender, number))
            if end is None:
                continue
            if end.received < sent:
                end.lost()
            else:
                known[number] = end.sent
        return messages.encode(Checked(known))

    def close(self) -> None:
        """Stop looking at what is under way."""
        if self._checking is not None:
            self._checking.cancel()
