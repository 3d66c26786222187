"""How clients are admitted: who they are, whether they may connect, where they resume."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from crossband.codecs import Codec
from crossband.connection import Connection
from crossband.errors import (
    BrokerUnavailable,
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
from crossband.hub.attempt import Admission, Endings, Resume
from crossband.hub.directory import Directory
from crossband.hub.namespace import Namespace, Socket
from crossband.hub.node import Node
from crossband.hub.quotas import Quotas
from crossband.hub.resumption import Resumptions
from crossband.hub.states import State
from crossband.names import is_socket_id

logger: Final = logging.getLogger("crossband")

_SESSION_KEY = re.compile(r"[A-Za-z0-9._-]{16,64}", re.ASCII)


class Admissions:
    """Admits clients."""

    def __init__(
        self,
        node: Node,
        directory: Directory,
        access: Access,
        quotas: Quotas,
        resumptions: Resumptions,
        endings: Endings,
    ) -> None:
        self._node = node
        self._directory = directory
        self._access = access
        self._quotas = quotas
        self._resumptions = resumptions
        self._endings = endings

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
        """Admit a client to a namespace, or raise ConnectionRefused.

        Finds out who it is and runs the connect middlewares. Nothing is sent yet: the transport
        answers the client and opens the admission, or withdraws it if the client has gone.
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
        # In another namespace it may be counted already, and is to stay so.
        counted = identity is not None and self._count_user(
            connection, identity.user, namespace, resume
        )
        attaching = self._directory.attach(namespace)
        try:
            if attaching is not None:
                await attaching
            if identity is not None and counted:
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
                self._endings,
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
            # CancelledError can also come from something that a middleware awaited.
            failed = isinstance(error, asyncio.CancelledError) and not cancelling()
            if not failed and not isinstance(error, Exception):
                raise
            if isinstance(error, EventError):
                refusal = ConnectionRefused(error.message, code=error.code, status=error.status)
                refusal.details.update(error.details)
                raise refusal from error
            if isinstance(error, InvalidName):
                raise ConnectionRefused(str(error), code="invalid_request", status=400) from error
            logger.exception("a client of namespace %r could not be admitted", name)
            raise ConnectionRefused(code="internal_error", status=500) from error
        return admission

    async def _ask_again(self, socket: Socket) -> None:
        """Make a returning client leave rooms that it may no longer subscribe to."""
        for room in socket.record.asked:
            if not await self._access.allows(socket.identity, "subscribe", room):
                await socket.leave(room)

    async def _examine(self, socket: Socket, uses: Sequence[Handler]) -> None:
        """Run the connect middlewares, which together may take `handshake_time`."""
        limit = self._node.settings.limits.handshake_time
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                for function in uses:
                    outcome = await call(function, socket)
                    if outcome is not None:
                        check_outcome(function, outcome)
        except TimeoutError:
            # The TimeoutError may be a middleware's own.
            if not timer.expired():
                raise
            logger.warning(
                "the connect middlewares of namespace %r took more than %g s",
                socket.namespace.name,
                limit,
            )
            raise ConnectionRefused(code="handshake_timeout", status=503) from None

    def _count_user(
        self, connection: Connection, user: str, namespace: Namespace, resume: Resume
    ) -> bool:
        live = None if resume.key is None else namespace.clients.live(resume.key)
        replaces = (
            live is not None
            and live.connection is not connection
            and live.identity is not None
            and live.identity.user == user
        )
        return self._quotas.count_user(connection, user, replaces=replaces)


@contextmanager
def _refusal(what: str) -> Iterator[None]:
    try:
        yield
    except EncodeError as error:
        raise ConnectionRefused(
            f"Invalid {what}: {error}", code="invalid_request", status=400
        ) from None
