"""`kd gc` and `kd copy`, as they are typed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from artifacts.test_artifacts_collect import artifact, key, plan
from typer.testing import CliRunner

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.manifest import read_manifest
from kd_runtime.cli.main import app


def kd(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    """A used, a kept and an unused artifact, 8 days old."""
    store = FileStore(tmp_path / "store")
    for name in ("used", "kept", "unused"):
        artifact(store, name)
    for info in list(store.list("")):
        os.utime(store.path(info.name), (time.time() - 8 * 86_400,) * 2)
    plan(store, "p", "used")
    return store


def test_gc_says_what_goes_and_how_many_bytes(store: FileStore) -> None:
    asked = ("gc", "--store", store.uri, "--keep", key("kept")[:8])
    size = sum(info.size for info in store.list(f"artifacts/{key('unused')}"))
    dry = kd(*asked, "--dry-run")
    assert key("unused") in dry and f"would free 1.2 KiB ({size} bytes) in 1 places" in dry
    assert read_manifest(store, key("unused")) is not None
    assert f"({size} bytes) in 1 places" in kd(*asked)
    left = [read_manifest(store, key(name)) is not None for name in ("used", "kept", "unused")]
    assert left == [True, True, False]
    assert kd(*asked).startswith("freed") and "(0 bytes) in 0 places" in kd(*asked)


def test_gc_refuses_to_keep_what_is_not_there(store: FileStore) -> None:
    with pytest.raises(SettingsError, match=r"no artifact .* has a key that begins so"):
        kd("gc", "--store", store.uri, "--keep", "ffffffff")
    assert read_manifest(store, key("unused")) is not None


def test_copy_says_what_moved_and_nothing_moves_twice(store: FileStore, tmp_path: Path) -> None:
    asked = ("copy", key("kept")[:8], "--store", store.uri, "--to", f"file://{tmp_path}/other/")
    assert "ingest" in kd(*asked) and "was there" in kd(*asked)
    assert read_manifest(FileStore(tmp_path / "other"), key("kept")) == read_manifest(store, key("kept"))
