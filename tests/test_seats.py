"""Counted connections: pure rules."""

from __future__ import annotations

import pytest

from crossband.seats import Seats, TooManyConnections


def test_nothing_is_refused_without_limits() -> None:
    seats = Seats()
    taken = [seats.take("a") for _ in range(1_000)]
    for seat in taken:
        seat.identify("user")
    assert seats.taken == 1_000
    for seat in taken:
        seat.release()
    assert seats.taken == 0


def test_address_past_its_limit_is_refused_and_others_are_not() -> None:
    seats = Seats(per_address=2)
    first = seats.take("a")
    seats.take("a")
    with pytest.raises(TooManyConnections) as caught:
        seats.take("a")
    assert caught.value.to_dict() == {
        "code": "too_many_connections",
        "error": "Too many connections",
        "scope": "address",
        "max": 2,
    }
    assert caught.value.status == 429
    seats.take("b")
    first.release()
    seats.take("a")
    assert seats.taken == 3


def test_unknown_address_counts_in_the_total_only() -> None:
    seats = Seats(total=3, per_address=1)
    for _ in range(3):
        seats.take(None)
    with pytest.raises(TooManyConnections) as caught:
        seats.take(None)
    assert (caught.value.scope, caught.value.status) == ("server", 503)


def test_seat_is_given_back_once() -> None:
    seats = Seats(total=2, per_address=2, per_user=2)
    seat = seats.take("a")
    seat.identify("user")
    other = seats.take("a")
    other.identify("user")
    seat.release()
    seat.release()
    assert (seats.taken, seats.addresses) == (1, 1)
    other.release()
    assert (seats.taken, seats.addresses) == (0, 0)
    assert not seats._users


def test_user_is_counted_once_per_connection() -> None:
    seats = Seats(per_user=1)
    seat = seats.take("a")
    # Two namespaces of a Socket.IO connection.
    seat.identify("user")
    seat.identify("user")
    second = seats.take("b")
    with pytest.raises(TooManyConnections) as caught:
        second.identify("user")
    assert caught.value.scope == "user"
    second.identify("another")
    # The first is about to be replaced.
    third = seats.take("c")
    third.identify("user", leaving=1)
    seat.release()
    third.release()
    second.identify("user")


def test_released_seat_is_identified_in_vain() -> None:
    seats = Seats(per_user=1)
    seat = seats.take("a")
    seat.release()
    seat.identify("user")
    assert not seats._users
