"""uvicorn's server, stopped in an order that it does not know by itself.

First the hubs, which end their streams, then listeners, then whatever is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Protocol

import uvicorn

from crossband.errors import StartError

logger: Final = logging.getLogger("crossband")

# Seconds a client may take to answer our WebSocket close frame before it is cut.
_CLOSE_REPLY_TIME: Final = 1.0
# Seconds between a stopping server's checks for open connections; uvicorn: 0.1 s.
_DRAIN_TICK: Final = 0.005


class Stoppable(Protocol):
    """What this module needs from a hub."""

    async def stop(self) -> None: ...


class _Patient:
    """The lifespan of an application, which has not started before something else is done."""

    def __init__(self, lifespan: Any, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._lifespan = lifespan
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lifespan, name)

    async def startup(self) -> None:
        await self._lifespan.startup()
        if not self._lifespan.should_exit:
            await self._wait()


class OrderlyServer(uvicorn.Server):
    """uvicorn's server without signals; it is woken to stop, and stops in our order."""

    def __init__(
        self,
        config: uvicorn.Config,
        hubs: Sequence[Stoppable],
        before_accepting: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__(config)
        self.ready: Final = asyncio.Event()
        self._before_accepting = before_accepting
        # Whether others accept on the same sockets, so that this one need not any more while its
        # hubs stop: it would have to refuse.
        self.replaced: bool = False
        self._hubs = hubs
        self._wake = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._wake.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn starts the application and accepts connections in one step.
        self.lifespan: Any = _Patient(self.lifespan, self._before_accepting)
        try:
            await super().startup(sockets)
        except SystemExit:
            # uvicorn's way of saying that the app's lifespan failed; the reason is in the log.
            raise StartError("the application failed to start (see the log above)") from None
        self.ready.set()

    async def main_loop(self) -> None:
        # Once a second for the Date header; uvicorn itself polls for its exit at 10 Hz.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                if self.replaced:
                    await self._stop_accepting()
                    self._close_listeners(sockets)
                # Before the listeners close, because a client between two polls must connect to
                # learn of it. Meanwhile new clients are refused with 503.
                await asyncio.gather(*(hub.stop() for hub in self._hubs))
                await self._stop_accepting()
                self._close_listeners(sockets)
                await self._drain()
        except TimeoutError:
            # If the hub took all the time, connections not asked to end yet are asked now.
            self._ask(self.server_state.connections)
            await asyncio.sleep(_DRAIN_TICK)
            if left := len(self.server_state.connections):
                logger.warning("cutting connections that did not end in time: %d", left)
        finally:
            # Also if this is cancelled.
            self._close_listeners(sockets)
            for task in list(self.server_state.tasks):
                task.cancel()
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await self.lifespan.shutdown()

    async def _stop_accepting(self) -> None:
        # asyncio sets a connection up in the ticks after accepting it, and drops the client if
        # the server is closed by then (python/cpython#109564).
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for sock in server.sockets:
                with contextlib.suppress(NotImplementedError):
                    loop.remove_reader(sock.fileno())
        await asyncio.sleep(_DRAIN_TICK)

    def _close_listeners(self, sockets: list[socket.socket] | None) -> None:
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()

    def _ask(self, connections: set[Any]) -> set[Any]:
        """Ask connections to end; return the WebSockets that hubs close themselves."""
        websocket = self.config.ws_protocol_class
        closing = set()
        for connection in list(connections):
            if self._hubs and websocket is not None and isinstance(connection, websocket):
                closing.add(connection)
            else:
                connection.shutdown()
        return closing

    async def _drain(self) -> None:
        """Ask every connection to end, and wait until it has."""
        state = self.server_state
        loop = asyncio.get_running_loop()
        # Hubs close their WebSockets themselves. If one is cut before its client has answered,
        # RST could discard the close frame.
        closing: set[Any] = set()
        asked: set[Any] = set()
        give_up = loop.time() + _CLOSE_REPLY_TIME
        while state.connections or state.tasks:
            closing |= self._ask(state.connections - asked)
            asked |= state.connections
            if closing and loop.time() >= give_up:
                for connection in closing & state.connections:
                    connection.shutdown()
                closing.clear()
            await asyncio.sleep(_DRAIN_TICK)
