"""The contracts of what nodes share: the log of publications, sessions, presence and the bus.

A Broker has all four: it orders and records publications itself, and comes with `sessions`,
`presence` and a `bus`. `tests/broker/` has the contracts as tests, which every broker must pass.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Final, Literal, Protocol

import msgspec

from crossband.broker.bus import Bus
from crossband.broker.presence import Member, Members, Presence, PresenceStore
from crossband.broker.sessions import Session, SessionStore
from crossband.names import is_socket_id
from crossband.protocol.payload import Payload

__all__ = [
    "HISTORY_PAGE",
    "Broker",
    "Bus",
    "Member",
    "Members",
    "Page",
    "Presence",
    "PresenceStore",
    "Publication",
    "Receiver",
    "Session",
    "SessionStore",
]

# Publications in a page of history: enough for most returning clients, and few enough that
# reading them does not hold up a log elsewhere.
HISTORY_PAGE: Final = 1_000


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One published event, as it is recorded and carried."""

    namespace: str
    event: str
    payload: Payload
    # Empty means everybody in the namespace.
    rooms: tuple[str, ...] = ()
    # Rooms, or socket ids, that do not get it.
    except_: tuple[str, ...] = ()
    # None while unpublished, and for volatile events, which are not recorded.
    cursor: str | None = None
    # Older ones may be dropped for a client that is behind; such an event is not recorded.
    policy: Literal["drop_oldest", "latest"] | None = None
    # With "latest": what the event is about.
    key: str | int | None = None
    # Its place in its namespace's order: later ones are higher. 0 without a cursor.
    position: int = 0

    @property
    def size(self) -> int:
        """The bytes of its data, as histories count them."""
        json, attachments = self.payload.json, self.payload.attachments
        return len(json) + sum(map(len, attachments)) if attachments else len(json)

    @property
    def private(self) -> bool:
        """Whether its rooms are socket ids: it is for certain clients alone."""
        return bool(self.rooms) and all(map(is_socket_id, self.rooms))

    def at(self, cursor: str, position: int) -> Publication:
        """Return the recorded form of this publication."""
        return Publication(
            self.namespace,
            self.event,
            self.payload,
            self.rooms,
            self.except_,
            cursor,
            position=position,
        )


class Page(msgspec.Struct, frozen=True):
    """A part of a namespace's history, oldest first."""

    publications: list[Publication]
    # Where it ends: all up to here is in this page or earlier ones, or not for the client.
    position: int
    # The cursor to ask for the next page with.
    cursor: str
    # True if there are no more pages: `position` is the last one delivered on this node.
    last: bool = True


class Receiver(Protocol):
    """Gets what a broker hears; called on the event loop, and never raises."""

    def deliver(self, publication: Publication) -> None:
        """Deliver a publication to the clients of this node."""

    def lost(self, namespace: str, sid: str | None = None) -> None:
        """Tell the clients of a namespace of a gap, or one of them: something recorded is lost."""

    def taken(self, namespace: str, key: str, take: int) -> None:
        """End the client of a session that another node has taken.

        Called if a `save` with this take number was ignored because of that: normally the other
        node's question has ended the client before, but that may have been lost.
        """


class Broker(ABC):
    """Orders the publications of all namespaces, keeps what returning clients need.

    A broker serves one hub on one event loop, and is called on that loop only. Cursors are
    opaque, `[A-Za-z0-9._-]+`, at most 128 characters, and contain an epoch, so that cursors of
    other logs are recognized.

    A log elsewhere may be out of reach for a while. That is not a gap: calls then raise
    BrokerUnavailable, and clients keep their cursors.
    """

    # The sessions and the presence of the clients of all nodes, and this node's end of the bus
    # between them.
    sessions: SessionStore
    presence: PresenceStore
    bus: Bus
    # If True, `publish` returns no futures, and has delivered the publication when it returns.
    publishes_at_once: bool = False

    @abstractmethod
    async def start(self, receiver: Receiver) -> None:
        """Start carrying publications: `receiver` gets each, in its namespace's order.

        Raises BrokerUnavailable if it cannot be reached.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Carry out what was queued if possible, end all futures, release everything.

        No namespace is attached then. Publishing afterwards raises nothing and reaches nobody.
        """

    @property
    def problem(self) -> str | None:
        """Why this node is out of touch with the others, for operators, or None."""
        return None

    @abstractmethod
    def attach(self, namespace: str) -> Awaitable[None] | None:
        """Carry the publications of a namespace to this node, from now on.

        Called before the first client is admitted. Returns None if it is already attached, else
        an awaitable that ends once nothing more can be missed, or raises BrokerUnavailable.
        """

    @abstractmethod
    def detach(self, namespace: str) -> None:
        """Stop carrying a namespace: its last client has left.

        Also if it could not be attached, or is still being attached: the next call of `attach`
        tries again. Futures of what was published in it do not wait for its delivery.
        """

    @abstractmethod
    def publish(
        self, publication: Publication, *, record: bool = True
    ) -> str | asyncio.Future[str | None] | None:
        """Order, record and carry a publication, in one atomic step.

        It is queued at once, after what this node published before, whether or not anybody
        waits. Returns its cursor (None if `record` is off), or, if the log is elsewhere, a
        future of it. If the log cannot be reached, that raises BrokerUnavailable within some
        seconds, and the publication may still have been published. On a node that is attached
        to the namespace, a recorded publication is delivered before its future ends.
        Futures of one namespace end in the order of their publications, with or without a
        cursor; only one that fails may end sooner.
        """

    @abstractmethod
    def head(self, namespace: str) -> str:
        """Return the cursor of the last publication delivered to this node.

        The namespace must be attached.
        """

    @abstractmethod
    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> Page:
        """Return what was recorded after a cursor: at most `limit` publications of it.

        Includes what was sent to the socket `sid` alone, for a client that resumes.

        By the time it returns, this node has delivered all up to the page's position, even if
        the cursor was ahead of it. So a caller that collects deliveries from before this call,
        and drops those up to the position of the last page, misses nothing and gets nothing
        twice. Raises Gap (`unknown` or `expired`), or BrokerUnavailable.
        """
