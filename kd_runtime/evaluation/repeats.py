"""The longest repeat of an answer: how far a model got stuck in a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Repeat:
    """A stretch of an answer in which one unit of ``period`` tokens follows itself: ``length`` tokens from ``start``.

    The length counts every copy, also the last, incomplete one; it is 0 where nothing is repeated.
    """

    length: int = 0
    period: int = 0
    start: int = 0

    @property
    def copies(self) -> float:
        """How often the unit stands there, in a row."""
        return self.length / self.period if self.period else 0.0


def longest_repeat(tokens: Sequence[int]) -> Repeat:
    """The longest stretch made of back to back copies of one unit (at least two whole ones) of any number of tokens.

    A stretch has period p where every token equals the one p before it. Of two equally long ones the shorter unit wins,
    then the earlier. Phrases that come again further on are no loop and do not count. O(n^2) in numpy, n tokens.
    """
    ids = np.asarray(tokens)
    best = Repeat()
    for period in range(1, len(ids) // 2 + 1):
        start, run = _longest_run(ids[period:] == ids[:-period])
        if run >= period and run + period > best.length:
            best = Repeat(run + period, period, start)
    return best


def _longest_run(same: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of True; (0, 0) where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], same.astype(np.int8), [0]))))
    if edges.size == 0:
        return 0, 0
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(starts[longest]), int(lengths[longest])
