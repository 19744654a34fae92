"""How sure a score is: the bootstrap over prompts, for every score that is a ratio of two sums.

A prompt is the unit that is drawn, because the rows of one prompt are not independent. Every statistic here is a
function of per-prompt sums, so one matrix of draw counts gives all resamples of all scores, and two models that
answered the same prompts are compared within the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
SEED = 20240
CHUNK_ENTRIES = 4_000_000
"""Entries of one block of draw counts (32 MB)."""

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Sums [..., S] -> values [...]: the score as a function of S per-prompt sums added up."""


@dataclass(frozen=True)
class Interval:
    """A value with its bounds; ``low`` and ``high`` enclose ``confidence`` of what other prompts would have given."""

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Bootstrap:
    """A statistic's value, its resamples [B], and the two corrections of BCa (bias ``z0``, acceleration)."""

    value: float
    resamples: Floats
    bias: float
    acceleration: float

    def quantile(self, probability: float) -> float:
        """The one-sided bound below which ``probability`` of the distribution lies (BCa; Efron 1987, eq. 2.3).

        Infinite where more resamples are than the bound may leave out: BCa's corrections know nothing of such mass.
        """
        if not np.isfinite(self.value):
            return self.value
        infinite = self.resamples[np.isinf(self.resamples)]
        if infinite.size > min(probability, 1 - probability) * self.resamples.size:
            return float(infinite[0])
        normal = NormalDist()
        z = self.bias + normal.inv_cdf(probability)
        shrink = 1 - self.acceleration * z
        if shrink <= 0:
            return float(self.resamples[-1] if z > 0 else self.resamples[0])
        return _quantile(self.resamples, normal.cdf(self.bias + z / shrink))

    def lower(self, confidence: float) -> float:
        """The one-sided lower bound at ``confidence``."""
        return self.quantile(1 - confidence)

    def upper(self, confidence: float) -> float:
        """The one-sided upper bound at ``confidence``."""
        return self.quantile(confidence)

    def interval(self, confidence: float = 0.95) -> Interval:
        """The two-sided interval at ``confidence``."""
        edge = (1 - confidence) / 2
        return Interval(self.value, self.quantile(edge), self.quantile(1 - edge), confidence)


def bootstrap(sums: Floats, statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = SEED) -> Bootstrap:
    """The bootstrap distribution of ``statistic`` over prompts.

    ``sums``: [N, S], one line a prompt. ``statistic`` is applied to sums over prompts, in float64. Resamples without
    a value (NaN: no prompt with a count was drawn) are left out; infinite ones say that the statistic is not defined there, and stay.

    Raises:
        ValueError: no prompts.
    """
    if len(sums) == 0:
        raise ValueError("a bootstrap needs at least one prompt")
    with np.errstate(divide="ignore", invalid="ignore"):
        total = sums.sum(axis=0)
        value = float(statistic(total))
        drawn = np.concatenate([statistic(counts @ sums) for counts in _draws(len(sums), resamples, seed)])
        without = statistic(total - sums)
    drawn = np.sort(drawn[~np.isnan(drawn)])
    if drawn.size == 0 or not np.isfinite(value):
        return Bootstrap(value, np.array([value]), 0.0, 0.0)
    return Bootstrap(value, drawn, _bias(drawn, value), _acceleration(without))


def _draws(prompts: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks [b, prompts] of how often each prompt is drawn, ``resamples`` lines in all."""
    random = np.random.default_rng(seed)
    block = max(1, min(resamples, CHUNK_ENTRIES // prompts))
    for start in range(0, resamples, block):
        lines = min(block, resamples - start)
        picks = random.integers(prompts, size=(lines, prompts)) + np.arange(lines)[:, None] * prompts
        yield np.bincount(picks.ravel(), minlength=lines * prompts).reshape(lines, prompts).astype(np.float64)


def _quantile(drawn: Floats, probability: float) -> float:
    """The linear quantile of sorted ``drawn``; an infinite neighbour is the quantile, for nothing lies between."""
    low, high = (float(np.quantile(drawn, probability, method=side)) for side in ("lower", "higher"))
    if np.isfinite(low) and np.isfinite(high):
        return float(np.quantile(drawn, probability))
    return high if np.isfinite(low) else low


def _bias(drawn: Floats, value: float) -> float:
    """z0: how far the median of the resamples lies from the value; ties count half, certainty is kept finite."""
    scale = 1e-12 * max(1.0, abs(value))
    below = float(np.mean(drawn < value - scale)) + float(np.mean(np.abs(drawn - value) <= scale)) / 2
    edge = 1 / (drawn.size + 1)
    return NormalDist().inv_cdf(min(max(below, edge), 1 - edge))


def _acceleration(without: Floats) -> float:
    """The skewness of the jackknife values [N] over 6: how fast the standard error changes with the value."""
    finite = without[np.isfinite(without)]
    if finite.size == 0:
        return 0.0
    spread = finite.mean() - finite
    square = float((spread**2).sum())
    return float((spread**3).sum()) / (6 * square**1.5) if square > 1e-24 else 0.0
