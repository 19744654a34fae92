"""Digests of tokenizers and chat templates, read from their files without torch or transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import rfc8785

from kd_runtime.api.failures import SettingsError
from kd_runtime.planning.sources import Source

PARTS = ("normalizer", "pre_tokenizer", "added_tokens")


def tokenizer_digest(folder: Path) -> str:
    """sha256 hex over what decides a tokenizer's ids: vocabulary, merges, added tokens, normaliser, pre-tokeniser.

    Padding and truncation settings, which a file's own digest would change with, are left out. A folder without
    ``tokenizer.json`` (SentencePiece alone) is digested by its ``tokenizer.model``.

    Raises:
        SettingsError: the folder holds neither file, or tokenizer.json is not readable.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        sentencepiece = folder / "tokenizer.model"
        if sentencepiece.exists():
            return hashlib.sha256(sentencepiece.read_bytes()).hexdigest()
        raise SettingsError(
            f"{folder}: holds neither tokenizer.json nor tokenizer.model; save the model's tokenizer beside its weights"
        )
    return hashlib.sha256(rfc8785.dumps(_canonical(_load(path)))).hexdigest()


def tokenizer_digest_of(source: Source) -> str:
    """Like `tokenizer_digest`, of a folder that may lie in a store or on a hub.

    Raises:
        SettingsError: the source holds no tokenizer.
    """
    names = {f.path for f in source.files()}
    if "tokenizer.json" in names:
        return hashlib.sha256(
            rfc8785.dumps(_canonical(_parse(source.read("tokenizer.json"), f"{source.uri}/tokenizer.json")))
        ).hexdigest()
    if "tokenizer.model" in names:
        return hashlib.sha256(source.read("tokenizer.model")).hexdigest()
    raise SettingsError(
        f"{source.uri}: holds neither tokenizer.json nor tokenizer.model; save the model's tokenizer beside its weights"
    )


def vocabulary_size(folder: Path) -> int:
    """The tokenizer's true vocabulary: its largest id + 1 (a model's output layer may be padded beyond it).

    Raises:
        SettingsError: tokenizer.json is missing or unreadable.
    """
    data = _load(folder / "tokenizer.json")
    ids = [token["id"] for token in data.get("added_tokens", [])]
    ids += _vocabulary(data).values()
    return int(max(ids)) + 1


def chat_template(folder: Path) -> str | None:
    """The chat template that transformers would use: chat_template.jinja, else the one in tokenizer_config.json."""
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.exists():
        return None
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def template_digest(folder: Path) -> str:
    """sha256 hex of the chat template of ``folder`` (of the empty string where it has none)."""
    return hashlib.sha256((chat_template(folder) or "").encode()).hexdigest()


def _load(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_bytes(), str(path))
    except OSError as error:
        raise SettingsError(f"{path}: is not readable ({error}); save the tokenizer again") from error


def _parse(body: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise SettingsError(f"{where}: is not a readable tokenizer ({error}); save the tokenizer again") from error
    if not isinstance(data, dict) or "model" not in data:
        raise SettingsError(f"{where}: has no `model`; save the tokenizer again with a current `tokenizers`")
    return data


def _vocabulary(data: dict[str, Any]) -> dict[str, int]:
    vocabulary = data["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: a list of [piece, score], an id is a place in it
        return {piece: number for number, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _canonical(data: dict[str, Any]) -> dict[str, Any]:
    model = data["model"]
    vocabulary = model.get("vocab", {})
    merges = [pair.split(" ", 1) if isinstance(pair, str) else list(pair) for pair in model.get("merges", [])]
    return {
        "type": model.get("type"),
        "vocabulary": vocabulary if isinstance(vocabulary, dict) else [[piece, score] for piece, score in vocabulary],
        "merges": merges,
        "byte_fallback": bool(model.get("byte_fallback")),
        **{part: data.get(part) for part in PARTS},
    }
