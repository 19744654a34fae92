"""Model folders of a few hundred bytes: whole enough to be planned, with no weights worth loading."""

from __future__ import annotations

import json
import struct
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 4,
    "intermediate_size": 8,
    "vocab_size": 16,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}
TOKENIZER = {
    "version": "1.0",
    "padding": None,
    "truncation": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def safetensors(shape: tuple[int, int] = (16, 4), fill: int = 0) -> bytes:
    """A file with one float32 tensor."""
    size = shape[0] * shape[1] * 4
    header = {"embed": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * size


def fake_model(folder: Path, fill: int = 0, **config: int) -> Path:
    """A model folder; ``fill`` makes its weights differ, ``config`` its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "model.safetensors").write_bytes(safetensors(fill=fill))
    return folder
