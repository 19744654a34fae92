"""Targets as capture stores a teacher's distributions and the reader gives them back, with their loss and its reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from losses.examples import DIVERGENCES, PARAMETERS
from torch import Tensor, nn

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.losses import reference
from kd_runtime.losses.divergences import FIRST_ORDER
from kd_runtime.losses.head import LossSums, SparseKDHead
from kd_runtime.teachers.distributions import uniforms_of_row
from kd_runtime.teachers.transformers_engine import score_positions

PAIRS = [(name, profile) for profile in ("Exact", "Compact") for name in DIVERGENCES] + [("ForwardKL", "Unbiased")]


@dataclass(frozen=True)
class Stored:
    """A teacher's targets as the reader gives them, as tensors."""

    ids: Tensor
    lp: Tensor
    tail: Tensor
    rounding: Tensor | None
    entropy: Tensor | None
    draws: int
    labels: Tensor

    def repeated(self, copies: int) -> Stored:
        """The same positions, all of them ``copies`` times over."""
        tiled = {
            name: value.repeat(copies, *[1] * (value.dim() - 1))
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tiled)


def spec_of(profile: str, vocab: int, temperature: float = 1.0, k: int = 16) -> ShardSpec:
    unbiased = profile == "Unbiased"
    others = () if temperature == 1 else (temperature,)
    return ShardSpec(profile, k, 8 if unbiased else 0, others, vocab, entropy=unbiased)


def stored(lp: Tensor, spec: ShardSpec, temperature: float = 1.0, key: bytes = bytes(16), repeats: int = 1) -> Stored:
    """Teacher logprobs [P, V], each position ``repeats`` times over, captured and read back."""
    lp = lp.float().repeat_interleave(repeats, 0)
    labels = lp.argmax(1)
    uniforms = uniforms_of_row(key, len(lp), spec.m, seed=0)
    parts = [
        score_positions(lp[at : at + 64], labels[at : at + 64], spec, uniforms[at : at + 64])
        for at in range(0, len(lp), 64)
    ]
    fields = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ids = np.concatenate([[0], labels.numpy()])
    row = build_planes(spec, [TeacherRow(key, ids, np.arange(len(ids)) > 0, **fields)]).row(0, temperature).with_draws()
    assert row.top_ids is not None
    entropy = None if row.entropy is None else torch.from_numpy(row.entropy)
    head = (torch.from_numpy(row.top_ids).long(), torch.from_numpy(row.top_lp), torch.from_numpy(row.tail_lp))
    assert row.rounding is not None
    return Stored(*head, torch.from_numpy(row.rounding), entropy, spec.m, labels)


def student(positions: int, vocab: int, width: int = 24, seed: int = 0) -> tuple[Tensor, nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(vocab, width, generator=random) / 2)
    return torch.randn(positions, width, generator=random).requires_grad_(), weight


def teacher_like(logits: Tensor, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.log_softmax(logits.detach() + torch.randn(logits.shape, generator=random), 1)


def run(
    hidden: Tensor, weight: nn.Parameter, targets: Stored, divergence: str, temperature: float = 1.0
) -> tuple[Tensor, LossSums]:
    head = SparseKDHead(
        weight, vocab=len(weight), divergence=divergence, parameters=PARAMETERS, temperature=temperature
    )
    on = torch.ones(len(hidden), dtype=torch.bool)
    arguments = (hidden, targets.labels, targets.ids, targets.lp, targets.tail, on, on)
    loss, sums = head(
        *arguments,
        kd_weight=0.7,
        ce_weight=0.3,
        rounding=targets.rounding,
        entropy=targets.entropy,
        draws=targets.draws,
        per_position=True,
    )
    return loss, sums


def dense(hidden: Tensor, weight: nn.Parameter, targets: Stored, divergence: str, temperature: float = 1.0) -> Tensor:
    """The loss of :func:`run` in float64 over whole distributions, but for a constant where there are draws."""
    z = hidden.double() @ weight.double().t()
    log_q = torch.log_softmax(z / temperature, 1)
    ids = targets.ids.clamp(min=0)
    if targets.draws:
        t = torch.where(targets.ids >= 0, targets.lp.double().exp(), 0)
        kd = -(t * log_q.gather(1, ids)).sum(1)
    else:
        log_p = torch.cat([targets.lp, targets.tail[:, None]], 1).double().clamp(min=-1e4)
        log_q = reference.bucketed(log_q, ids)
        if divergence in FIRST_ORDER and targets.rounding is not None:
            log_p = reference.stored_alike(log_p, log_q.detach(), targets.rounding.double())
        kd = reference.divergence(divergence, PARAMETERS)(log_p, log_q)
    return 0.7 * temperature**2 * kd.sum() + 0.3 * reference.ce_loss(z, targets.labels).sum()
