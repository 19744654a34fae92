"""The pass over a chunk's logits: log-sum-exp, largest values and entropy of the columns that are not merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ABSENT = -1e30
"""What stands in columns that do not count: exp is 0 as for -inf, and so is its product with 0."""
_LOWEST = -1e20
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


def exponentiate_(z: Tensor, largest: int, block_rows: int) -> Remainder:
    """Turn ``z`` [C, multiple of BLOCK] into exp(z - row maximum), in place, and return what it was.

    ``block_rows`` rows are treated at a time, so that on a CPU the passes over them stay in its cache.
    """
    scratch = z.new_empty(min(block_rows, len(z)), z.shape[1])
    parts = [_exponentiate_block_(rows, scratch[: len(rows)], largest) for rows in torch.split(z, block_rows)]
    maximum, total, weighted, top = zip(*parts, strict=True)
    return Remainder(torch.cat(maximum), torch.cat(total), torch.cat(weighted), torch.cat(top) if largest else None)


def _exponentiate_block_(z: Tensor, scratch: Tensor, largest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maxima = z.view(len(z), -1, BLOCK).amax(-1)
    top = _largest(z, maxima, largest) if largest else maxima
    maximum = maxima.amax(-1).clamp(min=_LOWEST)
    torch.sub(z, maximum[:, None], out=scratch)
    torch.exp(scratch, out=z)
    weighted = torch.bmm(scratch[:, None, :], z[:, :, None]).view(-1)
    return maximum, z.sum(-1), weighted, top


def _largest(z: Tensor, maxima: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row, ascending: they lie in the ``count`` blocks with the largest maxima."""
    if maxima.shape[1] > 2 * count:
        blocks = maxima.topk(count, sorted=False).indices
        z = z.view(len(z), -1, BLOCK).gather(1, blocks[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return z.topk(min(count, z.shape[1])).values.flip(-1)
