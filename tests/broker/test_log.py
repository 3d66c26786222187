"""The private logs of a namespace: each session has its share, whatever the others do."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.broker import Publication
from crossband.broker.log import EVENT_COST, LOG_COST, Entry, Log, Privates, newer
from crossband.errors import Gap
from crossband.protocol import payload

# Of an event whose data are as many bytes as it costs beside.
COST = 2 * EVENT_COST


def publication(size: int = EVENT_COST) -> Publication:
    return Publication("/", "x", payload.encode(["x" * (size - 4)]))


class Mail:
    """Private logs within the room of so many events, with numbers given in turn."""

    def __init__(self, room: float, *, logs: int, size: int = 1_000_000) -> None:
        limit = logs * LOG_COST + int(room * COST)
        self.logs = Privates(size=size, limit=limit, age=60.0)
        self.number = 0

    def send(self, sid: str, *, size: int = EVENT_COST, now: float = 0.0) -> int:
        self.number += 1
        self.logs.append(sid, (now, self.number, publication(size)))
        return self.number

    def kept(self, sid: str, after: int = 0, *, now: float = 0.0) -> list[int]:
        return [number for _, number, _ in self.logs.after(sid, after, now)]

    def lost(self, sid: str) -> int:
        """Return the number of the last event the session lost."""
        lost = 0
        for position in range(self.number):
            try:
                self.kept(sid, position)
            except Gap:
                lost = position + 1
        return lost


def test_one_session_may_use_all_the_room_that_others_do_not() -> None:
    mail = Mail(10, logs=1)
    for _ in range(10):
        mail.send("ada")
    assert len(mail.kept("ada")) == 10
    mail.send("ada")
    assert mail.lost("ada") == 1
    assert len(mail.kept("ada", 1)) == 10


def test_flood_pushes_out_its_own_oldest() -> None:
    mail = Mail(10, logs=2)
    first = mail.send("ada")
    for _ in range(100):
        mail.send("eve")
    assert mail.kept("ada") == [first]
    assert mail.lost("ada") == 0
    assert len(mail.kept("eve", mail.lost("eve"))) == 9


def test_who_comes_late_has_its_share_too() -> None:
    mail = Mail(12, logs=4)
    for _ in range(10):
        for sid in ("eve", "mallory", "trudy"):
            mail.send(sid)
    mine = [mail.send("ada") for _ in range(3)]
    assert mail.kept("ada") == mine
    assert mail.lost("ada") == 0
    for sid in ("eve", "mallory", "trudy"):
        assert len(mail.kept(sid, mail.lost(sid))) == 3


def test_event_larger_than_all_the_room_is_lost_alone() -> None:
    mail = Mail(4, logs=2)
    kept = mail.send("ada")
    large = mail.send("eve", size=20 * COST)
    assert mail.lost("eve") == large
    assert mail.kept("eve", large) == []
    assert mail.kept("ada") == [kept]


@pytest.mark.parametrize("seed", range(5))
def test_within_its_share_no_session_loses_anything(seed: int) -> None:
    chance = random.Random(seed)
    sids = [f"client {number}" for number in range(8)]
    mail = Mail(8 * 6, logs=len(sids))
    sent: dict[str, list[int]] = {sid: [] for sid in sids}
    # The last three are modest.
    for sid in [*chance.choices(sids[:5], k=500), *(sid for sid in sids[5:] for _ in range(6))]:
        sent[sid].append(mail.send(sid))
    for sid in chance.choices(sids[:5], k=500):
        sent[sid].append(mail.send(sid))
    for sid in sids[5:]:
        assert mail.kept(sid) == sent[sid]
    for sid in sids[:5]:
        lost = mail.lost(sid)
        assert mail.kept(sid, lost) == [number for number in sent[sid] if number > lost]
    assert mail.logs._cost <= mail.logs._limit


def test_age_and_leave_give_the_room_back() -> None:
    mail = Mail(4, logs=2)
    for sid in ("ada", "bob"):
        mail.send(sid)
        mail.send(sid)
    mail.logs.forget("ada")
    assert mail.kept("ada") == []
    mail.logs.evict(60.5)
    assert mail.logs.empty
    assert mail.logs._cost == 0
    with pytest.raises(Gap, match="expired"):
        mail.kept("bob", now=60.5)


@settings(max_examples=60, deadline=None, database=None)
@given(st.lists(st.integers(1, 5), max_size=20), st.integers(-1, 110))
def test_newer_entries_are_those_of_a_higher_number(steps: list[int], position: int) -> None:
    numbers = [sum(steps[: end + 1]) for end in range(len(steps))]
    entries: deque[Entry] = deque((0.0, number, publication()) for number in numbers)
    found = [number for _, number, _ in newer(entries, position)]
    assert found == [number for number in numbers if number > position]


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.sampled_from(["all", "a", "b", "ab"]), max_size=20),
    st.integers(0, 20),
    st.sampled_from([None, "a", "b", "c"]),
    st.integers(1, 8),
)
def test_pages_of_a_log_are_what_was_for_all_and_for_one(
    sent: list[str], position: int, sid: str | None, limit: int
) -> None:
    log = Log(size=1_000, limit=1_000_000, age=60.0, epoch="e")
    for to in sent:
        if to == "all":
            log.append(publication(), 0.0)
        else:
            log.append_private(publication(), [*to], 0.0)
    expected = [
        number
        for number, to in enumerate(sent, 1)
        if number > position and (to == "all" or (sid is not None and sid in to))
    ]
    cursor, found = f"e-{min(position, len(sent))}", []
    while True:
        page = log.after(cursor, sid, 0.0, limit)
        assert len(page.publications) <= limit
        found += [each.position for each in page.publications]
        if page.last:
            break
        cursor = page.cursor
    assert found == expected
    assert (page.position, page.cursor) == (len(sent), log.head)
