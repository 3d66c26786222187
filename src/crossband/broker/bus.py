"""The contract of a bus: messages from node to node, and questions with answers.

`tests/broker/test_bus.py` is the same contract as tests. A bus elsewhere implements four
methods; questions are matched to answers here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

import msgspec

logger: Final = logging.getLogger("crossband")

# Seconds between two heartbeats of a node, and without one before it counts as gone.
HEARTBEAT: Final = 2.5
SILENCE: Final = 7.0
# Bytes of one message. Redis disconnects a subscriber that is 32 MiB behind.
MAX_MESSAGE: Final = 8_388_608

# Takes the sending node and a message; returns the answer, if one was asked for.
Hear = Callable[[str, bytes], "Awaitable[bytes | None] | bytes | None"]
# Takes a node that has left, or counts as gone.
Left = Callable[[str], None]


class Frame(msgspec.Struct, array_like=True):
    """What goes over the wire."""

    kind: Literal["tell", "ask", "answer"]
    sender: str
    # The same for a question and its answer. 0 for other messages.
    number: int
    # In an answer, None means that the question arrived but could not be answered.
    body: bytes | None


class Answers(msgspec.Struct):
    """The outcome of a question."""

    # By node.
    given: dict[str, bytes]
    # Nodes that did not answer in time, left meanwhile, or had no answer.
    missing: set[str]


class _Question:
    """A question whose answers are awaited."""

    __slots__ = ("answers", "done", "waiting")

    def __init__(self, nodes: Iterable[str], done: asyncio.Future[None]) -> None:
        self.waiting = set(nodes)
        self.answers = Answers({}, set())
        self.done = done

    def settle(self, node: str, body: bytes | None) -> None:
        if node not in self.waiting:
            return
        self.waiting.discard(node)
        if body is None:
            self.answers.missing.add(node)
        else:
            self.answers.given[node] = body
        if not self.waiting and not self.done.done():
            self.done.set_result(None)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Frame)


class Bus(ABC):
    """Carries messages between the nodes of a hub.

    Messages from one node to another arrive in the order in which they were sent, once or not at
    all. No message can end the bus: what cannot be decoded is dropped and logged.
    """

    def __init__(self, node: str) -> None:
        # This node's id.
        self.node = node
        # None until started.
        self._hear: Hear | None = None
        self._left: Left | None = None
        self._numbers = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        # Answers that are still being worked out.
        self._answering: set[asyncio.Future[bytes | None]] = set()

    # What an implementation must provide.

    @abstractmethod
    async def join(self) -> None:
        """Become a member: from here on, pass arriving frames to `received`."""

    @abstractmethod
    async def part(self) -> None:
        """Stop being a member."""

    @abstractmethod
    def send(self, frame: bytes, to: str | None) -> None:
        """Send a frame to a member, or to all others. Returns at once; never raises."""

    @property
    @abstractmethod
    def members(self) -> frozenset[str]:
        """The other nodes that are alive, as far as this one knows."""

    # What an implementation calls.

    def received(self, data: bytes) -> None:
        """Handle a frame from another node."""
        try:
            frame = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            logger.error("dropped a message of the bus that cannot be read: %s", error)
            return
        if frame.kind == "answer":
            question = self._questions.get(frame.number)
            if question is not None:
                question.settle(frame.sender, frame.body)
            return
        if self._hear is None or frame.sender == self.node:
            return
        try:
            answer = self._hear(frame.sender, frame.body or b"")
        except Exception:
            logger.exception("a message of node %s failed", frame.sender)
            answer = None
        if isinstance(answer, bytes) or answer is None:
            if frame.kind == "ask":
                self._answer(frame, answer)
            return
        task = asyncio.ensure_future(answer)
        self._answering.add(task)
        task.add_done_callback(lambda task: self._answered(frame, task))

    def _answered(self, frame: Frame, task: asyncio.Future[bytes | None]) -> None:
        self._answering.discard(task)
        body = None
        if not task.cancelled():
            error = task.exception()
            if error is None:
                body = task.result()
            else:
                logger.error("a message of node %s failed", frame.sender, exc_info=error)
        if frame.kind == "ask" and self._hear is not None:
            self._answer(frame, body)

    def _answer(self, frame: Frame, body: bytes | None) -> None:
        self._send("answer", frame.number, body, frame.sender)

    def gone(self, node: str) -> None:
        """Stop waiting for a node's answers: it is no longer a member."""
        for question in list(self._questions.values()):
            question.settle(node, None)
        if self._left is not None:
            self._left(node)

    # What the hub calls.

    async def start(self, hear: Hear, left: Left | None = None) -> None:
        """Join the other nodes: their messages go to `hear`, and who leaves to `left`."""
        self._hear = hear
        self._left = left
        await self.join()

    async def stop(self) -> None:
        """Leave; questions that still wait get no more answers."""
        if self._hear is None:
            return
        self._hear = self._left = None
        await self.part()
        for question in list(self._questions.values()):
            for node in list(question.waiting):
                question.settle(node, None)
        for task in list(self._answering):
            task.cancel()

    def tell(self, body: bytes, to: str | None = None) -> None:
        """Send a message to a node, or to all others, without confirmation.

        Raises ValueError if it is too large.
        """
        self._send("tell", 0, body, to)

    async def ask(self, body: bytes, to: Iterable[str] | None = None, *, timeout: float) -> Answers:
        """Ask some nodes, or all others, and return their answers.

        Takes as long as the slowest live node, but no longer than `timeout` seconds; does not
        wait for a node that leaves meanwhile. Raises ValueError if the question is too large.
        """
        nodes = self.members if to is None else frozenset(to) - {self.node}
        question = _Question(nodes, asyncio.get_running_loop().create_future())
        for node in nodes - self.members:
            question.settle(node, None)
        if not question.waiting:
            return question.answers
        number = next(self._numbers)
        self._questions[number] = question
        try:
            if to is None:
                self._send("ask", number, body, None)
            else:
                for node in list(question.waiting):
                    self._send("ask", number, body, node)
            await asyncio.wait([question.done], timeout=timeout)
        finally:
            del self._questions[number]
        question.answers.missing |= question.waiting
        return question.answers

    def _send(
        self,
        kind: Literal["tell", "ask", "answer"],
        number: int,
        body: bytes | None,
        to: str | None,
    ) -> None:
        if body is not None and len(body) > MAX_MESSAGE:
            if kind != "answer":
                raise ValueError(f"a message between nodes has at most {MAX_MESSAGE} bytes")
            logger.error("an answer to node %s is too large: %d bytes", to, len(body))
            body = None
        self.send(_encoder.encode(Frame(kind, self.node, number, body)), to)
