"""Scores by position in the answer: where along an answer a student leaves its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_runtime.evaluation.bootstrap import Floats, bootstrap
from kd_runtime.evaluation.scores import Score, Who

CURVES = (Score.KL, Score.Agreement, Score.CrossEntropy)
RESAMPLES = 1000
LEAST_POSITIONS = 8
"""A bin with fewer positions is joined with the one before it."""


@dataclass(frozen=True)
class Positions:
    """One entry a scored position of the held-out rows, in any order.

    ``prompt`` [P] numbers the prompt (the bootstrap's unit), ``offset`` [P] is the position in the answer from 0,
    ``weight`` [P] how often the row counts, ``values[score, who]`` [P] the score (NaN where it was not measured).
    """

    prompt: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    weight: Floats
    values: Mapping[tuple[Score, Who], Floats]


@dataclass(frozen=True)
class Bin:
    """Offsets ``first`` to ``last`` (both included) and how many positions lie there."""

    first: int
    last: int
    positions: int


def position_bins(offsets: Sequence[int] | npt.NDArray[np.int64]) -> list[Bin]:
    """Bins two an octave (0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23, …) over the offsets; thin ones join the one before."""
    array = np.asarray(offsets, dtype=np.int64)
    if array.size == 0:
        return []
    bins: list[Bin] = []
    for first, last in _edges(int(array.max())):
        count = int(((array >= first) & (array <= last)).sum())
        if bins and count < LEAST_POSITIONS:
            bins[-1] = Bin(bins[-1].first, last, bins[-1].positions + count)
        else:
            bins.append(Bin(first, last, count))
    return [Bin(b.first, min(b.last, int(array.max())), b.positions) for b in bins]


def _edges(largest: int) -> list[tuple[int, int]]:
    edges, first, width = [], 0, 1
    while first <= largest:
        edges.append((first, first + width - 1))
        first += width
        if first >= 4 and first & (first - 1) == 0:
            width = first // 2
    return edges


def curves(positions: Positions, *, resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """One record a bin: ``{"first", "last", "positions", "<score>.<who>": [value, low, high]}`` with 95 % intervals."""
    bins = position_bins(positions.offset)
    records = []
    for entry in bins:
        inside = (positions.offset >= entry.first) & (positions.offset <= entry.last)
        record: dict[str, Any] = {"first": entry.first, "last": entry.last, "positions": entry.positions}
        for (score, who), values in sorted(positions.values.items()):
            if score not in CURVES:
                continue
            measured = inside & np.isfinite(values)
            if measured.any():
                record[f"{score}.{who}"] = _interval(positions, values, measured, resamples)
        records.append(record)
    return records


def _interval(positions: Positions, values: Floats, measured: npt.NDArray[np.bool_], resamples: int) -> list[float]:
    sums = prompt_sums(positions.prompt[measured], values[measured], positions.weight[measured])
    sums = sums[sums[:, 1] > 0]
    interval = bootstrap(sums, lambda s: s[..., 0] / s[..., 1], resamples=resamples).interval()
    return [interval.value, interval.low, interval.high]


def prompt_sums(prompt: npt.NDArray[np.int64], values: Floats, weight: Floats, prompts: int | None = None) -> Floats:
    """[N, 2]: for each prompt the weighted sum of ``values`` and the sum of weights; NaN values count as not measured."""
    size = prompts if prompts is not None else int(prompt.max(initial=-1)) + 1
    seen = np.isfinite(values)
    total = np.bincount(prompt[seen], weights=values[seen] * weight[seen], minlength=size)
    count = np.bincount(prompt[seen], weights=weight[seen], minlength=size)
    return np.stack([total, count], axis=1)
