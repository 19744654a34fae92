"""Divergences between teacher p and student q on K+1 categories (the head's K entries, and the tail as one bucket).

To add a divergence, write one function of a class below: it maps log p and log q to the value D and to
``h_c = q_c dD/dq_c``, written without p/q so that a vanishing q_c is harmless, and name it in :func:`divergence`.
The chunked loss turns h into the gradient of every logit. Terms of dD/dq that are equal in all categories may be
left out: they cancel, because q sums to one. A category that is absent has log p = log q = a large negative number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kd_runtime.api.failures import SettingsError

DivergenceFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log p [C, K+1], log q [C, K+1]) -> (D [C] in nats, h [C, K+1])."""


def forward_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) = sum p (log p - log q); dD/dq = -p/q, so h = -p."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), -p


def reverse_kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) = sum q (log q - log p); dD/dq = log q - log p, up to a constant."""
    h = log_q.exp() * (log_q - log_p)
    return h.sum(-1), h


def jensen_shannon(beta: float) -> DivergenceFunction:
    """GKD's JSD (arXiv 2306.13649): beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    dD/dq = (1 - beta) (log q - log m): the derivatives of m cancel. It goes to beta KL(p || q) as beta goes to 0 and
    to (1 - beta) KL(q || p) as beta goes to 1, so both ends are excluded: there it would be nothing.
    """
    log_beta, log_rest = math.log(beta), math.log1p(-beta)

    def function(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        log_m = torch.logaddexp(log_p + log_beta, log_q + log_rest)
        h = (1 - beta) * log_q.exp() * (log_q - log_m)
        return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + h.sum(-1), h

    return function


def divergence(name: str, *, beta: float = 0.5) -> DivergenceFunction:
    """The function of ``objective.divergence``; ``beta`` matters to JSD alone.

    Raises SettingsError for a name that this version does not know, and for a beta outside (0, 1).
    """
    if name == "JSD" and not 0 < beta < 1:
        raise SettingsError(
            f"objective.beta: {beta} is outside (0, 1), where JSD vanishes; use divergence ForwardKL or ReverseKL"
        )
    known: dict[str, Callable[[], DivergenceFunction]] = {
        "ForwardKL": lambda: forward_kl,
        "ReverseKL": lambda: reverse_kl,
        "JSD": lambda: jensen_shannon(beta),
    }
    if name not in known:
        raise SettingsError(f"objective.divergence: {name} is not supported; use one of {', '.join(known)}")
    return known[name]()
