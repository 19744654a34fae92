"""Random models of several architectures, four layers each, a few thousand weights."""

from __future__ import annotations

from typing import Any

SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 3,
    "bos_token_id": None,
    "eos_token_id": 2,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")
OWN: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
}


def family(name: str, *, dtype: Any = None, **sizes: Any) -> Any:
    """A random model of architecture ``name`` (transformers' model type), the same at each call."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **{**SIZES, **OWN.get(name, {}), **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
        for parameter in model.parameters():  # norms start at one and biases at zero: noise makes them count
            parameter.data += torch.randn_like(parameter) * 0.05
    return model.eval()


def silenced(model: Any, *layers: int) -> Any:
    """``model`` with those layers' outputs set to zero, so that they pass on what they are given."""
    for number in layers:
        layer = model.model.layers[number]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return model
