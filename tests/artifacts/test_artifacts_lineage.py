"""A store can be listed, and each artifact's ancestors are told also when they are deleted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.lineage import Presence, find_key, lineage, list_artifacts
from kd_runtime.artifacts.manifest import Manifest, retire
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id


def made(store: Store, key: str, body: bytes, hour: int, **inputs: Manifest) -> Manifest:
    artifact = ArtifactWriter(
        store,
        key=key * 32,
        stage_type="train",
        writer=new_writer_id(),
        inputs={role: (m.key, m.content_digest) for role, m in inputs.items()},
        clock=lambda: datetime(2025, 1, 1, hour, tzinfo=UTC),
    )
    artifact.add_bytes(body, "model/weights")
    return artifact.commit()


@pytest.fixture
def student(store: Store) -> Manifest:
    rows = made(store, "bb", b"rows", 1)
    logits = made(store, "aa", b"logits", 2, rows=rows)
    return made(store, "ac", b"student", 3, rows=rows, logits=logits)


def told(store: Store, key: str) -> list[tuple[int, str, str, Presence]]:
    return [(depth, role, node.key[:2], node.presence) for depth, role, node in lineage(store, key).walk()]


def test_artifacts_are_listed_the_oldest_first(store: Store, student: Manifest) -> None:
    store.put("artifacts/dd/half-made/model/manifest.json", b"an object of that name, not a manifest")
    assert [m.key[:2] for m in list_artifacts(store)] == ["bb", "aa", "ac"]


def test_a_key_is_found_by_its_beginning(store: Store, student: Manifest) -> None:
    assert find_key(store, "ac") == student.key == find_key(store, student.key)
    with pytest.raises(SettingsError, match="a: begins 2 keys"):
        find_key(store, "a")
    with pytest.raises(SettingsError, match="zz: no artifact in"):
        find_key(store, "zz")


def test_lineage_goes_down_to_what_was_made_from_nothing(store: Store, student: Manifest) -> None:
    assert told(store, student.key) == [
        (0, "", "ac", Presence.Present),
        (1, "logits", "aa", Presence.Present),
        (2, "rows", "bb", Presence.Present),
        (1, "rows", "bb", Presence.Present),
    ]


def test_what_was_retired_and_made_anew_is_told_from_history(store: Store, student: Manifest) -> None:
    retire(store, "aa" * 32)
    retire(store, "bb" * 32)
    made(store, "bb", b"other rows", 4)
    assert told(store, student.key) == [
        (0, "", "ac", Presence.Present),
        (1, "logits", "aa", Presence.Retired),
        (2, "rows", "bb", Presence.Retired),
        (1, "rows", "bb", Presence.Retired),
    ]
    rows = lineage(store, student.key).inputs[1][1].manifest
    assert rows is not None and rows.created.startswith("2025-01-01T01")


def test_what_left_no_trace_is_said_to_be_gone(store: Store, student: Manifest) -> None:
    store.delete(f"artifacts/{'aa' * 32}/manifest.json")
    assert told(store, student.key)[1] == (1, "logits", "aa", Presence.Gone)
    assert lineage(store, "ac").inputs[0][1].stage_type == "unknown"


def test_an_unknown_key_is_an_error(store: Store) -> None:
    with pytest.raises(SettingsError, match="holds no such artifact"):
        lineage(store, "ff" * 32)
