"""A store without conditional writes is noticed; what is promised then holds: never mixed, never damaged, made again at worst."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from artifacts.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from artifacts.test_artifacts_collect import artifact, key
from fakes import fake_model
from manifests import FULL, job
from rich.console import Console

from kd_runtime.api.failures import DeniedError, ExitClass
from kd_runtime.artifacts.manifest import Stale, is_found, manifest_name, read_manifest
from kd_runtime.artifacts.s3_store import S3Store
from kd_runtime.artifacts.store import AlreadyExists, Store
from kd_runtime.artifacts.units import Pair, UnitStore
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id
from kd_runtime.local.run import show_plan


@pytest.fixture
def proxy(s3) -> Iterator[FaultyProxy]:
    """A server before which conditions are forgotten."""

    def overwrite(path: str) -> None:
        _, bucket, name = path.split("/", 2)
        s3.client.delete_object(Bucket=bucket, Key=name)

    with faulty_proxy(s3.url) as proxy:
        proxy.overwrite = overwrite
        yield proxy


@pytest.fixture
def without(s3, proxy: FaultyProxy) -> S3Store:
    return S3Store(s3.bucket, f"team/{uuid4().hex}", endpoint=proxy.url, attempts=3)


def test_a_store_with_conditional_writes_is_known(store: Store) -> None:
    assert store.refuses_overwriting() and not list(store.list(""))


def test_a_store_without_them_is_known(without: S3Store) -> None:
    assert not without.refuses_overwriting() and not list(without.list(""))


def test_who_comes_later_adopts_the_first_as_ever(without: S3Store) -> None:
    first, second = artifact(without, "rows"), artifact(without, "rows")
    assert second == first == read_manifest(without, key("rows"))
    with pytest.raises(AlreadyExists):
        without.put(manifest_name(first.key), b"{}", if_absent=True)


class Late:
    """A store whose conditional writes find nothing there, and arrive after another writer's."""

    def __init__(self, store: S3Store, other: Any):
        self._store, self._other = store, other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, name: str, body: bytes | Path, *, if_absent: bool = False, sha256: str | None = None) -> Any:
        if not if_absent:
            return self._store.put(name, body, sha256=sha256)
        looked, self._store.exists = self._store.exists, lambda name: False  # type: ignore[method-assign]
        try:
            self._other()
            return self._store.put(name, body, if_absent=True, sha256=sha256)
        finally:
            self._store.exists = looked  # type: ignore[method-assign]


def test_of_two_that_commit_at_once_the_later_stays_whole_and_what_was_made_of_the_other_is_stale(
    without: S3Store,
) -> None:
    made = []
    late = ArtifactWriter(
        Late(without, lambda: made.append(artifact(without, "rows"))),  # type: ignore[arg-type]
        key=key("rows"),
        stage_type="ingest",
        writer=new_writer_id(),
    )
    late.add_bytes(b"others", "rows/0")
    later = late.commit()
    (first,) = made
    child = artifact(without, "student", "train", rows=first)
    assert read_manifest(without, key("rows")) == later and later.writer != first.writer
    assert without.get(later.objects[0].name) == b"others"
    assert without.get(first.objects[0].name) == b"rows" * 100  # a reader of the first reads on
    assert isinstance(is_found(child, lambda k: read_manifest(without, k)), Stale)


def test_units_that_are_committed_at_once_are_covered_by_one_and_both_are_readable(without: S3Store) -> None:
    pair = Pair("row", 0)
    commits = []

    def other() -> None:
        commits.append(UnitStore(without, "a5" * 32, "1" * 32).commit([pair], [pair], [], [(b"first", "jsonl")]))

    late = UnitStore(Late(without, other), "a5" * 32, "2" * 32)  # type: ignore[arg-type]
    commits.append(late.commit([pair], [pair], [], [(b"second", "jsonl")]))
    reader = UnitStore(without, "a5" * 32, "3" * 32)
    assert [reader.read(commit, "jsonl") for commit in commits] == [b"first", b"second"]
    assert reader.read(reader.covered()[pair].commit, "jsonl") == b"second"


def planned_job(folder: Path, store: str, endpoint: str) -> Path:
    fake_model(folder / "teacher", 1)
    fake_model(folder / "student", 2)
    (folder / "data.jsonl").write_text('{"instruction": "a"}\n')
    document = job(FULL, folder, folder / "data.jsonl", store)
    document["spec"]["artifacts"]["endpoint"] = endpoint
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


@pytest.mark.parametrize("conditional", [True, False])
def test_kd_plan_warns_of_it(s3, proxy: FaultyProxy, tmp_path: Path, conditional: bool) -> None:
    path = planned_job(tmp_path, f"s3://{s3.bucket}/{uuid4().hex}/", s3.url if conditional else proxy.url)
    out = Console(record=True, width=400)
    planned = show_plan(path, None, out)
    assert bool(planned.notes) != conditional
    said = out.export_text()
    assert ("has no conditional writes (If-None-Match)" in said) != conditional


def test_kd_plan_ends_at_a_bucket_that_may_only_be_read(s3, proxy: FaultyProxy, tmp_path: Path) -> None:
    proxy.judge = lambda method, path, body: Fault.Denied if method in ("PUT", "POST", "DELETE") else None
    path = planned_job(tmp_path, f"s3://{s3.bucket}/{uuid4().hex}/", proxy.url)
    with pytest.raises(DeniedError, match=f"access to bucket {s3.bucket} is denied .*check the credentials") as error:
        show_plan(path, None, Console(quiet=True))
    assert error.value.exit_class is ExitClass.Denied
