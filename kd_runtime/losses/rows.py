"""What a pass over a chunk's rows of logits gives: sums over the columns that are not merged, and the gradient in place.

There are two: plain PyTorch (``torch_rows``) on any device, and Triton (``triton_rows``) on CUDA. Both read the rows
once at the start and overwrite them with the loss's gradient at the end; all between is on [C, K+1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kd_runtime.losses.columns import Columns

ABSENT = -1e30
"""What stands in columns that do not count: exp is 0 as for -inf, and so is its product with 0."""
LOWEST = -1e20
"""No logit that counts is as low."""
BLOCK = 64
"""Columns whose maximum is taken together; a chunk's width is a multiple of it."""


@dataclass(frozen=True)
class Remainder:
    """What is known of the columns outside the merged ones, a value a row."""

    maximum: Tensor
    """[C]: the largest logit (a very negative number where no column is left)."""
    total: Tensor
    """[C]: sum of exp(z - maximum)."""
    weighted: Tensor
    """[C]: sum of exp(z - maximum) (z - maximum)."""
    largest: Tensor | None
    """[C, k]: the k largest logits in ascending order, where they were asked for."""

    @property
    def log_sum(self) -> Tensor:
        """[C]: log-sum-exp; -inf where no column is left."""
        return self.maximum + self.total.log()


class Rows(Protocol):
    """A chunk of C rows that was read."""

    head: Tensor
    """[C, K]: logits in the slots of the head, soft-capped; the label's where a slot is no entry."""
    label: Tensor
    """[C]: of the label."""
    plain: Remainder
    """Of the logits."""
    cool: Remainder
    """Of the logits over the temperature, without ``largest``; ``plain`` where it is 1."""

    def write_(self, cool_row: Tensor, plain_row: Tensor, head: Tensor, label: Tensor) -> None:
        """Overwrite the rows with the gradient of the logits before the soft-cap.

        Outside the merged columns it is ``cool_row`` [C] times exp(z/T - ``cool.maximum``) plus ``plain_row`` [C] times
        exp(z - ``plain.maximum``), in them ``head`` [C, K] and ``label`` [C], all times the soft-cap's slope.
        """


class RowPass(Protocol):
    """A way to read rows."""

    def buffer_dtype(self, logits: torch.dtype) -> torch.dtype:
        """In what the rows are kept, whose matrix product comes in ``logits``."""

    def read(self, z: Tensor, columns: Columns, temperature: float, softcap: float | None, want_gradient: bool) -> Rows:
        """Read ``z`` [C, multiple of BLOCK], logits before the soft-cap; ``z`` is the pass's own from here on."""


def largest_of(z: Tensor, maxima: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row, ascending: they lie in the ``count`` blocks with the largest ``maxima``."""
    if maxima.shape[1] > 2 * count:
        blocks = maxima.topk(count, sorted=False).indices
        z = z.view(len(z), -1, BLOCK).gather(1, blocks[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return z.topk(min(count, z.shape[1])).values.flip(-1)
