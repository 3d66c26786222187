"""The hub's side of auth: who a client is, what it may do, and which tokens are revoked."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

from crossband.auth import Action, Identity
from crossband.errors import BrokerUnavailable, ConnectionRefused, EventError, Unauthorized
from crossband.handlers.callables import call, check_callable
from crossband.handshake import Handshake
from crossband.hub.answers import cancelling
from crossband.hub.node import Node

logger: Final = logging.getLogger("crossband")

Authenticate = Callable[[Handshake], Identity | Awaitable[Identity | None] | None]
Authorize = Callable[[Identity | None, Action, str | None], bool | Awaitable[bool]]

# Users whose older tokens are refused; beyond this the oldest revocation is forgotten.
MAX_REVOKED: Final = 10_000
_NEVER: Final = (-math.inf, 0)


class Access:
    """Calls the application's `authenticate` and `authorize`; refuses revoked tokens."""

    def __init__(
        self,
        node: Node,
        authenticate: Authenticate | None,
        authorize: Authorize | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if authenticate is not None:
            check_callable(authenticate, "Hub(authenticate=…)", "handshake")
        if authorize is not None:
            check_callable(authorize, "Hub(authorize=…)", "identity", "action", "room")
        self._node = node
        self.authenticate = authenticate
        self.authorize = authorize
        self._clock = clock
        # By user: when it was revoked, and the number of that revocation; oldest first.
        self._revoked: dict[str, tuple[float, int]] = {}
        self.revocations: int = 0
        # Raises BrokerUnavailable if revocations may have been missed, which a broker inside this
        # process rules out: `Revocations` sets it.
        self.check_current: Callable[[], Awaitable[None]] = _nothing

    async def identify(self, handshake: Handshake) -> Identity | None:
        """Return who a client is; None for an anonymous one. Raises ConnectionRefused."""
        if self.authenticate is None:
            return None
        if not self._node.publishes_at_once:
            try:
                await self.check_current()
            except BrokerUnavailable as error:
                raise ConnectionRefused(error.message, code=error.code, status=503) from error
        limit = self._node.settings.limits.handshake_time
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                identity = await call(self.authenticate, handshake)
        except (Exception, asyncio.CancelledError) as error:
            # CancelledError can also come from something that it awaited.
            if isinstance(error, asyncio.CancelledError) and cancelling():
                raise
            if isinstance(error, ConnectionRefused):
                raise
            if isinstance(error, EventError):
                refusal = ConnectionRefused(error.message, code=error.code, status=error.status)
                refusal.details.update(error.details)
                raise refusal from error
            # The TimeoutError may be one of its own.
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
        self.check_revoked(identity)
        return identity

    def check_revoked(self, identity: Identity) -> None:
        """Raise Unauthorized if the user was revoked since its token was issued."""
        when, _ = self._revoked.get(identity.user, _NEVER)
        # `iat` is usually in whole seconds: a token of the same second may be older.
        if identity.issued is not None and identity.issued <= when:
            raise revoked()

    def revoked_users(self) -> list[tuple[str, float]]:
        """Return the revoked users, and up to when their tokens are refused; oldest first."""
        return [(user, when) for user, (when, _) in self._revoked.items()]

    def is_revoked(self, user: str, when: float) -> bool:
        """Return whether a user's tokens up to this time are already refused."""
        return self.revoked_at(user) >= when

    def revoked_at(self, user: str) -> float:
        """Return the time up to which a user's tokens are refused."""
        return self._revoked.get(user, _NEVER)[0]

    def revoked_since(self, user: str | None, revocations: int) -> bool:
        """Return whether a user was revoked after revocation number `revocations`."""
        if user is None or revocations == self.revocations:
            return False
        _, number = self._revoked.get(user, _NEVER)
        return number > revocations

    def revoke(self, user: str, when: float) -> None:
        """Refuse a user's tokens that were issued up to a time."""
        before, _ = self._revoked.pop(user, _NEVER)
        self.revocations += 1
        self._revoked[user] = (max(before, when), self.revocations)
        if len(self._revoked) > MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]

    async def allows(self, identity: Identity | None, action: Action, room: str | None) -> bool:
        """Return whether an action on a room, or None, the whole namespace, is allowed."""
        if self.authorize is None:
            return True
        allowed = await call(self.authorize, identity, action, room)
        if isinstance(allowed, bool):
            return allowed
        # Otherwise an unawaited coroutine or a forgotten `return` would decide.
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


async def _nothing() -> None:
    pass


def revoked() -> Unauthorized:
    """Return the error for a client whose token was revoked."""
    return Unauthorized("The token was revoked", reason="revoked")
