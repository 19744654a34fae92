"""What a model does to the output of its head before it counts as logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LogitRules:
    """What a model does to its logits: logits = softcap * tanh(scale * h W^T / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRules:
        """Read from a Hugging Face config (Cohere multiplies, Granite divides, Gemma caps)."""
        text = config.get_text_config()
        scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
        return cls(scale, getattr(text, "final_logit_softcapping", None))
