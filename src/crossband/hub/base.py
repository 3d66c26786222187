"""The hub without its doors: namespaces, broker, admission and departure of sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import difflib
import functools
import itertools
import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, Unpack, overload
from weakref import WeakValueDictionary

import msgspec

from crossband.addresses import network_of
from crossband.auth import Identity
from crossband.broker import Broker, Publication, Session
from crossband.broker.memory import MemoryBroker
from crossband.codecs import Codec
from crossband.errors import (
    CloseCode,
    ConnectionRefused,
    EncodeError,
    EventError,
    Gap,
    InvalidName,
    RateLimited,
)
from crossband.hub.callables import check_callable, check_outcome
from crossband.hub.catchup import CatchUp, Turns
from crossband.hub.events import Handler, check_name
from crossband.hub.guard import Authenticate, Authorize, Guard
from crossband.hub.life import Life, LifeFunction
from crossband.hub.namespace import Namespace, NamespacePattern, Place, call
from crossband.hub.runner import Reserve, places
from crossband.hub.socket import FINAL_REASONS, Socket, cancelling
from crossband.hub.states import State
from crossband.hub.traffic import Traffic
from crossband.hub.watchdog import unwatch, watch
from crossband.limits import Limits
from crossband.names import is_socket_id, new_id
from crossband.rates import Buckets, Meter
from crossband.seats import Seats, TooManyConnections
from crossband.session import Connection, Handshake, Ticker
from crossband.settings import HubSettings, Settings

logger = logging.getLogger("crossband")

T = TypeVar("T")

_SESSION_KEY = re.compile(r"[A-Za-z0-9._-]{16,64}", re.ASCII)
# Seconds a client without a session, coming back with a cursor, waits for its connect
# handlers to join its rooms. Its events are held meanwhile; past it, it is told of a gap.
CONNECT_HANDLER_TIME = 5.0
# Seconds that the connect handlers of a client that is back wait for the disconnect handlers
# of its earlier connection, and these for their connect handlers. One that hangs must not keep
# the client from being served.
DEPARTURE_TIME = 5.0
# Seconds between two log lines about refused connections.
REFUSAL_LOG_TIME = 10.0
# Clients a second that a stopping hub sends away at least: so many at once are no rush
# anywhere, and a hub with few clients need not take its drain time.
DRAIN_PACE = 200
# Seconds ahead of the pace after which the drain sleeps: shorter sleeps cost more than they
# spread.
_DRAIN_STEP = 0.005
_FAREWELL = "Server shutting down"


@dataclass(frozen=True, slots=True)
class Resume:
    """What a client shows in order to be caught up."""

    # A session key; None when it has none to show.
    key: str | None = None
    # The last cursor it saw.
    cursor: str | None = None
    # The key was handed out by an earlier CONNECT (Socket.IO `pid`).
    returning: bool = False
    # A missing cursor means "nothing received yet", not "start anew": on Socket.IO the
    # welcome has none.
    unreceived: bool = False


@dataclass(slots=True, eq=False)
class Admission:
    """A client that was let in and is not welcomed yet: exactly one of `open`, `withdraw`."""

    socket: Socket
    # Where it continues; None when it starts anew.
    cursor: str | None
    # Why it could not continue; None when it could, or did not ask to.
    gap: str | None
    catch_up: CatchUp | None
    # The session it shows. The broker has it until all have agreed: a client that gives up
    # while it is examined takes nothing from its next attempt.
    session: Session | None
    # The rooms of that session, as it was seen last.
    rooms: frozenset[str]
    # How many there had been when it was asked who it is.
    revocations: int
    # The session was taken from the broker, to be put back if the client goes away.
    taken: bool = False


class BaseHub(Namespace):
    """All namespaces of one node; itself the namespace `/`."""

    # Set by `start`.
    reserve: Reserve
    turns: Turns

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        **settings: Unpack[HubSettings],
    ) -> None:
        # Before the namespace `/`, which shares it.
        self.traffic = Traffic()
        super().__init__(self, "/")
        self.settings = _settings(Settings(), settings)
        self.guard = Guard(self, authenticate, authorize)
        if isinstance(broker, str):
            if broker != "memory://":
                scheme = broker.partition(":")[0]
                raise ValueError(f"no broker for {scheme!r}: this version has 'memory://'")
            broker = None
        elif broker is not None and not isinstance(broker, Broker):
            raise TypeError(
                "Hub(broker) takes a Broker, such as MemoryBroker(), or 'memory://', not "
                + (f"the class {broker.__name__}" if isinstance(broker, type) else repr(broker))
            )
        # False when the hub makes its own from the settings.
        self._own_broker = broker is None
        self._broker: Broker | None = broker
        # Declared ones, and those of patterns while they have sockets.
        self.namespaces: dict[str, Namespace] = {"/": self}
        # Those of patterns: clients name them, so none outlives its clients.
        self._matched: WeakValueDictionary[str, Namespace] = WeakValueDictionary()
        self._patterns: list[NamespacePattern] = []
        # Admissions that have taken their session and are being answered, by namespace and key.
        self._opening: dict[tuple[str, str], Admission] = {}
        # The departures that are under way, by namespace and session: who comes back meanwhile
        # is greeted after them.
        self._departures: dict[tuple[str, str], asyncio.Task[None]] = {}
        # Numbers the attempts to come in.
        self._attempts = itertools.count()
        self._ack_ids = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._life = Life()
        # None until started; emits from other threads are sent to it.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._ticker: Ticker | None = None
        self._started_at = 0.0
        # The connections that are counted, and the rates that several of them share; made
        # when the hub starts.
        self.seats = Seats()
        self._user_rates: Buckets | None = None
        self._publish_rates: Buckets | None = None
        # When a refused connection was logged last.
        self._refusal_noted = -math.inf
        # Somebody stops the hub; for who else does meanwhile, until it is done.
        self.stopping = False
        self._stopped = asyncio.Event()
        # It takes too long: what is still being handled is cancelled.
        self.out_of_time = False
        # The server takes no further requests by then: polls that wait are the last.
        self.last_polls = False

    # Set-up.

    def configure(self, **settings: Unpack[HubSettings]) -> None:
        """Change settings before the hub starts.

        Raises ValueError for one that is unknown or does not fit, RuntimeError once started.
        """
        if self._loop is not None:
            raise RuntimeError("the hub is running: settings are fixed")
        self.settings = _settings(self.settings, settings)
        if self._own_broker:
            self._broker = None

    @property
    def broker(self) -> Broker:
        if self._broker is None:
            self._broker = MemoryBroker(
                history_size=self.settings.history_size,
                history_bytes=self.settings.history_bytes,
                history_age=self.settings.history_age,
            )
        return self._broker

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
        if not isinstance(name, str):
            if isinstance(name, re.Pattern):
                matches = _full_match(name)
            elif callable(name):
                # What an async one returns would be true for every name.
                check_callable(name, "of()", "name", plain=True)
                matches = name
            else:
                raise TypeError(
                    f"of() takes a name, a compiled pattern or a function, not {name!r}"
                )
            pattern = NamespacePattern(self, matches, plain=plain)
            self._patterns.append(pattern)
            return pattern
        if not name.startswith("/"):
            name = "/" + name
        namespace = self.find(name)
        if namespace is None:
            name = check_name(name, "a namespace name")
            namespace = self.namespaces[name] = Namespace(self, name, plain=plain)
        elif plain:
            namespace.plain = True
        return namespace

    def find(self, name: str) -> Namespace | None:
        """Return a declared namespace, making it if a pattern matches; else None."""
        namespace = self._known(name)
        if namespace is not None or not self._patterns:
            return namespace
        try:
            check_name(name, "a namespace name")
        except EncodeError:
            return None
        for pattern in self._patterns:
            try:
                matches = pattern.matches(name)
            except Exception:
                logger.exception("a pattern of namespaces failed on %r", name)
                continue
            if matches:
                namespace = Namespace(self, name, plain=pattern.plain, registry=pattern.registry)
                self._matched[name] = namespace
                return namespace
        return None

    def _known(self, name: str) -> Namespace | None:
        return self.namespaces.get(name) or self._matched.get(name)

    # Life.

    @property
    def started(self) -> bool:
        return self._loop is not None

    @property
    def uptime(self) -> float:
        """Seconds since the hub started; 0 before."""
        return time.monotonic() - self._started_at if self.started else 0.0

    @property
    def pace(self) -> Ticker | None:
        """What who publishes to several waits for: that full outboxes are written."""
        return self._ticker

    @property
    def ticker(self) -> Ticker:
        assert self._ticker is not None, "the hub is not started"
        return self._ticker

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
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("the hub runs on another event loop: stop it there first")
        await self.broker.start(self._deliver)
        self._loop = loop
        self._thread = threading.get_ident()
        self._ticker = Ticker(loop)
        self.reserve = Reserve(loop, self.run_to_end, self._tasks)
        self.turns = Turns(loop)
        self.guard.start(loop)
        self._started_at = time.monotonic()
        self.stopping = self.out_of_time = self.last_polls = False
        limits = self.settings.limits
        self.seats = Seats(
            total=limits.connections,
            per_address=limits.connections_per_address,
            per_user=limits.connections_per_user,
        )
        self._user_rates = self._buckets(limits.user_message_rate)
        self._publish_rates = self._buckets(limits.publish_rate)
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
        if self._loop is None:
            return
        if self.stopping:
            await self._stopped.wait()
            return
        await self._end(self._loop, self._life)

    async def _end(self, loop: asyncio.AbstractEventLoop, life: Life | None = None) -> None:
        """Stop; without the `on_stop` functions where not all of `on_start` were called."""
        self.stopping = True
        self._stopped = asyncio.Event()
        deadline = loop.time() + self.settings.shutdown_timeout
        try:
            if life is not None:
                await life.end(self.settings.shutdown_timeout / 2)
            await self._life.end_tasks()
            await self._drain(loop)
            await self._stop_doors()
            await self._finish_tasks(deadline)
            # Those of disconnect handlers.
            await self._life.end_tasks()
        finally:
            unwatch(loop)
            self.guard.stop()
            try:
                await self.broker.stop()
            finally:
                self._loop = None
                self._thread = None
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
                self._dismiss(connection, links.pop(connection))
        pause = self.drain_seconds(len(links)) / max(len(links), 1)
        due = loop.time()
        for connection, sockets in links.items():
            if not connection.closed:
                if due - loop.time() >= _DRAIN_STEP:
                    await asyncio.sleep(due - loop.time())
                due += pause
            self._dismiss(connection, sockets)

    def _dismiss(self, connection: Connection, sockets: Sequence[Socket]) -> None:
        for socket in sockets:
            if socket.connected:
                farewell = socket.codec.shutdown(socket.namespace.name, _FAREWELL)
                if farewell is not None:
                    connection.push(farewell)
                self.leave(socket, "server shutting down")
        connection.close(CloseCode.GOING_AWAY, _FAREWELL)

    async def _finish_tasks(self, deadline: float) -> None:
        me = asyncio.current_task()
        loop = asyncio.get_running_loop()
        try:
            # Before the others: a runner ends with its work from here on.
            await self.reserve.close()
            # A task may leave what is behind it to another one.
            while waiting := self._tasks - {me}:
                patience = max(0.0, deadline - loop.time())
                _, pending = await asyncio.wait(waiting, timeout=patience)
                if pending:
                    self._cancel(pending)
                    await asyncio.wait(pending, timeout=1.0)
                    return
        except asyncio.CancelledError:
            # The server has no more patience.
            self._cancel(self._tasks - {me})
            raise

    def _cancel(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        self.out_of_time = True
        tasks = list(tasks)
        if handlers := places(tasks):
            logger.warning("handlers did not end in time and are cancelled: %s", handlers)
        for task in tasks:
            task.cancel()

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
        return self._life.spawn(self._loop, coroutine, name)

    def run_to_end(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that `stop` waits for: what is being handled."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the hub failed", exc_info=error)

    def next_ack_id(self) -> int:
        return next(self._ack_ids)

    # Publishing.

    def post(
        self, publication: Publication, *, record: bool
    ) -> str | Awaitable[str | None] | concurrent.futures.Future[str | None] | None:
        """Hand a publication to the broker, on the hub's own thread."""
        loop = self._loop
        if loop is None or self._thread == threading.get_ident():
            return self.broker.publish(publication, record=record)
        outcome: concurrent.futures.Future[str | None] = concurrent.futures.Future()

        async def settle(pending: Awaitable[str | None]) -> None:
            try:
                outcome.set_result(await pending)
            except Exception as error:
                outcome.set_exception(error)

        def publish() -> None:
            # Who waited for the cursor may have given up; the event is published all the same.
            wanted = outcome.set_running_or_notify_cancel()
            try:
                cursor = self.broker.publish(publication, record=record)
            except Exception as error:
                if wanted:
                    outcome.set_exception(error)
                return
            if not wanted:
                return
            if cursor is None or isinstance(cursor, str):
                outcome.set_result(cursor)
            else:
                self.run_to_end(settle(cursor))

        loop.call_soon_threadsafe(publish)
        return outcome

    def _deliver(self, publication: Publication) -> None:
        namespace = self._known(publication.namespace)
        if namespace is not None:
            namespace.deliver(publication)

    # Limits.

    def _burst(self, rate: float) -> int:
        return max(1, round(rate * self.settings.limits.burst_time))

    def _buckets(self, rate: float) -> Buckets | None:
        return Buckets(rate, self._burst(rate)) if rate else None

    def seat(self, connection: Connection, address: str | None) -> None:
        """Count a connection, and meter it from here on. Raises TooManyConnections.

        Before anything else is done for it; whoever called this sees to `leave_seat`.
        """
        limits = self.settings.limits
        try:
            connection.seat = self.seats.take(None if address is None else network_of(address))
        except TooManyConnections as error:
            self.traffic.refused_request(error.code)
            self._note_refusal(error, address)
            raise
        rate, byte_rate = limits.message_rate, limits.byte_rate
        if rate or byte_rate or self._user_rates is not None:
            connection.meter = Meter(
                rate,
                self._burst(rate),
                byte_rate=byte_rate,
                # Or the largest message could never be sent.
                byte_burst=max(self._burst(byte_rate), limits.largest_message),
                quiet=limits.burst_time,
                flood_time=limits.flood_time,
            )

    def _note_refusal(self, error: TooManyConnections, address: str | None) -> None:
        # Once in a while: whoever is refused may try again at once, for ever.
        now = time.monotonic()
        if now >= self._refusal_noted + REFUSAL_LOG_TIME:
            self._refusal_noted = now
            logger.warning(
                "too many connections (limit of one %s: %d), the last from %s",
                error.scope,
                error.details["max"],
                address,
            )

    def _count_user(
        self, connection: Connection, user: str, namespace: Namespace, resume: Resume
    ) -> None:
        """Count a connection for its user too. Raises TooManyConnections."""
        live = None if resume.key is None else namespace.live(resume.key)
        # The connection that this one resumes is about to be closed.
        replaced = (
            live is not None
            and live.connection is not connection
            and live.identity is not None
            and live.identity.user == user
        )
        if connection.seat is not None:
            connection.seat.identify(user, leaving=int(replaced))
        if connection.meter is not None and self._user_rates is not None:
            connection.meter.shared = self._user_rates.of(user, time.monotonic())

    def count_message(self, user: str) -> None:
        """Count a message of a user that no connection counts. Raises RateLimited."""
        if self._user_rates is not None:
            _take(self._user_rates, user)

    def floods(self, connection: Connection) -> bool:
        """Tell whether a client goes on sending in spite of what is refused."""
        meter = connection.meter
        return meter is not None and meter.refused >= self.settings.limits.refusals

    def count_control(self, connection: Connection, size: int = 0) -> bool:
        """Count a message that is no event, as a ping; return whether the rate allows it."""
        meter = connection.meter
        if meter is None or not (wait := meter.take(time.monotonic(), size)):
            return True
        return connection.borrow(wait, size)

    def count_publish(self, publisher: str) -> None:
        """Count a request to publish over HTTP. Raises RateLimited."""
        if self._publish_rates is not None:
            _take(self._publish_rates, publisher)

    # Clients.

    async def admit(
        self,
        connection: Connection,
        name: str,
        handshake: Handshake,
        codec: Codec,
        *,
        resume: Resume,
        rooms: Sequence[str] = (),
    ) -> Admission:
        """Let a client into a namespace, or raise ConnectionRefused.

        Finds out who it is and runs the connect middlewares. Nothing is sent yet: the
        transport answers the client and calls `open`, or `withdraw` when the client is gone
        by then.
        """
        try:
            return await self._admit(connection, name, handshake, codec, resume=resume, rooms=rooms)
        except ConnectionRefused as error:
            self.traffic.refused(error, handshake, name)
            raise

    async def _admit(
        self,
        connection: Connection,
        name: str,
        handshake: Handshake,
        codec: Codec,
        *,
        resume: Resume,
        rooms: Sequence[str],
    ) -> Admission:
        if self.stopping:
            raise ConnectionRefused(code="shutting_down", status=503)
        attempt = next(self._attempts)
        identity = None
        revocations = self.guard.revocations
        if self.guard.authenticate is not None:
            identity = await self.guard.identify(handshake)
        namespace = self.find(name)
        if namespace is None:
            raise ConnectionRefused(code="invalid_namespace", status=404)
        if resume.key is not None and _SESSION_KEY.fullmatch(resume.key) is None:
            raise ConnectionRefused(
                "Invalid session: 16 to 64 characters of A-Z a-z 0-9 . _ -",
                code="invalid_request",
                status=400,
            )
        if len(rooms) > self.settings.limits.subscriptions:
            raise ConnectionRefused(
                f"A client may ask for {self.settings.limits.subscriptions} rooms",
                code="too_many_subscriptions",
            )
        if identity is not None:
            self._count_user(connection, identity.user, namespace, resume)
        admission = await self._resume(
            namespace, connection, handshake, codec, resume, identity, revocations, attempt
        )
        socket = admission.socket
        try:
            if socket.record.asked:
                await self._ask_again(socket)
            with _refusal("room"):
                for room in rooms:
                    if is_socket_id(room) and room != socket.id:
                        raise EncodeError("it belongs to another client")
                await socket.subscribe(*rooms)
            if namespace.registry.uses:
                await self._examine(socket, namespace.registry.uses)
            if socket.refused:
                raise ConnectionRefused("Disconnected by the application")
            if self.stopping:
                raise ConnectionRefused(code="shutting_down", status=503)
            await self._take(admission)
            socket.stage = State.ADMITTED
        except BaseException as error:
            self.withdraw(admission)
            if isinstance(error, ConnectionRefused):
                raise
            # Cancelled is also a middleware that awaited something that was.
            failed = isinstance(error, asyncio.CancelledError) and not cancelling()
            if not failed and not isinstance(error, Exception):
                raise
            if isinstance(error, EventError):
                refusal = ConnectionRefused(error.message, code=error.code, status=error.status)
                refusal.details.update(error.details)
                raise refusal from error
            if isinstance(error, InvalidName):
                raise ConnectionRefused(str(error), code="invalid_request", status=400) from error
            logger.exception("a client of namespace %r could not be let in", name)
            raise ConnectionRefused(code="internal_error", status=500) from error
        return admission

    async def _ask_again(self, socket: Socket) -> None:
        """Take a client that came back out of the rooms it may no longer hear."""
        for room in socket.record.asked:
            if not await self.guard.allows(socket.identity, "subscribe", room):
                await socket.leave(room)

    async def _examine(self, socket: Socket, uses: Sequence[Handler]) -> None:
        """Run the connect middlewares, which may take `handshake_time` together."""
        limit = self.settings.limits.handshake_time
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                for function in uses:
                    outcome = await call(function, socket)
                    if outcome is not None:
                        check_outcome(function, outcome)
        except TimeoutError:
            # A middleware may have let one of its own pass.
            if not timer.expired():
                raise
            logger.warning(
                "the connect middlewares of namespace %r took more than %g s",
                socket.namespace.name,
                limit,
            )
            raise ConnectionRefused(code="handshake_timeout", status=503) from None

    async def _find_place(
        self, namespace: Namespace, session: Session, offset: str
    ) -> tuple[str, list[Publication]]:
        """Return where a known client is that shows an offset which is no cursor of ours.

        It is what an unrecorded event ended in: the client had all that came before it. Of
        several such events it may be any, and so it is the first: an event may come twice, but
        none is lost. Raises Gap, also where that first one may be forgotten and others are not.
        """
        name, sid = namespace.name, session.sid
        places = namespace.places_of(offset, frozenset((sid, *session.rooms)))
        oldest = namespace.first_place
        try:
            # Or a cursor from before its pid: nothing came since it started.
            missed = await self.broker.history(name, session.cursor, sid)
        except Gap:
            if not places:
                raise
        else:
            # Those of the client that had the session, not of one before it.
            first = 0
            beyond = len(places)
            while first < beyond:
                middle = (first + beyond) // 2
                if await self._precedes(places[middle], session, missed):
                    first = middle + 1
                else:
                    beyond = middle
            del places[:first]
            if oldest is not None and await self._precedes(oldest, session, missed):
                # What was forgotten was before it, too.
                oldest = None
            if not places and oldest is None:
                return session.cursor, missed
        if oldest is not None:
            # What a client has answered to it has received, and since its last answer it has
            # been alive or away no longer than this. A place from before is not followed by a
            # forgotten one.
            settings = self.settings
            longest = settings.history_age + settings.ping_interval + settings.ping_timeout
            if not places or places[0].time > time.monotonic() - longest:
                raise Gap("expired")
        cursor = places[0].cursor
        return cursor, await self.broker.history(name, cursor, sid)

    async def _precedes(
        self, place: Place, session: Session, missed: Sequence[Publication]
    ) -> bool:
        """Tell whether a place is before a session's cursor, which `missed` is all that follows."""
        try:
            later = await self.broker.history(session.namespace, place.cursor, session.sid)
        except Gap:
            return True
        return len(later) > len(missed)

    async def _resume(
        self,
        namespace: Namespace,
        connection: Connection,
        handshake: Handshake,
        codec: Codec,
        resume: Resume,
        identity: Identity | None,
        revocations: int,
        attempt: int,
    ) -> Admission:
        user = None if identity is None else identity.user
        session: Session | None = None
        # The session is another user's.
        foreign = False
        gap: str | None = None
        catch_up: CatchUp | None = None
        cursor = resume.cursor
        if resume.key is not None:
            session = await self._find_session(namespace, resume.key)
            if session is not None and session.user != user:
                session, foreign = None, True
            if session is None and (cursor is not None or resume.returning):
                gap = "session"
            elif session is not None and cursor is None and (resume.returning or resume.unreceived):
                cursor = session.cursor
        rooms = frozenset[str]() if session is None else frozenset(session.rooms)
        if cursor is not None:
            hold = namespace.hold(connection, () if session is None else (session.sid, *rooms))
            sid = None if session is None else session.sid
            try:
                try:
                    missed = await self.broker.history(namespace.name, cursor, sid)
                except Gap as error:
                    if session is None or not resume.returning or error.reason != "unknown":
                        raise
                    cursor, missed = await self._find_place(namespace, session, cursor)
                if gap is None:
                    catch_up = CatchUp(missed, hold, cursor)
            except Gap as error:
                gap = error.reason
            finally:
                if catch_up is None:
                    namespace.unhold(hold)
        if session is not None and catch_up is not None:
            record = Session(
                session.namespace,
                session.key,
                session.sid,
                set(rooms),
                session.data,
                session.cursor,
                user,
                session.asked,
            )
        else:
            # A new pid tells a Socket.IO client that it was not recovered; a key the client
            # chose itself it will show again, whatever is answered.
            key = None if resume.returning or foreign else resume.key
            record = self._new_session(namespace, key, user)
            if session is not None and gap is not None and resume.cursor is None:
                # Until it shows the cursor of the gap, it may not have heard of it: cut in
                # between, it is told again.
                record.cursor = session.cursor
        socket = Socket(
            namespace,
            connection,
            codec,
            handshake,
            record,
            recovered=session is not None and catch_up is not None,
            identity=identity,
            attempt=attempt,
        )
        if catch_up is not None:
            # Its middlewares know its id from here on.
            catch_up.hold.ids = socket.rooms
        return Admission(socket, cursor, gap, catch_up, session, rooms, revocations)

    def _new_session(self, namespace: Namespace, key: str | None, user: str | None) -> Session:
        key = key if key is not None else secrets.token_urlsafe(24)
        return Session(
            namespace.name, key, new_id(), set(), {}, self.broker.head(namespace.name), user
        )

    async def _find_session(self, namespace: Namespace, key: str) -> Session | None:
        """Return a session that is kept, or that a client is being answered with just now."""
        opening = self._opening.get((namespace.name, key))
        if opening is not None:
            return opening.session
        return await self.broker.find_session(namespace.name, key)

    async def _take(self, admission: Admission) -> None:
        """Take the session that a client shows: of several attempts, the last one has it."""
        session = admission.session
        if session is None:
            return
        place = (session.namespace, session.key)
        live = admission.socket.namespace.live(session.key)
        if live is not None and live.attempt > admission.socket.attempt:
            # The client has come by another way meanwhile, and waits here no more.
            self._start_anew(admission)
            return
        earlier = self._opening.pop(place, None)
        if earlier is not None:
            # Its client is not answered yet, and starts anew if it is there to be.
            taken = earlier.session
            self._start_anew(earlier)
        else:
            taken = await self.broker.take_session(*place)
        if taken is None or taken.sid != session.sid:
            # Ended or revoked while this client was examined, or started anew by another.
            if taken is not None:
                self.broker.save_session(taken, connected=live is not None)
            self._start_anew(admission)
            return
        self._follow(admission, taken)
        admission.session, admission.taken = taken, True
        self._opening[place] = admission

    def _follow(self, admission: Admission, session: Session) -> None:
        """Take over what rooms a session has joined and left since it was looked at."""
        socket = admission.socket
        if socket.recovered:
            seen, now = admission.rooms, session.rooms
            socket.record.rooms.difference_update(seen - now)
            socket.record.rooms.update(now - seen)
            socket.record.asked |= session.asked & (now - seen)
        admission.rooms = frozenset(session.rooms)

    def _start_anew(self, admission: Admission) -> None:
        """Let a client in without the session it showed, which is no longer its own."""
        socket = admission.socket
        namespace = socket.namespace
        if admission.catch_up is not None:
            namespace.release(admission.catch_up)
        record = socket.record
        socket.record = self._new_session(namespace, None, record.user)
        if socket.recovered:
            # Those it joined while it was examined.
            socket.record.rooms = record.rooms - admission.rooms
            socket.record.asked = record.asked & socket.record.rooms
        else:
            socket.record.rooms = record.rooms
            socket.record.asked = record.asked
        socket.recovered = False
        admission.gap = "session"
        admission.catch_up = admission.session = None
        admission.taken = False

    def withdraw(self, admission: Admission) -> None:
        """Undo an admission: the client was refused, or left before its welcome."""
        socket = admission.socket
        self.traffic.cut(socket)
        socket.stage = State.GONE
        namespace = socket.namespace
        if admission.catch_up is not None:
            namespace.release(admission.catch_up)
        session = admission.session
        if session is None or not admission.taken:
            return
        self._opening.pop((session.namespace, session.key), None)
        live = namespace.live(session.key)
        if live is not None:
            # Its old connection, or somebody else who has taken up the key since.
            self.broker.save_session(live.record, connected=True)
        elif not self.guard.revoked_since(session.user, admission.revocations):
            self.broker.save_session(session, connected=False)

    def open(self, admission: Admission) -> None:
        """Welcome an admitted client: from here on it receives, in order, all it should."""
        socket = admission.socket
        namespace = socket.namespace
        session = admission.session
        if session is not None:
            self._opening.pop((session.namespace, session.key), None)
        # Whose departure the connect handlers wait for.
        earlier: list[asyncio.Task[None]] = []
        # The same client again, before its old connection was found dead.
        for key in {socket.session, *([session.key] if session is not None else [])}:
            live = namespace.live(key)
            if live is not None and live.record.user != socket.record.user:
                # Another user took up the key while it was out of the broker.
                socket.record.key = secrets.token_urlsafe(24)
                continue
            if live is not None:
                self._follow(admission, live.record)
                self.leave(live, "transport close", keep_session=False)
                live.connection.end_socket(
                    namespace.name, CloseCode.SESSION_TAKEN, "resumed elsewhere"
                )
            departure = self._departures.get((namespace.name, key))
            if departure is not None:
                earlier.append(departure)
        catch_up = admission.catch_up
        # A pattern's namespace may have emptied meanwhile, also just now.
        self.namespaces[namespace.name] = namespace
        socket.connected = True
        socket.stage = State.LIVE
        namespace.add(socket)
        if socket.identity is not None:
            self.guard.entered(socket)
        self.traffic.joined(socket, admission.gap)
        self.broker.save_session(socket.record, connected=True)
        head = self.broker.head(namespace.name)
        offset: str | None = head
        if catch_up is not None:
            offset = admission.cursor
        elif admission.gap is not None:
            # Until it is told of the gap, its cursor stays where it was.
            offset = None
        codec = socket.codec
        welcome = codec.welcome(
            namespace.name,
            sid=socket.id,
            session=socket.session,
            recovered=catch_up is not None,
            offset=offset,
        )
        if welcome is not None:
            socket.connection.push(welcome)
        if admission.gap is not None:
            notice = codec.gap(namespace.name, reason=admission.gap, offset=head)
            if notice is not None:
                socket.connection.push(notice)
        # Without a session, its rooms are those that the connect handlers will join.
        unknown = catch_up is not None and session is None and bool(namespace.registry.connect)
        if catch_up is not None:
            catch_up.socket = socket
            socket.catching = catch_up
            if not unknown:
                namespace.advance(socket)
        socket.welcomed()
        if namespace.registry.connect:
            socket.greeting = asyncio.get_running_loop().create_future()
            socket.begin(self._greet(socket, earlier, catch_up if unknown else None))
        self.guard.check_admitted(socket, admission.revocations)
        if socket.refused:
            self.part(socket, close=False)
        if self.stopping:
            # Let in before the hub stopped, and answered since: nobody else closes it.
            self._dismiss(socket.connection, [socket])

    async def _greet(
        self,
        socket: Socket,
        earlier: Sequence[asyncio.Task[None]],
        catch_up: CatchUp | None,
    ) -> None:
        """Run the connect handlers; then `catch_up`, if any, may begin."""
        timer = None
        if catch_up is not None:
            timer = asyncio.get_running_loop().call_later(
                CONNECT_HANDLER_TIME, self._connect_is_late, socket, catch_up
            )
        try:
            if earlier:
                _, late = await asyncio.wait(earlier, timeout=DEPARTURE_TIME)
                if late:
                    logger.warning(
                        "a disconnect handler takes more than %g s: %s is greeted before its end",
                        DEPARTURE_TIME,
                        socket,
                    )
            await socket.namespace.connected(socket)
        finally:
            socket.greeted()
            if timer is not None:
                timer.cancel()
                socket.namespace.advance(socket)

    def _connect_is_late(self, socket: Socket, catch_up: CatchUp) -> None:
        # After a stall of the loop timers come first: whoever was ready all along goes before.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._give_up_catching_up, socket, catch_up)

    def _give_up_catching_up(self, socket: Socket, catch_up: CatchUp) -> None:
        if socket.catching is not catch_up or catch_up.begun:
            return
        namespace = socket.namespace
        socket.catching = None
        namespace.release(catch_up)
        logger.warning(
            "a connect handler of namespace %r takes more than %g s: a client that came back "
            "is told of a gap",
            namespace.name,
            CONNECT_HANDLER_TIME,
        )
        self.traffic.gap("timeout")
        head = self.broker.head(namespace.name)
        notice = socket.codec.gap(namespace.name, reason="timeout", offset=head)
        if notice is not None:
            socket.connection.push(notice)

    def leave(self, socket: Socket, reason: str, *, keep_session: bool = True) -> None:
        """Take a socket out of its namespace, and keep its session if it may come back."""
        if not socket.connected:
            return
        socket.connected = False
        self.traffic.left(socket, reason)
        namespace = socket.namespace
        namespace.remove(socket)
        if socket.identity is not None:
            self.guard.left(socket)
        if keep_session and reason not in FINAL_REASONS:
            self.broker.save_session(socket.record, connected=False)
        else:
            self.broker.drop_session(namespace.name, socket.session)
        socket.left()
        socket.stage = State.GONE
        if namespace.registry.disconnect:
            socket.stage = State.LEAVING
            place = (namespace.name, socket.session)
            departure = self.run_to_end(self._depart(socket, reason, self._departures.get(place)))
            self._departures[place] = departure
            departure.add_done_callback(functools.partial(self._departed, place))
        if not namespace.sockets and self._matched.get(namespace.name) is namespace:
            self.namespaces.pop(namespace.name, None)

    async def _depart(
        self, socket: Socket, reason: str, earlier: asyncio.Task[None] | None
    ) -> None:
        """Run the disconnect handlers, not before the connect handlers have ended."""
        try:
            waits_for = [each for each in (earlier, socket.greeting) if each is not None]
            if waits_for:
                _, late = await asyncio.wait(waits_for, timeout=DEPARTURE_TIME)
                if late:
                    logger.warning(
                        "a connect handler takes more than %g s: the disconnect handlers run "
                        "before its end for %s",
                        DEPARTURE_TIME,
                        socket,
                    )
            await socket.namespace.disconnected(socket, reason)
        finally:
            socket.stage = State.GONE

    def _departed(self, place: tuple[str, str], departure: asyncio.Task[None]) -> None:
        if self._departures.get(place) is departure:
            del self._departures[place]

    def part(self, socket: Socket, *, close: bool) -> None:
        """Disconnect a socket from the server's side, for good."""
        if socket.stage in (State.CONNECTING, State.ADMITTED):
            socket.refused = True
            return
        name = socket.namespace.name
        if not socket.connected:
            # It was cut, and is to start anew if it comes back; not if it is back already.
            if socket.namespace.live(socket.session) is None:
                self.broker.drop_session(name, socket.session)
            return
        self.leave(socket, "server namespace disconnect")
        socket.connection.end_socket(
            name, CloseCode.DISCONNECTED, "server namespace disconnect", close=close
        )

    def refuse(self, socket: Socket, refusal: ConnectionRefused) -> None:
        """End a client that a connect handler refused, with the error it raised."""
        if not socket.connected:
            return
        self.traffic.refused(refusal, socket.handshake, socket.namespace.name)
        if refusal.status >= 500:
            # What passes: it may come back as itself.
            self.dismiss(socket, "forced close", CloseCode.TRY_AGAIN_LATER, refusal)
        else:
            self.dismiss(socket, "server namespace disconnect", CloseCode.DISCONNECTED, refusal)

    def dismiss(self, socket: Socket, reason: str, code: CloseCode, error: EventError) -> None:
        """Tell a client why it must go, and end it."""
        name = socket.namespace.name
        socket.connection.push(socket.codec.problem(name, error.to_dict(), None))
        self.leave(socket, reason)
        socket.connection.end_socket(name, code, error.message)

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


def _take(buckets: Buckets, key: str) -> None:
    now = time.monotonic()
    wait = buckets.of(key, now).take(now)
    if wait:
        raise RateLimited(wait)


def _full_match(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda name: pattern.fullmatch(name) is not None


@contextmanager
def _refusal(what: str) -> Iterator[None]:
    try:
        yield
    except EncodeError as error:
        raise ConnectionRefused(
            f"Invalid {what}: {error}", code="invalid_request", status=400
        ) from None


def _settings(base: Settings, changes: Mapping[str, Any]) -> Settings:
    known = {item.name: item for item in msgspec.structs.fields(Settings)}
    for name in changes:
        if name not in known:
            raise ValueError(f"unknown setting {name!r}{_hint(name, known)}")
    values = {name: changes.get(name, getattr(base, name)) for name in known}
    try:
        # Checks the types, and takes lists for tuples and dicts for limits.
        return msgspec.convert(values, Settings, from_attributes=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"invalid setting: {error}") from None


def _hint(name: str, known: Iterable[str]) -> str:
    limits = Limits.__struct_fields__
    near = difflib.get_close_matches(name, [*known, *limits], n=1)
    if not near:
        return ""
    found = f"limits={{{near[0]!r}: …}}" if near[0] in limits else repr(near[0])
    return f"; did you mean {found}?"


__all__ = ["Admission", "BaseHub", "Resume"]
