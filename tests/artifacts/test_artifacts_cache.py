"""What comes out of the cache is what the manifest says; what does not fit goes, but nothing that is in use."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.manifest import ObjectRef
from kd_runtime.artifacts.store import Missing, Store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id

KEEPER = """
import sys
from pathlib import Path
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.file_store import FileStore
from kd_runtime.artifacts.manifest import ObjectRef
ref = ObjectRef.model_validate_json(sys.argv[3])
print(Cache(Path(sys.argv[1])).file(FileStore(Path(sys.argv[2])), ref), flush=True)
sys.stdin.read()
"""


def stored(store: Store, body: bytes, name: str = "") -> ObjectRef:
    digest = hashlib.sha256(body).hexdigest()
    name = name or f"objects/{digest}"
    store.put(name, body)
    return ObjectRef(name=name, size=len(body), sha256=digest, path=name)


def test_a_file_is_copied_once_and_read_only(store: Store, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = stored(store, b"weights")
    path = cache.file(store, ref)
    assert path.read_bytes() == b"weights" and path.stat().st_mode & 0o222 == 0
    monkeypatch.setattr(store, "download", lambda *_, **__: pytest.fail("fetched again"))
    assert cache.file(store, ref) == path


def test_one_content_is_one_file_whatever_its_name(folder_store: FileStore, cache: Cache) -> None:
    assert cache.file(folder_store, stored(folder_store, b"x", "a")) == cache.file(
        folder_store, stored(folder_store, b"x", "b")
    )


@pytest.mark.parametrize("damage", [b"weightS", b"weight", b"weights!", b""])
def test_a_damaged_object_is_named_and_never_kept(store: Store, cache: Cache, damage: bytes) -> None:
    ref = stored(store, b"weights")
    store.put(ref.name, damage)
    with pytest.raises(StorageError, match=f"{store.uri}{ref.name}: has {len(damage)} bytes of sha256"):
        cache.file(store, ref)
    assert not [path for path in cache.root.rglob("*") if path.is_file() and ref.sha256 in path.name]
    store.put(ref.name, b"weights")
    assert cache.file(store, ref).read_bytes() == b"weights"


def test_bytes_that_were_spoiled_on_their_way_are_fetched_again(
    folder_store: FileStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, download, calls = stored(folder_store, b"weights"), folder_store.download, []

    def spoil(name: str, to: Path, **more: object) -> None:
        download(name, to)
        calls.append(name)
        if len(calls) == 1:
            to.write_bytes(b"weightS")

    monkeypatch.setattr(folder_store, "download", spoil)
    assert cache.file(folder_store, ref).read_bytes() == b"weights" and len(calls) == 2


def test_an_object_that_vanished_is_missing(store: Store, cache: Cache) -> None:
    ref = stored(store, b"x")
    store.delete(ref.name)
    with pytest.raises(Missing):
        cache.file(store, ref)


def test_a_file_that_was_cut_in_the_cache_is_fetched_again(folder_store: FileStore, cache: Cache) -> None:
    ref = stored(folder_store, b"weights")
    path = cache.file(folder_store, ref)
    path.chmod(0o644)
    path.write_bytes(b"wei")
    assert cache.file(folder_store, ref).read_bytes() == b"weights"


def test_threads_that_want_one_object_fetch_it_once(
    folder_store: FileStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, download, calls = stored(folder_store, b"weights" * 1000), folder_store.download, []

    def count(name: str, to: Path, **more: object) -> None:
        calls.append(name)
        download(name, to)

    monkeypatch.setattr(folder_store, "download", count)
    threads = [threading.Thread(target=cache.file, args=(folder_store, ref)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_directory_has_the_artifacts_relative_paths(store: Store, cache: Cache) -> None:
    artifact = ArtifactWriter(store, key="ab" * 32, stage_type="train", writer=new_writer_id())
    files = {"model/config.json": b"{}", "model/sub/weights": b"w", "model/same": b"w", "log/train.jsonl": b"log"}
    for path, body in files.items():
        artifact.add_bytes(body, path)
    manifest = artifact.commit()
    folder = cache.directory(store, manifest, "model/")
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {"config.json": b"{}", "sub/weights": b"w", "same": b"w"}
    assert cache.directory(store, manifest, "model/") == folder
    assert {p.name for p in cache.directory(store, manifest).iterdir()} == {"model", "log"}


def test_a_folder_of_external_files_is_whole_once_it_is_said_to_be(cache: Cache) -> None:
    folder = cache.folder("ab" * 32)
    assert folder.is_dir() and not cache.is_complete("ab" * 32)
    (folder / "config.json").write_bytes(b"{}")
    cache.complete("ab" * 32)
    assert cache.is_complete("ab" * 32) and Cache(cache.root).folder("ab" * 32) == folder


def filled(root: Path, store: FileStore, bodies: list[bytes]) -> list[ObjectRef]:
    """A cache that another process, dead by now, filled; the first body was used longest ago."""
    refs = [stored(store, body) for body in bodies]
    for age, ref in enumerate(reversed(refs)):
        command = [sys.executable, "-c", KEEPER, str(root), str(store.path("x").parent), ref.model_dump_json()]
        path = subprocess.run(command, input="", check=True, capture_output=True, text=True).stdout.strip()
        os.utime(path, (1e9 - age, 1e9 - age))
    return refs


def kept(root: Path) -> set[str]:
    return {path.name for path in (root / "objects").glob("??/*")}


def test_what_was_used_longest_ago_goes_first(folder_store: FileStore, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    refs = filled(root, folder_store, [bytes([n]) * 1000 for n in range(3)])
    cache = Cache(root, limit_bytes=3500)
    newest = stored(folder_store, b"n" * 1000)
    cache.file(folder_store, newest)
    assert kept(root) == {refs[1].sha256, refs[2].sha256, newest.sha256}


def test_nothing_that_this_process_was_handed_goes(folder_store: FileStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=1500)
    refs = [stored(folder_store, bytes([n]) * 1000) for n in range(4)]
    paths = [cache.file(folder_store, ref) for ref in refs]
    assert all(path.exists() for path in paths)


def test_nothing_that_another_living_process_was_handed_goes(folder_store: FileStore, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    held = stored(folder_store, b"held" * 250)
    command = [sys.executable, "-c", KEEPER, str(root), str(folder_store.path("x").parent), held.model_dump_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdin is not None and keeper.stdout is not None
        path = Path(keeper.stdout.readline().strip())
        os.utime(path, (0, 0))
        Cache(root, limit_bytes=100).file(folder_store, stored(folder_store, b"a" * 1000))
        assert path.exists()
        keeper.stdin.close()
    Cache(root, limit_bytes=100).file(folder_store, stored(folder_store, b"b" * 1000))
    assert not path.exists()


def test_a_folder_of_external_files_goes_whole(folder_store: FileStore, tmp_path: Path) -> None:
    root, digest = tmp_path / "cache", "ab" * 32
    script = (
        "import sys; from pathlib import Path; from kd_runtime.artifacts.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1])); folder = cache.folder(sys.argv[2])\n"
        "(folder / 'weights').write_bytes(b'w' * 1000); cache.complete(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, str(root), digest], check=True)
    assert Cache(root).is_complete(digest)
    Cache(root, limit_bytes=1500).file(folder_store, stored(folder_store, b"a" * 1000))
    assert not (root / "folders" / digest).exists() and not Cache(root).is_complete(digest)
