"""The chunked path's values and gradients are those of the dense float64 reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from losses.examples import DIVERGENCES, Case, case
from torch import nn

from kd_runtime.losses.divergences import Parameters

pytestmark = pytest.mark.usefixtures("each_row_pass")


def assert_equals_reference(given_case: Case, chunk: int | None = None, tolerance: float = 1e-10) -> None:
    fast, _ = given_case.fast(chunk)
    dense = given_case.dense()
    torch.testing.assert_close(fast, dense, rtol=tolerance, atol=tolerance)
    for found, expected in zip(given_case.gradients(fast), given_case.gradients(dense), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("divergence", "temperature", "softcap", "scale"),
    list(itertools.product(DIVERGENCES, (1.0, 0.5, 2.0), (None, 3.0), (1.0, 0.25))),
)
def test_every_setting(divergence: str, temperature: float, softcap: float | None, scale: float) -> None:
    built = case(divergence=divergence, temperature=temperature, softcap=softcap, logit_scale=scale)
    assert_equals_reference(built, chunk=10)


@given(
    seed=st.integers(0, 2**31),
    positions=st.integers(1, 20),
    vocab=st.integers(2, 300),
    k=st.integers(1, 40),
    chunk=st.integers(1, 25),
    divergence=st.sampled_from(DIVERGENCES),
    temperature=st.sampled_from([1.0, 1.7]),
    share=st.floats(0.01, 0.99),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes(
    seed: int,
    positions: int,
    vocab: int,
    k: int,
    chunk: int,
    divergence: str,
    temperature: float,
    share: float,
) -> None:
    parameters = Parameters(beta=share, skew=share, a=2 * share, b=1.5 - share, mass=share)
    sizes = {"positions": positions, "vocab": vocab, "k": min(k, vocab - 1)}
    built = case(seed, **sizes, divergence=divergence, temperature=temperature, parameters=parameters)
    assert_equals_reference(built, chunk)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_labels_all_inside_and_all_outside_the_head(divergence: str) -> None:
    built = case(divergence=divergence)
    outside = built.teacher.argsort(1)[:, 3]
    assert_equals_reference(built.with_(labels=built.top_ids[:, 0]))
    assert_equals_reference(built.with_(labels=outside))


@pytest.mark.parametrize(("kd_weight", "ce_weight"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_mixes_of_divergence_and_cross_entropy(kd_weight: float, ce_weight: float) -> None:
    assert_equals_reference(case(kd_weight=kd_weight, ce_weight=ce_weight))


@pytest.mark.parametrize("kd_weight", [1.0, 0.6])
def test_cross_entropy_alone_where_there_is_no_divergence(kd_weight: float) -> None:
    """As a row without logits is learnt: each position has its own weights."""
    built = case(kd_weight=kd_weight)
    assert_equals_reference(built.with_(ce_weight=torch.where(built.kd_mask, 1 - kd_weight, 1.0)), chunk=10)


def test_a_bias_of_the_head() -> None:
    assert_equals_reference(case(bias=nn.Parameter(torch.randn(208, dtype=torch.float64))), chunk=7)


def test_float32_agrees_with_float64() -> None:
    for divergence in DIVERGENCES:
        wide = case(positions=64, vocab=1000, k=16, divergence=divergence)
        built = wide.with_(
            hidden=wide.hidden.detach().float().requires_grad_(),
            weight=nn.Parameter(wide.weight.detach().float()),
            teacher=wide.teacher.float(),
        )
        loss, _ = built.fast()
        torch.testing.assert_close(loss.double(), wide.dense(), rtol=1e-5, atol=0)
        for found, expected in zip(built.gradients(loss), wide.gradients(wide.dense()), strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_points_the_same_way(divergence: str) -> None:
    wide = case(positions=64, vocab=500, k=16, divergence=divergence)
    built = wide.with_(
        hidden=wide.hidden.detach().bfloat16().requires_grad_(),
        weight=nn.Parameter(wide.weight.detach().bfloat16()),
        teacher=wide.teacher.float(),
    )
    loss, _ = built.fast()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wide.dense(), rtol=0.02, atol=0)
    for found, expected in zip(built.gradients(loss), wide.gradients(wide.dense()), strict=True):
        assert found.dtype == torch.bfloat16
        cosine = torch.cosine_similarity(found.double().flatten(), expected.flatten(), dim=0)
        assert float(cosine) > 0.999


def test_the_gradient_scales_with_what_comes_from_above() -> None:
    built = case()
    once = built.gradients(built.fast()[0])
    thrice = built.gradients(3 * built.fast()[0])
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_gradients_can_be_had_once() -> None:
    loss, _ = case().fast()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backpropagated before"):
        loss.backward()
