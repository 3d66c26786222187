"""Whom an event is for: found among the rooms, and told of one publication and one client."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.broker import Publication, Session
from crossband.codecs import ENVELOPE
from crossband.hub.catchup import ReplayBuffer, concerns
from crossband.hub.rooms import Rooms
from crossband.protocol.payload import EMPTY

# Every socket is in the room of its own id, which nobody else may join; here one may.
SIDS = [f"_{number:019d}" for number in range(4)]
ROOMS = ["a", "b", "c", *SIDS]

choices = st.lists(st.sampled_from([*ROOMS, "nobody's"]), max_size=4, unique=True).map(tuple)


@dataclass(eq=False)
class Somebody:
    id: str
    record: Session

    @property
    def session(self) -> str:
        return self.record.key

    @property
    def rooms(self) -> frozenset[str]:
        return frozenset((*self.record.rooms, self.id))


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.sampled_from(range(4)), st.sampled_from(ROOMS)), max_size=20),
    choices,
    choices,
)
def test_recipients_are_those_whom_a_publication_concerns(
    steps: list[tuple[int, str]], chosen: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    link = mock.Mock(closed=False)
    rooms: Rooms[Somebody] = Rooms()
    people = [Somebody(sid, Session("/", f"key of {sid}", sid, set(), {}, "")) for sid in SIDS]
    # In order of joining; those whose own it is come last.
    order: dict[str, list[Somebody]] = {room: [] for room in ROOMS}
    for somebody in people:
        rooms.add(somebody)
    for number, room in steps:
        somebody = people[number]
        if room in somebody.record.rooms:
            somebody.record.rooms.remove(room)
            rooms.exit(somebody, room)
            order[room].remove(somebody)
        else:
            somebody.record.rooms.add(room)
            rooms.enter(somebody, room)
            order[room].append(somebody)
    for somebody in people:
        order[somebody.id].append(somebody)
    publication = Publication("/", "x", EMPTY, chosen, left_out)
    candidates = [each for room in chosen for each in order.get(room, ())] if chosen else people
    assert rooms.match(chosen, left_out) == [
        somebody for somebody in dict.fromkeys(candidates) if concerns(publication, somebody.rooms)
    ]
    for somebody in people:
        # One who is still catching up finds it in its buffer.
        buffer = ReplayBuffer(link, ENVELOPE, count=9, size=9)
        buffer.ids = somebody.rooms
        buffer.take(publication)
        assert buffer or not concerns(publication, somebody.rooms)
    for somebody in people:
        rooms.remove(somebody)
    assert (rooms.match((), ()), rooms.room_count) == ([], 0)
