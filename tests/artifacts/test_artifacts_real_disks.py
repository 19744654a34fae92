"""Disks that are really full, and folders that really may not be written: the sentence, the class, and nothing half there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from fakes import fake_model
from manifests import FULL, job
from rich.console import Console

from kd_runtime.api.failures import DeniedError, ExitClass, StorageError, classify, disk_full
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.manifest import ObjectRef
from kd_runtime.artifacts.store import Store, body_sha256
from kd_runtime.local.run import show_plan

NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user that owns nothing, where root runs the tests: root may write anywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that anybody may enter and read."""
    folder = Path(tempfile.mkdtemp(prefix="kd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_full_disk_says_so_keeps_what_was_there_and_goes_on_once_there_is_room(small_disk: Path) -> None:
    store = FileStore(small_disk)
    store.put("kept", b"old")
    store.put("filler", b"x" * 150_000)
    for name in ("kept", "new"):
        with pytest.raises(StorageError, match=f"{store.uri}{name}: the disk is full; free space there") as error:
            store.put(name, b"y" * 150_000, if_absent=name == "new")
        assert error.value.exit_class is ExitClass.Storage
    assert store.get("kept") == b"old"
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "kept"]
    store.delete("filler")
    store.put("new", b"y" * 150_000, if_absent=True)


def test_a_full_disk_below_the_cache_names_the_cache(store: Store, small_disk: Path) -> None:
    body = b"x" * 400_000
    store.put("large", body)
    ref = ObjectRef(name="large", size=len(body), sha256=body_sha256(body), path="large")
    with pytest.raises(StorageError, match=rf"{small_disk}.*: No space left .*; free space there, or set KD_CACHE_DIR"):
        Cache(small_disk / "cache").file(store, ref)


def test_a_full_scratch_disk_is_storage_whoever_says_it(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        (small_disk / "scratch").write_bytes(b"x" * 400_000)
    assert classify(error.value) is ExitClass.Storage
    told = RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
    assert classify(told) is ExitClass.Storage and "set TMPDIR" in str(disk_full(told))
    assert classify(OSError(5, "Input/output error")) is ExitClass.Bug and disk_full(OSError(5, "x")) is None


def test_a_folder_that_may_not_be_written_ends_kd_plan_with_77(open_folder: Path) -> None:
    fake_model(open_folder / "teacher", 1)
    fake_model(open_folder / "student", 2)
    (open_folder / "data.jsonl").write_text('{"instruction": "a"}\n')
    store = open_folder / "store"
    document = job(FULL, open_folder, open_folder / "data.jsonl", f"file://{store}/")
    (open_folder / "job.yaml").write_text(yaml.safe_dump(document))
    show_plan(open_folder / "job.yaml", None, Console(quiet=True))  # imports all, which another user may not read
    shutil.rmtree(store)
    store.mkdir(mode=0o555)
    with unprivileged(), pytest.raises(DeniedError, match="Permission denied; give this user the right to write"):
        show_plan(open_folder / "job.yaml", None, Console(quiet=True))
    assert not list(store.iterdir())
