"""The events a client has sent: one after another, each begun at once if nothing is before it."""

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

# What most handlers return; asking whether another type is awaitable takes its time.
_DATA = frozenset({type(None), dict, list, tuple, str, int, float, bool, bytes})
# What a step gives that did not end.
_WAITING: Final = object()
# How many times its inbox a client may fill while it owes an acknowledgement: a handler may
# wait for the answer, and that stands behind the events the client sent before it.
ACK_INBOX: Final = 8

# In the context of a handler, and of the tasks it starts: which turn of its inbox it has. That
# is its coroutine, or an object of its own; only its identity counts.
_own_turn: Final[ContextVar[object]] = ContextVar("crossband.turn", default=None)


class Inbox:
    """What one client sent and what is being done with it, in order, bounded.

    Its methods take the socket whose it is: two objects that hold each other would stay, when
    the client has left, until Python looks for such circles.
    """

    __slots__ = ("_beside", "_going_on", "_queue", "_size", "_space", "_turn")

    def __init__(self) -> None:
        # What waits. None until something does.
        self._queue: deque[Incoming | Coroutine[Any, Any, None]] | None = None
        # Bytes of the events in it.
        self._size = 0
        # What waits is being begun: nobody else need do that.
        self._going_on = False
        # Whose turn it is: what comes meanwhile is put into the queue. None: nobody's.
        self._turn: object = None
        # The number of handlers that run beside the one whose turn it is.
        self._beside = 0
        # None unless the transport waits for the queue to empty.
        self._space: asyncio.Event | None = None

    def receive(self, socket: Sender, message: Incoming) -> None:
        """Handle an event after those this client sent before it. Hot: once per event.

        Alone, its handler begins here and now: a task costs more than most handlers.
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
            # Not inside a task of ours: a handler can only have raised it.
            fail(socket, message, error, in_task=False)

    async def _handle_beside(self, socket: Sender, message: Incoming) -> None:
        try:
            await self._handle(socket, message)
        finally:
            self._come_back(socket)

    def _come_back(self, socket: Sender) -> None:
        """Note the end of a handler that ran beside the others."""
        self._beside -= 1
        if self._space is not None and not self.crowded(socket):
            self._space.set()

    def begin(self, socket: Sender, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine after the events before it: at once, as far as it goes, if alone."""
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
        """Begin a coroutine; return its result, or _WAITING when a task carries it on."""
        # What comes meanwhile is for the inbox.
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
        # Nobody else's turn meanwhile. In the next tick, when the task of the handler before has
        # ended: the next may cancel it, as one client's events do with another's.
        self._turn = object()
        asyncio.get_running_loop().call_soon(self._go_on, socket)

    def _go_on(self, socket: Sender) -> None:
        """Begin what waits, one after another, until one takes its time."""
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
        """The number of events that wait to be handled, or are handled beside the others."""
        return self._beside + (len(self._queue) if self._queue is not None else 0)

    def crowded(self, socket: Sender) -> bool:
        """Whether so much waits that the transport should stop reading."""
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
        """Carry on a handler that waits; at its end the next one begins."""
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
                # It has stepped aside, and the others have gone on.
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
        """Let the next event begin, if who calls this is the handler whose turn it is.

        It is about to wait for its own client, which may answer only after it has been answered
        itself.
        """
        turn = self._turn
        if turn is not None and _own_turn.get() is turn:
            self._beside += 1
            self._end_turn(socket)

    def look_again(self, socket: Sender) -> None:
        """Let a transport that waits for space see whether there is some."""
        if self._space is not None and not self.crowded(socket):
            self._space.set()


def _identity(awaitable: Awaitable[None]) -> Awaitable[None]:
    return awaitable
