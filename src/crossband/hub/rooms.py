"""Which clients are in a namespace, and in which of its rooms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from crossband.broker import Session


class Member(Protocol):
    """What rooms need from a client."""

    @property
    def id(self) -> str: ...
    @property
    def session(self) -> str: ...
    @property
    def record(self) -> Session:
        """What the broker keeps of it, including its rooms."""
        ...


M = TypeVar("M", bound=Member)


class Rooms(Generic[M]):
    """The clients of a namespace on this node: by id, by session, by room."""

    __slots__ = ("_rooms", "by_id", "by_session")

    def __init__(self) -> None:
        # Also serves as the rooms of the sockets' own ids, which are not in _rooms.
        self.by_id: dict[str, M] = {}
        # By session key.
        self.by_session: dict[str, M] = {}
        # Dicts because they are ordered: fan-out follows the order of joining.
        self._rooms: dict[str, dict[M, None]] = {}

    @property
    def room_count(self) -> int:
        """The number of rooms joined by name."""
        return len(self._rooms)

    def snapshot(self) -> Mapping[str, Collection[str]]:
        """Return a snapshot of the rooms and the ids in each."""
        rooms: dict[str, Collection[str]] = {sid: frozenset((sid,)) for sid in self.by_id}
        for room, members in self._rooms.items():
            ids = {member.id for member in members}
            rooms[room] = frozenset(ids.union(rooms.get(room, ())))
        return rooms

    def match(self, rooms: Iterable[str], except_: Iterable[str]) -> list[M]:
        """Return the sockets in any room (all without rooms) and in none of `except_`."""
        if rooms:
            chosen: dict[M, None] = {}
            for room in rooms:
                members = self._rooms.get(room)
                if members is not None:
                    chosen = chosen | members if chosen else members
                own = self.by_id.get(room)
                if own is not None:
                    chosen = {**chosen, own: None}
            found = list(chosen)
        else:
            found = list(self.by_id.values())
        if except_:
            left_out = set(self.match(except_, ()))
            return [member for member in found if member not in left_out]
        return found

    def live(self, key: str) -> M | None:
        """Return the connected client of a session."""
        return self.by_session.get(key)

    def add(self, member: M) -> None:
        self.by_id[member.id] = member
        self.by_session[member.session] = member
        for room in member.record.rooms:
            self.enter(member, room)

    def remove(self, member: M) -> None:
        if self.by_id.get(member.id) is member:
            del self.by_id[member.id]
        if self.by_session.get(member.session) is member:
            del self.by_session[member.session]
        for room in member.record.rooms:
            self.exit(member, room)

    def enter(self, member: M, room: str) -> None:
        self._rooms.setdefault(room, {})[member] = None

    def exit(self, member: M, room: str) -> None:
        members = self._rooms.get(room)
        if members is not None:
            members.pop(member, None)
            if not members:
                del self._rooms[room]
