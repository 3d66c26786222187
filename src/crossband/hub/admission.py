"""How clients come in: examined, admitted, and welcomed or withdrawn."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from crossband.auth import Identity
from crossband.broker import Publication, Session
from crossband.codecs import Codec
from crossband.errors import (
    CloseCode,
    ConnectionRefused,
    EncodeError,
    EventError,
    Gap,
    InvalidName,
)
from crossband.handlers.callables import call, check_outcome
from crossband.handlers.events import Handler
from crossband.hub.answers import cancelling
from crossband.hub.catchup import CatchUp
from crossband.hub.departures import DEPARTURE_TIME, Departures
from crossband.hub.directory import Directory
from crossband.hub.guard import Guard
from crossband.hub.namespace import Namespace, Place
from crossband.hub.node import Node
from crossband.hub.quotas import Quotas
from crossband.hub.socket import Socket
from crossband.hub.states import State
from crossband.names import is_socket_id, new_id
from crossband.session import Connection, Handshake

logger = logging.getLogger("crossband")

_SESSION_KEY = re.compile(r"[A-Za-z0-9._-]{16,64}", re.ASCII)
# Seconds a client without a session, coming back with a cursor, waits for its connect
# handlers to join its rooms. Its events are held meanwhile; past it, it is told of a gap.
CONNECT_HANDLER_TIME: Final = 5.0


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


class Admissions:
    """Lets clients in."""

    def __init__(
        self, node: Node, directory: Directory, guard: Guard, quotas: Quotas, departures: Departures
    ) -> None:
        self._node = node
        self._directory = directory
        self._guard = guard
        self._quotas = quotas
        self._departures = departures
        # Admissions that have taken their session and are being answered, by namespace and key.
        self._opening: dict[tuple[str, str], Admission] = {}

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
            self._node.traffic.refused(error, handshake, name)
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
        if self._node.stopping:
            raise ConnectionRefused(code="shutting_down", status=503)
        attempt = self._node.next_attempt()
        identity = None
        revocations = self._guard.revocations
        if self._guard.authenticate is not None:
            identity = await self._guard.identify(handshake)
        namespace = self._directory.find(name)
        if namespace is None:
            raise ConnectionRefused(code="invalid_namespace", status=404)
        if resume.key is not None and _SESSION_KEY.fullmatch(resume.key) is None:
            raise ConnectionRefused(
                "Invalid session: 16 to 64 characters of A-Z a-z 0-9 . _ -",
                code="invalid_request",
                status=400,
            )
        if len(rooms) > self._node.settings.limits.subscriptions:
            raise ConnectionRefused(
                f"A client may ask for {self._node.settings.limits.subscriptions} rooms",
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
            if self._node.stopping:
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
            if not await self._guard.allows(socket.identity, "subscribe", room):
                await socket.leave(room)

    async def _examine(self, socket: Socket, uses: Sequence[Handler]) -> None:
        """Run the connect middlewares, which may take `handshake_time` together."""
        limit = self._node.settings.limits.handshake_time
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
            missed = await self._node.broker.history(name, session.cursor, sid)
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
            settings = self._node.settings
            longest = settings.history_age + settings.ping_interval + settings.ping_timeout
            if not places or places[0].time > time.monotonic() - longest:
                raise Gap("expired")
        cursor = places[0].cursor
        return cursor, await self._node.broker.history(name, cursor, sid)

    async def _precedes(
        self, place: Place, session: Session, missed: Sequence[Publication]
    ) -> bool:
        """Tell whether a place is before a session's cursor, which `missed` is all that follows."""
        try:
            later = await self._node.broker.history(session.namespace, place.cursor, session.sid)
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
                    missed = await self._node.broker.history(namespace.name, cursor, sid)
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
            namespace.name, key, new_id(), set(), {}, self._node.broker.head(namespace.name), user
        )

    async def _find_session(self, namespace: Namespace, key: str) -> Session | None:
        """Return a session that is kept, or that a client is being answered with just now."""
        opening = self._opening.get((namespace.name, key))
        if opening is not None:
            return opening.session
        return await self._node.broker.find_session(namespace.name, key)

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
            taken = await self._node.broker.take_session(*place)
        if taken is None or taken.sid != session.sid:
            # Ended or revoked while this client was examined, or started anew by another.
            if taken is not None:
                self._node.broker.save_session(taken, connected=live is not None)
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
        self._node.traffic.cut(socket)
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
            self._node.broker.save_session(live.record, connected=True)
        elif not self._guard.revoked_since(session.user, admission.revocations):
            self._node.broker.save_session(session, connected=False)

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
                self._departures.leave(live, "transport close", keep_session=False)
                live.connection.end_socket(
                    namespace.name, CloseCode.SESSION_TAKEN, "resumed elsewhere"
                )
            departure = self._departures.of(namespace.name, key)
            if departure is not None:
                earlier.append(departure)
        catch_up = admission.catch_up
        # A pattern's namespace may have emptied meanwhile, also just now.
        self._directory.enlist(namespace)
        socket.connected = True
        socket.stage = State.LIVE
        namespace.add(socket)
        if socket.identity is not None:
            self._guard.entered(socket)
        self._node.traffic.joined(socket, admission.gap)
        self._node.broker.save_session(socket.record, connected=True)
        head = self._node.broker.head(namespace.name)
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
            socket.inbox.begin(socket, self._greet(socket, earlier, catch_up if unknown else None))
        self._guard.check_admitted(socket, admission.revocations)
        if socket.refused:
            self._departures.part(socket, close=False)
        if self._node.stopping:
            # Let in before the hub stopped, and answered since: nobody else closes it.
            self._departures.send_away(socket.connection, [socket])

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
        self._node.traffic.gap("timeout")
        head = self._node.broker.head(namespace.name)
        notice = socket.codec.gap(namespace.name, reason="timeout", offset=head)
        if notice is not None:
            socket.connection.push(notice)

    def _count_user(
        self, connection: Connection, user: str, namespace: Namespace, resume: Resume
    ) -> None:
        live = None if resume.key is None else namespace.live(resume.key)
        replaces = (
            live is not None
            and live.connection is not connection
            and live.identity is not None
            and live.identity.user == user
        )
        self._quotas.count_user(connection, user, replaces=replaces)


@contextmanager
def _refusal(what: str) -> Iterator[None]:
    try:
        yield
    except EncodeError as error:
        raise ConnectionRefused(
            f"Invalid {what}: {error}", code="invalid_request", status=400
        ) from None
