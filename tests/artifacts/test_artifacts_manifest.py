"""An artifact exists once its manifest does; who commits first wins, and everybody reads the same."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import (
    Found,
    Manifest,
    ObjectRef,
    Stale,
    delete_artifact,
    is_found,
    manifest_name,
    read_manifest,
    retire,
)
from kd_runtime.artifacts.store import Missing, Store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id

KEY = "ab" * 32
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def writer(store: Store, *, key: str = KEY, at: datetime = NOON, **more: Any) -> ArtifactWriter:
    return ArtifactWriter(store, key=key, stage_type="ingest", writer=new_writer_id(), clock=lambda: at, **more)


def made(store: Store, body: bytes = b"rows", **more: Any) -> Manifest:
    artifact = writer(store, **more)
    artifact.add_bytes(body, "rows/00000.parquet")
    return artifact.commit(counts={"in": 3})


def test_nothing_exists_before_the_commit_and_everything_after(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/config.json").write_bytes(b"{}")
    (tmp_path / "tree/sub/weights").write_bytes(b"w")
    artifact = writer(store, settings={"lossOn": "All", "rate": 1.0}, recorded={"gpu": None})
    artifact.add_tree(tmp_path / "tree", "model/")
    assert read_manifest(store, KEY) is None
    manifest = artifact.commit(counts={"in": 1}, metrics={"loss": 0.25}, extra={"spec": [1, None]}, seconds=1.23456)
    assert read_manifest(store, KEY) == manifest
    assert [ref.path for ref in manifest.select("model/")] == ["model/config.json", "model/sub/weights"]
    ref = manifest.object("model/sub/weights")
    assert ref.name == f"artifacts/{KEY}/{artifact.writer}/model/sub/weights"
    assert (ref.size, ref.sha256) == (1, hashlib.sha256(b"w").hexdigest()) and store.get(ref.name) == b"w"
    assert manifest.size == 3 and manifest.seconds == 1.235 and manifest.created == "2025-01-01T12:00:00+00:00"


def test_a_manifest_is_canonical_json_and_its_sha256_that_of_its_bytes(store: Store) -> None:
    manifest = made(store, settings={"b": 1.0, "a": [0.1, 1e21]})
    body = store.get(manifest_name(KEY))
    assert body == rfc8785.dumps(json.loads(body)) == manifest.encoded()
    assert manifest.sha256 == hashlib.sha256(body).hexdigest()


def test_the_content_digest_knows_neither_writer_nor_times_nor_facts(store: Store) -> None:
    first = made(store)
    second = made(store, key="cd" * 32, at=NOON + timedelta(days=1), recorded={"gpu": "H100"}, settings={"x": 1})
    assert first.content_digest == second.content_digest and first.sha256 != second.sha256
    assert made(store, b"other", key="ef" * 32).content_digest != first.content_digest


def test_counts_and_paths_are_content_and_what_is_aside_is_not(store: Store) -> None:
    def digest(key: str, path: str, count: int, timing: bytes) -> str:
        artifact = writer(store, key=key * 64)
        artifact.add_bytes(b"x", path)
        artifact.add_bytes(timing, "log/timing.json", aside=True)
        return artifact.commit(counts={"in": count}).content_digest

    plain = digest("1", "a", 1, b"1 s")
    assert digest("2", "a", 1, b"2 s") == plain
    assert digest("3", "b", 1, b"1 s") != plain and digest("4", "a", 2, b"1 s") != plain


def test_the_loser_adopts_the_winners_manifest_and_removes_its_own_objects(store: Store) -> None:
    slow = writer(store)
    slow.add_bytes(b"slow", "rows/00000.parquet")
    winner = made(store)
    adopted = slow.commit(counts={"in": 4})
    assert adopted == winner
    assert not list(store.list(f"artifacts/{KEY}/{slow.writer}/"))
    assert store.get(winner.objects[0].name) == b"rows"


def test_of_many_racing_writers_all_return_one_manifest(store: Store) -> None:
    def race(number: int) -> Manifest:
        artifact = writer(store)
        artifact.add_bytes(b"%d" % number, "rows/00000.parquet")
        return artifact.commit(counts={"in": number})

    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(race, range(8)))
    assert len({m.sha256 for m in manifests}) == 1
    assert sorted(i.name for i in store.list(f"artifacts/{KEY}/")) == sorted(
        [manifest_name(KEY), manifests[0].objects[0].name]
    )


def test_an_object_elsewhere_in_the_store_is_referred_to(store: Store) -> None:
    digest = hashlib.sha256(b"shard").hexdigest()
    store.put("answers/k/w-1.safetensors", b"shard")
    artifact = writer(store)
    artifact.refer(ObjectRef(name="answers/k/w-1.safetensors", size=5, sha256=digest, path="logits/00000.safetensors"))
    manifest = artifact.commit()
    assert manifest.object("logits/00000.safetensors").name == "answers/k/w-1.safetensors"
    delete_artifact(store, KEY)
    assert store.get("answers/k/w-1.safetensors") == b"shard"


def test_two_objects_at_one_path_are_a_bug(store: Store) -> None:
    artifact = writer(store)
    artifact.add_bytes(b"1", "a")
    with pytest.raises(ValueError, match="two objects at a"):
        artifact.add_bytes(b"2", "a")


@pytest.mark.parametrize("metric", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused(store: Store, metric: float) -> None:
    artifact = writer(store)
    with pytest.raises(ValueError, match="manifest of ingest abababababab"):
        artifact.commit(metrics={"loss": metric})
    assert read_manifest(store, KEY) is None


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"key": 1}'])
def test_a_garbled_manifest_is_named(store: Store, body: bytes) -> None:
    store.put(manifest_name(KEY), body)
    with pytest.raises(StorageError, match=f"{store.uri}artifacts/{KEY}/manifest.json: is not a manifest"):
        read_manifest(store, KEY)


def test_a_manifest_whose_objects_were_altered_is_refused(store: Store) -> None:
    manifest = made(store)
    store.put(manifest_name(KEY), manifest.encoded().replace(b'"in":3', b'"in":4'))
    with pytest.raises(StorageError, match="content digest does not fit"):
        read_manifest(store, KEY)


def test_a_manifest_copied_to_another_key_is_refused(store: Store) -> None:
    manifest = made(store)
    store.put(manifest_name("cd" * 32), manifest.encoded())
    with pytest.raises(StorageError, match="is the manifest of abababababab"):
        read_manifest(store, "cd" * 32)


def test_what_is_found_depends_on_the_content_of_its_inputs_now(store: Store) -> None:
    rows = made(store)
    logits = made(store, b"logits", key="cd" * 32, inputs={"rows": (rows.key, rows.content_digest)})
    current = {rows.key: rows}.get
    assert is_found(None, current) is None
    assert is_found(logits, current) == Found(logits)
    assert is_found(logits, lambda key: None) == Found(logits)  # absent: only a stage that runs would need it
    remade = rows.model_copy(update={"content_digest": "00" * 32})
    assert is_found(logits, {rows.key: remade}.get) == Stale(logits, "rows", "00" * 32)


def test_a_retired_manifest_lies_in_history_and_its_objects_stay(store: Store) -> None:
    manifest = made(store)
    assert retire(store, KEY) == manifest.sha256
    assert read_manifest(store, KEY) is None
    assert store.get(f"history/{manifest.sha256}.json") == manifest.encoded()
    assert store.exists(manifest.objects[0].name)
    assert retire(store, KEY) is None
    assert made(store).key == KEY


class Watched:
    """A store that notes the order of writes and deletions."""

    def __init__(self, store: Store):
        self._store, self.log = store, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, name: str, *args: Any, **more: Any) -> Any:
        self.log.append(f"put {name}")
        return self._store.put(name, *args, **more)

    def delete(self, name: str) -> None:
        self.log.append(f"delete {name}")
        self._store.delete(name)


def test_deleting_copies_the_manifest_first_then_removes_it_then_its_objects(folder_store: Store) -> None:
    manifest = made(folder_store)
    watched = Watched(folder_store)
    freed = delete_artifact(watched, KEY)  # type: ignore[arg-type]
    assert freed == 4
    assert watched.log == [
        f"put history/{manifest.sha256}.json",
        f"delete {manifest_name(KEY)}",
        f"delete {manifest.objects[0].name}",
    ]
    assert not list(folder_store.list("artifacts/"))


class Unconditional:
    """A store whose server ignores If-None-Match: the last of two writers wins."""

    def __init__(self, store: Store, rival: bytes | None = None):
        self._store, self._rival = store, rival

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, name: str, body: bytes | Path, *, if_absent: bool = False, sha256: str | None = None) -> Any:
        info = self._store.put(name, body, sha256=sha256)
        if if_absent and self._rival is not None:
            self._store.put(name, self._rival)
        return info


def test_what_is_read_back_counts_also_where_the_server_ignored_the_condition(
    folder_store: Store, tmp_path: Path
) -> None:
    rival = made(folder_store).encoded()
    retire(folder_store, KEY)
    ours = writer(Unconditional(folder_store, rival))  # type: ignore[arg-type]
    assert ours.commit(counts={"in": 9}).encoded() == rival


class Vanishing:
    """A store that loses every manifest at once."""

    def __init__(self, store: Store):
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, name: str) -> bytes:
        raise Missing(name)


def test_a_commit_that_never_shows_is_a_storage_error(folder_store: Store) -> None:
    uncertain = writer(Vanishing(folder_store))  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="vanishes each time it is written"):
        uncertain.commit()
