"""Values worked out by hand elsewhere, on five categories, come out of the chunked path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kd_runtime.losses.head import SparseKDHead

P = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)
Q = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)


def loss(name: str, k: int, beta: float = 0.5) -> float:
    """The divergence of Q from P's ``k`` largest and their tail."""
    head = SparseKDHead(nn.Parameter(torch.eye(5, dtype=torch.float64)), vocab=5, divergence=name, beta=beta)
    on = torch.ones(1, dtype=torch.bool)
    ids, lp = torch.arange(k)[None], P[:k].log()[None]
    tail = (1 - P[:k].sum()).clamp(min=0).log()[None] if k < 5 else torch.full((1,), -torch.inf)
    value, sums = head(Q.log()[None], torch.tensor([0]), ids, lp, tail, on, ~on)
    assert float(sums.kd) == pytest.approx(float(value), abs=1e-12)
    return float(value)


@pytest.mark.parametrize(
    ("name", "beta", "expected"),
    [
        ("ForwardKL", 0.5, 0.105594),
        ("ReverseKL", 0.5, 0.115050),
        ("JSD", 0.1, 0.009506),
        ("JSD", 0.5, 0.026835),
        ("JSD", 0.9, 0.010144),
    ],
)
def test_whole_distributions(name: str, beta: float, expected: float) -> None:
    assert loss(name, 5, beta) == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(("name", "expected"), [("ForwardKL", 0.092332), ("ReverseKL", 0.089450)])
def test_two_largest_and_a_tail_bucket(name: str, expected: float) -> None:
    assert loss(name, 2) == pytest.approx(expected, abs=6e-7)


def test_a_tail_bucket_never_exceeds_the_whole_divergence() -> None:
    for name in ("ForwardKL", "ReverseKL", "JSD"):
        values = [loss(name, k) for k in (1, 2, 3, 4, 5)]
        assert values == sorted(values)
        assert values[0] >= 0


def test_jsd_tends_to_the_scaled_kullback_leibler_divergences() -> None:
    assert loss("JSD", 5, 1e-6) / 1e-6 == pytest.approx(loss("ForwardKL", 5), rel=1e-4)
    assert loss("JSD", 5, 1 - 1e-6) / 1e-6 == pytest.approx(loss("ReverseKL", 5), rel=1e-4)
