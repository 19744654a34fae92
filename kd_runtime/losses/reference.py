"""The loss in plain float64 over whole distributions: slow, dense, and obvious; the fast path is tested against it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kd_runtime.losses.divergences import Parameters

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


def mixture(log_first: Tensor, share: float, log_second: Tensor) -> Tensor:
    """log of share * first + (1 - share) * second."""
    return (share * log_first.exp() + (1 - share) * log_second.exp()).log()


def skew(alpha: float) -> Dense:
    """KL(p || alpha p + (1 - alpha) q) (DistiLLM, arXiv 2402.03898)."""
    return lambda log_p, log_q: forward_kl(log_p, mixture(log_p, alpha, log_q))


def reverse_skew(alpha: float) -> Dense:
    """KL(q || (1 - alpha) p + alpha q)."""
    return lambda log_p, log_q: forward_kl(log_q, mixture(log_q, alpha, log_p))


def adaptive_kl(mass: float) -> Dense:
    """AKL (arXiv 2404.02657) of categories sorted by p but for the last, the tail."""

    def function(log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp().detach()
        weights = []
        for row_p, row_q in zip(p, q, strict=True):
            size = max(1, int((row_p[:-1].cumsum(0) <= mass).sum()))
            gap = (row_p - row_q).abs()
            weights.append(gap[:size].sum() / gap.sum() if gap.sum() > 0 else torch.tensor(0.5).to(gap))
        weight = torch.stack(weights)
        return weight * forward_kl(log_p, log_q) + (1 - weight) * forward_kl(log_q, log_p)

    return function


def alpha_beta(a: float, b: float) -> Dense:
    """ABKD (arXiv 2505.04560): -1/(ab) sum of p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b), for a, b > 0."""

    def function(log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q, s = log_p.exp(), log_q.exp(), a + b
        return -(p**a * q**b - a / s * p**s - b / s * q**s).sum(-1) / (a * b)

    return function


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Half the sum of |p - q|."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def divergence(name: str, parameters: Parameters | None = None) -> Dense:
    """The dense divergence of a name of the API."""
    given = parameters or Parameters()
    return {
        "ForwardKL": forward_kl,
        "ReverseKL": reverse_kl,
        "JSD": jensen_shannon(given.beta),
        "Skew": skew(given.skew),
        "ReverseSkew": reverse_skew(given.skew),
        "AdaptiveKL": adaptive_kl(given.mass),
        "AlphaBeta": alpha_beta(given.a, given.b),
        "TVD": total_variation,
    }[name]


def bucketed(log_probs: Tensor, ids: Tensor) -> Tensor:
    """log of the probabilities of ``ids`` [P, K] under ``log_probs`` [P, V], and of everything else: [P, K+1]."""
    head = log_probs.gather(1, ids)
    rest = log_probs.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([head, rest], 1)


def stored_alike(log_p: Tensor, log_q: Tensor, rounding: Tensor) -> Tensor:
    """The nearest to ``log_q`` [P, K+1] that is within what storing may have rounded of ``log_p`` [P, K+1]."""
    entry = rounding[:, None] + log_p.abs() / 2**11
    off = entry + (log_p.exp() * entry).sum(-1, keepdim=True)
    return log_q.clamp(log_p - off, log_p + off)


def kd_loss(logits: Tensor, ids: Tensor, log_p: Tensor, function: Dense, temperature: float = 1.0) -> Tensor:
    """T^2 D(p || q) [P] of ``logits`` [P, V]; ``log_p`` [P, K+1] is the teacher's head and tail at temperature T."""
    log_q = bucketed(torch.log_softmax(logits.double() / temperature, 1), ids)
    return temperature**2 * function(log_p.double(), log_q)


def ce_loss(logits: Tensor, label_ids: Tensor) -> Tensor:
    """-log q of the labels, [P]."""
    return -torch.log_softmax(logits.double(), 1).gather(1, label_ids[:, None])[:, 0]
