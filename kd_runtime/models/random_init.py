"""A model of the same family with other sizes and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_runtime.api.data_stages import RandomInit
from kd_runtime.api.failures import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "attention_heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
}
"""Fields of the API, and what transformers' configurations call them."""


def random_model(folder: Path, wanted: RandomInit, path: str = "prepare.random") -> PreTrainedModel:
    """A model with the configuration of ``folder`` but the sizes of ``wanted``, its weights drawn from ``wanted.seed``.

    The family's own initialisation is used; the weights have the dtype that the configuration names.

    Args:
        folder: a Hugging Face directory; of its files only config.json is read.
        wanted: sizes; what is None stays as it is.
        path: of ``wanted`` in the manifest, for messages.

    Raises:
        SettingsError: no model has these sizes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    _resize(config.get_text_config(), wanted, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(wanted.seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise SettingsError(f"{path}: {type(config).__name__} has no model of these sizes ({error})") from error
    return model.eval()


def _resize(config: Any, wanted: RandomInit, path: str) -> None:
    layers, derived_head = config.num_hidden_layers, _head_is_derived(config)
    for name, attribute in SIZES.items():
        value = getattr(wanted, name)
        if value is not None:
            setattr(config, attribute, value)
    _check_heads(config, path)
    if derived_head:
        if config.hidden_size % config.num_attention_heads:
            raise SettingsError(
                f"{path}.hiddenSize: {config.hidden_size} is no multiple of {config.num_attention_heads} attention heads; "
                f"change it or {path}.attentionHeads"
            )
        if getattr(config, "head_dim", None):
            config.head_dim = config.hidden_size // config.num_attention_heads
    _resize_lists(config, layers)


def _head_is_derived(config: Any) -> bool:
    """True where a head's width follows from the model's (Llama), not where it is set apart (Qwen 3, Gemma)."""
    width = getattr(config, "head_dim", None)
    return not width or int(width) == config.hidden_size // config.num_attention_heads


def _check_heads(config: Any, path: str) -> None:
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if config.num_attention_heads % groups:
        raise SettingsError(
            f"{path}.keyValueHeads: {groups} does not divide {config.num_attention_heads} attention heads; "
            f"set it to a divisor, or change {path}.attentionHeads"
        )


def _resize_lists(config: Any, before: int) -> None:
    """Lists with an entry a layer (layer_types) keep their pattern: cut off, or repeated from the start."""
    for name, value in list(config.to_dict().items()):
        if "layer" in name and isinstance(value, list) and len(value) == before:
            setattr(config, name, [value[i % before] for i in range(config.num_hidden_layers)])
