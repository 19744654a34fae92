"""The next step is prepared while one runs, by one thread, in order; faults come up where they belong."""

from __future__ import annotations

import threading

import pytest

from kd_runtime.training.prefetch import Prefetcher


def test_one_is_made_ahead_and_none_past_the_end() -> None:
    made: list[int] = []
    second = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            second.set()
        return 10 * number

    prefetcher = Prefetcher(make, 3)
    assert prefetcher.get(0) == 0
    assert second.wait(10)
    assert made == [0, 1]
    assert [prefetcher.get(number) for number in (1, 2)] == [10, 20]
    assert made == [0, 1, 2]


def test_a_run_may_begin_anywhere_and_jump() -> None:
    prefetcher = Prefetcher(lambda number: number, 100)
    assert [prefetcher.get(number) for number in (7, 8, 40, 41, 99)] == [7, 8, 40, 41, 99]


def test_all_is_made_by_one_thread() -> None:
    prefetcher = Prefetcher(lambda number: threading.get_ident(), 10)
    idents = {prefetcher.get(number) for number in (0, 1, 5, 6)}
    assert len(idents) == 1 and threading.get_ident() not in idents


def test_a_fault_is_that_of_its_step() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise ValueError("row 17 is missing")
        return number

    prefetcher = Prefetcher(make, 3)
    assert prefetcher.get(0) == 0
    with pytest.raises(ValueError, match="row 17"):
        prefetcher.get(1)
