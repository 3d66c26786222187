"""Runs coroutines at once, and in a task only from their first wait on.

A task costs more than most handlers do. The hooks are asyncio's own, for embedding coroutines:
https://docs.python.org/3/library/asyncio-extending.html#task-lifetime-support

Python 3.12's eager tasks do the same at no more cost: they can replace this file once Python
3.11 is no longer supported (docs/explanation/decisions.md has the measurements).
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from asyncio.tasks import _enter_task, _leave_task
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context, copy_context
from pathlib import Path
from sys import getrefcount
from typing import Any, Final
from weakref import getweakrefcount

# Spare runners: one for the next coroutine, and some for coroutines that start others.
SPARE = 8

# Modules whose frames are not the place where a handler waits.
_OURS = ("crossband.handlers.", "crossband.hub.", "crossband.transports.")

Work = Callable[[], Coroutine[Any, Any, None]]


class Started:
    """The rest of a waiting coroutine; awaiting it carries it on."""

    __slots__ = ("_awaited", "_cancelled", "_context", "_coroutine", "_runner")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        awaited: Any,
        context: Context,
        runner: Runner,
    ) -> None:
        self._coroutine = coroutine
        # A future, or None for a bare `sleep(0)`.
        self._awaited = awaited
        # Cancelled although what it waits for cannot be: its next step must raise.
        self._cancelled = False
        self._context = context
        self._runner = runner

    def carry_on(self, work: Work) -> None:
        """Run `work`, which awaits this, in the task that it was started as."""
        self._runner.carry_on(self, work)

    def cancel(self) -> None:
        """Cancel what it waits for, or else its next step, as `Task.cancel` does."""
        if self._awaited is None or not self._awaited.cancel():
            self._cancelled = True

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        run = self._context.run
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                step: Callable[[Any], Any] = coroutine.throw
                value = error
            else:
                step = coroutine.send
            if self._cancelled:
                self._cancelled = False
                step, value = coroutine.throw, asyncio.CancelledError()
            try:
                awaited = run(step, value)
            except StopIteration as stop:
                return stop.value


def waits_at(task: asyncio.Task[Any]) -> str | None:
    """Return where a task's own code waits, as `ask (chat.py:31)`, or None.

    Python's `Task.get_stack` has only the outermost frame of a coroutine.
    """
    awaitable: Any = task.get_coro()
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        if frame is None:
            return None
        code = frame.f_code
        if not frame.f_globals.get("__name__", "").startswith(_OURS):
            return f"{code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})"
        if code is Started.__await__.__code__:
            awaitable = frame.f_locals["coroutine"]
        else:
            awaitable = getattr(awaitable, "cr_await", None)
    return None


def places(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Return where tasks wait, each place once; "" if none has code of its own."""
    found = Counter(filter(None, map(waits_at, tasks)))
    return ", ".join(
        place if count == 1 else f"{count} × {place}" for place, count in found.most_common()
    )


class Runner:
    """A spare task: a coroutine's first step runs as this task, but outside of it.

    The coroutine cannot tell: `current_task()` is the same before and after it waits, which
    timeouts and task groups rely on. The task then belongs to the coroutine for good, unless
    that ended in its first step and left no trace on the task.
    """

    __slots__ = ("_ending", "_loop", "_spare_runners", "_work", "name", "task", "wake")

    def __init__(self, spare_runners: SpareRunners, loop: asyncio.AbstractEventLoop) -> None:
        self._spare_runners = spare_runners
        self._loop = loop
        # What to carry on. None while spare.
        self._work: tuple[Started, Work] | None = None
        # None until the task has begun, and if it already had work by then.
        self.wake: asyncio.Future[None] | None = None
        # Its coroutine has ended, and the task is about to end.
        self._ending = False
        self.task: asyncio.Task[None] = loop.create_task(self._main())
        self.name: Final = self.task.get_name()

    def carry_on(self, started: Started, work: Work) -> None:
        """Run `work` with the rest of a coroutine."""
        self._work = (started, work)
        self._finish()

    def end(self) -> None:
        """End the task, whose coroutine ended in its first step."""
        # If it was cancelled by then, it ends as cancelled.
        self._ending = not self.cancelled
        self._finish()

    @property
    def cancelled(self) -> bool:
        """Whether the task was cancelled, even if that was undone.

        Since Python 3.13 `uncancel` leaves no trace on a task that has not begun.
        """
        if self.wake is not None:
            return self.wake.done()
        # It has not begun, or never will. There is no public way to ask.
        return self.task.done() or bool(self.task._must_cancel)  # type: ignore[attr-defined]

    def _finish(self) -> None:
        self._spare_runners.working.add(self.task)
        self.task.add_done_callback(self._ended)
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    async def _main(self) -> None:
        cancelled: asyncio.CancelledError | None = None
        if self._work is None and not self._ending:
            self.wake = self._loop.create_future()
            try:
                await self.wake
            except asyncio.CancelledError as error:
                cancelled = error
        given, self._work = self._work, None
        if given is None:
            if cancelled is not None and not self._ending:
                # The hub stops, or the application cancels all existing tasks.
                raise cancelled
            return
        started, work = given
        if cancelled is not None:
            # By the coroutine itself, in its first step: pass it on to what it waits for.
            started.cancel()
        await work()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._spare_runners.working.discard(task)
        # Cancelled by the coroutine in its first step, before the task itself had begun.
        if self._work is not None:
            started, work = self._work
            self._work = None
            started.cancel()
            self._spare_runners.spawn(work())
        elif not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "a runner failed", "exception": error, "task": task}
            )


class SpareRunners:
    """The runners of one hub."""

    __slots__ = ("_loop", "_open", "_runners", "spawn", "working")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
        working: set[asyncio.Task[None]],
    ) -> None:
        self._loop = loop
        self._runners: list[Runner] = []
        self._open = True
        # Runs a coroutine in a new task.
        self.spawn: Final = spawn
        # Tasks that have work, which the hub waits for.
        self.working: Final = working

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that are waiting for work."""
        return {runner.task for runner in self._runners}

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine's first step. Hot: once per event with an async handler.

        Returns its result if it ends there, else a Started to carry on. Raises what the
        coroutine raises.
        """
        runners = self._runners
        while runners:
            runner = runners.pop()
            wake = runner.wake
            # Code that cancels all tasks of the loop may cancel a spare one.
            if not (runner.cancelled if wake is None else wake.done()):
                break
        else:
            runner = Runner(self, self._loop)
        loop, task = self._loop, runner.task
        references, weak_references = getrefcount(task), getweakrefcount(task)
        # Set if the server calls from a task of its own, over ASGI.
        outer = current_task(loop)
        if outer is not None:
            _leave_task(loop, outer)
        _enter_task(loop, task)
        context = copy_context()
        waits = False
        try:
            awaited = context.run(coroutine.send, None)
            waits = True
            return Started(coroutine, awaited, context, runner)
        except StopIteration as stop:
            return stop.value
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)
            # The task may serve another client next, but only if nobody can tell. If something
            # has kept a reference to it, its reference count is higher. 0.3 µs of the 1.5.
            if not waits:
                if (
                    getrefcount(task) == references
                    and getweakrefcount(task) == weak_references
                    # There is no public way to ask.
                    and not task._callbacks
                    and task.get_name() is runner.name
                    and not runner.cancelled
                    and self._open
                    and len(runners) < SPARE
                ):
                    runners.append(runner)
                else:
                    runner.end()

    async def close(self) -> None:
        """End the runners without work now, and the others when their work ends."""
        self._open = False
        tasks = self.tasks
        self._runners.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
