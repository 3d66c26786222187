"""What a hub did, refused and cut: counts for `GET /api/status`, and log lines for operators.

No token, no session key and no query string is in any line.
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

# Seconds between two lines about one origin, address or place in the code.
NOTICE_TIME: Final = 60.0
# Lines of one kind within that time. Clients choose origins and addresses: more of them are
# counted, not logged.
MOST_NOTICES: Final = 100
# Reasons that are counted apart; an application may make up its error codes.
MOST_REASONS: Final = 64
OTHER: Final = "other"


class Notices:
    """Decides what is worth a log line: each key once in a while, and not too many keys."""

    __slots__ = ("_every", "_most", "_said")

    def __init__(self, *, every: float = NOTICE_TIME, most: int = MOST_NOTICES) -> None:
        self._every = every
        self._most = most
        # When each key was logged, the oldest first.
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
    """A namespace, as far as log lines say which."""

    @property
    def name(self) -> str: ...


class Counted(Protocol):
    """A client, as far as it is counted and described in log lines."""

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
    """What a hub has seen since it was made."""

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
        # Events that could not be published, and nobody waited to hear so.
        self.lost: int = 0
        # Events, whatever the number of their recipients.
        self.published: int = 0
        # Events to clients, each counted: without replays, and what asks for an answer.
        self.delivered: int = 0
        # By reason; those that any hub may have are there from the start.
        self.evictions: Counter[str] = Counter(slow_client=0, stalled=0, rate_limited=0)
        self.refusals: Counter[str] = Counter(origin_not_allowed=0, unauthorized=0, api_key=0)
        self.gaps: Counter[str] = Counter(expired=0, session=0, unknown=0)
        self.disconnects: Counter[str] = Counter()
        self._origins = Notices()
        self._keys = Notices()
        self._losses = Notices()

    # Clients.

    def joined(self, socket: Counted, gap: str | None) -> None:
        """Note a client that was let in, and why it could not be caught up, if so."""
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
        """Note an event that could not be published, while nobody waits to hear so."""
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
        """Note a client that is not let in."""
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
        """Count a request that got no further than its head."""
        self._count_refusal(code)

    def refused_origin(self, origin: str, address: str | None) -> None:
        """Note a page of an origin that may not connect."""
        self._count_refusal("origin_not_allowed")
        if self._origins.due(origin, time.monotonic()):
            logger.warning(
                "refused pages of origin %r, the first from %s: cors_origins does not list it",
                origin,
                address,
            )

    def refused_key(self, address: str | None, reason: str = "api_key") -> None:
        """Note a request to the HTTP API with a wrong key, or with a token that is refused."""
        self._count_refusal(reason)
        if self._keys.due(address, time.monotonic()):
            what = "a wrong API key" if reason == "api_key" else f"a token ({reason})"
            logger.warning("refused %s that %s showed to the HTTP API", what, address)

    def _count_refusal(self, code: str) -> None:
        if code not in self.refusals and len(self.refusals) >= MOST_REASONS:
            code = OTHER
        self.refusals[code] += 1


def describe(socket: Counted) -> str:
    """Say which client it is: `_4f… in '/', sse from 127.0.0.1, user 'ada'`."""
    user = "" if socket.identity is None else f", user {socket.identity.user!r}"
    return (
        f"{socket.id} in {socket.namespace.name!r}, {socket.transport} "
        f"from {socket.handshake.address}{user}"
    )
