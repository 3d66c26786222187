"""Who is in a namespace, and in which of its rooms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from crossband.broker import Session


class Member(Protocol):
    """A client, as far as its rooms are concerned."""

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
        # The room of a socket's own id is this, not an entry of _rooms.
        self.by_id: dict[str, M] = {}
        # By session key.
        self.by_session: dict[str, M] = {}
        # Dicts for their order: fan-out is in order of joining.
        self._rooms: dict[str, dict[M, None]] = {}

    @property
    def room_count(self) -> int:
        """The number of rooms that were joined by name."""
        return len(self._rooms)

    def snapshot(self) -> Mapping[str, Collection[str]]:
        """Return the rooms and the ids in each, as they are now."""
        rooms: dict[str, Collection[str]] = {sid: frozenset((sid,)) for sid in self.by_id}
        for room, members in self._rooms.items():
            ids = {member.id for member in members}
            rooms[room] = frozenset(ids.union(rooms.get(room, ())))
        return rooms

    def match(self, rooms: Iterable[str], except_: Iterable[str]) -> list[M]:
        """Return the sockets in any of the rooms (none: all) and in none of `except_`."""
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
