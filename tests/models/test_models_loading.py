"""What is loaded is what was digested: safetensors, and no adapter on top."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import family

from kd_runtime.api.failures import SettingsError
from kd_runtime.models.loading import load_causal_lm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    family("llama").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_pickled_weights_beside_other_safetensors_are_not_loaded(folder: Path) -> None:
    torch.save(load_causal_lm(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "old.safetensors")
    with pytest.raises(SettingsError, match="m: holds no model that transformers loads"):
        load_causal_lm(folder)


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(SettingsError, match=r"m: adapter_config\.json lies beside the weights.*merge the adapter"):
        load_causal_lm(folder)
