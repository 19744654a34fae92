"""The pass over rows of logits in Triton: one kernel reads each row once, another overwrites it with the gradient.

Between them rows keep their logits, so a temperature or a soft-cap costs no tensor more, and logits of bf16 stay bf16:
sums are formed in float32, the gradient is rounded once. Nothing here needs Triton to be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from kd_runtime.losses.columns import Columns
from kd_runtime.losses.rows import ABSENT, BLOCK, LOWEST, Remainder, RowPass, largest_of
from kd_runtime.losses.torch_rows import ON_CPU, TorchPass


def row_pass_for(device: torch.device) -> RowPass:
    """Triton's on CUDA, where it is installed; plain PyTorch everywhere else."""
    if device.type == "cuda" and find_spec("triton"):
        return TritonPass()
    return ON_CPU if device.type == "cpu" else TorchPass(256)


@dataclass(frozen=True)
class TritonPass:
    """Rows and columns that a program takes at a time; with CPU tensors it needs Triton's interpreter."""

    rows: int = 1
    columns: int = 4096

    def buffer_dtype(self, logits: torch.dtype) -> torch.dtype:
        """As it comes, but for float16, whose range is too small for gradients."""
        return torch.float32 if logits == torch.float16 else logits

    def read(
        self, z: Tensor, columns: Columns, temperature: float, softcap: float | None, want_gradient: bool
    ) -> TritonRows:
        """Read ``z`` [C, width]; its merged columns are absent from here on."""
        import triton
        import triton.language as tl

        from kd_runtime.losses.triton_kernels import read_rows

        compute = torch.promote_types(z.dtype, torch.float32)
        head, label = (_capped(each.to(compute), softcap) for each in columns.gather(z))
        columns.fill_(z, ABSENT)
        size, width, largest = len(z), z.shape[1], head.shape[1]
        maximum, total, weighted, cool_total, cool_weighted = torch.empty(5, size, dtype=compute, device=z.device)
        maxima = torch.empty(size, width // BLOCK if largest else 0, dtype=compute, device=z.device)
        shape = {
            "TEMPERATURE": float(temperature),
            "SOFTCAP": float(softcap or 0),
            "COMPUTE": tl.float64 if compute == torch.float64 else tl.float32,
            "ROWS": self.rows,
            "COLUMNS": max(BLOCK, min(self.columns, triton.next_power_of_2(width))),
            "ABSENT": ABSENT,
            "LOWEST": LOWEST,
        }
        sums = (maximum, total, weighted, cool_total, cool_weighted, maxima)
        with torch.cuda.device_of(z):  # type: ignore[no-untyped-call]
            read_rows[(triton.cdiv(size, self.rows),)](
                z, z.stride(0), size, width, *sums, **shape, WITH_MAXIMA=largest > 0, BLOCK=BLOCK, num_warps=8
            )
        top = _capped(largest_of(z, maxima, largest).to(compute), softcap) if largest else None
        plain = Remainder(maximum, total, weighted, top)
        cool = plain
        if temperature != 1:
            cool = Remainder(maximum / temperature, cool_total, cool_weighted, None)
        return TritonRows(z, columns, shape, softcap, head, label, plain, cool)


@dataclass
class TritonRows:
    """Rows that still hold their logits, but for the merged columns."""

    z: Tensor
    columns: Columns
    shape: dict[str, object]
    """What the kernels are compiled for."""
    softcap: float | None
    head: Tensor
    label: Tensor
    plain: Remainder
    cool: Remainder

    def write_(self, cool_row: Tensor, plain_row: Tensor, head: Tensor, label: Tensor) -> None:
        """See :class:`~kd_runtime.losses.rows.Rows`."""
        import triton

        from kd_runtime.losses.triton_kernels import write_gradient

        size, width = self.z.shape
        grid = (triton.cdiv(size, self.shape["ROWS"]), triton.cdiv(width, self.shape["COLUMNS"]))
        factors = (self.plain.maximum, cool_row.contiguous(), plain_row.contiguous())
        with torch.cuda.device_of(self.z):  # type: ignore[no-untyped-call]
            write_gradient[grid](self.z, self.z.stride(0), size, width, *factors, **self.shape, num_warps=8)
        if self.softcap is not None:
            head = head * (1 - (self.head / self.softcap) ** 2)
            label = label * (1 - (self.label / self.softcap) ** 2)
        self.columns.write_(self.z, head, label)


def _capped(z: Tensor, softcap: float | None) -> Tensor:
    if softcap is None:
        return z
    return torch.where(z <= LOWEST, ABSENT, softcap * torch.tanh(z / softcap))
