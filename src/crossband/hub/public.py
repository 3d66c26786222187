"""What applications call on a hub."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, Unpack, overload

from crossband.broker import Broker, Members
from crossband.handlers.registry import Handlers
from crossband.hub.access import Authenticate
from crossband.hub.core import Core
from crossband.hub.directory import NamespacePattern
from crossband.hub.emission import Emission
from crossband.hub.life import LifeFunction
from crossband.hub.namespace import Emitter, Namespace, Socket
from crossband.hub.others import ANSWER_TIME
from crossband.hub.remote import RemoteSocket
from crossband.settings import HubSettings, Settings, changed

T = TypeVar("T")


class PublicHub(Handlers):
    """A node's namespaces, its start and stop, and the methods of the namespace `/`."""

    def __init__(self, core: Core) -> None:
        super().__init__(core.root.registry)
        self._core = core
        self._root = core.root
        core.node.hub = self

    # Set-up.

    @property
    def settings(self) -> Settings:
        """The settings of the hub."""
        return self._core.node.settings

    def configure(self, **settings: Unpack[HubSettings]) -> None:
        """Change settings before the hub starts.

        Raises ValueError for an unknown setting or an unsuitable value, RuntimeError once
        started.
        """
        if self.started:
            raise RuntimeError("the hub is running: settings are fixed")
        self._core.node.configure(changed(self._core.node.settings, settings))

    @property
    def broker(self) -> Broker:
        """The broker, which orders and keeps publications."""
        return self._core.node.broker

    @property
    def authenticate(self) -> Authenticate | None:
        """The function that identifies clients. None if the hub does not ask."""
        return self._core.access.authenticate

    @property
    def namespaces(self) -> Mapping[str, Namespace]:
        """The declared namespaces, and those of patterns that have sockets, by name."""
        return MappingProxyType(self._core.directory.namespaces)

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
        return self._core.directory.of(name, plain=plain)

    # Life.

    @property
    def started(self) -> bool:
        """Whether the hub is running on an event loop."""
        return self._core.started

    @property
    def stopping(self) -> bool:
        """Whether the hub has begun to stop."""
        return self._core.stopping

    @property
    def uptime(self) -> float:
        """Seconds since the hub started; 0 before."""
        return self._core.uptime

    def on_start(self, function: LifeFunction) -> LifeFunction:
        """Call a function, plain or async, when the hub has started: `@hub.on_start`.

        It takes no arguments, and runs on the event loop before the first client is admitted;
        several run one after another. If one fails, the hub does not start: StartError.
        """
        return self._core.life.on_start(function)

    def on_stop(self, function: LifeFunction) -> LifeFunction:
        """Call a function, plain or async, when the hub begins to stop: `@hub.on_stop`.

        It takes no arguments, and runs on the event loop before the clients are closed; several
        run one after another, last first. A failure is logged. Together they have half of
        `shutdown_timeout`.
        """
        return self._core.life.on_stop(function)

    def spawn(
        self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        """Run a coroutine in the background, for as long as the hub runs.

        For work besides the clients, such as a ticker: the hub holds the task, logs its failure,
        and cancels it when the hub stops. Call it in a handler or an `on_start` function. Raises
        RuntimeError if the hub is not running, TypeError for anything but a coroutine.
        """
        return self._core.life.spawn(self._core.node.loop, coroutine, name)

    def sockets_of(self, user: str) -> list[Socket]:
        """Return the connected sockets of a user, in all namespaces of this node."""
        return self._core.expiry.sockets_of(user)

    async def revoke(self, user: str) -> int:
        """End a user's connections on every door and node; return how many there were.

        The user's sessions are dropped. As long as a node runs, tokens that say when they were
        issued (`iat`) are refused unless they are newer; only the last 10,000 users are
        remembered. A token without `iat` is accepted again: there `authenticate` must refuse the
        user. A node that is out of reach learns of it when it is back; after 7 s out of reach it
        accepts no tokens until it has (503, `unavailable`). Raises BrokerUnavailable if it could
        not be stored: then only this node knows of it.
        """
        return await self._core.revocations.revoke(user)

    # The namespace `/`.

    @property
    def name(self) -> str:
        """`/`, the name of the hub's own namespace."""
        return self._root.name

    @property
    def sockets(self) -> Mapping[str, Socket]:
        """The connected sockets of the namespace `/`, by id."""
        return self._root.sockets

    @property
    def rooms(self) -> Mapping[str, Collection[str]]:
        """The rooms of the namespace `/` and the ids in each; a snapshot."""
        return self._root.rooms

    def to(self, *rooms: str) -> Emitter:
        """Choose the sockets in any of these rooms (a socket's id is a room)."""
        return self._root.to(*rooms)

    in_ = to

    def except_(self, *rooms: str) -> Emitter:
        """Choose everybody except the sockets in these rooms."""
        return self._root.except_(*rooms)

    @property
    def volatile(self) -> Emitter:
        """Do not record the event, and drop it for clients that are behind."""
        return self._root.volatile

    def timeout(self, seconds: float) -> Emitter:
        """Wait this long for acknowledgements. As `Emitter.timeout`."""
        return self._root.timeout(seconds)

    def emit(self, event: str, *args: Any) -> Emission:
        """Publish an event to everybody in the namespace `/`. As `Emitter.emit`."""
        return self._root.emit(event, *args)

    async def emit_with_ack(self, event: str, *args: Any) -> list[Any]:
        """Send an event to everybody, gather the answers. As `Emitter.emit_with_ack`."""
        return await self._root.emit_with_ack(event, *args)

    def server_emit(self, event: str, *args: Any) -> None:
        """Send an event to the other servers. As `Namespace.server_emit`."""
        self._root.server_emit(event, *args)

    async def server_emit_with_ack(
        self, event: str, *args: Any, timeout: float = ANSWER_TIME
    ) -> list[Any]:
        """Ask the other servers. As `Namespace.server_emit_with_ack`."""
        return await self._root.server_emit_with_ack(event, *args, timeout=timeout)

    async def fetch_sockets(self) -> list[Socket | RemoteSocket]:
        """Return all sockets of the namespace `/`. As `Emitter.fetch_sockets`."""
        return await self._root.fetch_sockets()

    async def members(self, room: str) -> Members:
        """Return who is in a room of the namespace `/`. As `Namespace.members`."""
        return await self._root.members(room)

    async def sockets_join(self, *rooms: str) -> None:
        """Make all sockets join rooms."""
        await self._root.sockets_join(*rooms)

    async def sockets_leave(self, *rooms: str) -> None:
        """Make all sockets leave rooms."""
        await self._root.sockets_leave(*rooms)

    async def disconnect_sockets(self, close: bool = False) -> None:
        """Disconnect all sockets; with `close`, their whole connections."""
        await self._root.disconnect_sockets(close)
