"""What this node publishes: queued in order, sent in batches, one of each namespace at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from crossband.broker import Publication
from crossband.broker.redis.appends import append_call, encode_publication
from crossband.broker.redis.base import Base
from crossband.broker.redis.commands import PATIENCE, Commands
from crossband.broker.redis.scripts import APPEND
from crossband.errors import BrokerUnavailable

# Publications that may wait to be sent, and their bytes.
MAX_QUEUE: Final = 10_000
MAX_QUEUED: Final = 67_108_864
# Of one batch: it is one step of the server, which does nothing else meanwhile.
MAX_BATCH: Final = 200
MAX_BATCH_SIZE: Final = 1_048_576
# Namespaces whose connection is remembered.
MAX_NAMESPACES: Final = 10_000


class Item:
    """A publication on its way."""

    __slots__ = ("data", "publication", "recorded", "settled")

    def __init__(
        self, publication: Publication, recorded: bool, data: bytes, settled: asyncio.Future[Any]
    ) -> None:
        self.publication: Final = publication
        self.recorded: Final = recorded
        self.data: Final = data
        self.settled: Final = settled

    def settle(self, cursor: str | None) -> None:
        """End its future."""
        if not self.settled.done():
            self.settled.set_result(cursor)

    def fail(self, error: BrokerUnavailable) -> None:
        """End its future: it may or may not have been published."""
        if not self.settled.done():
            self.settled.set_exception(BrokerUnavailable(str(error)))


class Step(NamedTuple):
    """A step of its own, behind what was published before."""

    run: Callable[[], None]


class Batch:
    """What is appended in one step."""

    __slots__ = ("before", "generation", "items", "log", "namespace", "number")

    def __init__(self, namespace: str, number: int, items: list[Item]) -> None:
        self.namespace: Final = namespace
        self.number: Final = number
        self.items: Final = items
        # Where it is in the log; unknown until it is appended.
        self.log: str = ""
        self.generation: int = 0
        self.before: int = 0

    @property
    def last(self) -> int:
        """The number of its last recorded publication, or of the one before it."""
        return self.before + sum(item.recorded for item in self.items)

    def settle(self) -> None:
        """End all futures."""
        number = self.before
        for item in self.items:
            if item.recorded:
                number += 1
                item.settle(f"{self.log}.{self.generation}-{number}")
            else:
                item.settle(None)


class Outgoing:
    """The publications of one namespace."""

    __slots__ = ("_base", "_box", "_in_flight", "_queue", "_scheduled", "namespace")

    def __init__(self, base: Base, box: Outbox, namespace: str) -> None:
        self._base = base
        self._box = box
        self.namespace: Final = namespace
        self._queue: deque[Item | Step] = deque()
        # One at a time: so a batch that is sent twice is known by its number.
        self._in_flight: Batch | None = None
        self._scheduled = False

    def add(self, item: Item) -> None:
        """Queue a publication; what is queued in one tick goes out together."""
        self._queue.append(item)
        if self._in_flight is None and not self._scheduled:
            self._scheduled = True
            self._box.loop.call_soon(self._send)

    def behind(self, step: Step) -> None:
        """Take a step behind what is queued."""
        if self._queue:
            self._queue.append(step)
        else:
            # What is in flight was sent before, over the same connection.
            step.run()

    def _take_steps(self) -> None:
        while self._queue and isinstance(step := self._queue[0], Step):
            self._queue.popleft()
            step.run()

    def _send(self) -> None:
        self._scheduled = False
        if not self._queue or self._in_flight is not None:
            return
        items: list[Item] = []
        size = 0
        while self._queue and len(items) < MAX_BATCH and size < MAX_BATCH_SIZE:
            item = self._queue[0]
            if isinstance(item, Step):
                break
            self._queue.popleft()
            items.append(item)
            size += len(item.data)
        batch = self._in_flight = Batch(self.namespace, self._box.next_number(), items)
        self._box.sending(batch, size)
        base = self._base
        key, bounds = base.keys.base(self.namespace), base.bounds
        try:
            server = base.server(self.namespace)
        except BrokerUnavailable as error:
            self._done(error)
            return
        keys, args = append_call(
            key,
            (bounds.age_ms, bounds.size, bounds.limit, bounds.own),
            base.node,
            batch.number,
            [(item.publication, item.recorded, item.data) for item in items],
            verb=server.verb,
            new=self._box.is_new(self.namespace, server.commands),
            patience=PATIENCE,
            skew=base.skew,
        )
        server.commands.run(APPEND, keys, args, self._done)
        self._take_steps()

    def _done(self, reply: Any) -> None:
        batch, self._in_flight = self._in_flight, None
        assert batch is not None
        if isinstance(reply, BrokerUnavailable):
            waiting, self._queue = self._queue, deque()
            items = [item for item in waiting if isinstance(item, Item)]
            self._box.failed(batch, items)
            for item in [*batch.items, *items]:
                item.fail(reply)
            for step in waiting:
                if isinstance(step, Step):
                    step.run()
        else:
            log, generation, before = reply
            batch.log, batch.generation, batch.before = log.decode(), int(generation), int(before)
            self._box.appended(batch)
        if self._queue:
            self._send()
        else:
            self._box.idle(self)


class Outbox:
    """All that this node publishes."""

    def __init__(self, base: Base, appended: Callable[[Batch], None]) -> None:
        self._base = base
        self.loop: Final = asyncio.get_running_loop()
        # Called when a batch is in the log.
        self._appended = appended
        self._outgoing: dict[str, Outgoing] = {}
        # Those that were sent and may still be heard of, by number.
        self.batches: dict[int, Batch] = {}
        self._count = 0
        self._size = 0
        # The connection of the last step in each namespace.
        self._connections: dict[str, tuple[Commands, int]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def publish(self, publication: Publication, *, record: bool) -> asyncio.Future[str | None]:
        """Queue a publication. Raises EncodeError if it is too large to be carried."""
        data = encode_publication(publication, recorded=record)
        settled: asyncio.Future[str | None] = self.loop.create_future()
        if self._count >= MAX_QUEUE or self._size + len(data) > MAX_QUEUED:
            settled.set_exception(
                BrokerUnavailable(
                    f"{self._count} events already wait for Redis, with {self._size} bytes"
                )
            )
            return settled
        self._count += 1
        self._size += len(data)
        outgoing = self._outgoing.get(publication.namespace)
        if outgoing is None:
            outgoing = Outgoing(self._base, self, publication.namespace)
            self._outgoing[publication.namespace] = outgoing
            self._empty.clear()
        outgoing.add(Item(publication, record, data, settled))
        return settled

    def behind(self, namespace: str, run: Callable[[], None]) -> None:
        """Call a function when all that was published in a namespace before has been sent."""
        outgoing = self._outgoing.get(namespace)
        if outgoing is None:
            run()
        else:
            outgoing.behind(Step(run))

    async def emptied(self) -> None:
        """Wait until nothing waits to be sent, or to be answered."""
        await self._empty.wait()

    # For Outgoing.

    def next_number(self) -> int:
        """Return the number of a new batch: higher than all before."""
        return next(self._base.numbers)

    def is_new(self, namespace: str, commands: Commands) -> int:
        """Return 1 for the first step in a namespace over a connection."""
        connection = (commands, commands.connections)
        if self._connections.get(namespace) == connection:
            return 0
        if len(self._connections) >= MAX_NAMESPACES:
            # One that is forgotten begins a generation too many, if any: that loses nothing.
            self._connections.clear()
        self._connections[namespace] = connection
        return 1

    def sending(self, batch: Batch, size: int) -> None:
        """Note that a batch leaves."""
        self._count -= len(batch.items)
        self._size -= size
        self.batches[batch.number] = batch

    def appended(self, batch: Batch) -> None:
        """Note that a batch is in the log."""
        self._appended(batch)

    def failed(self, batch: Batch, others: list[Item]) -> None:
        """Note that a batch, and what waited behind it, is given up."""
        self.batches.pop(batch.number, None)
        self._count -= len(others)
        self._size -= sum(len(item.data) for item in others)

    def idle(self, outgoing: Outgoing) -> None:
        """Forget a namespace in which nothing waits."""
        self._outgoing.pop(outgoing.namespace, None)
        if not self._outgoing:
            self._empty.set()
