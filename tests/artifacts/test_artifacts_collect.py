"""Garbage collection deletes what nobody uses, in an order that a run beside it survives."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.collect import collect
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.lineage import Presence, lineage
from kd_runtime.artifacts.manifest import Manifest, ObjectRef, manifest_name, read_manifest
from kd_runtime.artifacts.rejects import Reject
from kd_runtime.artifacts.s3_store import S3Store
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.units import Pair, UnitStore
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id

DAY = 86_400.0
ASKING = "a5" * 32


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def artifact(
    store: Store, name: str, kind: str = "ingest", *, refs: tuple[ObjectRef, ...] = (), **inputs: Manifest
) -> Manifest:
    roles = {role: (m.key, m.content_digest) for role, m in inputs.items()}
    writer = ArtifactWriter(store, key=key(name), stage_type=kind, writer=new_writer_id(), inputs=roles)
    writer.add_bytes(name.encode() * 100, "rows/0")
    for ref in refs:
        writer.refer(ref)
    return writer.commit()


def plan(store: Store, digest: str, *names: str, asking: str | None = None) -> None:
    stages = [{"name": name, "key": key(name), "asking_key": asking} for name in names]
    store.put(f"plans/{digest}.json", json.dumps({"job": "j", "stages": stages}).encode())
    use(store, digest)


def use(store: Store, digest: str) -> None:
    store.put(f"plans/{digest}.used", b"now")


def unit(store: Store, row: str, asking: str = ASKING) -> ObjectRef:
    pair = Pair(row, 0)
    return UnitStore(store, asking, new_writer_id()).commit([pair], [pair], [], [(row.encode(), "jsonl")]).objects[0]


def names(store: Store) -> set[str]:
    return {info.name for info in store.list("") if not info.name.startswith(("history/", "plans/"))}


def ages(store: Store, days: float, prefix: str = "") -> None:
    """Make what is in a folder store below ``prefix`` so much older."""
    assert isinstance(store, FileStore)
    for info in list(store.list(prefix)):
        os.utime(store.path(info.name), (info.modified - days * DAY,) * 2)


def at(days: float) -> Callable[[], float]:
    return lambda: time.time() + days * DAY


def test_what_a_recent_plan_lists_stays_and_the_rest_goes(store: Store) -> None:
    artifact(store, "used")
    artifact(store, "unused")
    plan(store, "p", "used")
    assert {swept.name for swept in collect(store, clock=at(29))} == {key("unused")}
    assert read_manifest(store, key("used")) is not None
    assert not [n for n in names(store) if key("unused") in n]
    assert {swept.name for swept in collect(store, clock=at(31))} == {key("used")}
    assert not names(store)


def test_using_a_plan_again_keeps_it_for_another_30_days(folder_store: FileStore) -> None:
    artifact(folder_store, "used")
    plan(folder_store, "p", "used")
    ages(folder_store, 60)
    use(folder_store, "p")
    assert not collect(folder_store)


def test_nothing_younger_than_7_days_goes(store: Store) -> None:
    artifact(store, "unused")
    unit(store, "row")
    store.put(f"artifacts/{key('half')}/w/rows/0", b"of a writer at work")
    store.put("work/k/w/step-1/manifest.json", b"{}")
    store.put("probes/x", b"probe")
    before = names(store)
    assert not collect(store, clock=at(6.9))
    assert names(store) == before
    collect(store, clock=at(7.1))
    assert not names(store)


def test_a_published_model_stays_without_the_rows_it_was_made_from(store: Store) -> None:
    rows = artifact(store, "rows")
    model = artifact(store, "student", "train", rows=rows)
    artifact(store, "release", "publish", model=model)
    assert {swept.name for swept in collect(store, clock=at(40))} == {rows.key}
    assert read_manifest(store, model.key) == model


def test_what_a_person_keeps_stays(store: Store) -> None:
    artifact(store, "mine")
    artifact(store, "other")
    collect(store, keep=[key("mine")], clock=at(40))
    assert read_manifest(store, key("mine")) and not read_manifest(store, key("other"))


def test_lineage_does_not_break(store: Store) -> None:
    rows = artifact(store, "rows")
    model = artifact(store, "student", "train", rows=rows)
    plan(store, "p", "student")
    collect(store, clock=at(29))
    (_, node), *_ = lineage(store, model.key).inputs
    assert (node.presence, node.stage_type) == (Presence.Retired, "ingest")


def test_the_copy_comes_first_then_the_manifest_then_the_objects(
    folder_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(folder_store, "unused")
    ages(folder_store, 8)
    done: list[str] = []
    put, delete = folder_store.put, folder_store.delete
    monkeypatch.setattr(folder_store, "put", lambda name, *a, **k: (done.append(f"put {name}"), put(name, *a, **k))[1])
    monkeypatch.setattr(folder_store, "delete", lambda name: (done.append(f"delete {name}"), delete(name))[1])
    collect(folder_store)
    assert done == [
        f"put history/{made.sha256}.json",
        f"delete {manifest_name(made.key)}",
        f"delete {made.objects[0].name}",
    ]


def test_a_dry_run_says_the_same_and_touches_nothing(store: Store) -> None:
    shard = unit(store, "row")
    artifact(store, "unused", "capture", refs=(shard,))
    artifact(store, "used")
    store.put(f"work/{key('used')}/w/step-1/manifest.json", b"{}")
    store.put("digests/x.json", b"{}")
    store.put(f"artifacts/{key('killed')}/w/rows/0", b"x")
    plan(store, "p", "used")
    use(store, "p")
    before = {info.name: (info.etag, info.size) for info in store.list("")}
    said = collect(store, dry_run=True, clock=at(29.5))
    assert {info.name: (info.etag, info.size) for info in store.list("")} == before
    assert said == collect(store, clock=at(29.5))
    assert {one.kind for one in said} == {"artifact", "remnants", "answers", "checkpoints"}
    gone = set(before) - {info.name for info in store.list("")}
    assert sum(one.size for one in said) == sum(before[name][1] for name in gone)
    assert sum(one.objects for one in said) == len(gone)


class Meanwhile:
    """A store in which something happens just before the first delete of a name with ``part``."""

    def __init__(self, store: Store, part: str, happens: Callable[[], None], after: bool = False):
        self._store, self._part, self._happens, self._after = store, part, happens, after

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def delete(self, name: str) -> None:
        happens = self._happens if self._part in name else None
        if happens:
            self._happens = lambda: None
        if happens and not self._after:
            happens()
        self._store.delete(name)
        if happens and self._after:
            happens()


@pytest.mark.parametrize("after", [False, True])
def test_an_artifact_that_a_plan_began_to_use_meanwhile_is_put_back(folder_store: FileStore, after: bool) -> None:
    made = artifact(folder_store, "shared")
    other = artifact(folder_store, "unused")
    plan(folder_store, "p", "shared")
    ages(folder_store, 40)
    begins = Meanwhile(folder_store, manifest_name(made.key), lambda: use(folder_store, "p"), after)
    swept = collect(begins)  # type: ignore[arg-type]
    assert [one.name for one in swept] == [other.key]
    assert read_manifest(folder_store, made.key) == made
    assert folder_store.get(made.objects[0].name) == b"shared" * 100


def test_answers_that_a_plan_began_to_ask_for_meanwhile_are_put_back(folder_store: FileStore) -> None:
    plan(folder_store, "p", "answers", asking=ASKING)
    shard, other = unit(folder_store, "row"), unit(folder_store, "row", "b6" * 32)
    ages(folder_store, 40)
    swept = collect(Meanwhile(folder_store, f"answers/{ASKING}", lambda: use(folder_store, "p"), True))  # type: ignore[arg-type]
    assert [one.name for one in swept] == ["b6" * 32]
    assert set(UnitStore(folder_store, ASKING, "w").covered()) == {Pair("row", 0)}
    assert folder_store.exists(shard.name) and not folder_store.exists(other.name)


def test_an_artifact_that_is_made_anew_meanwhile_keeps_its_new_objects(folder_store: FileStore) -> None:
    old = artifact(folder_store, "shared")
    plan(folder_store, "p", "shared")
    ages(folder_store, 40)

    def begins() -> None:
        use(folder_store, "p")
        artifact(folder_store, "shared")

    collect(Meanwhile(folder_store, manifest_name(old.key), begins, after=True))  # type: ignore[arg-type]
    now = read_manifest(folder_store, old.key)
    assert now is not None and now.writer != old.writer
    assert folder_store.get(now.objects[0].name) == b"shared" * 100


def test_answers_go_by_sweep_only(folder_store: FileStore) -> None:
    """A unit stays while a plan asks there, or a manifest refers to it; its commit goes before its objects."""
    asked, referred, free = (
        unit(folder_store, "asked"),
        unit(folder_store, "x", "b6" * 32),
        unit(folder_store, "y", "b6" * 32),
    )
    artifact(folder_store, "logits", "capture", refs=(referred,))
    plan(folder_store, "p", "logits", asking=ASKING)
    folder_store.put(f"answers/{ASKING}/{'0' * 32}-{'1' * 32}.jsonl", b"of a worker that was killed before its commit")
    ages(folder_store, 8)
    collect(folder_store)
    left = [info.name for info in folder_store.list("answers/")]
    assert [info.name for info in folder_store.list(f"answers/{ASKING}/")] == sorted(
        [asked.name, f"answers/{ASKING}/{asked.path.split('.')[0]}.json"]
    )
    assert referred.name in left and free.name not in left
    assert set(UnitStore(folder_store, "b6" * 32, "w").covered()) == {Pair("x", 0)}


def test_a_retry_goes_with_the_last_unit(folder_store: FileStore) -> None:
    units = UnitStore(folder_store, ASKING, "w" * 32)
    units.commit([Pair("row", 0)], [], [Reject("row", 0, "Refused", "no")], [])
    units.request_retry([Pair("row", 0)], "nonce")
    plan(folder_store, "p", "answers", asking=ASKING)
    assert not collect(folder_store, clock=at(8))
    collect(folder_store, clock=at(31))
    assert not list(folder_store.list("answers/"))


def test_checkpoints_go_once_their_stage_is_done_or_forgotten(folder_store: FileStore) -> None:
    artifact(folder_store, "done", "train")
    plan(folder_store, "p", "done", "going on")
    for name in ("done", "going on", "forgotten"):
        folder_store.put(f"work/{key(name)}/w/step-1/manifest.json", b"{}")
    collect(folder_store, clock=at(8))
    assert [info.name.split("/")[1] for info in folder_store.list("work/")] == [key("going on")]


def test_remembered_digests_and_probes_go_with_age(folder_store: FileStore) -> None:
    folder_store.put("digests/x.json", b"{}")
    folder_store.put("probes/x", b"probe")
    collect(folder_store, clock=at(8))
    assert names(folder_store) == {"digests/x.json"}
    collect(folder_store, clock=at(31))
    assert not names(folder_store)


def test_temporary_files_of_killed_writers_go(folder_store: FileStore, tmp_path: Path) -> None:
    folder_store.put("a/b", b"x")
    left = tmp_path / "folder-store/a/.kd-0123.tmp"
    left.write_bytes(b"half")
    assert not collect(folder_store, clock=at(6))
    (swept,) = collect(folder_store, clock=at(8))
    assert (swept.kind, swept.objects, swept.size) == ("unfinished writes", 1, 4) and not left.exists()


def test_multipart_uploads_that_nobody_ended_are_aborted(s3) -> None:
    if s3.kind == "moto":
        pytest.skip("moto dates every upload to 2010")
    store = S3Store(s3.new_bucket(), "kd", endpoint=s3.url)
    place = {"Bucket": store.bucket, "Key": "kd/artifacts/k/w/model"}
    upload = s3.client.create_multipart_upload(**place)["UploadId"]
    s3.client.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"x" * 100)
    assert not collect(store, clock=at(6))
    (swept,) = collect(store, clock=at(8))
    assert (swept.kind, swept.objects, swept.size) == ("unfinished writes", 1, 100)
    assert not s3.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads")


def test_a_garbled_plan_stops_the_sweep_before_anything_goes(folder_store: FileStore) -> None:
    artifact(folder_store, "unused")
    folder_store.put("plans/p.json", b"{")
    with pytest.raises(StorageError, match=r"plans/p.json: is no plan .* so nothing is swept"):
        collect(folder_store, clock=at(8))
    assert read_manifest(folder_store, key("unused")) is not None


def test_a_sweep_that_was_killed_is_finished_by_the_next(
    folder_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact(folder_store, "unused")
    ages(folder_store, 8)
    delete = folder_store.delete

    def killed(name: str) -> None:
        if name == made.objects[0].name:
            raise KeyboardInterrupt
        delete(name)

    monkeypatch.setattr(folder_store, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(folder_store)
    monkeypatch.undo()
    assert [info.name for info in folder_store.list("artifacts/")] == [made.objects[0].name]
    assert not collect(folder_store)  # a reader of what was just retired may be at work
    ages(folder_store, 8)
    (swept,) = collect(folder_store)
    assert (swept.kind, swept.size) == ("remnants", 600) and not list(folder_store.list("artifacts/"))
