"""Every family that scales or caps its logits is read as transformers computes it; what is not is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import family

from kd_runtime.api.failures import SettingsError
from kd_runtime.models.logit_rules import LogitRules, check_logits

CPU = torch.device("cpu")
SMALL_MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
MODELS: dict[str, tuple[dict[str, Any], LogitRules]] = {
    "cohere": ({"logit_scale": 0.25}, LogitRules(0.25)),
    "falcon_h1": ({"lm_head_multiplier": 0.25, **SMALL_MAMBA}, LogitRules(0.25)),
    "gemma2": ({"final_logit_softcapping": 0.5}, LogitRules(1.0, 0.5)),
    "granite": ({"logits_scaling": 4.0}, LogitRules(0.25)),
    "hyperclovax": ({"logits_scaling": 4.0}, LogitRules(4.0)),
    "llama": ({}, LogitRules()),
    "minicpm3": ({"dim_model_base": 8, "num_key_value_heads": 4}, LogitRules(0.25)),
    "nanochat": ({"final_logit_softcapping": 0.5}, LogitRules(1.0, 0.5)),
    "recurrent_gemma": ({"logits_soft_cap": 0.5, "lru_width": 32}, LogitRules(1.0, 0.5)),
    "xlstm": ({"output_logit_soft_cap": 0.5, "embedding_dim": 32, "num_blocks": 2}, LogitRules(1.0, 0.5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_family_s_own_logits_are_those_of_the_rules(name: str) -> None:
    sizes, rules = MODELS[name]
    model = family(name, **sizes)
    assert LogitRules.of(model.config) == rules
    check_logits(model, 490, CPU, "student.model")


def test_inkling_divides_its_hidden_states_before_the_head() -> None:
    from transformers import AutoConfig

    assert LogitRules.of(AutoConfig.for_model("inkling_text", logits_mup_width_multiplier=8.0)) == LogitRules(0.125)


def test_a_factor_that_transformers_does_not_apply_is_none() -> None:
    from transformers import MptConfig, MptForCausalLM

    model = MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=512, logit_scale="inv_sqrt_d_model"))
    check_logits(model.eval(), 490, CPU, "student.model")


def test_a_family_with_a_step_that_no_rule_knows_is_refused_by_name() -> None:
    model = family("modernbert-decoder", local_attention=8, bos_token_id=2)
    with pytest.raises(
        SettingsError, match=r"^spec\.student\.model: the logits of ModernBertDecoderForCausalLM .*another family$"
    ):
        check_logits(model.train(), 490, CPU, "spec.student.model")
    assert model.training
