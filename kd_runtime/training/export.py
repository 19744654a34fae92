"""The trained student as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kd_runtime.api.job import Train
from kd_runtime.models.loading import FILE_MODE, load_causal_lm
from kd_runtime.training.student import DTYPES, with_lora

SHARD_SIZE = "5GB"
"""Weights beyond this go into several files."""


def save_student(
    state: dict[str, torch.Tensor], train: Train, source: Path, out: Path, *, trust_remote_code: bool = False
) -> None:
    """Write ``out/model`` (weights and config), and ``out/adapter`` where there is LoRA, whose additions are merged.

    ``state`` are the trained model's weights by name; ``source`` the directory that training started from. Tokenizer,
    template and generation config are not written here.
    """
    model: Any = load_causal_lm(source, DTYPES[train.precision], trust_remote_code=trust_remote_code)
    if train.lora:
        model = with_lora(model, train.lora, train.seed)
    _load(model, state)
    if train.lora:
        model.save_pretrained(out / "adapter")
        (out / "adapter" / "README.md").unlink(missing_ok=True)
        model = model.merge_and_unload()
    _save(model, out / "model")
    for path in out.rglob("*"):
        if path.is_file():
            path.chmod(FILE_MODE)


def _load(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fill in ``state``; a tied weight may be named once or twice."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    given = {value.data_ptr() for name, value in model.named_parameters(remove_duplicate=False) if name in state}
    lost = [name for name, value in model.state_dict().items() if name in missing and value.data_ptr() not in given]
    if unexpected or lost:
        raise RuntimeError(f"trained weights do not fit the model: unexpected {unexpected[:3]}, missing {lost[:3]}")


def _save(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the student's own is copied beside the weights, byte for byte
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    (folder / "generation_config.json").unlink(missing_ok=True)
