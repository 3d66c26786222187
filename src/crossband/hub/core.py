"""The parts of a hub, put together, started, and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final, Protocol

from crossband.broker import Broker
from crossband.connection import Ticker
from crossband.errors import BrokerUnavailable, CloseCode, EventError, StartError
from crossband.handlers.events import Handler
from crossband.hub.access import Access, Authenticate, Authorize
from crossband.hub.admission import Admissions
from crossband.hub.cluster import Cluster
from crossband.hub.departures import Departures
from crossband.hub.directory import Directory
from crossband.hub.drain import Drain
from crossband.hub.expiry import Expiry
from crossband.hub.life import Life
from crossband.hub.namespace import Namespace, Socket
from crossband.hub.node import Node
from crossband.hub.presence import tell_members
from crossband.hub.quotas import Quotas
from crossband.hub.resumption import Resumptions
from crossband.hub.revocations import Revocations
from crossband.hub.status import Status
from crossband.hub.watchdog import unwatch, watch
from crossband.hub.welcome import Welcomes
from crossband.names import MEMBERS, REFRESH
from crossband.settings import Settings


class Doors(Protocol):
    """The doors that clients connect to."""

    def start(self, core: Core) -> None:
        """Start on the running event loop."""

    async def stop(self) -> None:
        """End all connections."""


class Core:
    """All that a node does for its clients; used by the doors."""

    def __init__(
        self,
        broker: Broker | str | None,
        authenticate: Authenticate | None,
        authorize: Authorize | None,
        settings: Settings,
        doors: Doors,
    ) -> None:
        node = Node(broker, settings)
        self.node: Final = node
        self.traffic: Final = node.traffic
        self.access: Final = Access(node, authenticate, authorize)
        self.expiry: Final = Expiry(node, self.access, self._dismiss)
        self.revocations: Final = Revocations(node, self.access, self.expiry, self._expel)
        self.departures: Final = Departures(node, self.expiry, self._vacate)
        reserved: dict[str, Handler] = {MEMBERS: tell_members}
        if authenticate is not None:
            reserved[REFRESH] = self.expiry.refresh
        self.directory: Final = Directory(node, self.access, self.departures, reserved)
        self.quotas: Final = Quotas(node)
        resumptions = Resumptions(node, self.access)
        welcomes = Welcomes(node, self.directory, self.expiry, resumptions, self.departures)
        self.admissions: Final = Admissions(
            node, self.directory, self.access, self.quotas, resumptions, welcomes
        )
        self.status: Final = Status(node, self.directory)
        self.cluster: Final = Cluster(
            node,
            self.directory,
            self.revocations,
            self.quotas,
            resumptions,
            self.departures,
            self.status,
        )
        self.root: Final = self.directory.of("/")
        self.drain: Final = Drain(node, self.directory, self.departures)
        self.life: Final = Life()
        self._doors = doors
        # Set when a stop is done, for other callers of `stop`.
        self._stopped = asyncio.Event()
        # The server takes no more requests: the polls that wait now are the last.
        self.last_polls: bool = False
        # For the doors to call.
        self.find: Final = self.directory.find
        self.admit: Final = self.admissions.admit
        self.leave: Final = self.departures.leave
        self.dismiss: Final = self.departures.dismiss
        self.take_slot: Final = self.quotas.take_slot
        self.floods: Final = self.quotas.floods
        self.count_control: Final = self.quotas.count_control
        self.count_message: Final = self.quotas.count_message
        self.count_publish: Final = self.quotas.count_publish
        self.run_to_end: Final = node.run_to_end

    def _dismiss(self, socket: Socket, reason: str, code: CloseCode, error: EventError) -> None:
        self.departures.dismiss(socket, reason, code, error)

    def _expel(self, user: str) -> None:
        self.directory.expel(user)

    def _vacate(self, namespace: Namespace) -> None:
        self.directory.vacate(namespace)

    @property
    def settings(self) -> Settings:
        return self.node.settings

    @property
    def ticker(self) -> Ticker:
        return self.node.ticker

    # Life.

    @property
    def started(self) -> bool:
        return self.node.loop is not None

    @property
    def stopping(self) -> bool:
        return self.node.stopping

    @property
    def uptime(self) -> float:
        """Seconds since the hub started; 0 before."""
        return self.node.uptime

    async def start(self) -> None:
        """Start on the running event loop. Does nothing if it already runs there.

        Raises StartError if the broker cannot be used, or an `on_start` function fails.
        """
        node = self.node
        loop = asyncio.get_running_loop()
        if node.loop is loop:
            return
        if node.loop is not None and not node.loop.is_closed():
            raise RuntimeError("the hub runs on another event loop: stop it there first")
        with _needing_broker():
            await node.begin(loop, self.directory, self.cluster.hear, self.cluster.left)
        self.expiry.start(loop)
        self.last_polls = False
        self.quotas.start()
        self._doors.start(self)
        watch(loop)
        try:
            with _needing_broker():
                await self.cluster.start()
            await self.life.begin()
        except BaseException:
            await self._end(loop)
            raise

    async def stop(self) -> None:
        """Tell all clients, end their connections, finish what is being handled.

        At once, new clients are refused. The others are closed one after another over
        `drain_time`, and served until then. Returns within `shutdown_timeout` seconds; handlers
        that still run then are cancelled.
        """
        if self.node.loop is None:
            return
        if self.stopping:
            await self._stopped.wait()
            return
        await self._end(self.node.loop, self.life)

    async def _end(self, loop: asyncio.AbstractEventLoop, life: Life | None = None) -> None:
        """Stop; skip the `on_stop` functions if not all of `on_start` were called."""
        self.node.stopping = True
        self._stopped = asyncio.Event()
        deadline = loop.time() + self.settings.shutdown_timeout
        try:
            if life is not None:
                await life.end(self.settings.shutdown_timeout / 2)
            await self.life.end_tasks()
            await self.drain.run(loop, last_polls=self.last_polls)
            await self._doors.stop()
            await self.node.finish_tasks(deadline)
            # The tasks of disconnect handlers.
            await self.life.end_tasks()
        finally:
            unwatch(loop)
            await self.cluster.stop()
            self.expiry.stop()
            try:
                await self.node.end()
            finally:
                self._stopped.set()


@contextlib.contextmanager
def _needing_broker() -> Iterator[None]:
    """Raise StartError where the broker cannot be used: its text says what to do."""
    try:
        yield
    except BrokerUnavailable as error:
        raise StartError(f"the broker: {error}") from None
