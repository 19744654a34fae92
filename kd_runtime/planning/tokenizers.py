"""Digests of tokenizers and chat templates, read from their files without torch or transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rfc8785

from kd_runtime.api.failures import SettingsError
from kd_runtime.planning.configured_tokens import FILES, configured_tokens
from kd_runtime.planning.sources import Source

PARTS = ("normalizer", "pre_tokenizer")
Read = Callable[[str], bytes | None]
"""The bytes of one of a tokenizer's files; None where there is none of that name."""


def tokenizer_digest(folder: Path) -> str:
    """sha256 hex over what decides a tokenizer's ids: vocabulary, merges, added tokens, normaliser, pre-tokeniser.

    Added tokens are those that it has once it is loaded, though only its configuration names them. Padding and truncation
    settings, which a file's own digest would change with, are left out; so is what is rendered with ids that are there
    (which of them is `bos_token`, the chat template): the keys of what is made hold all files, and a row's key its ids.
    A folder without ``tokenizer.json`` (SentencePiece alone) is digested by its ``tokenizer.model``.

    Raises:
        SettingsError: the folder holds neither file, or one of its files is not readable.
    """
    return _digest(_reader(folder), str(folder))


def tokenizer_digest_of(source: Source) -> str:
    """Like `tokenizer_digest`, of a folder that may lie in a store or on a hub.

    Raises:
        SettingsError: the source holds no tokenizer.
    """
    names = {f.path for f in source.files()}
    return _digest(lambda name: source.read(name) if name in names else None, source.uri)


def vocabulary_size(folder: Path) -> int:
    """The tokenizer's true vocabulary: its largest id + 1 (a model's output layer may be padded beyond it).

    Raises:
        SettingsError: tokenizer.json is missing or unreadable.
    """
    read = _reader(folder)
    body = read("tokenizer.json")
    if body is None:
        raise SettingsError(f"{folder}: holds no tokenizer.json; save the tokenizer again with a current `tokenizers`")
    data = _loaded(body, read, str(folder))
    ids = [token["id"] for token in data["added_tokens"] or ()]
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


def _digest(read: Read, where: str) -> str:
    body = read("tokenizer.json")
    if body is not None:
        return hashlib.sha256(rfc8785.dumps(_canonical(_loaded(body, read, where)))).hexdigest()
    sentencepiece = read("tokenizer.model")
    if sentencepiece is not None:
        return hashlib.sha256(sentencepiece).hexdigest()
    raise SettingsError(
        f"{where}: holds neither tokenizer.json nor tokenizer.model; save the model's tokenizer beside its weights"
    )


def _reader(folder: Path) -> Read:
    def read(name: str) -> bytes | None:
        path = folder / name
        try:
            return path.read_bytes() if path.exists() else None
        except OSError as error:
            raise SettingsError(f"{path}: is not readable ({error}); save the tokenizer again") from error

    return read


def _loaded(body: bytes, read: Read, where: str) -> dict[str, Any]:
    """tokenizer.json (``body``) with the tokens that the files beside it add."""
    data = _parse(body, f"{where}/tokenizer.json")
    if "model" not in data:
        raise SettingsError(
            f"{where}/tokenizer.json: has no `model`; save the tokenizer again with a current `tokenizers`"
        )
    beside = {name: _parse(found, f"{where}/{name}") for name in FILES if (found := read(name)) is not None}
    added = data.get("added_tokens")
    further = configured_tokens(_vocabulary(data), added or [], beside)
    return {**data, "added_tokens": [*(added or ()), *further] if further else added}


def _parse(body: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise SettingsError(f"{where}: is not a readable tokenizer ({error}); save the tokenizer again") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{where}: is not a JSON object; save the tokenizer again")
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
        "added_tokens": data["added_tokens"],
        **{part: data.get(part) for part in PARTS},
    }
