"""The longest repeat: a stretch made of back to back copies of one unit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kd_runtime.evaluation.repeats import Repeat, longest_repeat


def test_nothing_is_repeated():
    assert longest_repeat([1, 2, 3, 4]) == Repeat()
    assert longest_repeat([]) == Repeat()
    assert longest_repeat([7]) == Repeat()


def test_one_token_over_and_over():
    assert longest_repeat([1, 5, 5, 5, 5, 2]) == Repeat(4, 1, 1)


def test_a_phrase_with_its_last_copy_cut_off():
    assert longest_repeat([9, 1, 2, 3, 1, 2, 3, 1, 2]) == Repeat(8, 3, 1)
    assert longest_repeat([9, 1, 2, 3, 1, 2, 3, 1, 2]).copies == 8 / 3


def test_a_phrase_that_comes_again_further_on_is_no_loop():
    assert longest_repeat([1, 2, 3, 9, 1, 2, 3]).length == 0


def test_a_unit_needs_two_whole_copies():
    assert longest_repeat([1, 2, 3, 1, 2]).length == 0
    assert longest_repeat([1, 2, 1, 2]) == Repeat(4, 2, 0)


def test_the_shorter_unit_names_the_same_stretch():
    assert longest_repeat([4, 4, 4, 4, 4, 4]) == Repeat(6, 1, 0)


def test_the_longest_of_several_stretches_wins():
    assert longest_repeat([1, 1, 8, 2, 3, 2, 3, 2, 3, 9, 6, 6, 6]) == Repeat(6, 2, 3)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_what_is_found_is_periodic_and_nothing_longer_is(tokens: list[int]):
    found = longest_repeat(tokens)
    stretches = [
        (start, stop, period)
        for start in range(len(tokens))
        for stop in range(start + 2, len(tokens) + 1)
        for period in range(1, (stop - start) // 2 + 1)
        if all(tokens[i] == tokens[i - period] for i in range(start + period, stop))
    ]
    assert found.length == max((stop - start for start, stop, _ in stretches), default=0)
    if found.length:
        assert (found.start, found.start + found.length, found.period) in stretches
