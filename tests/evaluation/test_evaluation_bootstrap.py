"""The bootstrap over prompts: honest coverage, exact where there is nothing to draw, the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from kd_runtime.evaluation import bootstrap as module
from kd_runtime.evaluation.bootstrap import bootstrap


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def drawn_prompts(seed: int, prompts: int = 40) -> np.ndarray:
    """Sums and counts of prompts with a skewed score whose true mean is 1."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(5, 40, prompts).astype(float)
    return np.stack([draw.gamma(2.0, 0.5, prompts) * counts, counts], axis=1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    runs = [bootstrap(drawn_prompts(seed), mean, resamples=600) for seed in range(300)]
    two_sided = np.mean([r.interval().low <= 1 <= r.interval().high for r in runs])
    lower = np.mean([r.lower(0.95) <= 1 for r in runs])
    upper = np.mean([r.upper(0.95) >= 1 for r in runs])
    assert 0.90 <= two_sided <= 0.98
    assert 0.90 <= lower <= 0.985
    assert 0.90 <= upper <= 0.985


def test_bounds_close_in_with_more_prompts():
    few, many = (bootstrap(drawn_prompts(1, n), mean).interval() for n in (20, 2000))
    assert many.high - many.low < (few.high - few.low) / 4


def test_prompts_without_spread_give_bounds_equal_to_the_value():
    result = bootstrap(np.tile([3.0, 2.0], (12, 1)), mean)
    assert (result.lower(0.99), result.value, result.upper(0.99)) == pytest.approx((1.5, 1.5, 1.5))


def test_a_single_prompt_has_no_spread_either():
    result = bootstrap(np.array([[3.0, 2.0]]), mean)
    assert result.interval().low == result.interval().high == 1.5


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap(np.empty((0, 2)), mean)


def test_the_same_prompts_give_the_same_bounds():
    first, second = (bootstrap(drawn_prompts(5), mean).interval() for _ in range(2))
    assert first == second


def test_blocks_of_draws_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    whole = bootstrap(drawn_prompts(7), mean, resamples=500)
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 40 * 7)
    assert np.allclose(bootstrap(drawn_prompts(7), mean, resamples=500).resamples, whole.resamples, rtol=1e-12)


def test_prompts_are_weighted_by_their_counts():
    sums = np.array([[10.0, 10.0], [0.0, 90.0]])
    assert bootstrap(sums, mean).value == pytest.approx(0.1)


def test_resamples_without_any_count_are_left_out():
    sums = np.array([[1.0, 1.0]] + [[0.0, 0.0]] * 5)
    result = bootstrap(sums, mean)
    assert result.value == 1.0
    assert np.isfinite(result.resamples).all()
    assert result.resamples.size < 4000


def test_lower_bounds_rise_as_less_confidence_is_asked():
    result = bootstrap(drawn_prompts(3), mean)
    bounds = [result.lower(c) for c in (0.99, 0.95, 0.8, 0.5)]
    assert bounds == sorted(bounds)
    assert result.upper(0.95) > result.value > result.lower(0.95)
