"""How clients come in: examined, admitted, and welcomed or withdrawn."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from crossband.codecs import Codec
from crossband.connection import Connection
from crossband.errors import (
    BrokerUnavailable,
    CloseCode,
    ConnectionRefused,
    EncodeError,
    EventError,
    InvalidName,
)
from crossband.handlers.callables import call, check_outcome
from crossband.handlers.events import Handler
from crossband.handshake import Handshake
from crossband.hub.access import Access
from crossband.hub.answers import cancelling
from crossband.hub.attempt import Admission, Resume
from crossband.hub.catchup import CatchUp
from crossband.hub.departures import DEPARTURE_TIME, Departures
from crossband.hub.directory import Directory
from crossband.hub.dispatch import connected
from crossband.hub.expiry import Expiry
from crossband.hub.namespace import Namespace, Socket
from crossband.hub.node import Node
from crossband.hub.quotas import Quotas
from crossband.hub.resumption import Resumptions
from crossband.hub.states import State
from crossband.names import is_socket_id

logger = logging.getLogger("crossband")

_SESSION_KEY = re.compile(r"[A-Za-z0-9._-]{16,64}", re.ASCII)
# Seconds a client without a session, coming back with a cursor, waits for its connect
# handlers to join its rooms. Its events are held meanwhile; past it, it is told of a gap.
CONNECT_HANDLER_TIME: Final = 5.0


class Admissions:
    """Lets clients in."""

    def __init__(
        self,
        node: Node,
        directory: Directory,
        access: Access,
        expiry: Expiry,
        quotas: Quotas,
        resumptions: Resumptions,
        departures: Departures,
    ) -> None:
        self._node = node
        self._directory = directory
        self._access = access
        self._expiry = expiry
        self._quotas = quotas
        self._departures = departures
        self._resumptions = resumptions

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
        transport answers the client and opens the admission, or withdraws it when the client
        is gone by then.
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
        revocations = self._access.revocations
        if self._access.authenticate is not None:
            identity = await self._access.identify(handshake)
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
        attaching = self._directory.attach(namespace)
        try:
            if attaching is not None:
                await attaching
            if identity is not None:
                await self._quotas.count_elsewhere(connection, identity.user, name, resume.key)
            admission = await self._resumptions.resume(
                namespace,
                connection,
                handshake,
                codec,
                resume,
                identity,
                revocations,
                attempt,
                self,
            )
        except BaseException as error:
            self._directory.settled(namespace)
            if isinstance(error, BrokerUnavailable):
                raise ConnectionRefused(error.message, code=error.code, status=503) from error
            raise
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
            await self._resumptions.take(admission)
            socket.stage = State.ADMITTED
        except BaseException as error:
            admission.withdraw()
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
            if not await self._access.allows(socket.identity, "subscribe", room):
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

    def undo(self, admission: Admission) -> None:
        """Leave everything as if the client had not come."""
        socket = admission.socket
        self._node.traffic.cut(socket)
        socket.stage = State.GONE
        if admission.catch_up is not None:
            socket.namespace.replays.release(admission.catch_up)
        self._resumptions.give_back(admission)
        self._directory.settled(socket.namespace)

    def welcome(self, admission: Admission) -> None:
        """Let the client receive, from here on and in order, all it should."""
        socket = admission.socket
        namespace = socket.namespace
        session = admission.session
        self._resumptions.opened(admission)
        # Whose departure the connect handlers wait for.
        earlier: list[asyncio.Task[None]] = []
        # The same client again, before its old connection was found dead.
        for key in {socket.session, *([session.key] if session is not None else [])}:
            live = namespace.members.live(key)
            if live is not None and live.record.user != socket.record.user:
                # Another user took up the key while it was out of the broker.
                socket.record.key = secrets.token_urlsafe(24)
                socket.record.take = 0
                continue
            if live is not None:
                self._resumptions.follow(admission, live.record)
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
        namespace.members.add(socket)
        self._directory.settled(namespace)
        if socket.identity is not None:
            self._expiry.entered(socket)
        self._node.traffic.joined(socket, admission.gap)
        self._node.sessions.save(socket.record)
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
            socket.catching = catch_up
            if not unknown:
                namespace.replays.advance(socket)
        socket.welcomed()
        if namespace.registry.connect:
            socket.greeting = asyncio.get_running_loop().create_future()
            socket.inbox.begin(socket, self._greet(socket, earlier, catch_up if unknown else None))
        self._expiry.check_admitted(socket, admission.revocations)
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
            await connected(socket)
        except ConnectionRefused as refusal:
            self._departures.refuse(socket, refusal)
        finally:
            socket.greeted()
            if timer is not None:
                timer.cancel()
                socket.namespace.replays.advance(socket)

    def _connect_is_late(self, socket: Socket, catch_up: CatchUp) -> None:
        # After a stall of the loop timers come first: whoever was ready all along goes before.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._give_up_catching_up, socket, catch_up)

    def _give_up_catching_up(self, socket: Socket, catch_up: CatchUp) -> None:
        if socket.catching is not catch_up or catch_up.begun:
            return
        namespace = socket.namespace
        socket.catching = None
        namespace.replays.release(catch_up)
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
        live = None if resume.key is None else namespace.members.live(resume.key)
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
