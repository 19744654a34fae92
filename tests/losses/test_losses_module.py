"""The loss as a module: tied and frozen weights, what it refuses, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.examples import case
from torch import Tensor, nn

from kd_runtime.api.failures import SettingsError
from kd_runtime.losses.divergences import Parameters
from kd_runtime.losses.head import SparseKDHead


def test_a_tied_weight_gets_both_gradients() -> None:
    built = case(padding=0)
    embedding = nn.Embedding(*built.weight.shape)
    embedding.weight = built.weight
    head = built.head()
    assert head.weight is embedding.weight
    ids = torch.arange(23)

    def loss(dense: bool) -> Tensor:
        hidden = torch.tanh(embedding(ids))
        at = built.with_(hidden=hidden)
        return at.dense() if dense else at.fast()[0]

    (found,) = torch.autograd.grad(loss(False), [embedding.weight])
    (expected,) = torch.autograd.grad(loss(True), [embedding.weight])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_frozen_weight_gets_none() -> None:
    built = case()
    expected = built.gradients(built.fast()[0])[0]
    built.weight.requires_grad_(False)
    loss, _ = built.fast()
    loss.backward()
    assert built.weight.grad is None
    torch.testing.assert_close(built.hidden.grad, expected)


def test_a_head_alone_is_trained_on_fixed_states() -> None:
    built = case()
    expected = built.gradients(built.fast()[0])[1]
    built.with_(hidden=built.hidden.detach()).fast()[0].backward()
    torch.testing.assert_close(built.weight.grad, expected)


def test_targets_without_a_head_cannot_be_distilled() -> None:
    built = case()
    with pytest.raises(SettingsError, match=r"profile Label .*capture with profile Exact"):
        built.head()(built.hidden, built.labels, None, None, None, built.kd_mask, built.ce_mask, kd_weight=1.0)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    built = case()
    with pytest.raises(SettingsError, match=r"token id 203 is outside the vocabulary of 203"):
        built.with_(labels=torch.full((23,), 203)).fast()


class Adapted(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 9)


class Quantised(nn.Module):
    """As a quantised layer keeps its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(9, 2, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        (Adapted(), {}, "take lm_head out"),
        (Quantised(), {}, r"Quantised of torch\.uint8.*unquantised"),
        (nn.ReLU(), {}, "ReLU"),
        (nn.Linear(4, 9), {"divergence": "Wasserstein"}, "use one of ForwardKL, ReverseKL, JSD"),
        (
            nn.Linear(4, 9),
            {"divergence": "JSD", "parameters": Parameters(beta=0.0)},
            r"objective\.beta: 0\.0 .*use divergence ForwardKL",
        ),
        (nn.Linear(4, 9), {"divergence": "JSD", "parameters": Parameters(beta=1.0)}, r"objective\.beta: 1\.0"),
        (nn.Linear(4, 9), {"divergence": "Skew", "parameters": Parameters(skew=1.0)}, r"objective\.skew: 1\.0"),
        (nn.Linear(4, 9), {"divergence": "AdaptiveKL", "parameters": Parameters(mass=0.0)}, r"objective\.mass: 0\.0"),
        (nn.Linear(4, 9), {"divergence": "AlphaBeta", "parameters": Parameters(a=0.0, b=0.0)}, "not both 0"),
        (nn.Linear(4, 9), {"divergence": "Custom"}, r"objective\.function: is missing"),
        (nn.Linear(4, 9), {"temperature": 0.0}, r"objective\.temperature: 0\.0 is not positive"),
    ],
)
def test_what_cannot_be_done_is_refused(head: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SparseKDHead(head, vocab=9, **settings)
