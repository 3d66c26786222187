"""What a hub did, refused and cut: counts for `GET /api/status`, log lines for operators.

No line contains a token, a session key or a query string.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from typing import Final, Protocol

from crossband.auth import Identity
from crossband.connection import Connection
from crossband.errors import EventError
from crossband.handshake import Handshake

logger: Final = logging.getLogger("crossband")

# Seconds between two log lines about the same origin, address or place in the code.
NOTICE_TIME: Final = 60.0
# Log lines of one kind within that time. Clients choose origins and addresses: further ones are
# only counted.
MOST_NOTICES: Final = 100
# Reasons that are counted separately; applications may invent error codes.
MOST_REASONS: Final = 64
OTHER: Final = "other"


class Notices:
    """Decides what to log: each key only once in a while, and not too many keys."""

    __slots__ = ("_every", "_most", "_said")

    def __init__(self, *, every: float = NOTICE_TIME, most: int = MOST_NOTICES) -> None:
        self._every = every
        self._most = most
        # When each key was logged, oldest first.
        self._said: dict[object, float] = {}

    def due(self, key: object, now: float) -> bool:
        """Return whether to log this key now."""
        said = self._said
        for oldest in list(itertools.takewhile(lambda key: said[key] <= now - self._every, said)):
            del said[oldest]
        if key in said or len(said) >= self._most:
            return False
        said[key] = now
        return True


class Named(Protocol):
    """What log lines need from a namespace."""

    @property
    def name(self) -> str: ...


class Counted(Protocol):
    """What counts and log lines need from a client."""

    @property
    def id(self) -> str: ...
    @property
    def namespace(self) -> Named: ...
    @property
    def transport(self) -> str: ...
    @property
    def handshake(self) -> Handshake: ...
    @property
    def identity(self) -> Identity | None: ...
    @property
    def recovered(self) -> bool: ...
    @property
    def connection(self) -> Connection: ...


class Traffic:
    """What a hub has seen since it was created."""

    __slots__ = (
        "_keys",
        "_losses",
        "_origins",
        "delivered",
        "disconnects",
        "evictions",
        "gaps",
        "lost",
        "published",
        "received",
        "refusals",
    )

    def __init__(self) -> None:
        # Messages from clients.
        self.received: int = 0
        # Events that could not be published and that nobody awaited.
        self.lost: int = 0
        # Events, whatever the number of their recipients.
        self.published: int = 0
        # Events times recipients, without replays and events that ask for an answer.
        self.delivered: int = 0
        # By reason; the common ones are present from the start.
        self.evictions: Counter[str] = Counter(slow_client=0, stalled=0, rate_limited=0)
        self.refusals: Counter[str] = Counter(origin_not_allowed=0, unauthorized=0, api_key=0)
        self.gaps: Counter[str] = Counter(expired=0, session=0, unknown=0)
        self.disconnects: Counter[str] = Counter()
        self._origins = Notices()
        self._keys = Notices()
        self._losses = Notices()

    # Clients.

    def joined(self, socket: Counted, gap: str | None) -> None:
        """Note a client that was admitted, and its gap if it has one."""
        if gap is not None:
            self.gap(gap)
        if logger.isEnabledFor(logging.INFO):
            how = f"gap: {gap}" if gap else "resumed" if socket.recovered else "new"
            logger.info("connected %s, %s", describe(socket), how)

    def left(self, socket: Counted, reason: str) -> None:
        """Note that a client left, and whether the server cut it."""
        self.disconnects[reason] += 1
        self.cut(socket)
        if logger.isEnabledFor(logging.INFO):
            why = socket.connection.evicted
            cause = f"{reason} ({why.reason})" if why is not None else reason
            logger.info("disconnected %s: %s", describe(socket), cause)

    def cut(self, socket: Counted) -> None:
        """Count a connection that the server cut, once for all its clients."""
        eviction = socket.connection.evicted
        if eviction is None or eviction.counted:
            return
        eviction.counted = True
        self.evictions[eviction.reason] += 1
        logger.warning(
            "cut %s: %s, with %d bytes in its outbox",
            describe(socket),
            eviction.reason,
            eviction.backlog,
        )

    def gap(self, reason: str) -> None:
        """Count a client that is told of a gap."""
        self.gaps[reason] += 1

    def not_published(self, namespace: str, error: BaseException) -> None:
        """Note an event that could not be published and that nobody awaits."""
        self.lost += 1
        if self._losses.due(namespace, time.monotonic()):
            logger.error(
                "events emitted in namespace %r are not published (%d so far): %s",
                namespace,
                self.lost,
                error,
            )

    # Refusals.

    def refused(self, error: EventError, handshake: Handshake, namespace: str) -> None:
        """Note a client that is refused."""
        self._count_refusal(error.code)
        logger.info(
            "refused a client of namespace %r, %s from %s: %s, %r",
            namespace,
            handshake.transport,
            handshake.address,
            error.code,
            error.message,
        )

    def refused_request(self, code: str) -> None:
        """Count a request that was refused because of its head."""
        self._count_refusal(code)

    def refused_origin(self, origin: str, address: str | None) -> None:
        """Note a page whose origin may not connect."""
        self._count_refusal("origin_not_allowed")
        if self._origins.due(origin, time.monotonic()):
            logger.warning(
                "refused pages of origin %r, the first from %s: cors_origins does not list it",
                origin,
                address,
            )

    def refused_key(self, address: str | None, reason: str = "api_key") -> None:
        """Note a request to the HTTP API with a wrong key or a refused token."""
        self._count_refusal(reason)
        if self._keys.due(address, time.monotonic()):
            what = "a wrong API key" if reason == "api_key" else f"a token ({reason})"
            logger.warning("refused %s that %s showed to the HTTP API", what, address)

    def _count_refusal(self, code: str) -> None:
        if code not in self.refusals and len(self.refusals) >= MOST_REASONS:
            code = OTHER
        self.refusals[code] += 1


def describe(socket: Counted) -> str:
    """Describe a client: `_4f… in '/', sse from 127.0.0.1, user 'ada'`."""
    user = "" if socket.identity is None else f", user {socket.identity.user!r}"
    return (
        f"{socket.id} in {socket.namespace.name!r}, {socket.transport} "
        f"from {socket.handshake.address}{user}"
    )
