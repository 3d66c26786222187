"""Token buckets: pure rules, the time given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.rates import (
    LONGEST_PAUSE,
    SHORTEST_PAUSE,
    Buckets,
    Meter,
    SharedBuckets,
    TokenBucket,
)


def test_burst_passes_at_once_and_no_more() -> None:
    bucket = TokenBucket(10, 3)
    assert [bucket.take(0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0.0) == pytest.approx(0.1)


def test_who_waits_as_long_as_told_is_let_through() -> None:
    bucket = TokenBucket(3, 1)
    now = 1_000.0
    assert not bucket.take(now)
    for _ in range(100):
        wait = bucket.take(now)
        assert wait > 0
        now += wait
        assert not bucket.take(now)


def test_idle_bucket_fills_up_to_its_burst_and_not_further() -> None:
    bucket = TokenBucket(10, 3)
    for _ in range(3):
        bucket.take(0.0)
    assert not bucket.full(0.2)
    assert bucket.full(0.4)
    assert [bool(bucket.take(3_600.0)) for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("kind", [TokenBucket, partial(Meter, quiet=1.0)])
@given(
    rate=st.integers(1, 50),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=200),
)
def test_no_stretch_of_time_sees_more_than_burst_and_rate(
    kind: Callable[[float, int], TokenBucket | Meter],
    rate: int,
    burst: int,
    pauses: list[float],
) -> None:
    bucket = kind(rate, burst)
    now = 0.0
    passed: list[float] = []
    for pause in pauses:
        now += pause
        if not bucket.take(now):
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span = passed[last] - passed[first]
            assert last - first + 1 <= burst + rate * span + 1e-6


def test_refusals_are_counted_until_the_client_is_quiet() -> None:
    meter = Meter(1, 1, quiet=2.0)
    assert not meter.take(0.0)
    assert [bool(meter.take(0.1)) for _ in range(5)] == [True] * 5
    assert meter.refused == 5
    # Not quiet: the last refusal was less than 2 s ago.
    assert not meter.take(1.5)
    assert meter.take(1.6)
    assert meter.refused == 6
    assert not meter.take(4.0)
    assert meter.take(4.1)
    assert meter.refused == 1


def test_message_is_lent_and_the_client_rests() -> None:
    meter = Meter(10, 1, quiet=1.0)
    assert not meter.take(0.0)
    wait = meter.take(0.0)
    assert meter.lend(0.0, wait) == pytest.approx(0.1)
    # What is lent is not refused, and is paid back.
    assert meter.refused == 0
    assert meter.take(0.1) == pytest.approx(0.1)
    assert not meter.take(0.2)


def test_nothing_is_lent_for_longer_than_a_client_would_wait() -> None:
    meter = Meter(0.4, 1, quiet=1.0)
    assert not meter.take(0.0)
    assert not meter.lend(0.0, meter.take(0.0))
    assert meter.refused == 1
    assert meter.lend(1.0, meter.take(1.0)) == pytest.approx(1.5)


def test_rest_has_a_least_length() -> None:
    meter = Meter(1_000, 1, quiet=1.0)
    meter.take(0.0)
    assert meter.lend(0.0, meter.take(0.0)) == SHORTEST_PAUSE


def test_flood_is_lent_nothing_until_it_is_quiet() -> None:
    meter = Meter(10, 1, quiet=1.0, flood_time=5.0)
    now, lent = 0.0, 0
    while not (wait := meter.take(now)) or (pause := meter.lend(now, wait)):
        now += pause if wait else 0.0
        lent += 1
    assert 5.0 < now < 5.3
    assert 50 < lent < 56
    assert meter.refused == 1
    meter.take(now + 2)
    assert meter.lend(now + 2, meter.take(now + 2))


def test_more_than_fits_at_once_is_lent_to_who_has_been_quiet() -> None:
    meter = Meter(0, 1, byte_rate=100, byte_burst=100, quiet=1.0)
    wait = meter.take(0.0, 1_000)
    assert wait == pytest.approx(9.0)
    assert meter.lend(0.0, wait, size=1_000) == LONGEST_PAUSE
    assert not meter.lend(2.0, meter.take(2.0, 1), size=1)
    assert not meter.take(9.1, 1)


def test_user_pays_for_what_is_lent() -> None:
    shared = TokenBucket(1, 1)
    meters = [Meter(0, 1, quiet=1.0) for _ in range(2)]
    for meter in meters:
        meter.shared = shared
    assert not meters[0].take(0.0)
    assert meters[0].lend(0.0, meters[0].take(0.0)) == pytest.approx(1.0)
    assert meters[1].take(0.0) == pytest.approx(2.0)


def test_meters_of_one_user_share_a_bucket() -> None:
    shared = TokenBucket(1, 3)
    meters = [Meter(100, 100, quiet=1.0) for _ in range(2)]
    for meter in meters:
        meter.shared = shared
    assert [bool(meter.take(0.0)) for meter in meters * 2] == [False, False, False, True]


def test_meter_without_a_bucket_of_its_own_lets_all_through() -> None:
    meter = Meter(0, 1, quiet=1.0)
    assert not any(meter.take(0.0) for _ in range(10_000))


def test_bytes_of_a_meter_are_bounded_as_its_messages() -> None:
    meter = Meter(0, 1, byte_rate=100, byte_burst=300, quiet=1.0)
    assert [meter.take(5.0, size) for size in (100, 200, 0)] == [0, 0, 0]
    assert meter.take(5.0, 50) == pytest.approx(0.5)
    # What is refused is not counted: less is not refused.
    assert not meter.take(5.25, 25)
    assert meter.take(5.25, 50) == pytest.approx(0.5)
    assert not meter.take_bytes(5.75, 50)
    assert meter.take_bytes(5.75, 300) == pytest.approx(3.0)
    assert not meter.take(3_600.0, 300)
    assert meter.take(3_600.0, 1)
    assert meter.refused == 1


def test_message_that_one_bucket_refuses_takes_no_bytes() -> None:
    meter = Meter(1, 1, byte_rate=100, byte_burst=100, quiet=1.0)
    assert not meter.take(0.0, 50)
    assert meter.take(0.0, 50) == pytest.approx(1.0)
    assert not meter.take_bytes(0.0, 50)


@given(
    st.integers(1, 10_000),
    st.integers(1, 5_000),
    st.lists(
        st.tuples(st.floats(0, 2, allow_nan=False), st.integers(0, 6_000)),
        min_size=1,
        max_size=200,
    ),
)
def test_no_stretch_of_time_sees_more_bytes_than_burst_and_rate(
    rate: int, burst: int, messages: list[tuple[float, int]]
) -> None:
    meter = Meter(0, 1, byte_rate=rate, byte_burst=burst, quiet=1.0)
    now = 0.0
    passed: list[tuple[float, int]] = []
    for pause, size in messages:
        now += pause
        wait = meter.take(now, size)
        if not wait:
            passed.append((now, size))
        elif size <= burst:
            # Who waits as long as told is let through.
            now += wait
            assert not meter.take(now, size)
            passed.append((now, size))
    for first in range(len(passed)):
        total = 0
        for moment, size in passed[first:]:
            total += size
            assert total <= burst + rate * (moment - passed[first][0]) + 0.01


def test_bucket_is_found_again_while_it_is_not_full() -> None:
    buckets = Buckets(1, 2)
    assert not buckets.of("alice", 0.0).take(0.0)
    assert not buckets.of("alice", 0.0).take(0.0)
    assert buckets.of("alice", 0.5).take(0.5)
    assert not buckets.of("bob", 0.5).take(0.5)


def test_bucket_that_a_meter_shares_is_found_again_when_it_is_full() -> None:
    buckets = Buckets(1, 2)
    meter = Meter(0, 1, quiet=1.0)
    meter.shared = buckets.of("eve", 0.0)
    for number in range(5_000):
        buckets.of(number, float(number)).take(float(number))
    assert len(buckets) < 2_100
    again = Meter(0, 1, quiet=1.0)
    again.shared = buckets.of("eve", 5_000.0)
    assert [bool(each.take(5_000.0)) for each in (meter, again, meter, again)] == [
        False,
        False,
        True,
        True,
    ]


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets(50, 5)
    busy = buckets.of("busy", 0.0)
    for number in range(10_000):
        now = number / 100
        buckets.of(number, now).take(now)
        busy.take(now)
        assert buckets.of("busy", now) is busy
    assert len(buckets) < 2_100


def test_other_nodes_are_told_of_who_takes_more_than_a_share() -> None:
    buckets = SharedBuckets(10, 100)
    for user, count in (("low", 5), ("share", 10), ("high", 11), ("lent", 2)):
        for _ in range(count):
            assert not buckets.of(user, 0.0).take(0.0)
    for _ in range(9):
        buckets.of("lent", 0.0).owe(0.0)
    # In 4 s, four nodes may each pass on 10 of the 40 that the rate allows.
    assert buckets.collect(4.0, 4) == {"high": 11, "lent": 11}
    assert buckets.collect(4.0, 4) == {}
    # Told or not, it is counted anew.
    for _ in range(5):
        buckets.of("low", 4.0).take(4.0)
    assert buckets.collect(4.0, 4) == {}


def test_what_is_refused_or_was_used_elsewhere_is_not_told() -> None:
    buckets = SharedBuckets(1, 3)
    bucket = buckets.of("ada", 0.0)
    bucket.charge(0.0, 2)
    assert not bucket.take(0.0)
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert buckets.collect(0.0, 2) == {"ada": 1}


@given(
    nodes=st.integers(1, 5),
    seconds=st.integers(1, 60),
    wanted=st.lists(st.integers(0, 30), min_size=5, max_size=5),
)
def test_over_many_nodes_a_user_sends_less_than_twice_the_rate(
    nodes: int, seconds: int, wanted: list[int]
) -> None:
    rate, burst = 10, 20
    each = [SharedBuckets(rate, burst) for _ in range(nodes)]
    passed = 0
    for second in range(seconds):
        now = float(second)
        for buckets, count in zip(each, wanted, strict=False):
            passed += sum(not buckets.of("ada", now).take(now) for _ in range(count))
        told = [buckets.collect(1.0, nodes) for buckets in each]
        for buckets in each:
            for other, used in zip(each, told, strict=True):
                if other is not buckets:
                    for user, count in used.items():
                        buckets.of(user, now).charge(now, count)
    # The bursts of all nodes, and what they let through before they heard of each other.
    assert passed <= nodes * (burst + rate) + 2 * rate * seconds
