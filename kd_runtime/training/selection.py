"""Which rows are trained on, and how often: decided once, before any rank starts, from columns of the rows artifact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kd_runtime.api.failures import DataError
from kd_runtime.api.job import MissingLogits


@dataclass(frozen=True)
class RowFacts:
    """Columns of the rows artifact, one entry a row."""

    keys: Sequence[str]
    splits: Sequence[str]
    sources: Sequence[str]
    truncated: Sequence[bool]
    parents: Sequence[int]
    """How many parents a row has."""
    tokens: npt.NDArray[np.int64]
    first_scored: npt.NDArray[np.int64]
    """Index of the first scored token; -1 where there is none."""

    @classmethod
    def read(cls, column: Callable[[str], list[Any]]) -> RowFacts:
        """Read with ``column`` (of `RowsReader`)."""
        return cls(
            keys=column("key"),
            splits=column("split"),
            sources=column("source"),
            truncated=column("truncated"),
            parents=[len(parents) for parents in column("parents")],
            tokens=np.asarray(column("tokens"), np.int64),
            first_scored=np.asarray([_first_bit(bitmap) for bitmap in column("scored")], np.int64),
        )


@dataclass(frozen=True)
class Selection:
    """What training does with each row of the artifact."""

    copies: npt.NDArray[np.int32]
    """How often an epoch shows the row; 0 = not at all."""
    lengths: npt.NDArray[np.int32]
    """Tokens, cut to maxLength."""
    has_targets: npt.NDArray[np.bool_]
    """True where the logits hold the row."""
    counts: dict[str, int]
    """Of pairs: ``in`` = ``done`` + ``leftOut``; ``missing`` of ``done`` are learnt by cross-entropy alone; ``leftOut`` is the
    sum of ``truncated``, ``rejected`` (by the logits) and ``withoutTarget``."""

    def save(self, path: Path) -> None:
        """Write the arrays for the ranks."""
        np.savez(path, copies=self.copies, lengths=self.lengths, has_targets=self.has_targets)

    @classmethod
    def load(cls, path: Path) -> Selection:
        """Read what `save` wrote (without counts, which the parent keeps)."""
        with np.load(path) as arrays:
            return cls(arrays["copies"], arrays["lengths"], arrays["has_targets"], {})

    @property
    def trained_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of the rows that are trained on, copies not counted."""
        lengths: npt.NDArray[np.int32] = self.lengths[self.copies > 0]
        return lengths


def select(
    facts: RowFacts,
    *,
    max_length: int,
    keep_truncated: bool,
    has_logits: Callable[[str], bool] | None,
    rejected: Collection[str] = (),
    missing: MissingLogits = MissingLogits.Fail,
) -> Selection:
    """Choose the rows of the train split.

    ``has_logits`` says whether the logits hold a row (None: no logits are read); ``rejected`` are the keys that they
    list as rejected.

    Raises:
        DataError: a row is missing from the logits and ``missing`` is Fail; or no row is left.
    """
    train = np.asarray([split == "train" for split in facts.splits], bool)
    copies = np.where(train, np.asarray(facts.parents, np.int32).clip(min=1), 0).astype(np.int32)
    pairs = int(copies.sum())
    reasons = {
        "truncated": train & np.asarray(facts.truncated, bool) & (not keep_truncated),
        "rejected": train & np.asarray([key in rejected for key in facts.keys], bool),
        "withoutTarget": train & ((facts.first_scored < 0) | (facts.first_scored >= max_length)),
    }
    counts = {"in": pairs}
    for reason, rows in reasons.items():
        counts[reason] = int(copies[rows].sum())
        copies[rows] = 0
    has_targets = _has_targets(facts, copies, has_logits)
    absent = (copies > 0) & ~has_targets if has_logits is not None else np.zeros(len(copies), bool)
    if absent.any() and missing is MissingLogits.Fail:
        raise _missing(facts, np.flatnonzero(absent))
    counts |= {"leftOut": pairs - int(copies.sum()), "done": int(copies.sum()), "missing": int(copies[absent].sum())}
    if not counts["done"]:
        raise DataError(
            f"rows: none of the {pairs} train rows can be trained on ({_said(counts)}); see the rows artifact"
        )
    lengths = np.minimum(facts.tokens, max_length).astype(np.int32)
    return Selection(copies, lengths, has_targets, counts)


def _has_targets(
    facts: RowFacts, copies: npt.NDArray[np.int32], has_logits: Callable[[str], bool] | None
) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(copies), bool)
    if has_logits is not None:
        for index in np.flatnonzero(copies):
            found[index] = has_logits(facts.keys[index])
    return found


def _missing(facts: RowFacts, absent: npt.NDArray[np.integer]) -> DataError:
    first = int(absent[0])
    return DataError(
        f"logits: {len(absent)} rows are missing, the first is {facts.keys[first]} ({facts.sources[first]}); capture them, "
        "or set objective.missingLogits to CrossEntropy"
    )


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in ("truncated", "rejected", "withoutTarget"))


def _first_bit(bitmap: bytes) -> int:
    """Index of the first set bit, little bit order; -1 where none is."""
    number = int.from_bytes(bitmap, "little")
    return (number & -number).bit_length() - 1
