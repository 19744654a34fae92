"""A disk that is full or read-only, and a process that dies while it writes, leave whole objects or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_runtime.api.failures import DeniedError, SettingsError, StorageError
from kd_runtime.artifacts import file_store
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.manifest import ObjectRef
from kd_runtime.artifacts.store import Store, body_sha256, list_uri, open_object, open_store, source_store

WRITER = """
import sys
from pathlib import Path
from kd_runtime.artifacts.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
print("begin", flush=True)
number = 0
while True:
    store.put("object", bytes([number % 256]) * (1 << 20))
    number += 1
"""


def failing(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(
    folder_store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_store.put("a", b"old")
    monkeypatch.setattr(file_store.os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(StorageError, match=f"{folder_store.uri}a: the disk is full; free space there"):
        folder_store.put("a", b"new")
    assert folder_store.get("a") == b"old" and names(tmp_path / "folder-store") == ["a"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_denied(
    folder_store: FileStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(code))
    with pytest.raises(DeniedError, match=f"{folder_store.uri}a: .*; give this user the right to write there"):
        folder_store.put("a", b"x")


def test_a_file_system_without_links_says_what_it_lacks(
    folder_store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store.os, "link", failing(errno.ENOTSUP))
    with pytest.raises(StorageError, match="has no hard links, which commits need; name another folder"):
        folder_store.put("a", b"x", if_absent=True)
    assert not list(folder_store.list(""))


def test_a_full_disk_below_the_cache_names_the_cache(
    store: Store, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"x")
    ref = ObjectRef(name="a", size=1, sha256=body_sha256(b"x"), path="a")
    monkeypatch.setattr(Path, "replace", failing(errno.ENOSPC))
    with pytest.raises(
        StorageError, match=rf"{cache.root}/objects/.*: No space left .*; free space there, or set KD_CACHE_DIR"
    ):
        cache.file(store, ref)


def test_a_killed_writer_leaves_a_whole_object(folder_store: FileStore, tmp_path: Path) -> None:
    root = tmp_path / "folder-store"
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not folder_store.exists("object"):
                pass
            writer.kill()
        body = folder_store.get("object")
        assert len(body) == 1 << 20 and len(set(body)) == 1
        assert [info.name for info in folder_store.list("")] == ["object"]
        folder_store.delete("object")


def test_a_local_file_that_is_not_there_is_no_fault_of_the_store(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        store.put("a", tmp_path / "nothing")


def test_a_loop_of_links_ends(folder_store: FileStore, tmp_path: Path) -> None:
    folder_store.put("data/a", b"x")
    (tmp_path / "folder-store/data/self").symlink_to(tmp_path / "folder-store/data")
    (tmp_path / "folder-store/data/gone").symlink_to(tmp_path / "nowhere")
    assert [info.name for info in folder_store.list("")] == ["data/a"]


def test_a_folder_that_is_linked_is_listed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_bytes(b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/part").symlink_to(tmp_path / "real")
    assert [info.name for info in FileStore(tmp_path / "data").list("")] == ["part/a"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file://relative/path", "must be absolute"),
        ("s3:///prefix", "names no bucket"),
        ("ftp://host/a", "scheme 'ftp' cannot hold objects; use file:// or s3://"),
        ("/plain/path", "use file:// or s3://"),
    ],
)
def test_a_uri_that_is_no_store_says_what_to_write(uri: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_store(uri)


def test_any_file_or_folder_can_be_read_by_its_uri(tmp_path: Path) -> None:
    (tmp_path / "d/deep").mkdir(parents=True)
    (tmp_path / "d/a.txt").write_bytes(b"a")
    (tmp_path / "d/deep/b.txt").write_bytes(b"bb")
    assert open_object(f"file://{tmp_path}/d/a.txt") == b"a"
    assert [info.name for info in list_uri(f"file://{tmp_path}/d")] == ["a.txt", "deep/b.txt"]
    assert [info.name for info in list_uri(f"file://{tmp_path}/d/a.txt")] == ["a.txt"]
    assert source_store(f"file://{tmp_path}/d/a.txt")[1] == "a.txt"
    with pytest.raises(SettingsError, match="names no file"):
        source_store("file:///d/")
