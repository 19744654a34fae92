"""Whether two tokenizers are one: by their ids once transformers has loaded them; and where a difference beyond that counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_model
from manifests import FULL, job

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.parse import parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.rows import row_key
from kd_runtime.artifacts.store import open_store
from kd_runtime.models.loading import load_tokenizer
from kd_runtime.models.templates import Template
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.probes import probe_tokenizers
from kd_runtime.planning.resolve import build_plan
from kd_runtime.planning.tokenizers import tokenizer_digest, vocabulary_size

CONFIG = "tokenizer_config.json"
NEW: dict[str, Any] = {"content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
NEW["special"] = True
RENAMED: dict[str, dict[str, Any]] = {
    "bos_token": {CONFIG: {"bos_token": "<|im_start|>"}},
    "eos_token": {CONFIG: {"eos_token": "<|endoftext|>"}},
    "pad_token": {CONFIG: {"pad_token": "<|endoftext|>"}},
    "no pad_token": {CONFIG: {"pad_token": None}},
    "unk_token, a word": {CONFIG: {"unk_token": "Ġthe"}},
    "add_bos_token, add_eos_token": {
        CONFIG: {"add_bos_token": True, "add_eos_token": True, "bos_token": "<|im_start|>"}
    },
    "clean_up_tokenization_spaces": {CONFIG: {"clean_up_tokenization_spaces": True}},
    "split_special_tokens": {CONFIG: {"split_special_tokens": True}},
    "chat_template": {CONFIG: {"chat_template": "{{ messages }}"}},
    "model_max_length, sides": {CONFIG: {"model_max_length": 8, "padding_side": "left", "truncation_side": "left"}},
    "known tokens by id": {CONFIG: {"added_tokens_decoder": {"1": {**NEW, "content": "<|im_start|>", "lstrip": True}}}},
    "known tokens by name": {
        "special_tokens_map.json": {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    },
}
"""Ids mean what they meant, whatever is rendered with them."""
ADDED: dict[str, dict[str, Any]] = {
    "bos_token": {CONFIG: {"bos_token": "<new>"}},
    "bos_token as a map": {CONFIG: {"bos_token": {"__type": "AddedToken", **NEW}}},
    "unk_token, and another": {CONFIG: {"unk_token": "<new>", "additional_special_tokens": ["<other>", "<new>"]}},
    "additional_special_tokens": {CONFIG: {"additional_special_tokens": ["<new>", "<|im_end|>"]}},
    "extra_special_tokens": {CONFIG: {"extra_special_tokens": ["<new>", "<other>"]}},
    "extra_special_tokens with names": {CONFIG: {"extra_special_tokens": {"image_token": "<new>"}}},
    "a token of a name of its own": {CONFIG: {"image_token": "<new>", "additional_special_tokens": ["<other>"]}},
    "added_tokens_decoder": {CONFIG: {"added_tokens_decoder": {"513": {**NEW, "content": "<b>"}, "512": NEW}}},
    "added_tokens_decoder and a map that does not count": {
        CONFIG: {"added_tokens_decoder": {"512": NEW}},
        "special_tokens_map.json": {"bos_token": "<other>"},
    },
    "special_tokens_map.json": {"special_tokens_map.json": {"bos_token": "<new>"}},
    "added_tokens.json": {"added_tokens.json": {"<b>": 513, "<new>": 512}},
    "pad_token that ends, too": {CONFIG: {"pad_token": "<new>", "eos_token": "<new>"}},
}
"""There are more ids than tokenizer.json knows."""


def written(base: Path, folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    """The tokenizer of ``base`` in ``folder``, with settings of its files changed; None removes one."""
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix == ".jinja" or path.name.startswith("tokenizer"):
            shutil.copy(path, folder)
    for name, settings in files.items():
        there = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        kept = {key: value for key, value in {**there, **settings}.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("files", RENAMED.values(), ids=RENAMED)
def test_what_leaves_each_id_its_token_is_the_same_tokenizer(
    tiny_models: Path, tmp_path: Path, files: dict[str, Any]
) -> None:
    base = tiny_models / "student"
    other = written(base, tmp_path / "other", files)
    assert load_tokenizer(other).get_vocab() == load_tokenizer(base).get_vocab()
    assert (tokenizer_digest(other), vocabulary_size(other)) == (tokenizer_digest(base), vocabulary_size(base))


@pytest.mark.parametrize("files", ADDED.values(), ids=ADDED)
def test_what_gives_more_ids_is_another_tokenizer_though_its_tokenizer_json_is_the_same(
    tiny_models: Path, tmp_path: Path, files: dict[str, Any]
) -> None:
    base = tiny_models / "student"
    other = written(base, tmp_path / "other", files)
    vocabulary = load_tokenizer(other).get_vocab()
    assert vocabulary != load_tokenizer(base).get_vocab()
    assert vocabulary_size(other) == max(vocabulary.values()) + 1
    assert tokenizer_digest(other) != tokenizer_digest(base)


@pytest.mark.parametrize("files", ADDED.values(), ids=ADDED)
def test_a_tokenizer_that_is_saved_as_it_was_loaded_stays_the_same(
    tiny_models: Path, tmp_path: Path, files: dict[str, Any]
) -> None:
    """Then its tokenizer.json has what only its configuration had."""
    other = written(tiny_models / "student", tmp_path / "other", files)
    load_tokenizer(other).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_text() != (other / "tokenizer.json").read_text()
    assert tokenizer_digest(tmp_path / "saved") == tokenizer_digest(other)


def test_a_token_that_only_pads_makes_no_other_tokenizer(tiny_models: Path, tmp_path: Path) -> None:
    """Models are published with one that their weights have no row for, and no template renders it."""
    base = tiny_models / "student"
    for number, name in enumerate((CONFIG, "special_tokens_map.json")):
        other = written(
            base, tmp_path / f"{number}", {name: {"pad_token": "<pad>"}, "added_tokens.json": {"<pad>": 512}}
        )
        assert len(load_tokenizer(other)) == 513
        assert (tokenizer_digest(other), vocabulary_size(other)) == (tokenizer_digest(base), 512)


def test_rows_of_two_tokenizers_that_render_otherwise_are_other_rows(tiny_models: Path, tmp_path: Path) -> None:
    """So that logits of the ones are not taken for logits of the others, though the ids mean the same."""
    asked, keys = [{"role": "user", "content": "What colour is snow?"}], []
    for name in ("<|im_start|>", "<|endoftext|>"):
        folder = written(tiny_models / "student", tmp_path / name.strip("<|>"), {CONFIG: {"bos_token": name}})
        rendered = Template(folder, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}").prompt(asked)
        keys.append(row_key(tokenizer_digest(folder), asked, rendered.ids, np.ones(len(rendered.ids), np.bool_)))
    assert keys[0] != keys[1]


def planned(models: Path, data: Path) -> Plan:
    document = job(FULL, models, data, f"file://{data.parent}/store/")
    return build_plan(parse_job(document), shipped_runtime(), open_store(f"file://{data.parent}/store/"))[0]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate(("teacher", "student")):
        fake_model(tmp_path / "models" / name, number)
    (tmp_path / "data.jsonl").write_text('{"instruction": "a"}\n')
    return tmp_path / "models"


@pytest.mark.parametrize(
    "changed", [*RENAMED.values(), *ADDED.values()], ids=[*RENAMED, *(f"{name}, new" for name in ADDED)]
)
def test_whatever_of_its_files_differs_no_stage_that_rendered_with_the_one_is_taken_for_the_other(
    models: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    before = planned(models, tmp_path / "data.jsonl")
    for name, settings in changed.items():
        (models / "student" / name).write_text(json.dumps(settings))
    after = planned(models, tmp_path / "data.jsonl")
    assert [stage.name for stage in before.stages if stage.key == after.stage(stage.name).key] == []
    asked = [(stage.name, stage.asking_key) for stage in before.stages if stage.asking_key]
    same = [name for name, key in asked if key == after.stage(name).asking_key]
    assert same == ["logits"]  # the teacher scores ids, which are in the rows' keys


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_teacher_shares_the_students_tokenizer_if_ids_mean_the_same(models: Path, tmp_path: Path, whose: str) -> None:
    config = models / whose / CONFIG
    for settings in ({"bos_token": "a", "eos_token": "b"}, {"pad_token": "<pad>"}, {"chat_template": "x"}):
        config.write_text(json.dumps(settings))
        probe_tokenizers(planned(models, tmp_path / "data.jsonl"))
    for settings in ({"bos_token": "<s>"}, {"additional_special_tokens": ["<tool>"]}):
        config.write_text(json.dumps(settings))
        with pytest.raises(SettingsError, match="has another tokenizer"):
            probe_tokenizers(planned(models, tmp_path / "data.jsonl"))
