"""An object that a hand deleted is noticed by a listing, and what its unit answered is asked again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kd_runtime.artifacts.manifest import Manifest, ObjectRef
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.units import Pair, UnitStore
from kd_runtime.artifacts.wholeness import lost_object
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id

KEY, ASKING = "ab" * 32, "cd" * 32
PAIRS = [Pair(f"row{number}", 0) for number in range(4)]


def unit(store: Store, pairs: list[Pair], said: str) -> UnitStore:
    units = UnitStore(store, ASKING, new_writer_id())
    units.commit(pairs, pairs, [], [("\n".join([said] * len(pairs)).encode(), "jsonl")])
    return units


def artifact(store: Store) -> Manifest:
    """Two objects of its own, and one of a unit."""
    units = unit(store, PAIRS, "yes")
    writer = ArtifactWriter(store, key=KEY, stage_type="capture", writer=new_writer_id())
    for path in ("a/one", "b"):
        writer.add_bytes(path.encode(), path)
    commit = units.covered()[PAIRS[0]].commit
    writer.refer(commit.object("jsonl").model_copy(update={"path": "logits/000000.jsonl"}))
    return writer.commit()


def deleted(store: Store, ref: ObjectRef) -> None:
    store.delete(ref.name)


def cut_off(store: Store, ref: ObjectRef) -> None:
    store.put(ref.name, store.get(ref.name)[:-1])


@pytest.mark.parametrize("spoil", [deleted, cut_off])
@pytest.mark.parametrize("path", ["a/one", "b", "logits/000000.jsonl"])
def test_an_object_that_is_gone_or_cut_off_is_named(
    store: Store, path: str, spoil: Callable[[Store, ObjectRef], None]
) -> None:
    manifest = artifact(store)
    assert lost_object(store, manifest.objects) is None
    spoil(store, manifest.object(path))
    assert lost_object(store, manifest.objects) == manifest.object(path).name


def test_an_artifact_without_objects_has_lost_none(store: Store) -> None:
    assert lost_object(store, ()) is None


@pytest.mark.parametrize("spoil", [deleted, cut_off])
def test_a_unit_of_which_an_object_is_gone_is_asked_again_and_no_other(
    store: Store, spoil: Callable[[Store, ObjectRef], None]
) -> None:
    first, second = PAIRS[:2], PAIRS[2:]
    unit(store, second, "kept")
    units = unit(store, first, "before")
    spoil(store, units.covered()[first[0]].commit.object("jsonl"))
    assert set(units.covered()) == set(second)  # who knew of it too
    assert set(UnitStore(store, ASKING, new_writer_id()).covered()) == set(second)

    again = unit(store, first, "after")
    for reader in (units, again, UnitStore(store, ASKING, new_writer_id())):
        covered = reader.covered()
        assert set(covered) == set(PAIRS)
        said = [reader.read(covered[pair].commit, "jsonl").split(b"\n")[0] for pair in (first[0], second[0])]
        assert said == [b"after", b"kept"]


def test_of_two_that_answer_a_lost_unit_again_the_second_adopts(store: Store) -> None:
    one = unit(store, PAIRS, "before")
    broken = one.covered()[PAIRS[0]].commit
    store.delete(broken.object("jsonl").name)
    winner = unit(store, PAIRS, "first").covered()[PAIRS[0]].commit
    late = unit(store, PAIRS, "second").covered()[PAIRS[0]].commit
    assert late == winner
    assert one.read(winner, "jsonl").startswith(b"first")
    left = [info.name for info in store.list(f"answers/{ASKING}/")]
    assert sorted(left) == sorted([broken.name, winner.name, winner.object("jsonl").name])


def test_a_unit_that_was_answered_again_and_lost_that_too_is_answered_once_more(store: Store) -> None:
    for said in ("first", "second", "third"):
        units = unit(store, PAIRS, said)
        commit = units.covered()[PAIRS[0]].commit
        assert units.read(commit, "jsonl").startswith(said.encode())
        store.delete(commit.object("jsonl").name)
    assert units.covered() == {}


class Meeting:
    """A store of which two writers read the same commit before either of them acts on it."""

    def __init__(self, store: Store, name: str):
        self._store, self._name, self._both = store, name, threading.Barrier(2)

    def get(self, name: str) -> bytes:
        body = self._store.get(name)
        if name == self._name:
            self._both.wait(10)
        return body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_of_two_that_find_the_same_lost_unit_at_the_same_moment_one_replaces_it(store: Store) -> None:
    broken = unit(store, PAIRS, "before").covered()[PAIRS[0]].commit
    store.delete(broken.object("jsonl").name)
    meeting: Any = Meeting(store, broken.name)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda said: unit(meeting, PAIRS, said), ("one", "other")))
    commits = {writer._coverage.commits.popitem()[1].name for writer in found}
    winner = UnitStore(store, ASKING, new_writer_id()).covered()[PAIRS[0]].commit
    assert commits == {winner.name}
    assert found[0].read(winner, "jsonl") == found[1].read(winner, "jsonl")
    left = [info.name for info in store.list(f"answers/{ASKING}/")]
    assert sorted(left) == sorted([broken.name, winner.name, winner.object("jsonl").name])
