"""Models with random weights and other sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import family

from kd_runtime.api.data_stages import RandomInit
from kd_runtime.api.failures import SettingsError
from kd_runtime.models.random_init import random_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved configurations by family."""
    made = {}
    for name in ("llama", "qwen3", "gemma3_text"):
        made[name] = tmp_path_factory.mktemp(name)
        family(name, dtype=torch.bfloat16).config.save_pretrained(made[name])
    return made


def test_the_seed_alone_decides_the_weights(folders: dict[str, Path]) -> None:
    one, again, other = (random_model(folders["llama"], RandomInit(seed=seed)) for seed in (1, 1, 2))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_drawing_weights_leaves_torchs_own_random_state_alone(folders: dict[str, Path]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_model(folders["llama"], RandomInit(seed=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_sizes_are_taken_over_and_what_is_left_out_stays(folders: dict[str, Path], name: str) -> None:
    wanted = RandomInit(layers=6, hidden_size=48, attention_heads=6, key_value_heads=3)
    model = random_model(folders[name], wanted)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (6, 48, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (6, 3, 512)
    assert len(model.model.layers) == 6
    assert model.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.isfinite(model(torch.arange(10)[None]).logits).all()


def test_a_heads_width_follows_the_models_where_it_did(folders: dict[str, Path]) -> None:
    wanted = RandomInit(hidden_size=64, attention_heads=2, key_value_heads=1)
    assert random_model(folders["llama"], wanted).config.head_dim == 32
    assert random_model(folders["qwen3"], wanted).config.head_dim == 16


@pytest.mark.parametrize("layers", [3, 7])
def test_the_pattern_of_layer_types_is_kept(folders: dict[str, Path], layers: int) -> None:
    before = family("gemma3_text").config.layer_types
    after = random_model(folders["gemma3_text"], RandomInit(layers=layers)).config.layer_types
    assert after == [before[i % len(before)] for i in range(layers)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (RandomInit(attention_heads=3), r"spec\.stages\[0\]\.prepare\.random\.keyValueHeads: 2 does not divide 3"),
        (RandomInit(hidden_size=34), r"spec\.stages\[0\]\.prepare\.random\.hiddenSize: 34 is no multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_named(folders: dict[str, Path], wanted: RandomInit, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        random_model(folders["llama"], wanted, "spec.stages[0].prepare.random")
