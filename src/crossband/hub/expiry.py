"""How long clients may stay: tokens expire, are refreshed, and are revoked by user."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

from crossband.auth import MAX_TOKEN, Identity
from crossband.broker import Publication
from crossband.codecs import PLAIN
from crossband.errors import CloseCode, EventError, InvalidMessage, Unauthorized
from crossband.hub.access import Access, revoked
from crossband.hub.namespace import Socket
from crossband.hub.node import Node
from crossband.names import check_user
from crossband.protocol import payload
from crossband.timers import Alarms

# Our own reasons for a disconnect, in addition to Socket.IO's.
EXPIRED: Final = "token expired"
REVOKED: Final = "token revoked"

EXPIRING: Final = "token:expiring"


class Expiry:
    """Knows the connected clients of each user, and ends those whose time is up."""

    def __init__(
        self,
        node: Node,
        access: Access,
        dismiss: Callable[[Socket, str, CloseCode, EventError], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._access = access
        # Ends a client, and tells it why.
        self._dismiss = dismiss
        self._clock = clock
        # By user, connected sockets only.
        self._sockets: dict[str, dict[Socket, None]] = {}
        # One timer for all. None until started.
        self._alarms: Alarms[Socket] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarms = Alarms(loop, self._fall_due, clock=self._clock)

    def stop(self) -> None:
        if self._alarms is not None:
            self._alarms.close()

    def entered(self, socket: Socket) -> None:
        """Note a client that was admitted."""
        identity = socket.identity
        if identity is None:
            return
        self._sockets.setdefault(identity.user, {})[socket] = None
        self._watch(socket, identity)

    def check_admitted(self, socket: Socket, revocations: int) -> None:
        """End a client whose user was revoked after revocation number `revocations`."""
        user = None if socket.identity is None else socket.identity.user
        if user is None or not self._access.revoked_since(user, revocations):
            return
        # Heard of late, it may be older than what the client has shown.
        if not _is_newer(socket, self._access.revoked_at(user)):
            self._dismiss(socket, REVOKED, CloseCode.REVOKED, revoked())

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
        check_user(user)
        return list(self._sockets.get(user, ()))

    def _watch(self, socket: Socket, identity: Identity) -> None:
        assert self._alarms is not None
        if identity.expires is None:
            self._alarms.discard(socket)
        else:
            # Clients of plain namespaces cannot refresh.
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
        """Accept a client's new token: its expiry and rights apply from now on.

        Returns the answer to the client. Raises EventError, and the old token stays valid.
        """
        token = args[0] if args else None
        if isinstance(token, dict):
            token = token.get("token")
        if not isinstance(token, str) or not token:
            raise InvalidMessage('Expected the new token, or {"token": "…"}')
        if len(token) > MAX_TOKEN:
            raise InvalidMessage(f"A token has at most {MAX_TOKEN} characters")
        handshake = socket.handshake
        identity = await self._access.identify(
            dataclasses.replace(handshake, auth={**handshake.auth, "token": token})
        )
        before = socket.identity
        if before is None:
            raise Unauthorized("Connect again to be somebody", reason="user")
        if identity is None or identity.user != before.user:
            raise Unauthorized("The token is another user's", reason="user")
        denied = [
            room
            for room in socket.record.asked
            if not await self._access.allows(identity, "subscribe", room)
        ]
        if not socket.connected:
            raise EventError(code="unknown_client")
        # It may have been revoked while `authenticate` ran.
        self._access.check_revoked(identity)
        socket.identity = identity
        self._watch(socket, identity)
        await socket.leave(*denied)
        answer: dict[str, Any] = {"expires": identity.expires}
        if denied:
            answer["left"] = denied
        return answer

    def revoke(self, user: str, when: float, *, late: bool = False) -> int:
        """End all connections of a user on this node; return how many there were.

        If this node hears of it `late`, clients that have since come with a newer token stay.
        """
        self._access.revoke(user, when)
        sockets = self.sockets_of(user)
        if late:
            sockets = [socket for socket in sockets if not _is_newer(socket, when)]
        # A Socket.IO connection in several namespaces counts once.
        connections = {id(socket.connection) for socket in sockets}
        for socket in sockets:
            self._dismiss(socket, REVOKED, CloseCode.REVOKED, revoked())
        return len(connections)


def _is_newer(socket: Socket, when: float) -> bool:
    issued = None if socket.identity is None else socket.identity.issued
    return socket.handshake.time > when and (issued is None or issued > when)
