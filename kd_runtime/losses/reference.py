"""The loss in plain float64 over whole distributions: slow, dense, and obvious; the fast path is tested against it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Dense = Callable[[Tensor, Tensor], Tensor]
"""(log p, log q) [..., categories] -> divergence [...]."""


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p)."""
    return forward_kl(log_q, log_p)


def jensen_shannon(beta: float) -> Dense:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649)."""

    def function(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)

    return function


def divergence(name: str, beta: float = 0.5) -> Dense:
    """The dense divergence of a name of the API."""
    return {"ForwardKL": forward_kl, "ReverseKL": reverse_kl, "JSD": jensen_shannon(beta)}[name]


def bucketed(log_probs: Tensor, ids: Tensor) -> Tensor:
    """log of the probabilities of ``ids`` [P, K] under ``log_probs`` [P, V], and of everything else: [P, K+1]."""
    head = log_probs.gather(1, ids)
    rest = log_probs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([head, rest], 1)


def kd_loss(logits: Tensor, ids: Tensor, log_p: Tensor, function: Dense, temperature: float = 1.0) -> Tensor:
    """T^2 D(p || q) [P] of ``logits`` [P, V]; ``log_p`` [P, K+1] is the teacher's head and tail at temperature T."""
    log_q = bucketed(torch.log_softmax(logits.double() / temperature, 1), ids)
    return temperature**2 * function(log_p.double(), log_q)


def ce_loss(logits: Tensor, label_ids: Tensor) -> Tensor:
    """-log q of the labels, [P]."""
    return -torch.log_softmax(logits.double(), 1).gather(1, label_ids[:, None])[:, 0]
