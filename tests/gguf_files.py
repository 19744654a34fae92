"""Tiny GGUF files, as llama.cpp would write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, INNER, LAYERS, HEADS, GROUPS = 32, 64, 2, 4, 2


def write_gguf(path: Path, tokenizer: Path, *, seed: int = 0) -> Path:
    """Write a random Llama model, its matrices in Q8_0, with the tokenizer and template of ``tokenizer``; return ``path``."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    vocabulary = _add_tokenizer(writer, tokenizer)
    random = np.random.default_rng(seed)
    for name, shape in _shapes(vocabulary).items():
        values = random.normal(0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            packed = quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, folder: Path) -> int:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    special = {token["content"] for token in data["added_tokens"]}
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_pad_token_id(tokens.index("<|pad|>"))
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    return len(tokens)


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    inner = HIDDEN * GROUPS // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {
            f"{block}attn_norm.weight": (HIDDEN,),
            f"{block}ffn_norm.weight": (HIDDEN,),
            f"{block}attn_q.weight": (HIDDEN, HIDDEN),
            f"{block}attn_k.weight": (inner, HIDDEN),
            f"{block}attn_v.weight": (inner, HIDDEN),
            f"{block}attn_output.weight": (HIDDEN, HIDDEN),
            f"{block}ffn_gate.weight": (INNER, HIDDEN),
            f"{block}ffn_up.weight": (INNER, HIDDEN),
            f"{block}ffn_down.weight": (HIDDEN, INNER),
        }
    return shapes
