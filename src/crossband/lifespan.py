"""How a server starts and stops the hub: by ASGI's lifespan, or by what stands in for it.

The first request starts the hub where no lifespan is forwarded, as to a mounted application.
hypercorn's workers, which get no signal, are watched for their end.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from crossband.errors import StartError

if TYPE_CHECKING:
    from starlette.types import Receive, Send

logger = logging.getLogger("crossband")


class Lifespan:
    """Starts the hub when its server starts, and stops it when that ends.

    `start` does nothing where the hub runs already; `runs_on` returns whether it does so on
    an event loop. `stop_after_listeners` is `stop` for a server that takes no more requests.
    """

    def __init__(
        self,
        start: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], Coroutine[Any, Any, None]],
        *,
        runs_on: Callable[[asyncio.AbstractEventLoop], bool],
        stop_after_listeners: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._start = start
        self._stop = stop
        self._runs_on = runs_on
        self._stop_after_listeners = stop_after_listeners
        # The event loop of the requests so far; None before the first.
        self.loop: asyncio.AbstractEventLoop | None = None
        # Shared by first requests that come together.
        self._starting: asyncio.Task[None] | None = None
        # Nobody awaits it: held, or the event loop may forget it.
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self, receive: Receive, send: Send) -> None:
        """Start and stop as the server says."""
        await receive()
        try:
            await self._start()
        except Exception as error:
            if not isinstance(error, StartError):
                logger.exception("the hub could not start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take in the first request on an event loop: start, where there was no lifespan."""
        if not self._runs_on(loop) or self._starting is not None:
            if self._starting is None or self._starting.get_loop() is not loop:
                self._starting = loop.create_task(self._start())
            starting = self._starting
            try:
                await asyncio.shield(starting)
            finally:
                # A start that failed is tried again by the next request.
                if self._starting is starting and starting.done():
                    self._starting = None
        if self.loop is not loop:
            self.loop = loop
            self._watch_hypercorn(loop)

    def end(self) -> None:
        """Start no more on this event loop: a first request may still be on its way."""
        self.loop = asyncio.get_running_loop()

    def _watch_hypercorn(self, loop: asyncio.AbstractEventLoop) -> None:
        # Its worker processes get no signal, and cut streams after `graceful_timeout` without
        # a word. What ends there first is its `raise_shutdown` task, whatever the trigger.
        utils = sys.modules.get("hypercorn.utils")
        code = getattr(getattr(utils, "raise_shutdown", None), "__code__", None)
        if code is None:
            return
        for task in asyncio.all_tasks(loop):
            if getattr(task.get_coro(), "cr_code", None) is code:
                task.add_done_callback(self._on_hypercorn_stopping)

    def _on_hypercorn_stopping(self, _: object) -> None:
        # It closes its listeners and idle connections now.
        self._stopping = asyncio.get_running_loop().create_task(self._stop_after_listeners())
