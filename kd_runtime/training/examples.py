"""Rows as training sees them: ids, scored positions and the teacher's targets, joined by key, then cut to maxLength."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kd_runtime.api.failures import DataError, TransientError
from kd_runtime.artifacts.rows import Row
from kd_runtime.logits.targets import RowTargets
from kd_runtime.training.order import BLOCK_ROWS


class Rows(Protocol):
    """What training needs of the rows artifact (`RowsReader`)."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Sequence[Row]: ...


class Targets(Protocol):
    """What training needs of the logits artifact (`LogitsReader`)."""

    def get(self, key: bytes | str, temperature: float = 1.0) -> RowTargets: ...


@dataclass(frozen=True)
class Example:
    """One row, cut to maxLength: L tokens, P scored positions, K entries of the teacher's head."""

    key: str
    input_ids: npt.NDArray[np.int64]
    """[L]"""
    positions: npt.NDArray[np.int64]
    """[P]: scored tokens; the target of token i pairs with the student's hidden state at i - 1."""
    top_ids: npt.NDArray[np.int32] | None = None
    """[P, K]; None where there are no logits for the row (cross-entropy alone)."""
    top_lp: npt.NDArray[np.float32] | None = None
    """[P, K], nats, normalised over K + 1 with ``tail_lp``."""
    tail_lp: npt.NDArray[np.float32] | None = None
    """[P]"""
    entropy: npt.NDArray[np.float32] | None = None
    """[P]: the teacher's, nats, where it was captured."""
    rounding: npt.NDArray[np.float32] | None = None
    """[P]: what storing rounded of the targets, as `RowTargets` says."""


def example_of(row: Row, targets: RowTargets | None, max_length: int) -> Example:
    """Join a row with its targets, then cut it to its first ``max_length`` tokens.

    Raises:
        TransientError: the logits hold other tokens or other scored positions under the row's key: the store changed.
    """
    positions = np.flatnonzero(row.scored).astype(np.int64)
    ids = row.input_ids[:max_length].astype(np.int64)
    kept = int(np.searchsorted(positions, max_length))
    if targets is None:
        return Example(row.key, ids, positions[:kept])
    if not (np.array_equal(targets.positions, positions) and np.array_equal(targets.input_ids, row.input_ids)):
        raise TransientError(
            f"logits: row {row.key} ({row.source}) has other tokens there than in the rows; plan again"
        )
    if targets.top_ids is None or targets.top_lp is None or targets.tail_lp is None:
        raise DataError(f"logits: row {row.key} has no teacher's head (profile Label); capture with profile Exact")
    return Example(
        row.key,
        ids,
        positions[:kept],
        targets.top_ids[:kept],
        targets.top_lp[:kept],
        targets.tail_lp[:kept],
        entropy=None if targets.entropy is None else targets.entropy[:kept],
        rounding=None if targets.rounding is None else targets.rounding[:kept],
    )


class ExampleSource:
    """Reads examples by their index in the rows artifact.

    Blocks of 256 rows are kept as long as the shuffle window needs them, so memory grows with the window alone.
    """

    def __init__(
        self,
        rows: Rows,
        targets: Targets | None,
        has_targets: npt.NDArray[np.bool_],
        max_length: int,
        blocks: int,
    ):
        self._rows, self._targets, self._has_targets = rows, targets, has_targets
        self._max_length = max_length
        self._block_limit = blocks
        self._blocks: OrderedDict[int, Sequence[Row]] = OrderedDict()

    def examples(self, indices: npt.NDArray[np.int64], temperature: float = 1.0) -> list[Example]:
        """The examples at ``indices``, in that order, with the teacher's targets at ``temperature``."""
        return [self._example(int(index), temperature) for index in indices]

    def _example(self, index: int, temperature: float) -> Example:
        row = self._block(index // BLOCK_ROWS)[index % BLOCK_ROWS]
        targets = None
        if self._targets is not None and self._has_targets[index]:
            targets = self._targets.get(row.key, temperature).with_draws()
        return example_of(row, targets, self._max_length)

    def _block(self, number: int) -> Sequence[Row]:
        if number not in self._blocks:
            while len(self._blocks) >= self._block_limit:
                self._blocks.popitem(last=False)
            start = number * BLOCK_ROWS
            self._blocks[number] = self._rows.rows(start, min(start + BLOCK_ROWS, len(self._rows)))
        self._blocks.move_to_end(number)
        return self._blocks[number]
