"""Keys are digests of canonical JSON: equal numbers give equal keys, and what JSON cannot hold is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_runtime.api.failures import SettingsError
from kd_runtime.planning.keys import SEMANTICS, asking_key, digest, stage_key
from kd_runtime.planning.plan import StageType

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**52), 2**52) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_1_and_1_point_0_are_one_number() -> None:
    assert digest({"a": 1.0, "b": [2.0]}) == digest({"a": 1, "b": [2]})
    assert digest({"a": 1.5}) != digest({"a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1])
def test_what_json_cannot_hold_exactly_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="finite numbers"):
        digest({"a": value})


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=5))
def test_the_order_of_a_map_does_not_matter(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_every_part_of_a_stage_enters_its_key() -> None:
    base = {"keyed": {"x": 1}, "inputs": {"rows": "aa"}, "externals": {"model": "bb"}}
    keys = {
        stage_key(StageType.Train, **base),
        stage_key(StageType.Capture, **base),
        stage_key(StageType.Train, **{**base, "keyed": {"x": 2}}),
        stage_key(StageType.Train, **{**base, "inputs": {"rows": "ab"}}),
        stage_key(StageType.Train, **{**base, "inputs": {"logits": "aa"}}),
        stage_key(StageType.Train, **{**base, "externals": {"model": "bc"}}),
        stage_key(StageType.Train, **base, uncached="job-1"),
        stage_key(StageType.Train, **base, uncached="job-2"),
    }
    assert len(keys) == 8


def test_raising_the_semantics_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_key(StageType.Ingest, {}, {}, {})
    monkeypatch.setitem(SEMANTICS, StageType.Ingest, SEMANTICS[StageType.Ingest] + 1)
    assert stage_key(StageType.Ingest, {}, {}, {}) != before


def test_asking_keys_tell_teachers_and_questions_apart() -> None:
    keys = {
        asking_key(StageType.Generate, {"model": "a"}, {"seed": 1}),
        asking_key(StageType.Generate, {"model": "b"}, {"seed": 1}),
        asking_key(StageType.Generate, {"model": "a"}, {"seed": 2}),
        asking_key(StageType.Generate, {"model": "a"}, {"seed": 1}, uncached="run"),
    }
    assert len(keys) == 4
