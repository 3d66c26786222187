"""A client's events: handled in order, each at once if none is before it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, Final

from crossband.hub.answers import answer, cancelling, fail
from crossband.hub.dispatch import dispatch, settle
from crossband.hub.incoming import Incoming
from crossband.hub.runner import Started
from crossband.hub.sender import Sender

logger: Final = logging.getLogger("crossband")

# Types that most handlers return; checking whether other types are awaitable takes time.
_DATA = frozenset({type(None), dict, list, tuple, str, int, float, bool, bytes})
# The result of a step that has not ended.
_WAITING: Final = object()
# How many times its inbox a client may fill while it owes an acknowledgement: a handler may be
# waiting for the answer, which comes after the events that the client sent before it.
ACK_INBOX: Final = 8

# In the context of a handler and of tasks it starts: its turn in its inbox. A turn is the
# handler's coroutine or some object; only its identity counts.
_own_turn: Final[ContextVar[object]] = ContextVar("crossband.turn", default=None)


class Inbox:
    """What one client sent and its handling, in order, bounded.

    Its methods take its socket as an argument: if the two referred to each other, they would
    stay in memory after the client left until Python's garbage collector finds the cycle.
    """

    __slots__ = ("_beside", "_going_on", "_queue", "_size", "_space", "_turn")

    def __init__(self) -> None:
        # Waiting jobs. None until there is one.
        self._queue: deque[Incoming | Coroutine[Any, Any, None]] | None = None
        # Bytes of the events in it.
        self._size = 0
        # True while waiting jobs are being started, so that nobody else does it.
        self._going_on = False
        # The current turn: what comes meanwhile goes into the queue. None: nothing runs.
        self._turn: object = None
        # The number of handlers that run besides the one whose turn it is.
        self._beside = 0
        # None unless the transport waits for room in the queue.
        self._space: asyncio.Event | None = None

    def receive(self, socket: Sender, message: Incoming) -> None:
        """Handle an event after this client's earlier ones. Hot: once per event.

        If it is alone, its handler starts here and now: a task costs more than most handlers.
        """
        namespace = socket.namespace
        registry = namespace.registry
        namespace.traffic.received += 1
        if message.event in registry.concurrent:
            self._beside += 1
            namespace.node.run_to_end(self._handle_beside(socket, message))
            return
        if self._turn is not None:
            self.enqueue(socket, message)
            return
        self._begin_event(socket, message)

    def _begin_event(self, socket: Sender, message: Incoming) -> None:
        namespace = socket.namespace
        schema = namespace.registry.direct.get(message.event)
        try:
            if not namespace.publishes_at_once:
                result = settle(dispatch(socket, message))
            elif schema is None:
                result = dispatch(socket, message)
            else:
                bound = schema.bind(message.raws, message.attachments, single=message.single)
                result = schema.handler(socket, *bound)
            kind = type(result)
            if kind is CoroutineType:
                result = self._step(socket, result, message)
                if result is _WAITING:
                    return
            elif kind not in _DATA and inspect.isawaitable(result):
                self.begin(socket, self._finish(socket, message, result))
                return
            answer(socket, message, result)
        except (Exception, asyncio.CancelledError) as error:
            # This is not in one of our tasks, so only a handler can have raised it.
            fail(socket, message, error, in_task=False)

    async def _handle_beside(self, socket: Sender, message: Incoming) -> None:
        try:
            await self._handle(socket, message)
        finally:
            self._come_back(socket)

    def _come_back(self, socket: Sender) -> None:
        """Note the end of a handler that ran besides the others."""
        self._beside -= 1
        if self._space is not None and not self.crowded(socket):
            self._space.set()

    def begin(self, socket: Sender, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine after the events before it; if alone, start it at once."""
        if self._turn is not None:
            self.enqueue(socket, coroutine)
            return
        try:
            self._step(socket, coroutine, None)
        except (Exception, asyncio.CancelledError):
            logger.exception("a handler of namespace %r failed", socket.namespace.name)

    def _step(
        self, socket: Sender, coroutine: Coroutine[Any, Any, Any], message: Incoming | None
    ) -> Any:
        """Start a coroutine; return its result, or _WAITING if a task carries it on."""
        # Events that come meanwhile go into the queue.
        turn = self._turn = coroutine
        outer = _own_turn.set(turn)
        try:
            result = socket.namespace.node.spare_runners.begin(coroutine)
        except BaseException:
            self._pass_on(socket, turn)
            raise
        finally:
            _own_turn.reset(outer)
        if type(result) is not Started:
            if self._turn is turn and not self._queue:
                self._turn = None
            else:
                self._pass_on(socket, turn)
            return result
        rest: Callable[[], Awaitable[None]] = (
            functools.partial(_identity, result)
            if message is None
            else functools.partial(self._finish, socket, message, result)
        )
        result.carry_on(functools.partial(self._carry_on, socket, turn, rest))
        return _WAITING

    def _pass_on(self, socket: Sender, turn: object) -> None:
        """End a turn, unless its handler has stepped aside."""
        if self._turn is turn:
            self._end_turn(socket)
        else:
            self._come_back(socket)

    def _end_turn(self, socket: Sender) -> None:
        self._turn = None
        if self._queue and not self._going_on:
            self._begin_work(socket)

    def _begin_work(self, socket: Sender) -> None:
        # It is nobody else's turn meanwhile. Wait for the next tick, when the task of the previous
        # handler has ended, because the next handler might cancel that task.
        self._turn = object()
        asyncio.get_running_loop().call_soon(self._go_on, socket)

    def _go_on(self, socket: Sender) -> None:
        """Start waiting jobs, one after another, until one has to wait."""
        self._turn = None
        if socket.namespace.node.out_of_time:
            return
        inbox = self._queue
        self._going_on = True
        try:
            while inbox and self._turn is None:
                item = inbox.popleft()
                if isinstance(item, Incoming):
                    self._size -= item.size
                    if self._space is not None and not self.crowded(socket):
                        self._space.set()
                    self._begin_event(socket, item)
                else:
                    self.begin(socket, item)
        finally:
            self._going_on = False
        if self._space is not None:
            self._space.set()

    async def _finish(self, socket: Sender, message: Incoming, result: Awaitable[Any]) -> None:
        try:
            answer(socket, message, await result)
        except (Exception, asyncio.CancelledError) as error:
            fail(socket, message, error)

    def enqueue(self, socket: Sender, job: Incoming | Coroutine[Any, Any, None]) -> None:
        """Run a job after those before it."""
        if self._queue is None:
            self._queue = deque()
        self._queue.append(job)
        if type(job) is Incoming:
            self._size += job.size
        if self._turn is None:
            self._begin_work(socket)

    @property
    def waiting(self) -> int:
        """The number of events that wait to be handled, or run besides the others."""
        return self._beside + (len(self._queue) if self._queue is not None else 0)

    def crowded(self, socket: Sender) -> bool:
        """Whether so much is waiting that the transport should stop reading."""
        if not self._queue and not self._beside:
            return False
        limits = socket.namespace.node.settings.limits
        times = ACK_INBOX if socket.owed else 1
        return self.waiting >= limits.inbox * times or self._size >= limits.inbox_size * times

    async def wait_for_space(self, socket: Sender) -> None:
        """Wait until the inbox has room again."""
        while self.crowded(socket) and (self._turn is not None or self._beside):
            if self._space is None:
                self._space = asyncio.Event()
            self._space.clear()
            await self._space.wait()

    async def _carry_on(
        self, socket: Sender, turn: object, job: Callable[[], Awaitable[None]]
    ) -> None:
        """Carry on a waiting handler; when it ends, start the next one."""
        try:
            await job()
        except asyncio.CancelledError:
            if cancelling():
                raise
            logger.exception("a handler of namespace %r failed", socket.namespace.name)
        except Exception:
            logger.exception("a handler of namespace %r failed", socket.namespace.name)
        finally:
            if self._turn is not turn:
                # It stepped aside, and the others have gone on.
                self._come_back(socket)
            elif socket.namespace.node.out_of_time:
                self._turn = None
            else:
                self._end_turn(socket)
            if self._space is not None:
                self._space.set()

    async def _handle(self, socket: Sender, message: Incoming) -> None:
        try:
            handling = dispatch(socket, message)
            if not socket.namespace.publishes_at_once:
                handling = settle(handling)
            answer(socket, message, await handling)
        except (Exception, asyncio.CancelledError) as error:
            fail(socket, message, error)

    def step_aside(self, socket: Sender) -> None:
        """Let the next event start, if called by the handler whose turn it is.

        The handler is about to wait for its own client, which may not answer before its own
        events have been answered.
        """
        turn = self._turn
        if turn is not None and _own_turn.get() is turn:
            self._beside += 1
            self._end_turn(socket)

    def look_again(self, socket: Sender) -> None:
        """Let a transport that waits for space check again."""
        if self._space is not None and not self.crowded(socket):
            self._space.set()


def _identity(awaitable: Awaitable[None]) -> Awaitable[None]:
    return awaitable
