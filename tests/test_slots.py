"""Counted connections: pure rules."""

from __future__ import annotations

import pytest

from crossband.slots import Slots, TooManyConnections


def test_nothing_is_refused_without_limits() -> None:
    slots = Slots()
    taken = [slots.take("a") for _ in range(1_000)]
    for slot in taken:
        slot.identify("user")
    assert slots.taken == 1_000
    for slot in taken:
        slot.release()
    assert slots.taken == 0


def test_address_past_its_limit_is_refused_and_others_are_not() -> None:
    slots = Slots(per_address=2)
    first = slots.take("a")
    slots.take("a")
    with pytest.raises(TooManyConnections) as caught:
        slots.take("a")
    assert caught.value.to_dict() == {
        "code": "too_many_connections",
        "error": "Too many connections",
        "scope": "address",
        "max": 2,
    }
    assert caught.value.status == 429
    slots.take("b")
    first.release()
    slots.take("a")
    assert slots.taken == 3


def test_unknown_address_counts_in_the_total_only() -> None:
    slots = Slots(total=3, per_address=1)
    for _ in range(3):
        slots.take(None)
    with pytest.raises(TooManyConnections) as caught:
        slots.take(None)
    assert (caught.value.scope, caught.value.status) == ("server", 503)


def test_slot_is_given_back_once() -> None:
    slots = Slots(total=2, per_address=2, per_user=2)
    slot = slots.take("a")
    slot.identify("user")
    other = slots.take("a")
    other.identify("user")
    slot.release()
    slot.release()
    assert (slots.taken, slots.addresses) == (1, 1)
    other.release()
    assert (slots.taken, slots.addresses) == (0, 0)
    assert not slots._users


def test_user_is_counted_once_per_connection() -> None:
    slots = Slots(per_user=1)
    slot = slots.take("a")
    # Two namespaces of a Socket.IO connection.
    slot.identify("user")
    slot.identify("user")
    second = slots.take("b")
    with pytest.raises(TooManyConnections) as caught:
        second.identify("user")
    assert caught.value.scope == "user"
    second.identify("another")
    # The first is about to be replaced.
    third = slots.take("c")
    third.identify("user", leaving=1)
    slot.release()
    third.release()
    second.identify("user")


def test_released_slot_is_identified_in_vain() -> None:
    slots = Slots(per_user=1)
    slot = slots.take("a")
    slot.release()
    slot.identify("user")
    assert not slots._users
