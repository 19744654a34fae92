"""Objects behave the same in a folder and in a bucket."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.store import AlreadyExists, Missing, Store

LARGE = bytes(range(256)) * (12 << 12) + b"end"
"""12 MiB and a bit: three parts."""


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def test_an_object_reads_back_as_written(store: Store) -> None:
    info = store.put("a/b.json", b"hello")
    assert store.get("a/b.json") == b"hello"
    assert (info.name, info.size, info.sha256) == ("a/b.json", 5, sha256(b"hello"))
    found = store.stat("a/b.json")
    assert found is not None and found.size == 5 and found.etag == info.etag


def test_a_second_write_replaces_the_first(store: Store) -> None:
    store.put("a", b"1")
    store.put("a", b"22")
    assert store.get("a") == b"22"


def test_an_empty_object_is_an_object(store: Store, tmp_path: Path) -> None:
    store.put("empty", b"")
    store.download("empty", tmp_path / "copy")
    assert store.get("empty") == b"" and (tmp_path / "copy").read_bytes() == b""


def test_names_with_spaces_and_umlauts_are_kept(store: Store) -> None:
    name = "ä b/ü+%20&.txt"
    store.put(name, b"x")
    assert [info.name for info in store.list("")] == [name]
    assert store.get(name) == b"x"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../b", "a//b", ".", "a/", "a\0b"])
def test_a_name_never_leaves_the_store(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="not an object's name"):
        store.put(name, b"x")


def test_what_is_absent_is_missing_everywhere(store: Store, tmp_path: Path) -> None:
    assert store.stat("no") is None and not store.exists("no") and list(store.list("no")) == []
    for read in (
        lambda: store.get("no"),
        lambda: store.read_range("no", 0, 4),
        lambda: store.download("no", tmp_path / "x"),
    ):
        with pytest.raises(Missing, match=f"{store.uri}no: is not there"):
            read()
    assert not (tmp_path / "x").exists()
    store.delete("no")


def test_a_deleted_object_is_gone_and_its_folder_can_be_used_again(store: Store) -> None:
    store.put("a/b/c", b"x")
    store.delete("a/b/c")
    assert list(store.list("")) == []
    store.put("a/b", b"y")
    assert store.get("a/b") == b"y"


def test_listing_is_recursive_sorted_by_bytes_and_by_prefix(store: Store) -> None:
    names = ["a-b", "a/b", "a/b-c/d", "a/b/c", "a0", "b/x", "é", "z"]
    names.remove("a/b")  # an object cannot also be a folder
    for name in reversed(names):
        store.put(name, name.encode())
    assert [info.name for info in store.list("")] == sorted(names, key=str.encode)
    assert [info.name for info in store.list("a")] == ["a-b", "a/b-c/d", "a/b/c", "a0"]
    assert [info.name for info in store.list("a/")] == ["a/b-c/d", "a/b/c"]
    assert [info.name for info in store.list("a/b/")] == ["a/b/c"]
    assert [info.size for info in store.list("z")] == [1]


def test_listing_goes_over_many_pages(store: Store) -> None:
    names = [f"unit/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert [info.name for info in store.list("unit/")] == names


def test_ranges_are_read_exactly(store: Store) -> None:
    store.put("a", b"0123456789")
    assert store.read_range("a", 2, 3) == b"234"
    assert store.read_range("a", 7) == b"789"
    assert store.read_range("a", 8, 100) == b"89"
    assert store.read_range("a", 3, 0) == b""


def test_a_file_is_stored_whole_with_its_digest(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "large.bin"
    local.write_bytes(LARGE)
    info = store.put("large", local)
    assert (info.size, info.sha256) == (len(LARGE), sha256(LARGE))
    assert store.get("large") == LARGE


def test_a_download_arrives_whole_and_tells_its_progress(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "large.bin"
    local.write_bytes(LARGE)
    store.put("large", local)
    arrived: list[int] = []
    store.download("large", tmp_path / "deep/copy", size=len(LARGE), progress=arrived.append)
    assert (tmp_path / "deep/copy").read_bytes() == LARGE
    assert sum(arrived) == len(LARGE) and len(arrived) > 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_conditional_write_leaves_what_is_there(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "large.bin"
    local.write_bytes(LARGE)
    store.put("small", b"first", if_absent=True)
    store.put("large", local, if_absent=True)
    for name in ("small", "large"):
        for body in (b"second", local):
            with pytest.raises(AlreadyExists, match=f"{store.uri}{name}: is there already"):
                store.put(name, body, if_absent=True)
    assert store.get("small") == b"first" and store.get("large") == LARGE


@pytest.mark.parametrize("size", ["small", "parts"])
def test_sixteen_racing_writers_have_one_winner(store: Store, checking_server: None, tmp_path: Path, size: str) -> None:
    def body(number: int) -> bytes | Path:
        if size == "small":
            return f"writer {number}".encode()
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]) * (6 << 20))
        return path

    bodies = [body(number) for number in range(16 if size == "small" else 4)]

    def race(number: int) -> bool:
        try:
            store.put("race", bodies[number], if_absent=True)
        except AlreadyExists:
            return False
        return True

    for _ in range(3 if size == "small" else 1):
        store.delete("race")
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(race, range(len(bodies))))
        winner = bodies[won.index(True)]
        assert won.count(True) == 1
        assert store.get("race") == (winner if isinstance(winner, bytes) else winner.read_bytes())


def test_a_body_that_is_not_what_was_announced_is_refused(store: Store, checking_server: None) -> None:
    with pytest.raises(StorageError, match="a"):
        store.put("a", b"hello", sha256=sha256(b"other"))
    assert not store.exists("a")
