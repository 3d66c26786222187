"""The session store within one process: a dict, and the order in which sessions expire."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from crossband.broker.sessions import (
    LEASE,
    MAX_REVOKED,
    Revocation,
    Session,
    SessionStore,
    pack,
    unpack,
)
from crossband.names import is_socket_id

Place = tuple[str, str]


class MemorySessions(SessionStore):
    """The sessions of all nodes of a process.

    Also tells the logs which events are private: which socket ids have a session, and into which
    of their rooms others have joined.
    """

    def __init__(
        self,
        *,
        age: float,
        clock: Callable[[], float],
        forget: Callable[[str, str], None],
        sweep_later: Callable[[], None],
        taken: Callable[[Session], None],
    ) -> None:
        self._age = age
        self._clock = clock
        # Called with each namespace and socket id that no client can resume any more.
        self._forget = forget
        # Arranges a later call of `expire`, once there is something to expire.
        self._sweep_later = sweep_later
        # Called with what an owner tried to save although another node has taken it.
        self._taken = taken
        # By namespace and key. Those of connected clients expire with their node; the others
        # are in order of their expiry.
        self._connected: dict[Place, Session] = {}
        self._waiting: OrderedDict[Place, tuple[float, Session]] = OrderedDict()
        # Nodes of this process: they are alive as long as they run.
        self._running: set[str] = set()
        # Other owners of connected sessions, and until when they count as alive.
        self._leases: dict[str, float] = {}
        # How many attempts found each session, and which of them took it. Only of sessions that
        # some attempt looked for.
        self._attempts: dict[Place, tuple[int, int]] = {}
        # By (namespace, socket id) of all sessions: the other ids whose rooms each is in.
        self._ids: dict[Place, frozenset[str]] = {}
        # How many other sessions are in the room of an id.
        self.visitors: Counter[Place] = Counter()
        # By user; oldest first.
        self._revoked: dict[str, Revocation] = {}
        self._revocations = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing that may expire."""
        return not self._waiting and not self._leases

    def knows(self, namespace: str, sid: str) -> bool:
        """Return whether a client may come back as this socket."""
        return (namespace, sid) in self._ids

    # Nodes.

    def node_started(self, owner: str) -> None:
        self._running.add(owner)
        self._leases.pop(owner, None)

    def node_stopped(self, owner: str) -> None:
        """Let the sessions that a node left behind expire."""
        if owner in self._running:
            self._running.discard(owner)
            self._leave_alone(owner, self._clock())

    def renew(self, owner: str) -> None:
        if owner not in self._running:
            self._leases[owner] = self._clock() + LEASE
            self._sweep_later()

    def _leave_alone(self, owner: str, since: float) -> None:
        """Keep the sessions of a node that has gone for the history's age."""
        left = [place for place, kept in self._connected.items() if kept.owner == owner]
        for place in left:
            self._waiting[place] = (since + self._age, self._connected.pop(place))
        if left:
            self._sweep_later()

    # Sessions.

    def save(self, session: Session) -> None:
        place = (session.namespace, session.key)
        kept = self._connected.get(place)
        if kept is not session:
            if not self._may(place, kept, session):
                current = self._kept(place)
                if current is not None and current.owner != session.owner:
                    self._taken(session)
                return
            self._waiting.pop(place, None)
            self._connected[place] = session
            if session.owner not in self._running and session.owner not in self._leases:
                self.renew(session.owner)
        self._know(session)

    def release(self, session: Session) -> None:
        place = (session.namespace, session.key)
        if not self._may(place, self._connected.get(place), session):
            return
        self._connected.pop(place, None)
        self._waiting.pop(place, None)
        self._waiting[place] = (self._clock() + self._age, session)
        self._know(session)
        self.expire()
        self._sweep_later()

    def drop(self, session: Session) -> None:
        place = (session.namespace, session.key)
        kept = self._connected.get(place)
        if self._may(place, kept, session):
            self._remove(place)

    async def find(self, namespace: str, key: str) -> Session | None:
        self.expire()
        place = (namespace, key)
        kept = self._kept(place)
        if kept is None:
            return None
        found, last = self._attempts.get(place, (0, 0))
        self._attempts[place] = (found + 1, last)
        return msgspec.structs.replace(kept, attempt=found + 1)

    async def take(self, session: Session, owner: str) -> Session | None:
        self.expire()
        place = (session.namespace, session.key)
        kept = self._kept(place)
        found, last = self._attempts.get(place, (0, 0))
        if kept is None or kept.sid != session.sid or session.attempt < last:
            return None
        self._attempts[place] = (found, session.attempt)
        # For another node, encode and decode it as over a wire.
        copy = kept if kept.owner == owner else unpack(pack(kept))
        taken = msgspec.structs.replace(copy, rooms=set(copy.rooms), take=kept.take + 1)
        self._waiting.pop(place, None)
        self._connected[place] = msgspec.structs.replace(taken, owner=owner)
        if owner not in self._running:
            self.renew(owner)
        return taken

    async def revoke(self, user: str, time: float) -> Revocation:
        self._revocations += 1
        revocation = Revocation(self._revocations, user, time)
        self._revoked.pop(user, None)
        self._revoked[user] = revocation
        if len(self._revoked) > MAX_REVOKED:
            del self._revoked[next(iter(self._revoked))]
        kept = [(place, session) for place, session in self._connected.items()]
        kept += [(place, session) for place, (_, session) in self._waiting.items()]
        for place, session in kept:
            if session.user == user:
                self._remove(place)
        return revocation

    async def revocations(self, after: int = 0) -> list[Revocation]:
        return [each for each in self._revoked.values() if each.number > after]

    def expire(self) -> None:
        """Drop sessions that are due."""
        now = self._clock()
        for owner in [owner for owner, until in self._leases.items() if until <= now]:
            self._leave_alone(owner, self._leases.pop(owner))
        while self._waiting:
            place, (expiry, session) = next(iter(self._waiting.items()))
            if expiry > now:
                return
            del self._waiting[place]
            self._attempts.pop(place, None)
            self._lose(session)

    def _kept(self, place: Place) -> Session | None:
        session = self._connected.get(place)
        if session is None and (waiting := self._waiting.get(place)) is not None:
            session = waiting[1]
        return session

    def _may(self, place: Place, kept: Session | None, session: Session) -> bool:
        """Return whether a call for a session counts; if so, forget what was kept."""
        if kept is None and (waiting := self._waiting.get(place)) is not None:
            kept = waiting[1]
        if kept is None or kept is session:
            return True
        if (kept.owner, kept.take) != (session.owner, session.take):
            return False
        if kept.sid != session.sid:
            self._lose(kept)
        return True

    def _remove(self, place: Place) -> None:
        self._attempts.pop(place, None)
        session = self._connected.pop(place, None)
        if session is None and (waiting := self._waiting.pop(place, None)) is not None:
            session = waiting[1]
        if session is not None:
            self._lose(session)

    # Socket ids: whose events are private, and how long a client may come back for them.

    def _know(self, session: Session) -> None:
        place = (session.namespace, session.sid)
        visits = frozenset([room for room in session.rooms if is_socket_id(room)])
        before = self._ids.get(place)
        if before != visits:
            self._ids[place] = visits
            before = before or frozenset()
            if before or visits:
                self._count_visits(session.namespace, visits - before, 1)
                self._count_visits(session.namespace, before - visits, -1)

    def _lose(self, session: Session) -> None:
        place = (session.namespace, session.sid)
        self._count_visits(session.namespace, self._ids.pop(place, ()), -1)
        self._forget(*place)

    def _count_visits(self, namespace: str, sids: Iterable[str], change: int) -> None:
        for sid in sids:
            self.visitors[namespace, sid] += change
            if not self.visitors[namespace, sid]:
                del self.visitors[namespace, sid]
