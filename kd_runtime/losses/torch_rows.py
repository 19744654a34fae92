"""The pass over rows of logits in plain PyTorch: they become their exponentials, and these the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_runtime.losses.columns import Columns
from kd_runtime.losses.rows import ABSENT, BLOCK, LOWEST, Remainder, largest_of


@dataclass(frozen=True)
class TorchPass:
    """``block_rows`` rows are treated at a time, so that on a CPU the passes over them stay in its cache."""

    block_rows: int

    def buffer_dtype(self, logits: torch.dtype) -> torch.dtype:
        """At least float32."""
        return torch.promote_types(logits, torch.float32)

    def read(
        self, z: Tensor, columns: Columns, temperature: float, softcap: float | None, want_gradient: bool
    ) -> TorchRows:
        """Read ``z`` [C, width], and keep its exponentials there."""
        slope = None
        if softcap is not None:
            present = z > LOWEST
            z.div_(softcap).tanh_()
            slope = 1 - z**2 if want_gradient else None
            z.mul_(softcap).masked_fill_(~present, ABSENT)
        head, label = columns.gather(z)
        columns.fill_(z, ABSENT)
        tempered = z if temperature == 1 else z / temperature
        plain = exponentiate_(z, head.shape[1], self.block_rows)
        cool = plain if temperature == 1 else exponentiate_(tempered, 0, self.block_rows)
        return TorchRows(z, tempered, slope, columns, head, label, plain, cool)


ON_CPU = TorchPass(16)


@dataclass
class TorchRows:
    """Rows that hold exp(z - maximum), and beside them the same at the temperature where it is not 1."""

    z: Tensor
    tempered: Tensor
    slope: Tensor | None
    columns: Columns
    head: Tensor
    label: Tensor
    plain: Remainder
    cool: Remainder

    def write_(self, cool_row: Tensor, plain_row: Tensor, head: Tensor, label: Tensor) -> None:
        """See :class:`~kd_runtime.losses.rows.Rows`."""
        if self.tempered is self.z:
            self.z.mul_((cool_row + plain_row)[:, None])
        else:
            self.z.mul_(plain_row[:, None]).addcmul_(self.tempered, cool_row[:, None])
        self.columns.write_(self.z, head, label)
        if self.slope is not None:
            self.z.mul_(self.slope)


def exponentiate_(z: Tensor, largest: int, block_rows: int) -> Remainder:
    """Turn ``z`` [C, multiple of BLOCK] into exp(z - row maximum), in place, and return what it was."""
    scratch = z.new_empty(min(block_rows, len(z)), z.shape[1])
    parts = [_exponentiate_block_(rows, scratch[: len(rows)], largest) for rows in torch.split(z, block_rows)]
    maximum, total, weighted, top = zip(*parts, strict=True)
    return Remainder(torch.cat(maximum), torch.cat(total), torch.cat(weighted), torch.cat(top) if largest else None)


def _exponentiate_block_(z: Tensor, scratch: Tensor, largest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    maxima = z.view(len(z), -1, BLOCK).amax(-1)
    top = largest_of(z, maxima, largest) if largest else maxima
    maximum = maxima.amax(-1).clamp(min=LOWEST)
    torch.sub(z, maximum[:, None], out=scratch)
    torch.exp(scratch, out=z)
    weighted = torch.bmm(scratch[:, None, :], z[:, :, None]).view(-1)
    return maximum, z.sum(-1), weighted, top
