"""The contract of a broker: it records, orders and carries publications, and keeps sessions.

`tests/broker/test_conformance.py` is the same contract as tests; every broker passes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from crossband.names import is_socket_id
from crossband.protocol.payload import Payload


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

    @property
    def size(self) -> int:
        """Count the bytes of its data, as a history does."""
        json, attachments = self.payload.json, self.payload.attachments
        return len(json) + sum(map(len, attachments)) if attachments else len(json)

    @property
    def private(self) -> bool:
        """Whether its rooms are socket ids: it is for one client, or for some, by name."""
        return bool(self.rooms) and all(map(is_socket_id, self.rooms))

    def at(self, cursor: str) -> Publication:
        """Return the recorded form of this publication."""
        return Publication(
            self.namespace, self.event, self.payload, self.rooms, self.except_, cursor
        )


class Session(msgspec.Struct):
    """What is kept of a client so that it can come back as itself."""

    namespace: str
    # The client's secret: Socket.IO `pid`, `session` on the other doors.
    key: str
    sid: str
    # Rooms it joined, without the room of its own id.
    rooms: set[str]
    data: dict[str, Any]
    # Where it started to listen: for a client that comes back before it received anything.
    cursor: str
    # Whose it is: only this user resumes it. None for anonymous clients.
    user: str | None = None
    # Those of the rooms that were joined by the client's own wish.
    asked: frozenset[str] = frozenset()


Deliver = Callable[[Publication], None]


class Broker(ABC):
    """Order the publications of every namespace and keep what returning clients need.

    A broker serves one hub on one event loop. Cursors are opaque, `[A-Za-z0-9._-]+`, at most
    128 characters, and carry an epoch: one that this log did not hand out is told apart.
    """

    @abstractmethod
    async def start(self, deliver: Deliver) -> None:
        """Begin to carry publications; `deliver` gets each, in its namespace's order."""

    @abstractmethod
    async def stop(self) -> None:
        """Release everything. Publishing afterwards raises nothing and reaches nobody."""

    @abstractmethod
    def publish(
        self, publication: Publication, *, record: bool = True
    ) -> str | Awaitable[str | None] | None:
        """Order, record and carry a publication, in one atomic step.

        Returns its cursor (None when `record` is off), or an awaitable of it where the log
        is elsewhere. `deliver` is called before the cursor is returned on this node.
        """

    @abstractmethod
    def head(self, namespace: str) -> str:
        """Return the cursor of the last publication delivered to this node."""

    @abstractmethod
    async def history(
        self, namespace: str, after: str, sid: str | None = None
    ) -> list[Publication]:
        """Return what was recorded after a cursor, oldest first.

        With what was sent to the socket `sid` alone: of a client that comes back as itself.

        On return, each of these has been given to `deliver` on this node: whoever collects
        deliveries from before this call, and drops those also found here, misses nothing.
        Raises Gap (`unknown` or `expired`).
        """

    @abstractmethod
    def save_session(self, session: Session, *, connected: bool) -> None:
        """Keep a session: while connected, or from now for the history's age."""

    @abstractmethod
    async def find_session(self, namespace: str, key: str) -> Session | None:
        """Return a session and leave it where it is."""

    @abstractmethod
    async def take_session(self, namespace: str, key: str) -> Session | None:
        """Remove and return a session; of several callers, one gets it."""

    @abstractmethod
    def drop_session(self, namespace: str, key: str) -> None:
        """Forget a session."""

    @abstractmethod
    def drop_sessions(self, user: str) -> None:
        """Forget all sessions of a user."""
