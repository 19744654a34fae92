"""What a model does to the output of its head before it counts as logits."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from kd_runtime.api.failures import SettingsError

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
"""Config fields that multiply logits: Cohere, Falcon-H1."""
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Config fields that divide logits, or the hidden states before the head: Granite and MiniCPM3, Inkling."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Config fields with the soft-cap: Gemma and NanoChat, RecurrentGemma, xLSTM."""
CHECKED_TOKENS = 12
OWN_FACTORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hyperclovax": (("logits_scaling",), ()),
    "mpt": ((), ()),
}
"""Model types whose multipliers and divisors are others: HyperCLOVA X multiplies, MPT's are read by nothing."""


@dataclass(frozen=True)
class LogitRules:
    """What a model does to its logits: logits = softcap * tanh(scale * h W^T / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRules:
        """Read from a Hugging Face config, by the fields that transformers' families have for it."""
        text = config.get_text_config()
        multipliers, divisors = OWN_FACTORS.get(text.model_type, (MULTIPLIERS, DIVISORS))
        softcap = next((cap for name in SOFTCAPS if (cap := getattr(text, name, None))), None)
        return cls(_product(text, multipliers) / _product(text, divisors), softcap)

    def applied(self, output: Tensor) -> Tensor:
        """Logits of the head's ``output``, both [..., V]."""
        scaled = output * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap

    def __str__(self) -> str:
        return f"scale {self.scale:g} and {'no soft-cap' if self.softcap is None else f'soft-cap {self.softcap:g}'}"


@torch.no_grad()
def check_logits(model: Any, vocabulary: int, device: torch.device, field: str, **extra: Any) -> None:
    """Run a few tokens: the model's own logits must be those that the rules make of its backbone's hidden states.

    The loss and the scores are computed from hidden states and head, so a family with a step that the rules lack would
    be trained and scored on other logits than it answers with. ``extra`` are further keyword arguments of a pass.

    Raises:
        SettingsError: they differ; ``field`` names where the model was given.
    """
    training = model.training
    model.eval()
    given = {
        "input_ids": torch.arange(2, 2 + CHECKED_TOKENS, device=device)[None] % vocabulary,
        "use_cache": False,
        **extra,
    }
    own = model(**given).logits[..., :vocabulary].float()
    rules = LogitRules.of(model.config)
    output = model.get_output_embeddings()(model.base_model(**given).last_hidden_state)
    ours = rules.applied(output)[..., :vocabulary].float()
    model.train(training)
    tolerance = 2e-2 if output.dtype == torch.bfloat16 else 1e-3
    difference = _difference(own, ours)
    if difference > tolerance:  # NaN in the weights says nothing of the rules; the first loss names it
        raise SettingsError(
            f"{field}: the logits of {type(model).__name__} (model type {model.config.model_type}) are not those of its "
            f"output head with {rules}, as KubeDistill reads its config (they differ by {difference:.2g} of the "
            "largest); use a model of another family"
        )


def _difference(own: Tensor, ours: Tensor) -> float:
    """The largest difference relative to the largest logit; infinite where the shapes differ."""
    if own.shape != ours.shape:
        return float("inf")
    return float((own - ours).abs().max() / own.abs().max().clamp(min=1e-6))


def _product(config: Any, names: tuple[str, ...]) -> float:
    return prod(float(getattr(config, name, None) or 1.0) for name in names)
