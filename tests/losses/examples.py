"""Random positions with a student, a teacher's head and labels, and the same loss from the dense reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kd_runtime.losses import reference
from kd_runtime.losses.divergences import Parameters
from kd_runtime.losses.head import LossSums, SparseKDHead

DIVERGENCES = ("ForwardKL", "ReverseKL", "JSD", "Skew", "ReverseSkew", "AdaptiveKL", "AlphaBeta", "TVD")
PARAMETERS = Parameters(beta=0.3, skew=0.2, a=0.4, b=0.7, mass=0.6)


@dataclass(frozen=True)
class Case:
    """P positions, and the settings of a loss on them."""

    hidden: Tensor
    weight: nn.Parameter
    teacher: Tensor
    """[P, V] logits."""
    labels: Tensor
    kd_mask: Tensor
    ce_mask: Tensor
    k: int
    vocab: int
    divergence: str = "ForwardKL"
    parameters: Parameters = PARAMETERS
    temperature: float = 1.0
    logit_scale: float = 1.0
    softcap: float | None = None
    bias: nn.Parameter | None = None
    kd_weight: float | Tensor = 0.7
    """Of all positions, or [P]: of each."""
    ce_weight: float | Tensor = 0.4

    @property
    def top_ids(self) -> Tensor:
        """[P, K]"""
        return self.teacher.topk(self.k).indices

    def targets(self) -> tuple[Tensor, Tensor]:
        """Head [P, K] and tail [P] at the temperature."""
        both = reference.bucketed(torch.log_softmax(self.teacher / self.temperature, 1), self.top_ids)
        return both[:, :-1], both[:, -1]

    def head(self, chunk: int | None = None) -> SparseKDHead:
        """The module under test."""
        linear = nn.Linear(*reversed(self.weight.shape), bias=False)
        linear.weight, linear.bias = self.weight, self.bias
        return SparseKDHead(
            linear,
            vocab=self.vocab,
            divergence=self.divergence,
            parameters=self.parameters,
            temperature=self.temperature,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            chunk_positions=chunk,
        )

    def fast(self, chunk: int | None = None, **arguments: Any) -> tuple[Tensor, LossSums]:
        """Loss and sums of the chunked path."""
        head, tail = self.targets()
        given = {"kd_weight": self.kd_weight, "ce_weight": self.ce_weight, "per_position": True}
        masks = (self.kd_mask, self.ce_mask)
        return self.head(chunk)(self.hidden, self.labels, self.top_ids, head, tail, *masks, **given | arguments)

    def logits(self) -> Tensor:
        """[P, V], dense."""
        z = self.logit_scale * self.hidden @ self.weight[: self.vocab].t()
        if self.bias is not None:
            z = z + self.bias[: self.vocab]
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)

    def dense(self) -> Tensor:
        """The same loss from the float64 reference."""
        z = self.logits()
        log_p = reference.bucketed(torch.log_softmax(self.teacher.double() / self.temperature, 1), self.top_ids)
        function = reference.divergence(self.divergence, self.parameters)
        kd = reference.kd_loss(z, self.top_ids, log_p, function, self.temperature)
        ce = reference.ce_loss(z, self.labels)
        return self._weighed(kd, ce)

    def dense_without_tail(self) -> Tensor:
        """The same where the head is the whole vocabulary: plain divergences of whole distributions."""
        log_p, log_q = torch.log_softmax(self.teacher, 1), torch.log_softmax(self.logits(), 1)
        order = self.top_ids
        kd = reference.divergence(self.divergence, self.parameters)(log_p.gather(1, order), log_q.gather(1, order))
        ce = reference.ce_loss(self.logits(), self.labels)
        return self._weighed(kd, ce)

    def _weighed(self, kd: Tensor, ce: Tensor) -> Tensor:
        """Of both values [P], what the masks say, times their weights."""
        return (self.kd_weight * kd)[self.kd_mask].sum() + (self.ce_weight * ce)[self.ce_mask].sum()

    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.hidden, self.weight, *([] if self.bias is None else [self.bias])]

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of ``loss`` by the leaves."""
        return list(torch.autograd.grad(loss, self.leaves()))

    def with_(self, **changes: Any) -> Case:
        """The same with some changes."""
        return replace(self, **changes)


def case(
    seed: int = 0,
    positions: int = 23,
    vocab: int = 203,
    width: int = 12,
    k: int = 7,
    padding: int = 5,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> Case:
    """A case; half of the labels are in the teacher's head, and the weight has ``padding`` rows beyond the vocabulary."""
    random = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(positions, vocab, generator=random, dtype=torch.float64)
    inside = teacher.topk(k).indices[:, k // 2]
    outside = torch.randint(vocab, (positions,), generator=random)
    flip = torch.rand(positions, 3, generator=random)
    return Case(
        hidden=torch.randn(positions, width, generator=random, dtype=torch.float64).to(dtype).requires_grad_(),
        weight=nn.Parameter((torch.randn(vocab + padding, width, generator=random, dtype=torch.float64) / 2).to(dtype)),
        teacher=teacher.to(torch.promote_types(dtype, torch.float32)),
        labels=torch.where(flip[:, 0] < 0.5, inside, outside),
        kd_mask=flip[:, 1] < 0.8,
        ce_mask=flip[:, 2] < 0.8,
        k=k,
        vocab=vocab,
        **settings,
    )
