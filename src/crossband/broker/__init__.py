"""The contracts of what nodes share: the log of publications, the sessions, and the bus.

A Broker has all three: it orders and records publications itself, and its `sessions` and its
`bus` come with it. `tests/broker/` holds the contracts as tests, which every broker passes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Final, Literal, Protocol

import msgspec

from crossband.broker.bus import Bus
from crossband.broker.sessions import Session, SessionStore
from crossband.names import is_socket_id
from crossband.protocol.payload import Payload

__all__ = [
    "HISTORY_PAGE",
    "Broker",
    "Bus",
    "Page",
    "Publication",
    "Receiver",
    "Session",
    "SessionStore",
]

# Publications in a page of history. Enough that most clients that come back need one, and few
# enough that a log elsewhere is not held up by reading them.
HISTORY_PAGE: Final = 1_000


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One published event, as it is recorded and carried."""

    namespace: str
    event: str
    payload: Payload
    # Empty: everybody in the namespace.
    rooms: tuple[str, ...] = ()
    # Rooms, or socket ids, that do not get it.
    except_: tuple[str, ...] = ()
    # None while unpublished, and for volatile events, which are not recorded.
    cursor: str | None = None
    # Older ones may be dropped for a client that is behind; such an event is not recorded.
    policy: Literal["drop_oldest", "latest"] | None = None
    # Under "latest": what the event is about.
    key: str | int | None = None
    # Where it stands in its namespace's order: the later, the higher. 0 without a cursor.
    position: int = 0

    @property
    def size(self) -> int:
        """Count the bytes of its data, as a history does."""
        json, attachments = self.payload.json, self.payload.attachments
        return len(json) + sum(map(len, attachments)) if attachments else len(json)

    @property
    def private(self) -> bool:
        """Whether its rooms are socket ids: it is for one client, or for some, by name."""
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
    # Where it ends: all up to here is in this page or those before, or not for who asked.
    position: int
    # To ask for the next page with.
    cursor: str
    # There is no further page: `position` is the last place that was delivered on this node.
    last: bool = True


class Receiver(Protocol):
    """Who is told what a broker hears; called on the event loop, and never raises."""

    def deliver(self, publication: Publication) -> None:
        """Give a publication to the clients of this node."""

    def lost(self, namespace: str) -> None:
        """Tell the clients of a namespace of a gap: something that was recorded is gone."""


class Broker(ABC):
    """Order the publications of every namespace and keep what returning clients need.

    A broker serves one hub on one event loop, and is called on that loop only. Cursors are
    opaque, `[A-Za-z0-9._-]+`, at most 128 characters, and carry an epoch: one that this log did
    not hand out is told apart.

    Where the log is elsewhere, it may be out of reach for a while. That is not a gap: what is
    asked of it then raises BrokerUnavailable, and clients keep their cursors.
    """

    # The sessions of all nodes, and this node's end of the bus between them.
    sessions: SessionStore
    bus: Bus
    # `publish` returns no futures, and what it was given has been delivered then.
    publishes_at_once: bool = False

    @abstractmethod
    async def start(self, receiver: Receiver) -> None:
        """Begin to carry publications: `receiver` gets each, in its namespace's order.

        Raises BrokerUnavailable where it cannot be reached.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Carry out what was queued, if it can be, end all futures, and release everything.

        No namespace is attached then. Publishing afterwards raises nothing and reaches nobody.
        """

    @property
    def problem(self) -> str | None:
        """Why this node is out of touch with the others, for operators; None while it is not."""
        return None

    @abstractmethod
    def attach(self, namespace: str) -> Awaitable[None] | None:
        """Carry the publications of a namespace to this node, from now on.

        Called before the first client is let in. None where it is attached already; else an
        awaitable that ends when nothing published from then on is missed, or raises
        BrokerUnavailable.
        """

    @abstractmethod
    def detach(self, namespace: str) -> None:
        """Carry a namespace no more: its last client has left.

        Also one that could not be attached, or is still being: it is attached anew by the next
        call of `attach`. Futures of what was published in it do not wait for its delivery.
        """

    @abstractmethod
    def publish(
        self, publication: Publication, *, record: bool = True
    ) -> str | asyncio.Future[str | None] | None:
        """Order, record and carry a publication, in one atomic step.

        It is queued at once, behind what was published before it on this node, whether or not
        anybody waits. Returns its cursor (None when `record` is off), or a future of it where
        the log is elsewhere; that one raises BrokerUnavailable within some seconds where it
        cannot be reached, and then it may have been published all the same. On a node that is
        attached to the namespace, a recorded publication is delivered before its future ends.
        Futures of one namespace end in the order of their publications, with or without a
        cursor; only one that fails may end sooner.
        """

    @abstractmethod
    def head(self, namespace: str) -> str:
        """Return the cursor of the last publication delivered to this node.

        Of a namespace that is attached.
        """

    @abstractmethod
    async def history(
        self, namespace: str, after: str, sid: str | None = None, *, limit: int = HISTORY_PAGE
    ) -> Page:
        """Return what was recorded after a cursor: at most `limit` publications of it.

        With what was sent to the socket `sid` alone: of a client that comes back as itself.

        All up to the page's position was delivered on this node by then, also where the cursor
        was ahead of it: whoever collects deliveries from before this call, and drops those up
        to the position of the last page, misses nothing and gets nothing twice. Raises Gap
        (`unknown` or `expired`), or BrokerUnavailable.
        """
