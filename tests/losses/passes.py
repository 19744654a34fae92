"""Which passes over rows of logits run here: Triton's on a GPU, or on a CPU in its interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from kd_runtime.losses.columns import Columns
from kd_runtime.losses.rows import Remainder, RowPass, Rows
from kd_runtime.losses.torch_rows import TorchPass
from kd_runtime.losses.triton_rows import TritonPass


def passes_here(name: str) -> RowPass:
    """The pass of that name; skips the test where there is none."""
    if name == "torch":
        return TorchPass(16)
    if not find_spec("triton"):
        pytest.skip("Triton is not installed in this environment")
    if torch.cuda.is_available():
        return OnGpu(TritonPass())
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set")
    return TritonPass(rows=64, columns=1024)


@dataclass(frozen=True)
class OnGpu:
    """A pass that takes rows of the CPU to the GPU and back, so that tests need not know where it runs."""

    inner: RowPass

    def buffer_dtype(self, logits: torch.dtype) -> torch.dtype:
        return self.inner.buffer_dtype(logits)

    def read(self, z: Tensor, columns: Columns, temperature: float, softcap: float | None, want_gradient: bool) -> Rows:
        there = Columns(*(getattr(columns, field.name).cuda() for field in fields(columns)))
        copied = z.cuda()
        return FromGpu(z, copied, self.inner.read(copied, there, temperature, softcap, want_gradient))


class FromGpu:
    """What it read, on the CPU."""

    def __init__(self, z: Tensor, copied: Tensor, inner: Rows) -> None:
        self.z, self.copied, self.inner = z, copied, inner
        self.head, self.label = inner.head.cpu(), inner.label.cpu()
        self.plain, self.cool = _here(inner.plain), _here(inner.cool)

    def write_(self, cool_row: Tensor, plain_row: Tensor, head: Tensor, label: Tensor) -> None:
        self.inner.write_(cool_row.cuda(), plain_row.cuda(), head.cuda(), label.cuda())
        self.z.copy_(self.copied)


def _here(remainder: Remainder) -> Remainder:
    values = {field.name: getattr(remainder, field.name) for field in fields(remainder)}
    return replace(remainder, **{name: value.cpu() for name, value in values.items() if value is not None})
