"""The chat templates of well-known model families (as TRL ships them), put on the tiny model's tokenizer."""

from __future__ import annotations

import importlib.util
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

MARKERS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<think>",
    "</think>",
)
"""Tokens that these templates write and that the models they come from have in their vocabularies."""
BEGIN = "<bos>"


@lru_cache
def template_text(name: str) -> str:
    """The text of TRL's template ``name`` (`llama3`, `qwen3`, `gemma3`, ...)."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_with(name: str, base: Path, folder: Path) -> Path:
    """Write to ``folder`` the tokenizer of ``base`` with MARKERS added and template ``name``; return ``folder``."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    tokenizer.bos_token = BEGIN
    tokenizer.chat_template = template_text(name)
    tokenizer.save_pretrained(folder)
    return folder


def model_with(name: str, base: Path, folder: Path) -> Path:
    """Like ``tokenizer_with``, with the model of ``base`` beside it, its vocabulary grown to hold MARKERS."""
    from transformers import AutoModelForCausalLM

    tokenizer_with(name, base, folder)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + len(MARKERS))
    model.save_pretrained(folder / "weights")
    for path in (folder / "weights").iterdir():
        shutil.move(path, folder / path.name)
    (folder / "weights").rmdir()
    return folder
