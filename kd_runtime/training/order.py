"""In which order a training run sees its rows: a pure function of the rows artifact's order and the seed (contract 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kd_runtime.api.job import Train

BLOCK_ROWS = 256
"""Consecutive rows of the rows artifact that are shuffled as one block (its Parquet row groups)."""

Ints = npt.NDArray[np.int64]


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), elementwise: a bijection of 64-bit integers.

    Sorting by it shuffles; unlike a library's generator it never changes with the library's version.
    """
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _mixed(*numbers: int) -> np.uint64:
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = splitmix64(state ^ np.uint64(number % 2**64))
    return np.uint64(state[0])


def shuffled(count: int, *seed: int) -> Ints:
    """A permutation of ``range(count)`` that depends on the integers of ``seed`` alone."""
    keys = splitmix64(np.arange(count, dtype=np.uint64) ^ _mixed(*seed))
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step: indices into the rows artifact, repeated where a row has several parents."""

    step: int
    """From 0."""
    epoch: int
    rows: Ints


@dataclass(frozen=True)
class TrainingOrder:
    """The whole run's order of rows.

    Each epoch shuffles blocks of 256 consecutive rows of the rows artifact, then rows within windows of
    ``window_blocks`` blocks. Rows that are left out of training do not move the others. A row appears as often an
    epoch as ``copies`` says (its parents). An epoch's last batch may be smaller than ``batch_rows``.
    """

    copies: npt.NDArray[np.integer]
    """[rows of the artifact]: how often each is seen in an epoch; 0 = not at all (held out, left out)."""
    seed: int
    window_blocks: int
    batch_rows: int
    epochs: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.window_blocks < 1 or self.batch_rows < 1:
            raise ValueError(f"window_blocks {self.window_blocks} and batch_rows {self.batch_rows} must be at least 1")
        if self.epochs is None and self.max_steps is None:
            raise ValueError("one of epochs and max_steps must be given")

    @cached_property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch, copies counted."""
        return int(self.copies.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch, the partial last one included."""
        return -(-self.rows_per_epoch // self.batch_rows)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run; 0 where no row is left."""
        if not self.rows_per_epoch:
            return 0
        bounds = [self.max_steps] if self.max_steps is not None else []
        if self.epochs is not None:
            bounds.append(self.epochs * self.steps_per_epoch)
        return min(bounds)

    def batch(self, step: int) -> Batch:
        """The rows of ``step`` (from 0). Resuming needs nothing else: the position is the step's number."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.batch_rows
        return Batch(step, epoch, self._slice(epoch, start, min(start + self.batch_rows, self.rows_per_epoch)))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Every batch from step ``start`` to the run's end."""
        for step in range(start, self.steps):
            yield self.batch(step)

    @cached_property
    def _block_sizes(self) -> Ints:
        starts = np.arange(0, len(self.copies), BLOCK_ROWS)
        return np.add.reduceat(self.copies, starts).astype(np.int64) if len(starts) else np.zeros(0, np.int64)

    def _slice(self, epoch: int, start: int, stop: int) -> Ints:
        """Rows ``start`` to ``stop`` of an epoch's order: only the windows that hold them are laid out."""
        blocks, ends = self._epoch_blocks(epoch)
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
        parts = [self._window(epoch, int(window), blocks) for window in range(first, last + 1)]
        before = int(ends[first - 1]) if first else 0
        return np.concatenate(parts)[start - before : stop - before]

    def _epoch_blocks(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's order of blocks, and for each window of them the number of rows up to its end."""
        cached = self.__dict__.get("_blocks_of_epoch")
        if cached is None or cached[0] != epoch:
            order = shuffled(len(self._block_sizes), self.seed, epoch, 1)
            windows = np.arange(0, len(order), self.window_blocks)
            ends = np.cumsum(np.add.reduceat(self._block_sizes[order], windows))
            cached = (epoch, order, ends)
            self.__dict__["_blocks_of_epoch"] = cached
        return cached[1], cached[2]

    def _window(self, epoch: int, window: int, blocks: Ints) -> Ints:
        cached = self.__dict__.get("_last_window")
        if cached is None or cached[0] != (epoch, window):
            mine = blocks[window * self.window_blocks : (window + 1) * self.window_blocks]
            rows = (mine[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
            rows = rows[rows < len(self.copies)]
            cached = ((epoch, window), _shuffled_rows(rows, self.copies[rows], self.seed, epoch, 2))
            self.__dict__["_last_window"] = cached
        rows_of_window: Ints = cached[1]
        return rows_of_window


def training_order(train: Train, copies: npt.NDArray[np.integer]) -> TrainingOrder:
    """The order of a run that sees each row as often an epoch as ``copies`` says; maxSteps replaces epochs."""
    return TrainingOrder(
        copies=copies,
        seed=train.seed,
        window_blocks=train.shuffle_window_blocks,
        batch_rows=train.global_batch_size,
        epochs=None if train.max_steps else train.epochs,
        max_steps=train.max_steps,
    )


def _shuffled_rows(rows: Ints, copies: npt.NDArray[np.integer], *seed: int) -> Ints:
    """``rows`` repeated ``copies`` times, sorted by a hash of (row, which copy): what is left out moves nothing else."""
    repeated = np.repeat(rows, copies)
    first = np.repeat(np.cumsum(copies) - copies, copies)
    copy = (np.arange(len(repeated)) - first).astype(np.uint64)
    keys = splitmix64(splitmix64(repeated.astype(np.uint64) ^ _mixed(*seed)) ^ copy)
    return repeated[np.argsort(keys, kind="stable")]


def deal(lengths: npt.NDArray[np.integer], ranks: int) -> list[Ints]:
    """Deal one batch's rows to ranks, longest first and back and forth, so that tokens are spread evenly.

    Returns for each rank the positions (into ``lengths``) of its rows, longest first; ties keep the batch's order.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    lanes = np.arange(len(order)) % (2 * ranks)
    owner = np.where(lanes < ranks, lanes, 2 * ranks - 1 - lanes)
    return [order[owner == rank].astype(np.int64) for rank in range(ranks)]
