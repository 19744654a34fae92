"""A tokenizer's digest changes with its ids, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.planning.sources import open_model
from kd_runtime.planning.tokenizers import chat_template, tokenizer_digest, tokenizer_digest_of, vocabulary_size

TOKENIZER = {
    "padding": None,
    "truncation": None,
    "added_tokens": [{"id": 3, "content": "<eos>", "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({**TOKENIZER, **changes}))
    return folder


def test_padding_and_truncation_do_not_matter(tmp_path: Path) -> None:
    plain = tokenizer_digest(write(tmp_path / "a"))
    padded = tokenizer_digest(write(tmp_path / "b", padding={"strategy": "BatchLongest"}, truncation={"max_length": 8}))
    assert plain == padded


def test_both_spellings_of_merges_are_one_tokenizer(tmp_path: Path) -> None:
    model = {**TOKENIZER["model"], "merges": ["a b"]}  # type: ignore[dict-item]
    assert tokenizer_digest(write(tmp_path / "a")) == tokenizer_digest(write(tmp_path / "b", model=model))


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"normalizer": {"type": "NFC"}},
        {"added_tokens": []},
        {"model": {"type": "BPE", "vocab": {"a": 1, "b": 0, "ab": 2}, "merges": [["a", "b"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []}},
    ],
)
def test_what_decides_ids_matters(tmp_path: Path, change: dict[str, object]) -> None:
    assert tokenizer_digest(write(tmp_path / "a")) != tokenizer_digest(write(tmp_path / "b", **change))


def test_a_source_and_a_folder_have_one_digest(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    assert tokenizer_digest_of(open_model(f"file://{folder}")) == tokenizer_digest(folder)


def test_the_vocabulary_is_the_largest_id_and_one(tmp_path: Path) -> None:
    assert vocabulary_size(write(tmp_path / "a")) == 4


def test_a_template_file_goes_before_the_one_in_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert chat_template(tmp_path) == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert chat_template(tmp_path) == "new"


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="save the model's tokenizer beside its weights"):
        tokenizer_digest(tmp_path)
