"""Tokens that a tokenizer's configuration adds to its tokenizer.json when transformers loads it: ids that the file lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FILES = (CONFIG, SPECIAL, ADDED)
PADDING = "pad_token"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", PADDING, "cls_token", "mask_token")
"""In the order in which transformers adds them."""
_FLAGS = ("single_word", "lstrip", "rstrip")


def configured_tokens(
    vocabulary: Mapping[str, int], added: list[dict[str, Any]], files: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """What ``files`` (FILES, by name) add to a tokenizer with this vocabulary and these added tokens, as tokenizer.json has it.

    Tokens that it has already are left out, whatever is said of them: a name (`bos_token`), or flags, change no id. So is
    one that only pads: no template renders it, and models are published with one that their weights have no row for.
    """
    settings = _settings(files)
    known = {*vocabulary, *(token["content"] for token in added)}
    number = max([len(vocabulary), *(token["id"] + 1 for token in added)])
    found: dict[str, dict[str, Any]] = {}
    for token in _candidates(settings, files):
        if token["content"] not in known and token["content"] not in found:
            found[token["content"]] = {"id": number + len(found), **token}
    pads = _contents(settings.get(PADDING)) - set().union(*(_contents(one) for one in _rendered(settings)))
    return [token for content, token in found.items() if content not in pads]


def _settings(files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The configuration; special_tokens_map.json counts where it does not list its added tokens by id."""
    config = files.get(CONFIG, {})
    return config if "added_tokens_decoder" in config else {**config, **files.get(SPECIAL, {})}


def _candidates(settings: Mapping[str, Any], files: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every token that is mentioned, in the order in which new ones get their ids."""
    special = set().union(*(_contents(one) for one in (settings.get(PADDING), *_rendered(settings))))
    if "added_tokens_decoder" in settings:
        for _, token in sorted(settings["added_tokens_decoder"].items(), key=lambda entry: int(entry[0])):
            yield _as_added(token, special=bool(token.get("special")) or token["content"] in special)
    else:
        for content, _ in sorted(files.get(ADDED, {}).items(), key=lambda entry: int(entry[1])):
            yield _as_added(content, special=content in special)
    for name in NAMED:
        if settings.get(name):
            yield _as_added(settings[name], special=True)
    for token in _further(settings):
        yield _as_added(token, special=True)


def _rendered(settings: Mapping[str, Any]) -> Iterator[Any]:
    """The special tokens that a template may write."""
    yield from (settings[name] for name in NAMED if name != PADDING and settings.get(name))
    yield from _further(settings)


def _further(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens of names of their own, then those without a name."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    for name, token in settings.items():
        if name.endswith("_token") and name not in NAMED and isinstance(token, str):
            yield token
    yield from extra.values() if isinstance(extra, dict) else extra


def _contents(token: Any) -> set[str]:
    return {token["content"] if isinstance(token, dict) else str(token)} if token else set()


def _as_added(token: Any, *, special: bool) -> dict[str, Any]:
    """A token, given as text or as a map, as tokenizer.json lists it, without its id."""
    given = token if isinstance(token, dict) else {"content": str(token)}
    flags = {flag: bool(given.get(flag, False)) for flag in _FLAGS}
    return {
        "content": given["content"],
        **flags,
        "normalized": bool(given.get("normalized", not special)),
        "special": special,
    }
