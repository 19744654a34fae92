"""Divergences between teacher p and student q on K+1 categories (the head's K entries, and the tail as one bucket).

To add a divergence, write one function as below: it maps log p and log q to the value D and to
``h_c = q_c dD/dq_c``, written without p/q so that a vanishing q_c is harmless, and name it in :func:`divergence`.
The chunked loss turns h into the gradient of every logit. Terms of dD/dq that are equal in all categories may be
left out: they cancel, because q sums to one. A category that is absent has log p = log q = a large negative number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_runtime.api.failures import SettingsError
from kd_runtime.losses.custom import differentiated, entry_point

DivergenceFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log p [C, K+1], log q [C, K+1]) -> (D [C] in nats, h [C, K+1])."""

FIRST_ORDER = frozenset({"TVD"})
"""Divergences that grow with the error of a target itself; all others grow with its square, near equality."""


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

    def function(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        log_m = _mixture(log_p, beta, log_q)
        h = (1 - beta) * log_q.exp() * (log_q - log_m)
        return beta * (log_p.exp() * (log_p - log_m)).sum(-1) + h.sum(-1), h

    return function


def skew(alpha: float) -> DivergenceFunction:
    """DistiLLM's skew KL (arXiv 2402.03898): KL(p || m), m = alpha p + (1 - alpha) q; dD/dq = -(1 - alpha) p/m."""
    if alpha == 0:
        return forward_kl

    def function(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        log_m = _mixture(log_p, alpha, log_q)
        h = -(1 - alpha) * (log_p + log_q - log_m).exp()
        return (log_p.exp() * (log_p - log_m)).sum(-1), h

    return function


def reverse_skew(alpha: float) -> DivergenceFunction:
    """DistiLLM's reverse skew KL: KL(q || m), m = (1 - alpha) p + alpha q.

    dD/dq = log q - log m - alpha q/m, up to a constant.
    """
    if alpha == 0:
        return reverse_kl

    def function(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        log_m = _mixture(log_q, alpha, log_p)
        term = log_q.exp() * (log_q - log_m)
        return term.sum(-1), term - alpha * (2 * log_q - log_m).exp()

    return function


def adaptive_kl(mass: float) -> DivergenceFunction:
    """AKL (arXiv 2404.02657): w KL(p || q) + (1 - w) KL(q || p), w = gap of the head / gap of all, a constant.

    Its head are the likeliest categories with a cumulative p of at most ``mass``, the first one always; a gap is the
    sum of |p - q|. Without any gap, w is a half. The tail bucket counts as one category, the last.
    """

    def function(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        p = log_p.exp()
        inside = p[:, :-1].cumsum(-1) <= mass
        inside[:, :1] = True
        gap = (p - log_q.exp()).abs()
        of_head, total = (gap[:, :-1] * inside).sum(-1), gap.sum(-1)
        weight = torch.where(total > 0, of_head / total, 0.5)
        forward, h_forward = forward_kl(log_p, log_q)
        reverse, h_reverse = reverse_kl(log_p, log_q)
        value = weight * forward + (1 - weight) * reverse
        return value, weight[:, None] * h_forward + (1 - weight)[:, None] * h_reverse

    return function


def alpha_beta(a: float, b: float) -> DivergenceFunction:
    """ABKD's divergence (arXiv 2505.04560): sum of p^s/(b s) + q^s/(a s) - p^a q^b/(a b), s = a + b.

    dD/dq = q^(b-1) (q^a - p^a) / a. (1, 0) is KL(p || q) and (0, 1) is KL(q || p), as limits. The larger of p and q is
    taken out of each term, so that nothing overflows and equal categories give exactly 0.
    """
    s = a + b

    def function(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        gap = log_q - log_p
        larger, apart = torch.maximum(log_p, log_q), gap.abs()

        def grown(power: float) -> Tensor:
            """(q^power - p^power) / power; its limit, log q - log p, at 0."""
            return gap if power == 0 else gap.sign() * (power * larger).exp() * -torch.expm1(-power * apart) / power

        if b == 0:
            value = (grown(a) - (a * log_p).exp() * gap) / a
        elif a == 0:
            value = ((b * log_q).exp() * gap - grown(b)) / b
        else:
            share = a + (b - a) * (gap <= 0).to(gap.dtype)
            value = (s * larger).exp() * (share / s * torch.expm1(-s * apart) - torch.expm1(-share * apart)) / (a * b)
        return value.sum(-1), (b * log_q).exp() * grown(a)

    return function


def total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Half the sum of |p - q|; dD/dq = sign(q - p) / 2."""
    gap, q = log_q.exp() - log_p.exp(), log_q.exp()
    return gap.abs().sum(-1) / 2, q * gap.sign() / 2


def _mixture(log_first: Tensor, share: float, log_second: Tensor) -> Tensor:
    """log of share * first + (1 - share) * second, for a share in (0, 1)."""
    return torch.logaddexp(log_first + math.log(share), log_second + math.log1p(-share))


@dataclass(frozen=True)
class Parameters:
    """Parameters of ``objective``; each matters to the divergences that its description names."""

    beta: float = 0.5
    """JSD: the teacher's share of the mixture, in (0, 1)."""
    skew: float = 0.1
    """Skew, ReverseSkew: how much of the one distribution is mixed into the other, in [0, 1)."""
    a: float = 0.2
    """AlphaBeta: its alpha, at least 0."""
    b: float = 0.7
    """AlphaBeta: its beta, at least 0; not both are 0."""
    mass: float = 0.5
    """AdaptiveKL: the teacher's mass that counts as its head, in (0, 1)."""
    function: str | None = None
    """Custom: the name of an entry point of group ``kubedistill.divergences``."""

    def check(self, name: str) -> None:
        """SettingsError where a parameter that divergence ``name`` has is outside its range."""
        if name == "JSD" and not 0 < self.beta < 1:
            raise SettingsError(
                f"objective.beta: {self.beta} is outside (0, 1), where JSD vanishes; use divergence ForwardKL or "
                "ReverseKL"
            )
        if name in ("Skew", "ReverseSkew") and not 0 <= self.skew < 1:
            raise SettingsError(f"objective.skew: {self.skew} is outside [0, 1), where {name} vanishes; use 0.1")
        if name == "AdaptiveKL" and not 0 < self.mass < 1:
            raise SettingsError(f"objective.mass: {self.mass} is outside (0, 1); use 0.5")
        if name == "AlphaBeta" and not (self.a >= 0 and self.b >= 0 and self.a + self.b > 0):
            raise SettingsError(
                f"objective.a, objective.b: {self.a} and {self.b} must be at least 0 and not both 0; use 0.2 and 0.7"
            )
        if name == "Custom" and not self.function:
            raise SettingsError("objective.function: is missing; name the entry point of your divergence")


def divergence(name: str, parameters: Parameters | None = None) -> DivergenceFunction:
    """The function of ``objective.divergence``.

    Raises SettingsError for a name that is not known, a parameter outside its range, and an absent entry point.
    """
    given = parameters or Parameters()
    known: dict[str, Callable[[], DivergenceFunction]] = {
        "ForwardKL": lambda: forward_kl,
        "ReverseKL": lambda: reverse_kl,
        "JSD": lambda: jensen_shannon(given.beta),
        "Skew": lambda: skew(given.skew),
        "ReverseSkew": lambda: reverse_skew(given.skew),
        "AdaptiveKL": lambda: adaptive_kl(given.mass),
        "AlphaBeta": lambda: alpha_beta(given.a, given.b),
        "TVD": lambda: total_variation,
        "Custom": lambda: differentiated(entry_point(given.function or ""), given.function or ""),
    }
    if name not in known:
        raise SettingsError(f"objective.divergence: {name} is not supported; use one of {', '.join(known)}")
    given.check(name)
    return known[name]()
