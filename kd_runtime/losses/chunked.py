"""The one loss path: KD on head and tail bucket plus cross-entropy, with gradients formed chunk by chunk in forward.

No tensor of positions times vocabulary exists beyond one chunk. In a chunk the logits are read by one pass over its rows
and replaced by the gradient of the loss by another (``rows``), so there are three matrix products in all.
The gradient of any divergence D on q = softmax(z/T) over the K+1 categories, with h_c = q_c dD/dq_c and S = sum h:
dD/d(z_j/T) = h_j - q_j S in the head, and (q_j / q_tail) h_tail - q_j S outside: one scalar a row times exp(z_j/T).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kd_runtime.losses.columns import Columns, merge
from kd_runtime.losses.divergences import DivergenceFunction
from kd_runtime.losses.rows import ABSENT, BLOCK, RowPass
from kd_runtime.losses.student import FLOOR, Student
from kd_runtime.losses.torch_rows import ON_CPU

HALF = torch.finfo(torch.float16).eps / 2
"""How far rounding to f16 takes a number, at most, in parts of it."""
STATS = ("kd", "ce", "teacher_head_mass", "student_head_mass", "top1_agree", "topk_overlap", "student_entropy")
"""The columns of the per-position values, in order."""


@dataclass(frozen=True)
class Settings:
    """What does not change from batch to batch."""

    divergence: DivergenceFunction
    vocab: int
    temperature: float = 1.0
    softcap: float | None = None
    first_order: bool = False
    """The divergence grows with the error of a target itself, not with its square."""
    chunk_positions: int = 256
    row_pass: RowPass = ON_CPU


@dataclass(frozen=True)
class Targets:
    """What P positions are trained towards; ``top_ids`` has no column (K = 0) where there is no KD."""

    label_ids: Tensor
    """[P] ids of the labels."""
    top_ids: Tensor
    """[P, K] ids of the teacher's head, negative where a row has fewer."""
    top_lp: Tensor
    """[P, K] their log-probabilities at the temperature, normalised with ``tail_lp`` over K+1."""
    tail_lp: Tensor
    """[P] log of the teacher's mass outside the head."""
    kd_scale: Tensor
    """[P] weight of each position's divergence in the loss; meaningless where ``kd_mask`` is false."""
    ce_scale: Tensor
    """[P] weight of each position's cross-entropy."""
    kd_mask: Tensor
    """[P] bool: the position has a teacher's target."""
    rounding: Tensor | None = None
    """[P]: with `HALF` of the entry itself, how far each target may be from the teacher's; None: not at all."""
    entropy: Tensor | None = None
    """[P]: the teacher's entropy, in place of the targets' own, in the value that is reported."""
    draws: int = 0
    """How many of the K entries, at their end, are draws from the tail."""

    def rows(self, part: slice) -> Targets:
        """The same for some of the positions."""
        tensors: dict[str, Any] = {n: value[part] for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass
class Gradients:
    """Buffers that the walk over the chunks fills; None where a gradient is not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @property
    def wanted(self) -> bool:
        """True if any gradient is to be formed."""
        return self.hidden is not None or self.weight is not None or self.bias is not None


def walk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Targets, settings: Settings, gradients: Gradients
) -> Tensor:
    """Per-position values [P, len(STATS)] of ``hidden`` [P, H] under the head ``weight`` [V+, H]; fills ``gradients``.

    Rows of ``weight`` beyond ``settings.vocab`` are padding: they take no part, and their gradient is zero.
    """
    weight = weight[: settings.vocab]
    compute = torch.promote_types(hidden.dtype, torch.float32)
    width = -(-settings.vocab // BLOCK) * BLOCK
    size = min(settings.chunk_positions, len(hidden))
    buffer = torch.empty(size, width, dtype=settings.row_pass.buffer_dtype(hidden.dtype), device=hidden.device)
    values = torch.empty(len(hidden), len(STATS), dtype=compute, device=hidden.device)
    for start in range(0, len(hidden), max(size, 1)):
        part = slice(start, min(start + size, len(hidden)))
        z = buffer[: part.stop - part.start]
        _logits(hidden[part], weight, bias, settings, out=z)
        values[part] = _chunk(z, targets.rows(part), settings, gradients.wanted)
        if gradients.wanted:
            _backpropagate(z[:, : settings.vocab], hidden[part], weight, gradients, part)
    return values


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, out: Tensor) -> None:
    inner = out[:, : settings.vocab]
    if weight.dtype == out.dtype:
        torch.mm(hidden, weight.t(), out=inner)
    else:
        inner.copy_(hidden @ weight.t())
    if bias is not None:
        inner.add_(bias[: settings.vocab])
    out[:, settings.vocab :] = ABSENT


def _backpropagate(dz: Tensor, hidden: Tensor, weight: Tensor, gradients: Gradients, part: slice) -> None:
    """dh = dz W, and dW += dz^T h, which is accumulated in at least float32 because partial sums in bf16 are biased."""
    if gradients.hidden is not None:
        gradients.hidden[part] = dz.to(weight.dtype) @ weight
    if gradients.weight is not None:
        _add_product_(gradients.weight[: dz.shape[1]], dz.t(), hidden)
    if gradients.bias is not None:
        gradients.bias[: dz.shape[1]] += dz.sum(0, dtype=gradients.bias.dtype)


def _add_product_(to: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left times right to ``to``, which may be wider than they are; sums are in its type."""
    if left.dtype == right.dtype != to.dtype and to.is_cuda:
        torch.addmm(to, left, right, out_dtype=to.dtype, out=to)
    else:
        to.addmm_(left.to(to.dtype), right.to(to.dtype))


def _chunk(z: Tensor, targets: Targets, settings: Settings, want_gradient: bool) -> Tensor:
    """Values [C, len(STATS)] of the logits ``z`` [C, width], which become the loss's gradient if that is wanted."""
    columns = merge(targets.label_ids, targets.top_ids, targets.kd_mask)
    temperature = settings.temperature
    rows = settings.row_pass.read(z, columns, temperature, settings.softcap, want_gradient)
    plain = Student.of(rows.plain, rows.head, rows.label, columns)
    cool = plain
    if temperature != 1:
        cool = Student.of(rows.cool, rows.head / temperature, rows.label / temperature, columns)
    log_p = _teacher_categories(targets, columns)
    log_q = cool.categories()
    target = log_p if targets.rounding is None else stored_alike(log_p, log_q, targets.rounding)
    value, h = settings.divergence(target, log_q)
    if targets.entropy is not None:
        value = value - (log_p.exp() * log_p).sum(1) - torch.where(targets.kd_mask, targets.entropy, 0)
    if want_gradient:
        kd_scale = torch.where(targets.kd_mask, targets.kd_scale * temperature, 0)
        kd = cool.kd_gradient(h, log_q).times(kd_scale)
        ce = plain.ce_gradient().times(targets.ce_scale)
        rows.write_(kd.row, ce.row, kd.head + ce.head, kd.label + ce.label)
    value = torch.where(targets.kd_mask, temperature**2 * value, 0)
    return torch.stack([value, plain.log_sum - rows.label, *_statistics(targets, log_p, plain, cool)], 1)


def _teacher_categories(targets: Targets, columns: Columns) -> Tensor:
    """log p [C, K+1] of head and tail; FLOOR where there is none."""
    head = torch.where(columns.in_head, targets.top_lp, FLOOR)
    tail = torch.where(targets.kd_mask, targets.tail_lp, FLOOR)
    return torch.cat([head, tail[:, None]], 1).clamp(min=FLOOR)


def stored_alike(log_p: Tensor, log_q: Tensor, rounding: Tensor) -> Tensor:
    """What is nearest to ``log_q`` [C, K+1] among all that storing may have rounded to ``log_p`` [C, K+1].

    An entry may be off by ``rounding`` [C] and `HALF` of itself, and by what these do to the sum that it was divided by.
    """
    off = rounding[:, None] + HALF * log_p.abs()
    off = off + (log_p.exp() * off).sum(1, keepdim=True)
    return torch.minimum(torch.maximum(log_q, log_p - off), log_p + off)


def _statistics(targets: Targets, log_p: Tensor, student: Student, cool: Student) -> list[Tensor]:
    """The columns of STATS after kd and ce, each [C]; what concerns the teacher is 0 where ``kd_mask`` is false.

    Masses are at the loss's temperature, as ``cool`` is; draws are no part of the head.
    """
    size = student.head.shape[1] - targets.draws
    in_head = student.columns.in_head[:, :size]
    first = in_head & (log_p[:, :size] == log_p[:, :1])
    agree = (torch.where(first, student.head[:, :size], ABSENT) >= student.largest()[:, None]).any(1)
    teacher_mass = torch.where(in_head, log_p[:, :size].exp(), 0).sum(1)
    log_head = cool.log_head
    if targets.draws:
        log_head = torch.where(in_head, cool.head[:, :size], -torch.inf).logsumexp(1)
    student_mass = (log_head - cool.log_sum).exp()
    return [teacher_mass, student_mass, agree.to(log_p.dtype), student.overlap(size), student.entropy()]
