"""The presence store within one process: dicts, and a heap of who has to leave when."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

import msgspec

from crossband.broker import Publication
from crossband.broker.presence import (
    MEMBERS_PAGE,
    Member,
    Members,
    Presence,
    PresenceStore,
    change,
)
from crossband.broker.sessions import LEASE
from crossband.names import JOIN, LEAVE, UPDATE

# A namespace, and a socket id, a room or a node in it.
Place = tuple[str, str]

# Clients that leave in one tick: all of a node may be due at once.
BATCH = 100


class _Shown(msgspec.Struct):
    """A member of a room, with its clients there."""

    member: Member
    sids: set[str]
    # Where it joined.
    position: int = 0


class MemoryPresence(PresenceStore):
    """The presence of the clients of all nodes of a process."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        publish: Callable[[Publication], Publication],
        head: Callable[[str], tuple[str, int]],
    ) -> None:
        self._clock = clock
        # Records and delivers a publication, and returns it as recorded.
        self._publish = publish
        # Returns the last cursor of a namespace, and its position.
        self._head = head
        # Clients that show in some room, by socket id; and the ids of connected ones, by node.
        self._clients: dict[Place, Presence] = {}
        self._connected: dict[Place, set[str]] = {}
        # Rooms with members, these by id in the order of joining.
        self._rooms: dict[Place, dict[str, _Shown]] = {}
        # Clients that are cut, and when they leave; and the same as a heap, in which some times
        # are out of date.
        self._cut: dict[Place, float] = {}
        self._due: list[tuple[float, Place]] = []
        # Nodes of this process: they are alive as long as they run.
        self._running: set[str] = set()
        # Until when other nodes count as alive, by namespace and node.
        self._leases: dict[Place, float] = {}
        # Where the next timer is set; None while no node of this process runs.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    # Nodes of this process.

    def node_started(self, node: str, loop: asyncio.AbstractEventLoop) -> None:
        self._running.add(node)
        if self._loop is not loop:
            self._loop, self._timer = loop, None
        self._set_timer()

    def node_stopped(self, node: str) -> None:
        """Count the clients that a node left behind as cut."""
        self._running.discard(node)
        now = self._clock()
        for namespace, owner in list(self._connected):
            if owner == node:
                self._cut_all((namespace, node), now)
        if not self._running:
            self._loop = None
            self._stop_timer()

    # The contract.

    def save(self, presence: Presence, *, connected: bool = True) -> None:
        self._lapse()
        place = (presence.namespace, presence.sid)
        before = self._clients.get(place)
        if before is not None and before.take > presence.take:
            return
        self._put(place, before, presence)
        now = self._clock()
        if not presence.rooms:
            if before is not None:
                # Known for a while, so that a late call of an earlier owner is known as such.
                self._clients[place] = presence
                self._cut_one(place, now + LEASE)
            return
        node = (presence.namespace, presence.owner)
        if not connected:
            self._cut_one(place, now + presence.grace)
        elif presence.owner in self._running or node in self._leases:
            self._connected.setdefault(node, set()).add(presence.sid)
        else:
            # As if its node had lost its lease just now.
            self._cut_one(place, now + LEASE + presence.grace)

    async def renew(self, namespace: str, node: str) -> bool:
        self._reap()
        if node in self._running:
            return True
        known = (namespace, node) in self._leases
        self._leases[namespace, node] = self._clock() + LEASE
        return known

    def expel(self, namespace: str, user: str) -> None:
        for place in list(self._cut):
            if place[0] == namespace and self._clients[place].user == user:
                self._drop(place)

    async def members(
        self, namespace: str, room: str, *, after: int = 0, limit: int = MEMBERS_PAGE
    ) -> Members:
        self._reap()
        shown = self._rooms.get((namespace, room), {})
        later = (each for each in shown.values() if each.position > after)
        page = list(itertools.islice(later, limit))
        more = next(later, None) is not None
        cursor, position = self._head(namespace)
        return Members(
            [each.member for each in page],
            len(shown),
            cursor,
            position,
            page[-1].position if more else None,
        )

    # Changes.

    def _put(self, place: Place, before: Presence | None, presence: Presence | None) -> None:
        """Replace what is known of a client, and publish the difference."""
        namespace, sid = place
        self._cut.pop(place, None)
        if before is not None:
            self._disconnect(place, before)
        had = {} if before is None else before.rooms
        has = {} if presence is None else presence.rooms
        if presence is None or not has:
            self._clients.pop(place, None)
        else:
            self._clients[place] = presence
        # All state first: a delivery may end another client.
        changes: list[tuple[str, str, _Shown, int]] = []
        for room, member in had.items():
            now = has.get(room)
            if now is not None and now.id == member.id:
                continue
            members = self._rooms[namespace, room]
            shown = members[member.id]
            shown.sids.discard(sid)
            if not shown.sids:
                del members[member.id]
                changes.append((LEAVE, room, shown, len(members)))
                if not members:
                    del self._rooms[namespace, room]
        for room, member in has.items():
            if had.get(room) == member:
                continue
            members = self._rooms.setdefault((namespace, room), {})
            known = members.get(member.id)
            if known is None:
                shown = members[member.id] = _Shown(member, {sid})
                changes.append((JOIN, room, shown, len(members)))
                continue
            known.sids.add(sid)
            if known.member != member:
                known.member = member
                changes.append((UPDATE, room, known, len(members)))
        for event, room, shown, count in changes:
            data = change(room, shown.member, count)
            position = self._publish(Publication(namespace, event, data, (room,))).position
            if event == JOIN:
                shown.position = position

    def _drop(self, place: Place) -> None:
        self._put(place, self._clients[place], None)

    def _disconnect(self, place: Place, presence: Presence) -> None:
        node = (presence.namespace, presence.owner)
        sids = self._connected.get(node)
        if sids is not None:
            sids.discard(place[1])
            if not sids:
                del self._connected[node]

    # Those that are cut.

    def _cut_one(self, place: Place, when: float) -> None:
        self._cut[place] = when
        heapq.heappush(self._due, (when, place))
        self._set_timer()

    def _cut_all(self, node: Place, since: float) -> None:
        """Cut the connected clients of a node."""
        for sid in self._connected.pop(node, ()):
            place = (node[0], sid)
            self._cut_one(place, since + self._clients[place].grace)

    def _lapse(self) -> None:
        """End leases that were not renewed."""
        now = self._clock()
        for node in [node for node, until in self._leases.items() if until <= now]:
            self._cut_all(node, self._leases.pop(node))

    def _reap(self, most: int | None = None) -> None:
        """Let clients leave whose time is up."""
        self._lapse()
        now = self._clock()
        left = 0
        while self._due and self._due[0][0] <= now and left != most:
            when, place = heapq.heappop(self._due)
            if self._cut.get(place) == when:
                self._drop(place)
                left += 1

    # The timer, for nodes of this process.

    def _set_timer(self) -> None:
        if self._loop is None or not self._due:
            return
        wait = max(0.0, self._due[0][0] - self._clock())
        when = self._loop.time() + wait
        if self._timer is None or when < self._timer.when():
            self._stop_timer()
            self._timer = self._loop.call_at(when, self._ring)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self._reap(BATCH)
        self._set_timer()
