"""The hub without its doors: its parts, put together, started and stopped."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar, Unpack, overload

from crossband.broker import Broker
from crossband.errors import CloseCode, EventError
from crossband.hub.admission import Admissions
from crossband.hub.departures import Departures
from crossband.hub.directory import Directory
from crossband.hub.guard import Authenticate, Authorize, Guard
from crossband.hub.life import Life, LifeFunction
from crossband.hub.namespace import Namespace, NamespacePattern
from crossband.hub.node import Node
from crossband.hub.quotas import Quotas
from crossband.hub.socket import Socket
from crossband.hub.watchdog import unwatch, watch
from crossband.session import Connection, Ticker
from crossband.settings import HubSettings, Settings, changed

T = TypeVar("T")

# Clients a second that a stopping hub sends away at least: so many at once are no rush
# anywhere, and a hub with few clients need not take its drain time.
DRAIN_PACE = 200
# Seconds ahead of the pace after which the drain sleeps: shorter sleeps cost more than they
# spread.
_DRAIN_STEP = 0.005


class BaseHub(Namespace):
    """All namespaces of one node; itself the namespace `/`."""

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        **settings: Unpack[HubSettings],
    ) -> None:
        node = self.node = Node(broker, changed(Settings(), settings))
        self.guard = Guard(node, authenticate, authorize, self._dismiss)
        self.departures = Departures(node, self.guard, self._vacate)
        self.directory = Directory(node, self.guard, self.departures)
        self.quotas = Quotas(node)
        self.admissions = Admissions(node, self.directory, self.guard, self.quotas, self.departures)
        super().__init__(node, self.guard, self.departures, "/")
        self.directory.namespaces["/"] = self
        self._life = Life()
        # For who else stops the hub meanwhile, until it is done.
        self._stopped = asyncio.Event()
        # The server takes no further requests by then: polls that wait are the last.
        self.last_polls = False
        # What the doors call.
        self.find = self.directory.find
        self.admit = self.admissions.admit
        self.open = self.admissions.open
        self.withdraw = self.admissions.withdraw
        self.leave = self.departures.leave
        self.dismiss = self.departures.dismiss
        self.seat = self.quotas.seat
        self.floods = self.quotas.floods
        self.count_control = self.quotas.count_control
        self.count_message = self.quotas.count_message
        self.count_publish = self.quotas.count_publish
        self.run_to_end = node.run_to_end

    def _dismiss(self, socket: Socket, reason: str, code: CloseCode, error: EventError) -> None:
        self.departures.dismiss(socket, reason, code, error)

    def _vacate(self, namespace: Namespace) -> None:
        self.directory.vacate(namespace)

    # Set-up.

    @property
    def settings(self) -> Settings:
        return self.node.settings

    def configure(self, **settings: Unpack[HubSettings]) -> None:
        """Change settings before the hub starts.

        Raises ValueError for one that is unknown or does not fit, RuntimeError once started.
        """
        if self.started:
            raise RuntimeError("the hub is running: settings are fixed")
        self.node.configure(changed(self.node.settings, settings))

    @property
    def broker(self) -> Broker:
        return self.node.broker

    @property
    def namespaces(self) -> Mapping[str, Namespace]:
        """The declared namespaces, and those of patterns while they have sockets, by name."""
        return self.directory.namespaces

    @overload
    def of(self, name: str, *, plain: bool = False) -> Namespace: ...
    @overload
    def of(
        self, name: re.Pattern[str] | Callable[[str], bool], *, plain: bool = False
    ) -> NamespacePattern: ...
    def of(
        self, name: str | re.Pattern[str] | Callable[[str], bool], *, plain: bool = False
    ) -> Namespace | NamespacePattern:
        """Return a namespace by name, or declare all that a pattern or function matches.

        `plain` makes the raw WebSocket door speak bare text and binary frames there, as
        `message` events, and event streams carry text as it is. Raises EncodeError for an
        unusable name, TypeError for a function that is async or does not take the name.
        """
        return self.directory.of(name, plain=plain)

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

    def on_start(self, function: LifeFunction) -> LifeFunction:
        """Call a function, plain or async, when the hub has started: `@hub.on_start`.

        It takes no argument, and runs on the event loop before the first client is let in;
        several run one after another. If one fails, the hub does not start: StartError.
        """
        return self._life.on_start(function)

    def on_stop(self, function: LifeFunction) -> LifeFunction:
        """Call a function, plain or async, when the hub begins to stop: `@hub.on_stop`.

        It takes no argument, and runs on the event loop before the clients are sent away;
        several run one after another, the last one first. A failure is logged. They have half
        of `shutdown_timeout` together.
        """
        return self._life.on_stop(function)

    async def start(self) -> None:
        """Start on the running event loop. Does nothing when started there.

        Raises StartError when an `on_start` function fails.
        """
        node = self.node
        loop = asyncio.get_running_loop()
        if node.loop is loop:
            return
        if node.loop is not None and not node.loop.is_closed():
            raise RuntimeError("the hub runs on another event loop: stop it there first")
        await node.begin(loop, self.directory.deliver)
        self.guard.start(loop)
        self.last_polls = False
        self.quotas.start()
        self._start_doors(loop)
        watch(loop)
        try:
            await self._life.begin()
        except BaseException:
            await self._end(loop)
            raise

    async def stop(self) -> None:
        """Tell all clients, end their connections, finish what is being handled.

        Newcomers are refused at once; the clients go one after another over `drain_time`, each
        served until its turn. Returns within `shutdown_timeout` seconds; what still runs then is
        cancelled.
        """
        if self.node.loop is None:
            return
        if self.stopping:
            await self._stopped.wait()
            return
        await self._end(self.node.loop, self._life)

    async def _end(self, loop: asyncio.AbstractEventLoop, life: Life | None = None) -> None:
        """Stop; without the `on_stop` functions where not all of `on_start` were called."""
        self.node.stopping = True
        self._stopped = asyncio.Event()
        deadline = loop.time() + self.settings.shutdown_timeout
        try:
            if life is not None:
                await life.end(self.settings.shutdown_timeout / 2)
            await self._life.end_tasks()
            await self._drain(loop)
            await self._stop_doors()
            await self.node.finish_tasks(deadline)
            # Those of disconnect handlers.
            await self._life.end_tasks()
        finally:
            unwatch(loop)
            self.guard.stop()
            try:
                await self.node.end()
            finally:
                self._stopped.set()

    def drain_seconds(self, clients: int) -> float:
        """Return how long so many clients are spread over when the hub stops."""
        settings = self.settings
        return min(settings.drain_time, settings.shutdown_timeout / 2, clients / DRAIN_PACE)

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send the clients away, one after another."""
        links: dict[Connection, list[Socket]] = {}
        for namespace in list(self.namespaces.values()):
            for socket in namespace.sockets.values():
                links.setdefault(socket.connection, []).append(socket)
        if self.last_polls:
            for connection in [link for link in links if link.transport == "polling"]:
                self.departures.send_away(connection, links.pop(connection))
        pause = self.drain_seconds(len(links)) / max(len(links), 1)
        due = loop.time()
        for connection, sockets in links.items():
            if not connection.closed:
                if due - loop.time() >= _DRAIN_STEP:
                    await asyncio.sleep(due - loop.time())
                due += pause
            self.departures.send_away(connection, sockets)

    def _start_doors(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start what the doors need; the ASGI hub has them."""

    async def _stop_doors(self) -> None:
        """End all connections."""

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        """Run a coroutine in the background, for as long as the hub runs.

        For what goes on beside the clients, such as a ticker: the hub holds the task, logs its
        failure, and cancels it when it stops. Call it in a handler or an `on_start` function.
        Raises RuntimeError while the hub does not run, TypeError for what is no coroutine.
        """
        return self._life.spawn(self.node.loop, coroutine, name)

    def sockets_of(self, user: str) -> list[Socket]:
        """Return the connected sockets of a user, in all namespaces of this node."""
        return self.guard.sockets_of(user)

    async def revoke(self, user: str) -> int:
        """End all connections of a user, on every door; return how many there were.

        The user's sessions are forgotten, and its tokens that say when they were issued
        (`iat`) and are not newer are refused from now on, while this process runs. A token
        without `iat` is let in again: there `authenticate` must refuse the user.
        """
        return await self.guard.revoke(user)
