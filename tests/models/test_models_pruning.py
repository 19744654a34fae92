"""Leaving out layers: which ones, and what is left."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, family, silenced
from hypothesis import given
from hypothesis import strategies as st

from kd_runtime.api.failures import SettingsError
from kd_runtime.models.loading import load_causal_lm, save_causal_lm
from kd_runtime.models.pruning import block_influence, decoder_layers, evenly_spaced, keep_layers, most_influential

ROWS = [np.arange(5, 30), np.arange(100, 160), np.asarray([7])]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(5, 45)[None], use_cache=False).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_that_do_nothing_have_no_influence_and_their_loss_changes_nothing(name: str) -> None:
    model = silenced(family(name), 1, 3)
    whole = logits(model)
    influence = block_influence(model, ROWS)
    assert influence[1] == pytest.approx(0, abs=1e-9)
    assert influence[3] == pytest.approx(0, abs=1e-9)
    assert min(influence[0], influence[2]) > 1e-4
    kept = most_influential(influence, 2)
    assert kept == [0, 2]
    keep_layers(model, kept)
    assert len(decoder_layers(model)) == 2
    assert torch.equal(logits(model), whole)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_model_is_the_same_after_saving_and_loading(name: str, tiny_models: Path, tmp_path: Path) -> None:
    model = family(name)
    types = getattr(model.config, "layer_types", None)
    keep_layers(model, [0, 1, 3])
    save_causal_lm(model, tmp_path, companions=tiny_models / "teacher")
    loaded = load_causal_lm(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.num_hidden_layers == 3
    if types is not None:
        assert loaded.config.layer_types == [types[0], types[1], types[3]]


def test_a_pruned_model_generates_as_one_that_was_loaded(tiny_models: Path, tmp_path: Path) -> None:
    model = load_causal_lm(tiny_models / "teacher")
    keep_layers(model, [0, 3])
    save_causal_lm(model, tmp_path, companions=tiny_models / "teacher")
    prompt = torch.arange(5, 20)[None]
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    loaded = load_causal_lm(tmp_path)
    assert model.generate(prompt, **settings).tolist() == loaded.generate(prompt, **settings).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_keeps_its_dtype(dtype: torch.dtype, tiny_models: Path, tmp_path: Path) -> None:
    save_causal_lm(family("llama", dtype=dtype), tmp_path / "whole", companions=tiny_models / "teacher")
    model = load_causal_lm(tmp_path / "whole")
    keep_layers(model, most_influential(block_influence(model, ROWS), 2))
    save_causal_lm(model, tmp_path / "pruned", companions=tmp_path / "whole")
    assert {parameter.dtype for parameter in load_causal_lm(tmp_path / "pruned").parameters()} == {dtype}
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_influence_does_not_depend_on_how_rows_follow_each_other() -> None:
    model = family("qwen3")
    assert block_influence(model, ROWS) == pytest.approx(block_influence(model, ROWS[::-1]), rel=1e-12)


def test_influence_is_one_minus_the_cosine_of_a_layers_input_and_output() -> None:
    model, row = family("llama"), torch.arange(5, 30)[None]
    with torch.inference_mode():
        states = model.model(row, output_hidden_states=True, use_cache=False).hidden_states
    # The last of these has the final norm applied, so the last layer's output is not among them.
    cosine = [torch.nn.functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(states[:-1])]
    expected = [float((1 - c).mean()) for c in cosine]
    assert block_influence(model, [row[0].numpy()])[:-1] == pytest.approx(expected, abs=1e-6)


def test_influence_needs_rows() -> None:
    with pytest.raises(SettingsError, match="no calibration rows"):
        block_influence(family("llama"), [])


def test_influence_refuses_weights_that_are_not_finite() -> None:
    model = family("llama")
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(SettingsError, match="not finite"):
        block_influence(model, ROWS)


def test_of_layers_with_equal_influence_the_earlier_stay() -> None:
    assert most_influential([0.5, 0.1, 0.1, 0.1, 0.9], 3) == [0, 1, 4]


@given(st.integers(2, 128).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_evenly_spaced_layers_are_distinct_and_hold_both_ends(sizes: tuple[int, int]) -> None:
    layers, keep = sizes
    kept = evenly_spaced(layers, keep)
    assert len(set(kept)) == keep
    assert (kept[0], kept[-1]) == (0, layers - 1)
    gaps = np.diff(kept)
    assert gaps.max() - gaps.min() <= 1


def test_one_evenly_spaced_layer_is_the_first() -> None:
    assert evenly_spaced(30, 1) == [0]


def test_an_architecture_whose_layers_depend_on_their_number_is_refused() -> None:
    model = family("qwen2_moe", mlp_only_layers=[1], num_experts=2, moe_intermediate_size=16)
    with pytest.raises(SettingsError, match="mlp_only_layers ties layers to their numbers"):
        keep_layers(model, [0, 1])


def test_saved_files_are_readable_by_others_and_the_tokenizer_is_copied_byte_for_byte(
    tiny_models: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_models / "teacher", source)
    (source / "modeling_own.py").write_text("# code that the model brings\n")
    save_causal_lm(load_causal_lm(source), tmp_path / "saved", companions=source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "modeling_own.py"):
        assert (tmp_path / "saved" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "saved" / "generation_config.json").read_bytes() == (
        source / "generation_config.json"
    ).read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {0o644}


def test_a_generation_config_that_transformers_would_not_save_is_copied(tiny_models: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_models / "teacher", source)
    odd = '{"do_sample": false, "temperature": 0.6, "eos_token_id": 2}\n'
    (source / "generation_config.json").write_text(odd)
    save_causal_lm(load_causal_lm(source), tmp_path / "saved", companions=source)
    assert (tmp_path / "saved" / "generation_config.json").read_text() == odd


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no model that transformers loads"):
        load_causal_lm(tmp_path)
