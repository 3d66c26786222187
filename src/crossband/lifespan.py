"""How a server starts and stops the hub: by ASGI's lifespan, or by a substitute.

Mounted applications often get no lifespan: there the first request starts the hub.
hypercorn's workers get no signal: the hub watches for the task that ends them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from crossband.errors import StartError

if TYPE_CHECKING:
    from starlette.types import Receive, Send

logger: Final = logging.getLogger("crossband")


class Lifespan:
    """Starts the hub when its server starts, and stops it when the server ends.

    `start` does nothing if the hub is running; `runs_on` returns whether it runs on a given
    event loop. `stop_after_listeners` is `stop` for a server that takes no more requests.
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
        # Shared by first requests that come at the same time.
        self._starting: asyncio.Task[None] | None = None
        # Not awaited, so it needs a strong reference: the event loop keeps only a weak one.
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self, receive: Receive, send: Send) -> None:
        """Start and stop when the server says so."""
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
        """Prepare for a request: start the hub on this loop if no lifespan did."""
        if not self._runs_on(loop) or self._starting is not None:
            if self._starting is None or self._starting.get_loop() is not loop:
                self._starting = loop.create_task(self._start())
            starting = self._starting
            try:
                await asyncio.shield(starting)
            finally:
                # The next request retries a start that failed.
                if self._starting is starting and starting.done():
                    self._starting = None
        if self.loop is not loop:
            self.loop = loop
            self._watch_hypercorn(loop)

    def end(self) -> None:
        """Never start on this event loop again: a first request may still be on its way."""
        self.loop = asyncio.get_running_loop()

    def _watch_hypercorn(self, loop: asyncio.AbstractEventLoop) -> None:
        # Its worker processes get no signal, and cut streams silently after `graceful_timeout`.
        # Whatever triggers the shutdown, the first task to end is `raise_shutdown`.
        utils = sys.modules.get("hypercorn.utils")
        code = getattr(getattr(utils, "raise_shutdown", None), "__code__", None)
        if code is None:
            return
        for task in asyncio.all_tasks(loop):
            if getattr(task.get_coro(), "cr_code", None) is code:
                task.add_done_callback(self._on_hypercorn_stopping)

    def _on_hypercorn_stopping(self, _: object) -> None:
        # hypercorn is now closing its listeners and idle connections.
        self._stopping = asyncio.get_running_loop().create_task(self._stop_after_listeners())
