"""What an application runs besides its handlers: at the start, the stop, in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from crossband.errors import StartError
from crossband.handlers.callables import check_callable, name_of
from crossband.hub.runner import places

logger: Final = logging.getLogger("crossband")

T = TypeVar("T")
# Called without arguments, plain or async; its result is ignored.
LifeFunction = TypeVar("LifeFunction", bound=Callable[[], object])

# Seconds a cancelled background task may take to end.
CANCEL_TIME: Final = 1.0


class Life:
    """The functions of `on_start` and `on_stop`, and the tasks of `spawn`."""

    __slots__ = ("_start", "_stop", "_tasks")

    def __init__(self) -> None:
        self._start: list[Callable[[], Any]] = []
        self._stop: list[Callable[[], Any]] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def on_start(self, function: LifeFunction) -> LifeFunction:
        check_callable(function, "on_start()")
        self._start.append(function)
        return function

    def on_stop(self, function: LifeFunction) -> LifeFunction:
        check_callable(function, "on_stop()")
        self._stop.append(function)
        return function

    def spawn(
        self,
        loop: asyncio.AbstractEventLoop | None,
        coroutine: Coroutine[Any, Any, T],
        name: str | None,
    ) -> asyncio.Task[T]:
        """Run a coroutine until it ends or `end` cancels it; needs a running hub."""
        if not asyncio.iscoroutine(coroutine):
            raise TypeError(
                f"spawn() takes a coroutine, such as tick(), not {type(coroutine).__name__}: "
                "call the function"
            )
        if loop is None:
            coroutine.close()
            raise RuntimeError("the hub is not running: spawn tasks in an on_start function")
        task = loop.create_task(coroutine, name=name or getattr(coroutine, "__qualname__", None))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the background task %s failed", task.get_name(), exc_info=error)

    async def begin(self) -> None:
        """Call the functions of `on_start`, one after another. Raises StartError."""
        for function in self._start:
            try:
                await _call(function)
            except Exception as error:
                logger.exception("the on_start function %s failed", name_of(function))
                raise StartError(
                    f"the on_start function {name_of(function)} failed: "
                    f"{type(error).__name__}: {error}"
                ) from error

    async def end(self, patience: float) -> None:
        """Call the functions of `on_stop`, last first, for `patience` seconds in all."""
        deadline = asyncio.get_running_loop().time() + patience
        for function in reversed(self._stop):
            timer = asyncio.timeout_at(deadline)
            try:
                async with timer:
                    await _call(function)
            except Exception:
                if timer.expired():
                    logger.warning("the on_stop function %s takes too long", name_of(function))
                else:
                    logger.exception("the on_stop function %s failed", name_of(function))

    async def end_tasks(self) -> None:
        """Cancel the tasks of `spawn`, and wait until they have ended."""
        # One of them may be the one that stops the hub.
        tasks = self._tasks - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        _, pending = await asyncio.wait(tasks, timeout=CANCEL_TIME)
        if pending:
            logger.warning(
                "background tasks ignored their cancellation: %s",
                places(pending) or len(pending),
            )


async def _call(function: Callable[[], Any]) -> None:
    outcome = function()
    if asyncio.iscoroutine(outcome) or isinstance(outcome, asyncio.Future):
        await outcome
