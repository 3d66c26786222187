"""What is registered for a namespace, and the decorators that register it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Concatenate, Literal, TypeVar, overload

from crossband.handlers.callables import check_callable, is_async
from crossband.handlers.events import EventSchema, Handler
from crossband.handlers.presence import MemberFunction, PresenceRule, RoomNames
from crossband.names import REFRESH, RESERVED, check_event, check_name
from crossband.policies import KeyFunction, Policy

EventHandler = TypeVar("EventHandler", bound=Callable[Concatenate[Any, ...], Any])
# Handlers are called with the socket, whose annotation is theirs to choose, such as a subclass.
# Middlewares refuse by raising, so their types must not suggest that a returned value counts.
ConnectHandler = TypeVar("ConnectHandler", bound=Callable[[Any], object])
DisconnectHandler = TypeVar("DisconnectHandler", bound=Callable[[Any, str], object])
ServerHandler = TypeVar("ServerHandler", bound=Callable[..., Any])
Listener = TypeVar("Listener", bound=Callable[[Any, str, list[Any]], object])
Middleware = TypeVar("Middleware", bound=Callable[[Any], Awaitable[None] | None])
EventMiddleware = TypeVar(
    "EventMiddleware", bound=Callable[[Any, str, list[Any]], Awaitable[None] | None]
)


class Registry:
    """The handlers of one namespace, or of all namespaces that match a pattern."""

    __slots__ = (
        "any",
        "concurrent",
        "connect",
        "direct",
        "disconnect",
        "event_uses",
        "events",
        "policies",
        "presence",
        "server",
        "uses",
    )

    def __init__(self) -> None:
        self.events: dict[str, EventSchema] = {}
        # The events without middlewares or listeners in front: either all of them or none.
        self.direct: dict[str, EventSchema] = self.events
        # The events that do not wait for earlier ones.
        self.concurrent: set[str] = {REFRESH}
        self.connect: list[Handler] = []
        self.disconnect: list[Handler] = []
        self.any: list[Handler] = []
        self.uses: list[Handler] = []
        self.event_uses: list[Handler] = []
        # Events that other servers send, by name.
        self.server: dict[str, EventSchema] = {}
        # By event. For all other events, slow clients are disconnected.
        self.policies: dict[str, Policy] = {}
        # Rooms that show who is in them.
        self.presence: list[PresenceRule] = []


class Handlers:
    """The decorators that namespaces and patterns of namespaces share."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def events(self) -> Mapping[str, EventSchema]:
        """The events clients may send here, by name, with their schemas."""
        return MappingProxyType(self._registry.events)

    @overload
    def on(self, event: Literal["connect"]) -> Callable[[ConnectHandler], ConnectHandler]: ...
    @overload
    def on(
        self, event: Literal["disconnect"]
    ) -> Callable[[DisconnectHandler], DisconnectHandler]: ...
    @overload
    def on(
        self, event: str, *, concurrent: bool = False, cancel_on_disconnect: bool = False
    ) -> Callable[[EventHandler], EventHandler]: ...
    @overload
    def on(
        self,
        event: str,
        handler: EventHandler,
        *,
        concurrent: bool = False,
        cancel_on_disconnect: bool = False,
    ) -> EventHandler: ...
    def on(
        self,
        event: str,
        handler: Any = None,
        *,
        concurrent: bool = False,
        cancel_on_disconnect: bool = False,
    ) -> Any:
        """Handle an event: `handler(socket, *payload)`, plain or async.

        The annotations of the payload arguments are the event's schema; the return value is the
        acknowledgement. `connect` handlers get the socket once its client has been welcomed,
        and may raise ConnectionRefused to disconnect it; `disconnect` handlers get the socket
        and the reason as soon as it leaves. Plain functions run on the event loop and must not
        block.

        A client's events are handled one after another, but while a handler waits for an
        acknowledgement from its own client, the next event begins. A `concurrent` event neither
        waits for other events nor holds them up. With `cancel_on_disconnect` an async handler
        is cancelled when its client leaves. Raises ValueError if the event has a handler,
        TypeError for a handler that cannot be called this way.
        """
        if not isinstance(event, str):
            raise TypeError('on() takes the event\'s name first: @hub.on("chat:message")')
        if handler is None:
            return lambda function: self.on(
                event,
                function,
                concurrent=concurrent,
                cancel_on_disconnect=cancel_on_disconnect,
            )
        if event in ("connect", "disconnect") and (concurrent or cancel_on_disconnect):
            raise ValueError(f"{event!r} is not sent by clients: it takes only a handler")
        if event == "connect":
            check_callable(handler, 'on("connect")', "socket")
            self._registry.connect.append(handler)
        elif event == "disconnect":
            check_callable(handler, 'on("disconnect")', "socket", "reason")
            self._registry.disconnect.append(handler)
        else:
            event = check_name(event, "an event name")
            if event in RESERVED:
                raise ValueError(f"{event!r} is a reserved event name")
            if event in self._registry.events:
                raise ValueError(f"{event!r} has a handler already")
            if cancel_on_disconnect and not is_async(handler):
                raise TypeError(
                    f"the handler of {event!r} is not async: it cannot be cancelled when its "
                    "client leaves (cancel_on_disconnect)"
                )
            schema = EventSchema(event, _bound(handler) if cancel_on_disconnect else handler)
            self._registry.events[event] = schema
            if concurrent:
                self._registry.concurrent.add(event)
        return handler

    def on_any(self, handler: Listener) -> Listener:
        """Listen to every event before its handler: `handler(socket, event, args)`.

        Raises TypeError for a listener that cannot be called this way.
        """
        check_callable(handler, "on_any()", "socket", "event", "args")
        self._registry.any.append(handler)
        self._registry.direct = {}
        return handler

    def on_server(self, event: str) -> Callable[[ServerHandler], ServerHandler]:
        """Handle an event that another server sends with `server_emit`: `handler(*payload)`.

        As `on`, but there is no client: the handler takes the payload only, whose annotations
        are its schema. What it returns is the answer to `server_emit_with_ack`. Handlers start
        in the order in which a server sent the events, and do not wait for each other. Clients
        cannot send these events. Raises ValueError if the event has a handler, TypeError for a
        handler that cannot be called this way.
        """
        if not isinstance(event, str):
            raise TypeError('on_server() takes the event\'s name: @hub.on_server("cache:clear")')
        event = check_name(event, "an event name")

        def register(handler: ServerHandler) -> ServerHandler:
            if event in self._registry.server:
                raise ValueError(f"{event!r} has a handler for servers already")
            self._registry.server[event] = EventSchema(event, handler, socket=False)
            return handler

        return register

    def policy(
        self,
        event: str,
        policy: Literal["disconnect", "drop_oldest", "latest"],
        *,
        key: KeyFunction | None = None,
    ) -> None:
        """Choose what happens to an event for clients that are behind.

        `disconnect`, the default: a client whose outbox is full is disconnected, and resumes
        from its cursor. `drop_oldest`: the oldest queued events are dropped. `latest`: only the
        newest is kept, or with `key(*payload)` the newest for each key, a string or an integer.
        An event whose policy drops is not recorded and carries no cursor.
        Raises ValueError, TypeError, or EncodeError for an unusable name.
        """
        event = check_event(event)
        if event in self._registry.policies:
            raise ValueError(f"{event!r} has a policy already")
        self._registry.policies[event] = Policy(event, policy, key)

    def presence(
        self,
        rooms: RoomNames,
        *,
        member: MemberFunction | None = None,
        grace: float | None = None,
    ) -> None:
        """Show who is in some rooms: a room, all that a pattern or function matches.

        Their clients get `presence:join` and `presence:leave`, and may ask for the members, as
        `members` returns them. A client shows as its user, or, if it is anonymous, as its socket
        id; `member(socket)` may return another `Member`, with info for others to see, or None
        for a client that does not show. It is called when the client connects and whenever its
        rooms change; see `Socket.update_presence`.

        A client whose connection was cut stays for `grace` seconds, so that nobody sees it leave
        if it comes back in time; by default as the setting `presence_grace` says, and no longer
        than its session is kept. If a client is in rooms with different times, the longest
        counts. The first declaration that matches a room decides; after those, the setting
        `presence`. Raises TypeError, ValueError, or EncodeError for an unusable name.
        """
        self._registry.presence.append(PresenceRule(rooms, member, grace))

    def use(self, middleware: Middleware) -> Middleware:
        """Check every client before it is admitted: `middleware(socket)`.

        It raises ConnectionRefused to refuse the client; returning False is a mistake, and
        admits nobody. Raises TypeError for a middleware that cannot be called this way or would
        not run, such as a generator function or a class.
        """
        check_callable(middleware, "use()", "socket")
        self._registry.uses.append(middleware)
        return middleware

    def use_event(self, middleware: EventMiddleware) -> EventMiddleware:
        """Check every event before its handler: `middleware(socket, event, args)`.

        It raises EventError to refuse the event, and the sender gets that error. Raises
        TypeError, as `use` does.
        """
        check_callable(middleware, "use_event()", "socket", "event", "args")
        self._registry.event_uses.append(middleware)
        self._registry.direct = {}
        return middleware


def _bound(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def run(socket: Any, *args: Any) -> Any:
        return await socket.bind(handler(socket, *args))

    return run
