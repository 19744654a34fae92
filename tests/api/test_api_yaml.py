"""YAML that Kubernetes' tools and people read differently is an error; what both read alike is read so."""

from __future__ import annotations

from typing import Any

import pytest

from kd_runtime.api.errors import ManifestErrors
from kd_runtime.api.yaml_documents import documents_of


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("2e-5", 2e-5),
        ("2.0e-5", 2e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x10", 16),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("495f393", "495f393"),
        ('"on"', "on"),
        ("'010'", "010"),
        ("on time", "on time"),
    ],
)
def test_scalars_mean_what_kubernetes_takes_them_for(scalar: str, value: Any) -> None:
    (document,) = documents_of(f"a: {scalar}", "f")
    assert document["a"] == value
    assert type(document["a"]) is type(value)


@pytest.mark.parametrize("word", ["y", "N", "yes", "No", "on", "Off", "OFF"])
@pytest.mark.parametrize("text", ["a: {}", "{}: a", "a: [{}]", "a: {{b: {}}}"])
def test_a_plain_word_that_is_a_boolean_elsewhere_is_refused(text: str, word: str) -> None:
    with pytest.raises(ManifestErrors, match=f"line 1: plain {word} is a boolean to Kubernetes; .*quote it"):
        documents_of(text.format(word), "f")


def test_a_plain_octal_number_is_refused() -> None:
    with pytest.raises(ManifestErrors, match="plain 010 is an octal number"):
        documents_of("a: 010", "f")


def test_a_key_twice_is_refused_with_its_line() -> None:
    with pytest.raises(ManifestErrors, match=r"^f: line 3: the key a appears twice in one map; remove one$"):
        documents_of("a: 1\nb: 2\na: 3\n", "f")


def test_a_key_that_is_no_string_is_refused() -> None:
    with pytest.raises(ManifestErrors, match="the key 1 is not a string; quote it"):
        documents_of("1: a", "f")


def test_anchors_and_merge_keys_are_read() -> None:
    (document,) = documents_of("a: &x {b: 1}\nc: {<<: *x, d: 2}\ne: *x\n", "f")
    assert document == {"a": {"b": 1}, "c": {"b": 1, "d": 2}, "e": {"b": 1}}


def test_several_documents_are_read_and_empty_ones_left_out() -> None:
    assert documents_of("a: 1\n---\n---\nb: 2\n", "f") == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("text", ["- a", "just text", "a: [1", "a:\n\t- b", "\x00"])
def test_what_is_no_map_or_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(ManifestErrors, match=r"^f: "):
        documents_of(text, "f")


def multiplied(levels: int, collection: str) -> str:
    """Each level holds the one before eight times."""
    head = {"[{}]": "k0: &k0 [x]\n", "{{<<: [{}]}}": "k0: &k0 {x: 1}\n"}[collection]
    return head + "".join(
        f"k{level}: &k{level} {collection.format(', '.join([f'*k{level - 1}'] * 8))}\n" for level in range(1, levels)
    )


@pytest.mark.parametrize("collection", ["[{}]", "{{<<: [{}]}}"])
def test_aliases_that_multiply_are_refused_with_their_line_however_many_levels_they_have(collection: str) -> None:
    for levels in (8, 60):
        with pytest.raises(
            ManifestErrors, match=r"^f: line [67]: holds more than 100000 values .*; use fewer aliases$"
        ):
            documents_of(multiplied(levels, collection), "f")


def test_aliases_are_fine_in_moderation() -> None:
    (document,) = documents_of(multiplied(3, "[{}]"), "f")
    assert document["k2"] == [[["x"]] * 8] * 8


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {b: [{c: *a}]}"])
def test_an_alias_within_what_it_names_is_refused(text: str) -> None:
    with pytest.raises(ManifestErrors, match="line 1: an alias stands within what it names; write the value out"):
        documents_of(text, "f")


def test_too_many_levels_are_refused() -> None:
    with pytest.raises(ManifestErrors, match="is nested too deeply; write fewer levels"):
        documents_of("a: " + "[" * 3_000 + "]" * 3_000, "f")
