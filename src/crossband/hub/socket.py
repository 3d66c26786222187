"""One client in one namespace: its rooms, its ordered inbox, its acknowledgements."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from crossband.auth import Action, Identity
from crossband.broker import Publication, Session
from crossband.codecs import PLAIN, Codec, Wire
from crossband.errors import (
    AckTimeout,
    CrossbandError,
    Disconnected,
    EncodeError,
    EventError,
    InvalidMessage,
    InvalidName,
    UnknownEvent,
)
from crossband.hub.emitter import ACK_TIMEOUT, Emission, Emitter, check_seconds
from crossband.hub.runner import Started
from crossband.hub.states import State
from crossband.names import NAME_LENGTH, check_event, check_name
from crossband.protocol import payload
from crossband.protocol.payload import Payload
from crossband.protocol.socketio import is_number
from crossband.session import Acks, Connection, Handshake

if TYPE_CHECKING:
    from crossband.hub.catchup import CatchUp
    from crossband.hub.namespace import Namespace

logger = logging.getLogger("crossband")

# Reasons of ours for a disconnect, beside those of Socket.IO.
EXPIRED = "token expired"
REVOKED = "token revoked"
# Reasons after which the client is not expected back: its session is dropped.
FINAL_REASONS = frozenset({"client namespace disconnect", "server namespace disconnect", REVOKED})
# What most handlers return; asking whether another type is awaitable takes its time.
_DATA = frozenset({type(None), dict, list, tuple, str, int, float, bool, bytes})
# What a step gives that did not end.
_WAITING: Final = object()
# How many times its inbox a client may fill while it owes an acknowledgement: a handler may
# wait for the answer, and that stands behind the events the client sent before it.
ACK_INBOX = 8


class Incoming:
    """An event a client sent, undecoded.

    Its answer goes to `reply` where there is one (the SSE back-channel), else to the
    socket's connection, under `ack_id`.
    """

    __slots__ = ("ack_id", "attachments", "event", "raws", "reply", "single")

    def __init__(
        self,
        event: str,
        raws: Sequence[msgspec.Raw],
        attachments: Sequence[bytes] = (),
        ack_id: int | None = None,
        reply: Callable[[Payload | EventError], None] | None = None,
        single: bool = False,
    ) -> None:
        self.event = event
        self.raws = raws
        self.attachments = attachments
        self.ack_id = ack_id
        self.reply = reply
        # The door carries one value: an array may stand for several arguments.
        self.single = single

    @property
    def size(self) -> int:
        """Bytes of what the client sent as arguments."""
        return sum(map(len, self.raws)) + sum(map(len, self.attachments))

    def decode(self) -> list[Any]:
        """Return the arguments as builtins, for listeners without a schema."""
        args = [msgspec.json.decode(raw) for raw in self.raws]
        if self.attachments:
            args = payload.reconstruct(args, self.attachments)
        return args


# In the context of a handler, and of the tasks it starts: which turn of its socket it has. That
# is its coroutine, or an object of its own; only its identity counts.
_own_turn: Final[ContextVar[object]] = ContextVar("crossband.turn", default=None)


class Socket:
    """A client in a namespace, on whatever transport.

    `id` is public (20 characters); `session` is the client's secret for coming back. `data`
    is the application's own, and survives a recovery, as the rooms do.
    """

    __slots__ = (
        "__weakref__",
        "_acks",
        "_beside",
        "_early",
        "_ending",
        "_going_on",
        "_inbox",
        "_inbox_size",
        "_space",
        "_turn",
        "attempt",
        "catching",
        "codec",
        "connected",
        "connection",
        "greeting",
        "handshake",
        "identity",
        "namespace",
        "record",
        "recovered",
        "refused",
        "stage",
    )

    def __init__(
        self,
        namespace: Namespace,
        connection: Connection,
        codec: Codec,
        handshake: Handshake,
        record: Session,
        *,
        recovered: bool,
        identity: Identity | None = None,
        attempt: int = 0,
    ) -> None:
        self.namespace = namespace
        self.connection = connection
        self.codec = codec
        self.handshake = handshake
        # What the broker keeps of this client; the rooms and data here are the live ones.
        self.record = record
        # The client came back as itself: same id, rooms and data, nothing lost.
        self.recovered = recovered
        # Who it is, by the last token it showed. None where nobody asked, and for anonymous
        # clients.
        self.identity = identity
        # By which several attempts of one client are told apart: the later, the higher.
        self.attempt = attempt
        # LIVE from the welcome until it leaves: `state` tells more.
        self.stage = State.CONNECTING
        self.connected = False
        # The application disconnected it before it was let in.
        self.refused = False
        # Resolved when its connect handlers have ended. None where none runs or waits to.
        self.greeting: asyncio.Future[None] | None = None
        # None unless the client still has recorded events coming before live ones.
        self.catching: CatchUp | None = None
        # None until the first emit_with_ack.
        self._acks: Acks | None = None
        # None until the first event; what waits for the worker.
        self._inbox: deque[Incoming | Coroutine[Any, Any, None]] | None = None
        # Bytes of the events in it.
        self._inbox_size = 0
        # What waits is being begun: nobody else need do that.
        self._going_on = False
        # Whose turn it is: what comes meanwhile goes into the inbox. None: nobody's.
        self._turn: object = None
        # The number of handlers that run beside the one whose turn it is.
        self._beside = 0
        # Tasks that end with the client. None until the first of them.
        self._ending: set[asyncio.Task[Any]] | None = None
        # What is emitted to it before its welcome. None after that, and if nothing is.
        self._early: list[tuple[str, tuple[Any, ...]]] | None = None
        # None unless the transport waits for the inbox to empty.
        self._space: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<Socket {self.id} in {self.namespace.name!r} over {self.transport}>"

    def __str__(self) -> str:
        who = "" if self.identity is None else f" of user {self.identity.user!r}"
        address = self.handshake.address or "a unix socket"
        return f"{self.id}{who} in {self.namespace.name!r} over {self.transport} from {address}"

    @property
    def state(self) -> State:
        """Where this client is between its first byte and its last."""
        if self.stage is not State.LIVE:
            return self.stage
        if self.catching is not None and self.catching.begun:
            return State.CATCHING_UP
        return State.LIVE if self.greeting is None else State.WELCOMED

    @property
    def id(self) -> str:
        return self.record.sid

    @property
    def session(self) -> str:
        return self.record.key

    @property
    def data(self) -> dict[str, Any]:
        return self.record.data

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms this socket is in, that of its own id included."""
        return frozenset((self.record.sid, *self.record.rooms))

    @property
    def transport(self) -> str:
        """The current transport: "websocket", "polling" or "sse"."""
        return self.connection.transport

    async def join(self, *rooms: str) -> None:
        """Join rooms. Raises EventError past the limit, EncodeError for an unusable name."""
        own = self.record.rooms
        for room in rooms:
            room = check_name(room, "a room name")
            if room == self.id or room in own:
                continue
            limit = self.namespace.node.settings.limits.rooms
            # The room of its own id counts.
            if len(own) + 1 >= limit:
                raise EventError(f"A client may be in {limit} rooms", code="too_many_rooms")
            own.add(room)
            if self.connected:
                self.namespace.enter(self, room)
        if self.connected:
            self.namespace.node.broker.save_session(self.record, connected=True)

    async def subscribe(self, *rooms: str) -> None:
        """Join rooms at the client's own wish: as `join`, if `authorize` allows it.

        The hub asks again when the client shows a new token or comes back, and makes it leave
        what it may no longer hear. Rooms that were joined by `join` it never asks about.
        Raises EventError (`forbidden`) before any of them is joined.
        """
        await self.authorize("subscribe", *rooms)
        await self.join(*rooms)
        if self.namespace.guard.authorize is not None:
            self.record.asked = self.record.asked.union(rooms)

    async def authorize(self, action: Action, *rooms: str | None) -> None:
        """Ask `Hub(authorize=…)` about an action, "subscribe" or "publish", on rooms.

        The room None is the whole namespace. Raises EventError (`forbidden`) for the first
        that is not allowed.
        """
        for room in rooms:
            await self.namespace.guard.demand(self.identity, action, room)

    async def leave(self, *rooms: str) -> None:
        """Leave rooms; nothing happens for those it is not in."""
        if self.record.asked:
            self.record.asked = self.record.asked.difference(rooms)
        for room in rooms:
            if room in self.record.rooms:
                self.record.rooms.discard(room)
                self.namespace.exit(self, room)
        if self.connected:
            self.namespace.node.broker.save_session(self.record, connected=True)

    def emit(self, event: str, *args: Any) -> Emission:
        """Send an event to this client. As `Emitter.emit`; recorded, so that it is resumable.

        Awaited, it waits for room in the client's outbox. What is emitted before the welcome
        (in a connect middleware) follows it, and has no cursor yet: None.
        """
        if self.stage in (State.CONNECTING, State.ADMITTED):
            check_event(event)
            # Encoded now, to fail where it was called.
            payload.encode(args)
            if self._early is None:
                self._early = []
            self._early.append((event, args))
            return Emission(None)
        return self.namespace.publish(event, args, (self.id,), (), False)

    @property
    def roomy(self) -> bool:
        """Whether who writes to this client alone need not wait."""
        return self.connection.roomy and (self.catching is None or not self.catching.begun)

    async def room(self) -> None:
        """Wait for room in the outbox, or until the client has left.

        Behind what the client still has to catch up with there is none.
        """
        catching = self.catching
        if catching is not None and catching.begun:
            await catching.ended()
        if self.connected:
            await self.connection.room()

    async def emit_with_ack(self, event: str, *args: Any, timeout: float = ACK_TIMEOUT) -> Any:
        """Send an event to this client and return its acknowledgement.

        One value is returned as it is, several as a list. Not recorded. Raises AckTimeout
        after `timeout` seconds and Disconnected when the client leaves first.
        """
        if not self.connected:
            raise Disconnected("the client has left")
        event = check_event(event)
        ack_id = self.namespace.node.next_ack_id()
        publication = Publication(self.namespace.name, event, payload.encode(args))
        wire = self.codec.event(publication, ack_id=ack_id)
        answer = self.expect_ack(ack_id)
        self.ask(wire)
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise AckTimeout(f"no acknowledgement of {event!r} within {timeout:g} s") from None
        finally:
            self.forget_ack(ack_id)

    def timeout(self, seconds: float) -> Deadline:
        """Wait this long for the acknowledgement: `socket.timeout(5).emit_with_ack(…)`."""
        check_seconds(seconds)
        return Deadline(self, seconds)

    @property
    def volatile(self) -> Emitter:
        """Send to this client without recording, and not at all if it is behind."""
        return Emitter(self.namespace, (self.id,), volatile=True)

    @property
    def broadcast(self) -> Emitter:
        """Choose everybody in the namespace but this client."""
        return Emitter(self.namespace, except_=(self.id,))

    def to(self, *rooms: str) -> Emitter:
        """Choose the sockets in any of these rooms, but this one."""
        return self.broadcast.to(*rooms)

    in_ = to

    def except_(self, *rooms: str) -> Emitter:
        """Choose everybody but this client and those in these rooms."""
        return self.broadcast.except_(*rooms)

    async def disconnect(self, close: bool = False) -> None:
        """Disconnect this client for good; with `close`, its whole connection.

        Official clients and Crossband's do not come back by themselves after this. Before its
        welcome the client is refused; one that was cut starts anew if it comes back.
        """
        self.namespace.departures.part(self, close=close)

    # What follows is for the transports.

    def expect_ack(self, ack_id: int) -> asyncio.Future[Any]:
        """Return the future of an answer. Raises CrossbandError where there can be none."""
        if self.codec is PLAIN:
            raise CrossbandError("a plain namespace has no acknowledgements")
        if self._acks is None:
            self._acks = Acks(limit=self.namespace.node.settings.limits.pending_acks)
        answer = self._acks.expect(ack_id)
        if self._space is not None and not self.crowded:
            self._space.set()
        return answer

    def forget_ack(self, ack_id: int) -> None:
        if self._acks is not None:
            self._acks.forget(ack_id)

    def owes(self, ack_id: int) -> bool:
        """Tell whether the client owes an acknowledgement: only then it is worth decoding."""
        return self._acks is not None and ack_id in self._acks

    def acknowledge(self, ack_id: int, answer: Any) -> bool:
        """Settle an acknowledgement the client sent; False when none was asked for."""
        return self._acks is not None and self._acks.resolve(ack_id, answer)

    def send(self, wire: Wire) -> None:
        """Send a message that is not published, behind all that was sent before it."""
        if self.catching is None:
            self.connection.push(wire)
        else:
            self.catching.hold.keep(wire)

    def ask(self, wire: Wire) -> None:
        """Send what asks for an acknowledgement; a handler that waits for it steps aside.

        The client may answer only after it has been answered itself, so its events go on.
        """
        turn = self._turn
        if turn is not None and _own_turn.get() is turn:
            self._beside += 1
            self._end_turn()
        if self.catching is None or self.catching.begun:
            self.send(wire)
        else:
            # What it missed waits for its connect handlers, which may wait for the answer.
            self.connection.push(wire)

    def receive(self, message: Incoming) -> None:
        """Handle an event after those this client sent before it. Hot: once per event.

        Alone, its handler begins here and now: a task costs more than most handlers.
        """
        namespace = self.namespace
        registry = namespace.registry
        namespace.traffic.received += 1
        if message.event in registry.concurrent:
            self._beside += 1
            namespace.node.run_to_end(self._handle_beside(message))
            return
        if self._turn is not None:
            self.enqueue(message)
            return
        self._begin_event(message)

    def _begin_event(self, message: Incoming) -> None:
        namespace = self.namespace
        schema = namespace.registry.direct.get(message.event)
        try:
            if schema is None:
                result = namespace.dispatch(self, message)
            else:
                bound = schema.bind(message.raws, message.attachments, single=message.single)
                result = schema.handler(self, *bound)
            kind = type(result)
            if kind is CoroutineType:
                result = self._step(result, message)
                if result is _WAITING:
                    return
            elif kind not in _DATA and inspect.isawaitable(result):
                self.begin(self._finish(message, result))
                return
            self._answer(message, result)
        except (Exception, asyncio.CancelledError) as error:
            # Not inside a task of ours: a handler can only have raised it.
            self._fail(message, error, in_task=False)

    async def _handle_beside(self, message: Incoming) -> None:
        try:
            await self._handle(message)
        finally:
            self._come_back()

    def _come_back(self) -> None:
        """Note the end of a handler that ran beside the others."""
        self._beside -= 1
        if self._space is not None and not self.crowded:
            self._space.set()

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine after the events before it: at once, as far as it goes, if alone."""
        if self._turn is not None:
            self.enqueue(coroutine)
            return
        try:
            self._step(coroutine, None)
        except (Exception, asyncio.CancelledError):
            logger.exception("a handler of namespace %r failed", self.namespace.name)

    def _step(self, coroutine: Coroutine[Any, Any, Any], message: Incoming | None) -> Any:
        """Begin a coroutine; return its result, or _WAITING when a task carries it on."""
        # What comes meanwhile is for the inbox.
        turn = self._turn = coroutine
        outer = _own_turn.set(turn)
        try:
            result = self.namespace.node.reserve.begin(coroutine)
        except BaseException:
            self._pass_on(turn)
            raise
        finally:
            _own_turn.reset(outer)
        if type(result) is not Started:
            if self._turn is turn and not self._inbox:
                self._turn = None
            else:
                self._pass_on(turn)
            return result
        rest: Callable[[], Awaitable[None]] = (
            functools.partial(_identity, result)
            if message is None
            else functools.partial(self._finish, message, result)
        )
        result.carry_on(functools.partial(self._carry_on, turn, rest))
        return _WAITING

    def _pass_on(self, turn: object) -> None:
        """End a turn, unless its handler has stepped aside."""
        if self._turn is turn:
            self._end_turn()
        else:
            self._come_back()

    def _end_turn(self) -> None:
        self._turn = None
        if self._inbox and not self._going_on:
            self._begin_work()

    def _begin_work(self) -> None:
        # Nobody else's turn meanwhile. In the next tick, when the task of the handler before has
        # ended: the next may cancel it, as one client's events do with another's.
        self._turn = object()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Begin what waits, one after another, until one takes its time."""
        self._turn = None
        if self.namespace.node.out_of_time:
            return
        inbox = self._inbox
        self._going_on = True
        try:
            while inbox and self._turn is None:
                item = inbox.popleft()
                if isinstance(item, Incoming):
                    self._inbox_size -= item.size
                    if self._space is not None and not self.crowded:
                        self._space.set()
                    self._begin_event(item)
                else:
                    self.begin(item)
        finally:
            self._going_on = False
        if self._space is not None:
            self._space.set()

    async def _finish(self, message: Incoming, result: Awaitable[Any]) -> None:
        try:
            self._answer(message, await result)
        except (Exception, asyncio.CancelledError) as error:
            self._fail(message, error)

    def enqueue(self, job: Incoming | Coroutine[Any, Any, None]) -> None:
        """Run a job after those before it."""
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(job)
        if type(job) is Incoming:
            self._inbox_size += job.size
        if self._turn is None:
            self._begin_work()

    @property
    def owed(self) -> int:
        """The number of acknowledgements this client owes the server."""
        return self._acks.owed if self._acks is not None else 0

    @property
    def waiting(self) -> int:
        """The number of events that wait to be handled, or are handled beside the others."""
        return self._beside + (len(self._inbox) if self._inbox is not None else 0)

    @property
    def crowded(self) -> bool:
        """Whether so much waits that the transport should stop reading."""
        if not self._inbox and not self._beside:
            return False
        limits = self.namespace.node.settings.limits
        times = ACK_INBOX if self.owed else 1
        return self.waiting >= limits.inbox * times or self._inbox_size >= limits.inbox_size * times

    async def caught_up(self) -> None:
        """Wait until the inbox has room again."""
        while self.crowded and (self._turn is not None or self._beside):
            if self._space is None:
                self._space = asyncio.Event()
            self._space.clear()
            await self._space.wait()

    def welcomed(self) -> None:
        """Send what was emitted before the welcome, now that it is out."""
        early, self._early = self._early, None
        for event, args in early or ():
            self.emit(event, *args)

    def greeted(self) -> None:
        """Note that its connect handlers have ended."""
        if self.greeting is not None:
            self.greeting.set_result(None)
            self.greeting = None

    def left(self) -> None:
        """Settle what the client leaves behind."""
        if self._acks is not None:
            self._acks.fail()
        me = asyncio.current_task()
        for task in self._ending or ():
            # A handler that disconnects its own client goes on to its end.
            if task is not me:
                task.cancel()

    async def bind(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a handler that is cancelled when the client leaves. Raises Disconnected then."""
        task = asyncio.get_running_loop().create_task(coroutine)
        if not self.connected:
            # It sent the event and left.
            task.cancel()
        if self._ending is None:
            self._ending = set()
        self._ending.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if cancelling() or self.connected:
                raise
            raise Disconnected("the client has left") from None
        finally:
            self._ending.discard(task)

    async def _carry_on(self, turn: object, job: Callable[[], Awaitable[None]]) -> None:
        """Carry on a handler that waits; at its end the next one begins."""
        try:
            await job()
        except asyncio.CancelledError:
            if cancelling():
                raise
            logger.exception("a handler of namespace %r failed", self.namespace.name)
        except Exception:
            logger.exception("a handler of namespace %r failed", self.namespace.name)
        finally:
            if self._turn is not turn:
                # It has stepped aside, and the others have gone on.
                self._come_back()
            elif self.namespace.node.out_of_time:
                self._turn = None
            else:
                self._end_turn()
            if self._space is not None:
                self._space.set()

    async def _handle(self, message: Incoming) -> None:
        try:
            self._answer(message, await self.namespace.dispatch(self, message))
        except (Exception, asyncio.CancelledError) as error:
            self._fail(message, error)

    def _answer(self, message: Incoming, result: Any) -> None:
        if message.ack_id is not None and message.reply is None:
            wire = self.codec.answer(self.namespace.name, message.ack_id, result)
            if self.catching is None:
                self.connection.push(wire)
            else:
                self.catching.hold.keep(wire)
            return
        # Nobody may have asked, but the handler is to learn that it cannot be answered with.
        answer = payload.encode_answer(result)
        if message.reply is not None:
            message.reply(answer)

    def _fail(self, message: Incoming, error: BaseException, *, in_task: bool = True) -> None:
        # Cancelled is also a handler that awaited something that was.
        if in_task and isinstance(error, asyncio.CancelledError) and cancelling():
            code = "shutting_down"
            if not self.namespace.node.out_of_time:
                code = "internal_error"
                logger.error("the handler of %r was cancelled for %s", message.event, self)
            self._refuse(message, EventError(code=code))
            raise error
        if isinstance(error, Disconnected) and not self.connected:
            # It asked its own client, who left: nobody failed, nobody waits.
            error = EventError(code="unknown_client")
        if isinstance(error, InvalidName):
            logger.warning(
                "the handler of %r for %s: %s",
                message.event,
                self,
                error,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )
            error = InvalidMessage(str(error))
        if not isinstance(error, EventError):
            logger.error("the handler of %r failed for %s", message.event, self, exc_info=error)
            error = EventError(code="internal_error")
        self._refuse(message, error)

    def _refuse(self, message: Incoming, error: EventError) -> None:
        if self.codec.like_node:
            if not self.namespace.node.settings.answer_errors:
                return
            # Node leaves it to the client's timeout. A number is of an enum that both ends
            # share: that nobody here knows it is worth an answer.
            unknown = isinstance(error, UnknownEvent) and message.ack_id is not None
            if unknown and not is_number(message.event):
                logger.debug("nobody handles %r, which %s sent", message.event, self)
                return
        self.tell(error, message.event, message.ack_id, message.reply)

    def tell(
        self,
        error: EventError,
        event: str,
        ack_id: int | None = None,
        reply: Callable[[Payload | EventError], None] | None = None,
    ) -> None:
        """Tell the client what became of an event."""
        event = event[:NAME_LENGTH]
        error.details.setdefault("event", event)
        try:
            wire = self.codec.problem(self.namespace.name, error.to_dict(), ack_id)
        except (EncodeError, TypeError, ValueError):
            logger.exception("the details of the error that answers %r have no JSON form", event)
            error = EventError(code="internal_error", event=event)
            wire = self.codec.problem(self.namespace.name, error.to_dict(), ack_id)
        if reply is not None:
            reply(error)
        else:
            self.send(wire)


def _identity(awaitable: Awaitable[None]) -> Awaitable[None]:
    return awaitable


def cancelling() -> bool:
    """Tell whether it is this task that is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Deadline:
    """A socket with a time limit for its acknowledgement."""

    __slots__ = ("_seconds", "_socket")

    def __init__(self, socket: Socket, seconds: float) -> None:
        self._socket = socket
        self._seconds = seconds

    async def emit_with_ack(self, event: str, *args: Any) -> Any:
        """Send an event and return its acknowledgement; see `Socket.emit_with_ack`."""
        return await self._socket.emit_with_ack(event, *args, timeout=self._seconds)
