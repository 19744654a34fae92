"""On models as they are: tied or untied heads, logit scales, soft-caps, padded vocabularies, LoRA on the backbone.

What is compared with is the model's own forward pass, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import family
from losses.examples import DIVERGENCES, PARAMETERS
from torch import Tensor

from kd_runtime.losses import reference
from kd_runtime.losses.head import SparseKDHead
from kd_runtime.models.logit_rules import LogitRules

pytestmark = pytest.mark.usefixtures("each_row_pass")
VOCAB, K, ROWS, LENGTH = 490, 8, 2, 11
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "tie_word_embeddings": True},
}
"""Architectures with a head of 512 rows over a vocabulary of 490, as Qwen2.5 pads 151,665 tokens to 151,936 or 152,064."""


def targets() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [ROWS, LENGTH], the teacher's head [P, K] and its logprobs with the tail's [P, K+1]."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=random)
    lp = torch.log_softmax(2 * torch.randn(ROWS * (LENGTH - 1), VOCAB, generator=random, dtype=torch.float64), 1)
    top = lp.topk(K).indices
    return ids, top, reference.bucketed(lp, top)


def sparse(model: Any, divergence: str, base: Any) -> Tensor:
    """The loss on the backbone's hidden states."""
    ids, top, lp = targets()
    rules = LogitRules.of(model.config)
    head = SparseKDHead(
        model.get_output_embeddings(),
        vocab=VOCAB,
        divergence=divergence,
        parameters=PARAMETERS,
        logit_scale=rules.scale,
        softcap=rules.softcap,
    )
    hidden = base(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    on = torch.ones(len(hidden), dtype=torch.bool)
    given = (ids[:, 1:].flatten(), top, lp[:, :-1], lp[:, -1], on, on)
    loss: Tensor = head(hidden, *given, kd_weight=0.7, ce_weight=0.4)[0]
    return loss


def dense(model: Any, divergence: str) -> Tensor:
    """The same loss on the logits that the model itself computes."""
    ids, top, lp = targets()
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)[:, :VOCAB]
    kd = reference.kd_loss(logits, top, lp, reference.divergence(divergence, PARAMETERS))
    return 0.7 * kd.sum() + 0.4 * reference.ce_loss(logits, ids[:, 1:].flatten()).sum()


def assert_trains_as_dense(model: Any, divergence: str, base: Any) -> None:
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    loss, expected = sparse(model, divergence, base), dense(model, divergence)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    found = torch.autograd.grad(loss, list(trained.values()))
    for name, one, other in zip(trained, found, torch.autograd.grad(expected, list(trained.values())), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 + 1e-8 * float(other.abs().max()), msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_as_by_its_own_dense_logits(name: str) -> None:
    model = family(name, dtype=torch.float64, **MODELS[name])
    rules = LogitRules.of(model.config)
    assert (rules.scale, rules.softcap) == {"gemma2": (1, 3.0), "cohere": (0.25, None), "granite": (0.25, None)}.get(
        name, (1, None)
    )
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (name != "llama")
    assert_trains_as_dense(model, "ForwardKL", model.base_model)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_lora_on_the_backbone_gets_the_dense_loss_s_gradients_and_the_head_none(divergence: str) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = family("qwen2", dtype=torch.float64, tie_word_embeddings=True)
    wrapped = get_peft_model(model, config)
    assert not model.get_output_embeddings().weight.requires_grad
    assert_trains_as_dense(model, divergence, model.base_model)
    assert any("lora_B" in name for name, each in wrapped.named_parameters() if each.requires_grad)
