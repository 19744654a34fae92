"""Buckets let through a burst, then a rate, for each key; in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kd_operator.progress.limits import Buckets, Rate


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    buckets = Buckets(Rate(per_second=0.5, burst=3), most=8)
    assert [buckets.take("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]
    assert buckets.take("a", 101.0) == 1.0
    assert buckets.take("a", 102.0) == 0.0
    assert buckets.take("a", 102.0) == 2.0


def test_one_key_does_not_use_up_anothers() -> None:
    buckets = Buckets(Rate(per_second=1, burst=1), most=8)
    assert buckets.take("a", 0.0) == 0.0
    assert buckets.take("a", 0.0) > 0
    assert buckets.take("b", 0.0) == 0.0


def test_keys_without_end_take_no_memory_without_end() -> None:
    buckets = Buckets(Rate(per_second=1, burst=1), most=5)
    for number in range(1000):
        assert buckets.take(str(number), 0.0) == 0.0
    assert len(buckets) == 5


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_never_more_than_the_burst_and_the_rate_are_let_through(pauses: list[float]) -> None:
    buckets = Buckets(Rate(per_second=2, burst=4))
    now, granted = 0.0, 0
    for pause in pauses:
        now += pause
        granted += buckets.take("", now) == 0.0
    assert granted <= 4 + 2 * now + 1e-6
