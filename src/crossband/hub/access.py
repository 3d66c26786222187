"""The hub's side of auth: who a client is, what it may do, until when, and its revocation."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from crossband.auth import MAX_TOKEN, Action, Identity
from crossband.broker import Publication
from crossband.codecs import PLAIN
from crossband.errors import (
    CloseCode,
    ConnectionRefused,
    EventError,
    InvalidMessage,
    Unauthorized,
)
from crossband.handlers.callables import call, check_callable
from crossband.handshake import Handshake
from crossband.hub.answers import cancelling
from crossband.hub.node import Node
from crossband.hub.socket import EXPIRED, REVOKED, Socket
from crossband.protocol import payload
from crossband.timers import Alarms

logger = logging.getLogger("crossband")

Authenticate = Callable[[Handshake], Identity | Awaitable[Identity | None] | None]
Authorize = Callable[[Identity | None, Action, str | None], bool | Awaitable[bool]]

EXPIRING: Final = "token:expiring"
# Users whose older tokens are refused; past it the revocation longest ago is forgotten.
MAX_REVOKED: Final = 10_000
_NEVER: Final = (-math.inf, 0)


class Access:
    """Asks the application's `authenticate` and `authorize`, and acts on what they say."""

    def __init__(
        self,
        node: Node,
        authenticate: Authenticate | None,
        authorize: Authorize | None,
        dismiss: Callable[[Socket, str, CloseCode, EventError], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if authenticate is not None:
            check_callable(authenticate, "Hub(authenticate=…)", "handshake")
        if authorize is not None:
            check_callable(authorize, "Hub(authorize=…)", "identity", "action", "room")
        self._node = node
        # Ends a client, and tells it why.
        self._dismiss = dismiss
        self.authenticate = authenticate
        self.authorize = authorize
        self._clock = clock
        # By user, connected sockets only.
        self._sockets: dict[str, dict[Socket, None]] = {}
        # By user, when it was revoked, and the number of that revocation; longest ago first.
        self._revoked: dict[str, tuple[float, int]] = {}
        self.revocations = 0
        # One timer for all. None until started.
        self._alarms: Alarms[Socket] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarms = Alarms(loop, self._fall_due, clock=self._clock)

    def stop(self) -> None:
        if self._alarms is not None:
            self._alarms.close()

    # Who.

    async def identify(self, handshake: Handshake) -> Identity | None:
        """Return who a client is; None for an anonymous one. Raises ConnectionRefused."""
        if self.authenticate is None:
            return None
        limit = self._node.settings.limits.handshake_time
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                identity = await call(self.authenticate, handshake)
        except (Exception, asyncio.CancelledError) as error:
            # Cancelled is also one that awaited something that was.
            if isinstance(error, asyncio.CancelledError) and cancelling():
                raise
            if isinstance(error, ConnectionRefused):
                raise
            if isinstance(error, EventError):
                refusal = ConnectionRefused(error.message, code=error.code, status=error.status)
                refusal.details.update(error.details)
                raise refusal from error
            # It may have let a timeout of its own pass.
            if isinstance(error, TimeoutError) and timer.expired():
                logger.warning("authenticate took more than %g s: the client is refused", limit)
                raise ConnectionRefused(code="handshake_timeout", status=503) from None
            logger.exception("authenticate failed: the client is refused")
            raise ConnectionRefused(code="internal_error", status=500) from error
        if identity is None:
            return None
        if not isinstance(identity, Identity):
            logger.error(
                "authenticate must return an Identity or None, not %s: the client is refused",
                type(identity).__name__,
            )
            raise ConnectionRefused(code="internal_error", status=500)
        if identity.expires is not None and identity.expires <= self._clock():
            raise Unauthorized("The token has expired", reason="expired")
        self._check_revoked(identity)
        return identity

    def _check_revoked(self, identity: Identity) -> None:
        when, _ = self._revoked.get(identity.user, _NEVER)
        # `iat` has no fractions, as a rule: of the same second, it may be older.
        if identity.issued is not None and identity.issued <= when:
            raise _revoked()

    def revoked_since(self, user: str | None, revocations: int) -> bool:
        """Tell whether a user was revoked since there were so many revocations."""
        if user is None or revocations == self.revocations:
            return False
        _, number = self._revoked.get(user, _NEVER)
        return number > revocations

    def check_admitted(self, socket: Socket, revocations: int) -> None:
        """End a client whose user was revoked since there were so many revocations."""
        if socket.identity is not None and self.revoked_since(socket.identity.user, revocations):
            self._dismiss(socket, REVOKED, CloseCode.REVOKED, _revoked())

    # What.

    async def allows(self, identity: Identity | None, action: Action, room: str | None) -> bool:
        """Tell whether an action on a room is allowed; None is the whole namespace."""
        if self.authorize is None:
            return True
        allowed = await call(self.authorize, identity, action, room)
        if isinstance(allowed, bool):
            return allowed
        # Else a coroutine nobody awaited, or a forgotten `return`, would decide.
        logger.error(
            "authorize must return True or False, not %s: it is not allowed",
            type(allowed).__name__,
        )
        return False

    async def demand(self, identity: Identity | None, action: Action, room: str | None) -> None:
        """Raise EventError unless an action on a room is allowed."""
        if not await self.allows(identity, action, room):
            where = "to everybody" if room is None else f"to the room {room!r}"
            raise EventError(
                f"Not allowed to {action} {where}", code="forbidden", action=action, room=room
            )

    # Until when.

    def entered(self, socket: Socket) -> None:
        """Note a client that was let in."""
        identity = socket.identity
        if identity is None:
            return
        self._sockets.setdefault(identity.user, {})[socket] = None
        self._watch(socket, identity)

    def left(self, socket: Socket) -> None:
        """Forget a client."""
        identity = socket.identity
        if identity is None:
            return
        sockets = self._sockets.get(identity.user)
        if sockets is not None:
            sockets.pop(socket, None)
            if not sockets:
                del self._sockets[identity.user]
        if self._alarms is not None:
            self._alarms.discard(socket)

    def sockets_of(self, user: str) -> list[Socket]:
        """Return a user's connected sockets, in all namespaces."""
        _check_user(user)
        return list(self._sockets.get(user, ()))

    def _watch(self, socket: Socket, identity: Identity) -> None:
        assert self._alarms is not None
        if identity.expires is None:
            self._alarms.discard(socket)
        else:
            # Plain namespaces have no way to refresh.
            warning = 0.0 if socket.codec is PLAIN else self._node.settings.token_warning
            self._alarms.add(socket, identity.expires - warning)

    def _fall_due(self, socket: Socket) -> None:
        identity = socket.identity
        if identity is None or identity.expires is None or not socket.connected:
            return
        left = identity.expires - self._clock()
        if left <= 0:
            error = Unauthorized("The token has expired", reason="expired")
            self._dismiss(socket, EXPIRED, CloseCode.TOKEN_EXPIRED, error)
            return
        assert self._alarms is not None
        self._alarms.add(socket, identity.expires)
        if socket.codec is not PLAIN:
            data = {"expires": identity.expires, "in": round(left, 3)}
            notice = Publication(socket.namespace.name, EXPIRING, payload.encode([data]))
            socket.connection.push(socket.codec.event(notice))

    async def refresh(self, socket: Socket, args: list[Any]) -> dict[str, Any]:
        """Take a client's new token: its expiry counts from here on, and its rights.

        Returns what the client is told. Raises EventError; the old token goes on then.
        """
        token = args[0] if args else None
        if isinstance(token, dict):
            token = token.get("token")
        if not isinstance(token, str) or not token:
            raise InvalidMessage('Expected the new token, or {"token": "…"}')
        if len(token) > MAX_TOKEN:
            raise InvalidMessage(f"A token has at most {MAX_TOKEN} characters")
        handshake = socket.handshake
        identity = await self.identify(
            dataclasses.replace(handshake, auth={**handshake.auth, "token": token})
        )
        before = socket.identity
        if before is None:
            raise Unauthorized("Connect anew to be somebody", reason="user")
        if identity is None or identity.user != before.user:
            raise Unauthorized("The token is another user's", reason="user")
        denied = [
            room
            for room in socket.record.asked
            if not await self.allows(identity, "subscribe", room)
        ]
        if not socket.connected:
            raise EventError(code="unknown_client")
        # Revoked while the application was asked.
        self._check_revoked(identity)
        socket.identity = identity
        self._watch(socket, identity)
        await socket.leave(*denied)
        answer: dict[str, Any] = {"expires": identity.expires}
        if denied:
            answer["left"] = denied
        return answer

    async def revoke(self, user: str) -> int:
        """End all connections of a user; see `Hub.revoke`."""
        _check_user(user)
        self._revoked.pop(user, None)
        self.revocations += 1
        self._revoked[user] = (self._clock(), self.revocations)
        if len(self._revoked) > MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]
        sockets = self.sockets_of(user)
        # A Socket.IO connection in several namespaces is one.
        connections = {id(socket.connection) for socket in sockets}
        for socket in sockets:
            self._dismiss(socket, REVOKED, CloseCode.REVOKED, _revoked())
        self._node.broker.drop_sessions(user)
        return len(connections)


def _check_user(user: object) -> None:
    """Raise TypeError for what is nobody's name, such as the number a claim gave it by."""
    if not isinstance(user, str):
        raise TypeError(
            f"a user is named by a string, not {type(user).__name__}: write {str(user)!r}"
        )


def _revoked() -> Unauthorized:
    return Unauthorized("The token was revoked", reason="revoked")
