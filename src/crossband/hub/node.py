"""The base of the hub: one process's event loop, tasks, broker, settings and counters.

Namespaces, sockets and everything about them use it; it knows none of them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from crossband.broker import Broker, Bus, Publication, Receiver, SessionStore
from crossband.broker.bus import Hear, Left
from crossband.broker.opening import MEMORY, check_url, open_broker
from crossband.connection import Ticker
from crossband.errors import StartError
from crossband.hub.catchup import Turns
from crossband.hub.emission import Outcome
from crossband.hub.runner import SpareRunners, places
from crossband.hub.traffic import Traffic
from crossband.settings import Settings
from crossband.workers import BROKER_VARIABLE

logger: Final = logging.getLogger("crossband")


T = TypeVar("T")

_NOT_STARTED: Final = (
    "the hub has not started, and nobody can hear the event: emit in a handler, in an on_start "
    "function, or later"
)


class Emitted:
    """The last event that a running handler has emitted in each namespace."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        # The last is enough, as they are published in order. None once the handler has ended,
        # because tasks that it started still run in its context.
        self.last: dict[str, asyncio.Future[str | None]] | None = {}

    def add(self, namespace: str, outcome: asyncio.Future[str | None]) -> None:
        """Note an emission. One that failed at once says nothing of those before it."""
        if self.last is not None and not outcome.done():
            self.last[namespace] = outcome

    async def published(self) -> None:
        """Wait until all of it is published or has failed."""
        pending, self.last = self.last, None
        if pending:
            await asyncio.wait(pending.values())


# None outside handlers, and if the broker publishes at once.
emitted: Final[ContextVar[Emitted | None]] = ContextVar("crossband.emitted", default=None)


class Node:
    """One process that serves a hub."""

    # Set by `begin`.
    spare_runners: SpareRunners
    turns: Turns

    def __init__(self, broker: Broker | str | None, settings: Settings) -> None:
        if isinstance(broker, str):
            # Here, and not at the start, where a wrong URL is far from who wrote it.
            check_url(broker)
        elif broker is not None and not isinstance(broker, Broker):
            raise TypeError(
                "Hub(broker) takes a URL, such as 'redis://localhost', or a Broker, not "
                + (f"the class {broker.__name__}" if isinstance(broker, type) else repr(broker))
            )
        self.settings: Settings = settings
        # What the application named. From a URL, the node creates the broker itself, with the
        # history's bounds from the settings.
        self._named: Final = broker
        # None until it is created.
        self._broker: Broker | None = None
        if isinstance(broker, Broker):
            self._broker = broker
        # The application's hub, for applications to find. Nothing here uses it.
        self.hub: Any = None
        self.traffic: Final = Traffic()
        # Number the attempts to connect, and the requested acknowledgements.
        self._attempts = itertools.count()
        self._ack_ids = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        # None until started; emits from other threads go to it.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._ticker: Ticker | None = None
        self._started_at = 0.0
        # It is stopping; and it takes too long, so handlers that still run are cancelled.
        self.stopping: bool = False
        self.out_of_time: bool = False

    def configure(self, settings: Settings) -> None:
        """Change the settings, before it starts."""
        self.settings = settings
        if not isinstance(self._named, Broker):
            self._broker = None

    @property
    def broker(self) -> Broker:
        """The application's, or that of the environment, or the memory broker.

        Raises StartError for an unusable URL in the environment.
        """
        if self._broker is None:
            try:
                self._broker = open_broker(
                    self._url,
                    history_size=self.settings.history_size,
                    history_bytes=self.settings.history_bytes,
                    history_age=self.settings.history_age,
                )
            except (ValueError, ImportError) as error:
                # The application's was checked when it was named.
                raise StartError(f"{BROKER_VARIABLE}: {error}") from None
        return self._broker

    @property
    def _url(self) -> str:
        """Where the broker is that the node creates."""
        if isinstance(self._named, str):
            return self._named
        return os.environ.get(BROKER_VARIABLE, MEMORY)

    @property
    def names_broker(self) -> bool:
        """Whether the application named a broker; if not, the environment may."""
        return self._named is not None

    @property
    def sessions(self) -> SessionStore:
        return self.broker.sessions

    @property
    def bus(self) -> Bus:
        return self.broker.bus

    @property
    def id(self) -> str:
        """The id by which other nodes know this one."""
        return self.broker.bus.node

    @property
    def publishes_at_once(self) -> bool:
        """Whether events are published when `emit` returns, so that nothing has to wait."""
        if self._broker is None:
            return self._url == MEMORY
        return self._broker.publishes_at_once

    # Life.

    @property
    def uptime(self) -> float:
        """Seconds since the hub started; 0 before."""
        return time.monotonic() - self._started_at if self.loop is not None else 0.0

    @property
    def pace(self) -> Ticker | None:
        """What publishers to several clients wait for: that full outboxes are written."""
        return self._ticker

    @property
    def ticker(self) -> Ticker:
        assert self._ticker is not None, "the hub is not started"
        return self._ticker

    async def begin(
        self, loop: asyncio.AbstractEventLoop, receiver: Receiver, hear: Hear, left: Left
    ) -> None:
        """Start on an event loop.

        Publications go to `receiver`, messages of other nodes to `hear`, nodes that leave to
        `left`.
        """
        await self.broker.start(receiver)
        try:
            await self.bus.start(hear, left)
        except BaseException:
            await self.broker.stop()
            raise
        self.loop = loop
        self._thread = threading.get_ident()
        self._ticker = Ticker(loop)
        self.spare_runners = SpareRunners(loop, self.run_to_end, self._tasks)
        self.turns = Turns(loop)
        self._started_at = time.monotonic()
        self.stopping = self.out_of_time = False

    async def end(self) -> None:
        """Release the event loop and the broker."""
        try:
            try:
                await self.bus.stop()
            finally:
                await self.broker.stop()
        finally:
            self.loop = None
            self._thread = None

    def soon(self, function: Callable[[], None]) -> None:
        """Call a function in the next tick of the hub's loop; safe in any thread."""
        loop = self.loop
        if loop is None:
            return
        if self._thread == threading.get_ident():
            loop.call_soon(function)
        else:
            loop.call_soon_threadsafe(function)

    def act(self, function: Callable[[], None]) -> None:
        """Call a function on the hub's loop: at once if this is its thread, else soon.

        Raises RuntimeError if the hub never started; does nothing once it has stopped.
        """
        if self.loop is None and self._ticker is None:
            raise RuntimeError(_NOT_STARTED)
        if self.loop is not None and self._thread == threading.get_ident():
            function()
        else:
            self.soon(function)

    def run_to_end(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task that `stop` waits for, such as a handler."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the hub failed", exc_info=error)

    async def finish_tasks(self, deadline: float) -> None:
        """Wait for running handlers; cancel what is left at the deadline."""
        me = asyncio.current_task()
        loop = asyncio.get_running_loop()
        try:
            # Before the others: from here on, a runner ends with its work.
            await self.spare_runners.close()
            # A task may start another one for what comes after it.
            while waiting := self._tasks - {me}:
                patience = max(0.0, deadline - loop.time())
                _, pending = await asyncio.wait(waiting, timeout=patience)
                if pending:
                    self._cancel(pending)
                    await asyncio.wait(pending, timeout=1.0)
                    return
        except asyncio.CancelledError:
            # The server will not wait any longer.
            self._cancel(self._tasks - {me})
            raise

    def _cancel(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        self.out_of_time = True
        tasks = list(tasks)
        if handlers := places(tasks):
            logger.warning("handlers did not end in time and are cancelled: %s", handlers)
        for task in tasks:
            task.cancel()

    # Numbers.

    def next_ack_id(self) -> int:
        return next(self._ack_ids)

    def next_attempt(self) -> int:
        return next(self._attempts)

    # Publishing.

    def post(self, publication: Publication, *, record: bool) -> Outcome:
        """Pass a publication to the broker, on the hub's own thread.

        Raises RuntimeError if the hub never started.
        """
        loop = self.loop
        if loop is None and self._ticker is None:
            raise RuntimeError(_NOT_STARTED)
        if loop is None and not self.broker.publishes_at_once:
            # Stopped: it reaches nobody, and brokers are called on their loop only.
            return None
        if loop is None or self._thread == threading.get_ident():
            outcome = self.broker.publish(publication, record=record)
            if isinstance(outcome, asyncio.Future):
                _note(publication, outcome)
            return outcome
        answer: concurrent.futures.Future[str | None] = concurrent.futures.Future()

        def settle(published: asyncio.Future[str | None]) -> None:
            if published.cancelled():
                answer.cancel()
            elif (error := published.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(published.result())

        def publish() -> None:
            # The caller may have stopped waiting for the cursor; the event is still published.
            wanted = answer.set_running_or_notify_cancel()
            try:
                outcome = self.broker.publish(publication, record=record)
            except Exception as error:
                if wanted:
                    answer.set_exception(error)
                return
            if isinstance(outcome, asyncio.Future):
                _note(publication, outcome)
                outcome.add_done_callback(settle if wanted else _ignore)
            elif wanted:
                answer.set_result(outcome)

        loop.call_soon_threadsafe(publish)
        return answer


def _note(publication: Publication, outcome: asyncio.Future[str | None]) -> None:
    """Let the handler that this runs in, if any, end no sooner than its emission."""
    mine = emitted.get()
    if mine is not None:
        mine.add(publication.namespace, outcome)


def _ignore(published: asyncio.Future[str | None]) -> None:
    """Mark an error retrieved that nobody waits for: it is counted elsewhere."""
    if not published.cancelled():
        published.exception()
