"""Values worked out by hand elsewhere, on five categories, come out of the chunked path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kd_runtime.losses.divergences import Parameters
from kd_runtime.losses.head import SparseKDHead

pytestmark = pytest.mark.usefixtures("each_row_pass")

P = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)
Q = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)


def loss(name: str, k: int, **parameters: Any) -> float:
    """The divergence of Q from P's ``k`` largest and their tail."""
    head = SparseKDHead(
        nn.Parameter(torch.eye(5, dtype=torch.float64)), vocab=5, divergence=name, parameters=Parameters(**parameters)
    )
    on = torch.ones(1, dtype=torch.bool)
    ids, lp = torch.arange(k)[None], P[:k].log()[None]
    tail = (1 - P[:k].sum()).clamp(min=0).log()[None] if k < 5 else torch.full((1,), -torch.inf)
    value, sums = head(Q.log()[None], torch.tensor([0]), ids, lp, tail, on, ~on)
    assert float(sums.kd) == pytest.approx(float(value), abs=1e-12)
    return float(value)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("ForwardKL", {}, 0.105594),
        ("ReverseKL", {}, 0.115050),
        ("JSD", {"beta": 0.1}, 0.009506),
        ("JSD", {"beta": 0.5}, 0.026835),
        ("JSD", {"beta": 0.9}, 0.010144),
        ("TVD", {}, 0.2),
        ("Skew", {"skew": 0.1}, 0.085633),
        ("ReverseSkew", {"skew": 0.1}, 0.089629),
        ("AdaptiveKL", {"mass": 0.5}, 0.110322),
        ("AlphaBeta", {"a": 1.0, "b": 0.0}, 0.105594),
        ("AlphaBeta", {"a": 0.0, "b": 1.0}, 0.115050),
        ("Skew", {"skew": 0.0}, 0.105594),
        ("ReverseSkew", {"skew": 0.0}, 0.115050),
    ],
)
def test_whole_distributions(name: str, parameters: dict[str, float], expected: float) -> None:
    assert loss(name, 5, **parameters) == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(("name", "expected"), [("ForwardKL", 0.092332), ("ReverseKL", 0.089450)])
def test_two_largest_and_a_tail_bucket(name: str, expected: float) -> None:
    assert loss(name, 2) == pytest.approx(expected, abs=6e-7)


def test_a_tail_bucket_never_exceeds_the_whole_divergence() -> None:
    for name in ("ForwardKL", "ReverseKL", "JSD", "Skew", "ReverseSkew"):
        values = [loss(name, k) for k in (1, 2, 3, 4, 5)]
        assert values == sorted(values)
        assert values[0] >= 0


def test_jsd_tends_to_the_scaled_kullback_leibler_divergences() -> None:
    assert loss("JSD", 5, beta=1e-6) / 1e-6 == pytest.approx(loss("ForwardKL", 5), rel=1e-4)
    assert loss("JSD", 5, beta=1 - 1e-6) / 1e-6 == pytest.approx(loss("ReverseKL", 5), rel=1e-4)


def test_alpha_beta_tends_to_its_limits() -> None:
    for given, limit in ((("a", "b"), "ForwardKL"), (("b", "a"), "ReverseKL")):
        near = loss("AlphaBeta", 5, **dict(zip(given, (1.0, 1e-5), strict=True)))
        assert near == pytest.approx(loss(limit, 5), rel=1e-4)


def test_alpha_beta_of_equal_halves_is_twice_the_squared_hellinger_distance() -> None:
    expected = 2 * float((P.sqrt() - Q.sqrt()).square().sum())
    assert loss("AlphaBeta", 5, a=0.5, b=0.5) == pytest.approx(expected, abs=1e-12)
