"""The parent of several workers: it owns their sockets, and starts, renews and stops them.

It never imports the application: a worker that is renewed must find the new one, and a fault in
it must not end them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from crossband.errors import CrossbandError, StartError
from crossband.server import process
from crossband.server.brake import Brake
from crossband.server.child import Child
from crossband.server.engine import Engine
from crossband.server.exits import ending
from crossband.server.listeners import bind_tcp, bind_unix, unlink
from crossband.server.orders import Begin, Broker, Serve, Show
from crossband.server.process import StopRequest

logger: Final = logging.getLogger("crossband")

# Seconds after which it is logged that a worker is still starting.
_SLOW_START: Final = 30.0
# Starts in a row that fail while no worker serves, before the parent gives up.
_ATTEMPTS: Final = 5


class WorkersFailed(CrossbandError):
    """No worker serves, and none can be started; `code` is the exit code for that."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code: int = code


class Parent:
    """Keeps `workers` workers serving on a port, or on the unix socket `uds`.

    `api_key` is for hubs without one. A worker whose hub names no broker gets the URL of
    `engine`, which starts when the first one asks. If it `may_lack` an engine, workers do without
    one that cannot start. `changes` yields names of files that have changed, upon which the
    workers are renewed.
    """

    def __init__(
        self,
        *,
        workers: int,
        host: str,
        port: int,
        uds: str | None,
        uds_mode: int,
        api_key: str,
        engine: Engine,
        may_lack: bool = False,
        changes: AsyncIterator[str] | None = None,
    ) -> None:
        self._host = host
        # None for a unix socket; the real one once it is bound.
        self._port: int | None = port if uds is None else None
        self._uds = uds
        self._uds_mode = uds_mode
        self._numbers: Final = range(1, workers + 1)
        self._api_key = api_key
        self._engine = engine
        self._may_lack = may_lack
        self._changes = changes
        self._listeners: list[socket.socket] = []
        # Done with the broker's URL, or None, once a worker has asked for it.
        self._broker: asyncio.Task[str | None] | None = None
        # Every process that may still run, and of these those that serve, by their number.
        self._children: set[Child] = set()
        self._serving: dict[int, Child] = {}
        # One at a time replaces the worker of a number.
        self._locks = {number: asyncio.Lock() for number in self._numbers}
        # Starts in a row that failed.
        self._failures = 0
        self._renewal = asyncio.Event()
        # Fails with what the parent cannot go on with.
        self._fault: asyncio.Future[None] | None = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises StartError if the sockets or the engine are not to be had, WorkersFailed if the
        workers do not start. A second signal ends all processes at once.
        """
        process.run(self._serve, lambda: _ParentStop(self._kill))

    async def _serve(self, stop: StopRequest) -> None:
        loop = asyncio.get_running_loop()
        self._fault = loop.create_future()
        had_terminal = _terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN

        def on_hangup(*_: object) -> None:
            # A terminal that is closed sends it too.
            closed = had_terminal and not _terminal()
            loop.call_soon_threadsafe(stop.made.set if closed else self._renewal.set)

        signal.signal(signal.SIGHUP, on_hangup)
        work = asyncio.create_task(self._work())
        stopping = asyncio.create_task(stop.made.wait())
        try:
            waits: set[asyncio.Future[Any]] = {work, stopping, self._fault}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            work.cancel()
            await asyncio.wait({work})
            await self._stop()
        for outcome in (work, self._fault):
            if outcome.done() and not outcome.cancelled():
                outcome.result()

    async def _work(self) -> None:
        await self._bind()
        await self._boot()
        tasks = [self._keep(number) for number in self._numbers]
        tasks += [self._renew_on_request()]
        if self._changes is not None:
            tasks += [self._renew_on_changes(self._changes)]
        running = [asyncio.create_task(task) for task in tasks]
        try:
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()

    # Starting.

    async def _bind(self) -> None:
        if self._uds is not None:
            self._listeners = [bind_unix(self._uds, self._uds_mode)]
        elif self._port is not None:
            self._listeners = await bind_tcp(self._host, self._port)
            self._port = self._listeners[0].getsockname()[1]

    async def _boot(self) -> None:
        # The first alone, so that what is wrong with the application is said once.
        first = await self._begin(1)
        others = await asyncio.gather(*(self._begin(number) for number in self._numbers[1:]))
        # All at once: clients that wait already would otherwise all go to the first.
        for child in (first, *others):
            self._admit(child)
        for child in (first, *others):
            await child.first_of(child.serving.wait())
        first.tell(Show(self._note()))

    def _note(self) -> str:
        pids = ", ".join(str(child.pid) for child in self._serving.values())
        workers = len(self._numbers)
        parts = [f"{workers} worker{'s' if workers > 1 else ''} (pid {pids})"]
        if self._engine.version:
            parts.append(f"private {self._engine.version}")
        return ", ".join(parts)

    async def _begin(self, number: int) -> Child:
        """Start a worker; return it when it is ready to serve. Raises WorkersFailed."""
        begin = Begin(
            number=number,
            workers=len(self._numbers),
            listeners=tuple(sock.fileno() for sock in self._listeners),
            port=self._port,
            api_key=self._api_key,
        )
        child = Child(begin, self._answer)
        self._children.add(child)
        child.ended.add_done_callback(lambda _: self._children.discard(child))
        while not await child.first_of(child.ready.wait(), timeout=_SLOW_START):
            if child.ended.done():
                code = child.ended.result()
                raise WorkersFailed(f"{child} {ending(code)} before it could serve", code)
            logger.warning("%s is still starting", child)
        return child

    def _admit(self, child: Child) -> None:
        self._serving[child.number] = child
        child.tell(Serve())

    async def _answer(self, child: Child) -> None:
        """Give a worker the broker that it wants."""
        if self._broker is None:
            self._broker = asyncio.create_task(self._start_engine())
        try:
            url = await asyncio.shield(self._broker)
        except StartError as error:
            if self._fault is not None and not self._fault.done():
                self._fault.set_exception(error)
        else:
            child.tell(Broker(url))

    async def _start_engine(self) -> str | None:
        try:
            await self._engine.start()
        except StartError as error:
            if not self._may_lack:
                raise
            logger.warning("no private engine, so clients miss events in a reload: %s", error)
            return None
        return self._engine.url

    # Keeping.

    async def _keep(self, number: int) -> None:
        """Start the worker of a number again whenever it dies."""
        brake = Brake()
        while True:
            child = self._serving[number]
            code = await asyncio.shield(child.ended)
            async with self._locks[number]:
                if self._serving.get(number) is not child:
                    # It was renewed.
                    brake = Brake()
                    continue
                del self._serving[number]
                pause = brake.pause()
                logger.error("%s %s; another starts%s", child, ending(code), _after(pause))
                await asyncio.sleep(pause)
                child = await self._begin_again(number, brake)
                brake.begin()
                self._admit(child)
                logger.info("%s serves", child)

    async def _begin_again(self, number: int, brake: Brake) -> Child:
        while True:
            try:
                child = await self._begin(number)
            except (WorkersFailed, StartError) as failed:
                self._failures += 1
                if self._failures >= _ATTEMPTS and not self._serving and self._changes is None:
                    raise
                pause = brake.pause(failed=True)
                logger.error("%s; another starts%s", failed, _after(pause))
                await asyncio.sleep(pause)
            else:
                self._failures = 0
                return child

    # Renewing.

    async def _renew_on_request(self) -> None:
        while True:
            await self._renewal.wait()
            self._renewal.clear()
            logger.info("renewing the workers, one after another")
            if await self._renew():
                logger.info("all workers are renewed")

    async def _renew_on_changes(self, changes: AsyncIterator[str]) -> None:
        async for name in changes:
            logger.info("%s has changed", name)
            self._renewal.set()

    async def _renew(self) -> bool:
        for number in self._numbers:
            async with self._locks[number]:
                old = self._serving.get(number)
                try:
                    child = await self._begin(number)
                except (WorkersFailed, StartError) as failed:
                    logger.error("%s; those before it go on, and no more are renewed", failed)
                    return False
                self._admit(child)
                await child.first_of(child.serving.wait())
                logger.info("%s serves", child)
                if old is not None:
                    await old.stop(replaced=True)
        return True

    # Stopping.

    async def _stop(self) -> None:
        # As long as a worker listens on them, they are open.
        for sock in self._listeners:
            sock.close()
        await asyncio.gather(*(child.stop() for child in list(self._children)))
        if self._broker is not None:
            self._broker.cancel()
            with contextlib.suppress(asyncio.CancelledError, StartError):
                await self._broker
        await self._engine.stop()
        if self._uds is not None and self._listeners:
            unlink(self._uds)

    def _kill(self) -> None:
        for child in list(self._children):
            child.kill()


class _ParentStop(StopRequest):
    """The first SIGINT or SIGTERM stops all workers, the second kills them."""

    def __init__(self, kill: Callable[[], None]) -> None:
        super().__init__()
        self._kill = kill

    def _force(self, number: int) -> None:
        self._kill()
        super()._force(number)


def _terminal() -> bool:
    """Return whether there is a terminal from which this process can be stopped."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


def _after(pause: float) -> str:
    return f" in {pause:g} s" if pause else ""
