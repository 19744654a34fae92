"""An artifact is copied with all that it was made from; a copy is found as the original is, and a broken-off one goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from artifacts.test_artifacts_collect import artifact, key, unit

from kd_runtime.api.failures import SettingsError, StorageError
from kd_runtime.artifacts.copying import copy_artifact
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.manifest import Manifest, manifest_name, read_manifest, retire
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.units import Pair, UnitStore


@pytest.fixture
def other(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "other")


def family(store: Store) -> dict[str, Manifest]:
    """Rows, logits whose shard lies under answers/, a student of both, and something that has nothing to do with them."""
    rows = artifact(store, "rows")
    logits = artifact(store, "logits", "capture", refs=(unit(store, "row"),), rows=rows)
    student = artifact(store, "student", "train", rows=rows, logits=logits)
    artifact(store, "stranger")
    return {"rows": rows, "logits": logits, "student": student}


def test_manifests_are_verbatim_and_every_object_is_there(store: Store, other: FileStore) -> None:
    made = family(store)
    copied = copy_artifact(store, made["student"].key, other)
    assert [one.stage_type for one in copied] == ["ingest", "capture", "train"]
    assert sum(one.objects for one in copied) == 4
    for manifest in made.values():
        assert other.get(manifest_name(manifest.key)) == store.get(manifest_name(manifest.key))
        for ref in manifest.objects:
            assert other.get(ref.name) == store.get(ref.name)
    assert read_manifest(other, key("stranger")) is None
    assert set(UnitStore(other, "a5" * 32, "w").covered()) == {Pair("row", 0)}


def test_into_a_bucket_too(store: Store, folder_store: FileStore) -> None:
    made = family(folder_store)
    copy_artifact(folder_store, made["student"].key, store)
    again = copy_artifact(folder_store, made["student"].key, store)
    assert [one.objects for one in again] == [0, 0, 0]
    assert read_manifest(store, made["student"].key) == made["student"]


def test_a_copy_that_broke_off_goes_on(
    folder_store: FileStore, other: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family(folder_store)
    download = folder_store.download
    with monkeypatch.context() as patch:

        def broken(name: str, *arguments: object, **more: object) -> None:
            if name.startswith("answers/"):
                raise StorageError("the line was cut")
            download(name, *arguments, **more)  # type: ignore[arg-type]

        patch.setattr(folder_store, "download", broken)
        with pytest.raises(StorageError, match="the line was cut"):
            copy_artifact(folder_store, made["student"].key, other)
    assert read_manifest(other, made["logits"].key) is None  # not before all its objects are there
    moved: list[str] = []
    monkeypatch.setattr(folder_store, "download", lambda name, *a, **k: (moved.append(name), download(name, *a, **k)))
    copy_artifact(folder_store, made["student"].key, other)
    assert made["rows"].objects[0].name not in moved and len(moved) == 2
    assert read_manifest(other, made["student"].key) == made["student"]


def test_what_is_missing_or_damaged_in_a_copy_is_brought_again(folder_store: FileStore, other: FileStore) -> None:
    made = family(folder_store)
    copy_artifact(folder_store, made["student"].key, other)
    gone, damaged = made["rows"].objects[0].name, made["student"].objects[0].name
    other.delete(gone)
    other.put(damaged, b"?" * len(other.get(damaged)))
    copied = copy_artifact(folder_store, made["student"].key, other)
    assert [one.objects for one in copied] == [1, 0, 1]
    assert all(other.get(name) == folder_store.get(name) for name in (gone, damaged))


def test_a_damaged_object_is_not_copied(folder_store: FileStore, other: FileStore) -> None:
    made = family(folder_store)
    name = made["rows"].objects[0].name
    folder_store.put(name, b"?" * made["rows"].objects[0].size)
    with pytest.raises(StorageError, match=f"{name}: has other bytes than its manifest says"):
        copy_artifact(folder_store, made["student"].key, other)
    assert not list(other.list("artifacts/"))


def test_an_input_that_is_gone_is_left_out(folder_store: FileStore, other: FileStore) -> None:
    made = family(folder_store)
    retire(folder_store, made["logits"].key)
    assert [one.stage_type for one in copy_artifact(folder_store, made["student"].key, other)] == ["ingest", "train"]


def test_a_store_that_holds_another_artifact_of_the_key_is_left_alone(
    folder_store: FileStore, other: FileStore
) -> None:
    made = family(folder_store)
    artifact(other, "rows", refs=(unit(other, "more"),))
    before = [info.name for info in other.list("")]
    with pytest.raises(SettingsError, match="holds a ingest artifact of this key with other content"):
        copy_artifact(folder_store, made["student"].key, other)
    assert [info.name for info in other.list("")] == before


def test_equal_content_that_was_made_there_is_left_as_it_is(folder_store: FileStore, other: FileStore) -> None:
    made = family(folder_store)
    theirs = artifact(other, "rows")
    assert [one.objects for one in copy_artifact(folder_store, made["student"].key, other)] == [0, 2, 1]
    assert read_manifest(other, theirs.key) == theirs


def test_a_key_that_is_not_there_is_said(folder_store: FileStore, other: FileStore) -> None:
    with pytest.raises(SettingsError, match="holds no such artifact; `kd ls` shows all"):
        copy_artifact(folder_store, "ab" * 32, other)
