"""Scores by position in the answer, on data made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kd_runtime.evaluation.curves import Bin, Positions, curves, position_bins, prompt_sums
from kd_runtime.evaluation.scores import Score, Who

KEY = (Score.Agreement, Who.Student)


def answers(*rows: list[float], weights: list[float] | None = None) -> Positions:
    """One row a prompt, with its agreement at each position."""
    lengths = [len(row) for row in rows]
    return Positions(
        prompt=np.repeat(np.arange(len(rows)), lengths),
        offset=np.concatenate([np.arange(n) for n in lengths]),
        weight=np.repeat(weights or [1.0] * len(rows), lengths),
        values={KEY: np.concatenate(rows).astype(float)},
    )


def test_bins_grow_by_two_an_octave():
    bins = position_bins(np.tile(np.arange(48), 8))
    assert [(b.first, b.last) for b in bins] == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11), (12, 15), (16, 23), (24, 31), (32, 47),
    ]  # fmt: skip
    assert [b.positions for b in bins] == [8, 8, 8, 8, 16, 16, 32, 32, 64, 64, 128]


def test_thin_bins_join_the_one_before():
    offsets = [0] * 20 + [1] * 20 + [2] * 3 + [3] * 2
    assert position_bins(offsets) == [Bin(0, 0, 20), Bin(1, 3, 25)]


def test_no_positions_have_no_bins():
    assert position_bins([]) == []


def test_the_curve_is_the_share_at_each_position():
    rows = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]] * 3
    curve = curves(answers(*rows))
    assert [(r["first"], r["last"], r["positions"]) for r in curve] == [(0, 0, 12), (1, 1, 12)]
    first, second = (r["Agreement.student"] for r in curve)
    assert first[0] == pytest.approx(0.75)
    assert second[0] == pytest.approx(0.25)
    assert first[1] < 0.75 < first[2]


def test_rows_count_as_often_as_their_weight():
    curve = curves(answers(*([[1.0]] * 8 + [[0.0]] * 8), weights=[3.0] * 8 + [1.0] * 8))
    assert curve[0]["Agreement.student"][0] == pytest.approx(0.75)


def test_positions_that_were_not_measured_are_left_out():
    rows = [[1.0, np.nan]] * 9 + [[0.0, 1.0]] * 9
    curve = curves(answers(*rows))
    assert curve[0]["Agreement.student"][0] == pytest.approx(0.5)
    assert curve[1]["Agreement.student"][0] == 1.0


def test_a_score_that_was_never_measured_has_no_curve():
    assert "Agreement.student" not in curves(answers(*[[np.nan]] * 9))[0]


def test_sums_are_by_prompt():
    sums = prompt_sums(np.array([0, 0, 2]), np.array([1.0, np.nan, 4.0]), np.array([2.0, 2.0, 1.0]), 3)
    assert sums.tolist() == [[2.0, 2.0], [0.0, 0.0], [4.0, 1.0]]
