"""Checkpoints in a store: the newest that verifies is gone on from, older ones are deleted, and none is left at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import InputRef, ObjectRef
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.training import checkpoints
from kd_runtime.training.checkpoints import Checkpoint, Trajectory

KEY = "ab" * 32
RUN = Trajectory(zero_stage=2, inputs={"rows": InputRef(key="r" * 64, content_digest="c" * 64)}, steps=12)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


def write(
    store: Store,
    folder: Path,
    step: int,
    writer: str = "w",
    keep: int = 2,
    trajectory: Trajectory = RUN,
    shards: Sequence[ObjectRef] = (),
) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a.pt").write_bytes(b"state%d" % step)
    prefix = checkpoints.step_prefix(KEY, writer, step)
    refs = checkpoints.upload(store, prefix, folder, ["a.pt"], lambda: None)
    checkpoint = Checkpoint(
        step=step,
        world_size=1,
        trajectory=trajectory,
        micro_batch={"rows": 1},
        threads=1,
        writer=writer,
        objects=(*refs, *shards),
    )
    checkpoints.commit(store, KEY, checkpoint, keep)


def newest(store: Store, folder: Path, trajectory: Trajectory = RUN):
    said: list[str] = []
    return checkpoints.newest(store, KEY, trajectory, folder / "resume", said.append), said


def test_the_newest_is_downloaded_whoever_wrote_it(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path / "f", 9, "zz")
    write(store, tmp_path / "f", 10, "aa")
    (found, folder), said = newest(store, tmp_path)
    assert (found.step, folder.name, said) == (10, "step-10", [])
    assert (folder / "a.pt").read_bytes() == b"state10"


def test_only_the_last_are_kept(store: Store, tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        write(store, tmp_path / "f", step)
    steps = {info.name.split("/")[3] for info in store.list("work/")}
    assert steps == {"step-6", "step-8"}


def test_with_one_go_the_shards_that_other_nodes_wrote_of_it(store: Store, tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / "b.pt").write_bytes(b"shard")
        theirs = checkpoints.step_prefix(KEY, "second", step)
        shards = checkpoints.upload(store, theirs, tmp_path, ["b.pt"], lambda: None)
        write(store, tmp_path / "f", step, "first", keep=1, shards=shards)
    assert steps(store) == {("first", 4), ("second", 4)}


def steps(store: Store) -> set[tuple[str, int]]:
    return {(info.name.split("/")[2], int(info.name.split("/")[3][5:])) for info in store.list("work/")}


OTHER = RUN.model_copy(update={"zero_stage": 3})


def test_of_those_that_the_run_cannot_go_on_from_each_gives_way_to_one_that_it_wrote(
    store: Store, tmp_path: Path
) -> None:
    for step in (400, 500):
        write(store, tmp_path / "f", step, "old")
    write(store, tmp_path / "f", 200, "new", trajectory=OTHER)
    assert steps(store) == {("new", 200), ("old", 500)}
    (found, _), _ = newest(store, tmp_path, OTHER)
    assert found.step == 200
    write(store, tmp_path / "f", 410, "new", trajectory=OTHER)
    assert steps(store) == {("new", 200), ("new", 410)}


def test_an_older_one_that_fits_stays_before_a_newer_one_that_does_not(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path / "f", 2, "new", trajectory=OTHER)
    write(store, tmp_path / "f", 4, "old")
    write(store, tmp_path / "f", 6, "new", trajectory=OTHER)
    assert steps(store) == {("new", 2), ("new", 6)}


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("damaged", ["a.pt", "manifest.json"])
def test_a_damaged_one_of_a_later_step_goes_before_what_was_just_written(
    store: Store, tmp_path: Path, keep: int, damaged: str
) -> None:
    write(store, tmp_path / "f", 500, "old")
    store.put(checkpoints.step_prefix(KEY, "old", 500) + damaged, b"x")
    write(store, tmp_path / "f", 200, "new", keep)
    write(store, tmp_path / "f", 210, "new", keep)
    assert steps(store) == {("new", 210), ("new", 200)} if keep == 2 else {("new", 210)}
    (found, _), _ = newest(store, tmp_path)
    assert found.step == 210


@pytest.mark.parametrize("damage", ["changed", "gone", "manifest"])
def test_a_damaged_one_is_passed_over_for_the_next_older_and_named(store: Store, tmp_path: Path, damage: str) -> None:
    write(store, tmp_path / "f", 2)
    write(store, tmp_path / "f", 4)
    prefix = checkpoints.step_prefix(KEY, "w", 4)
    if damage == "changed":
        store.put(prefix + "a.pt", b"stale4")
    elif damage == "gone":
        store.delete(prefix + "a.pt")
    else:
        store.put(prefix + "manifest.json", b"{")
    (found, _), said = newest(store, tmp_path)
    assert found.step == 2
    assert len(said) == 1 and "step-4" in said[0]


@dataclass
class Failing:
    """A store of which one call fails."""

    store: Store
    call: str
    at: int
    """The first call of that kind that does."""

    def __getattr__(self, name: str) -> Any:
        if name == self.call:
            self.at -= 1
            if self.at <= 0:
                return self.fail
        return getattr(self.store, name)

    def fail(self, *_: Any, **__: Any) -> None:
        raise StorageError("the store does not answer")


@pytest.mark.parametrize(("call", "at"), [("list", 1), ("get", 1), ("download", 1), ("download", 2)])
def test_a_store_that_fails_is_no_reason_to_take_an_older_one(store: Store, tmp_path: Path, call: str, at: int) -> None:
    """Nor to begin anew: the stage ends with 74, and is tried again."""
    write(store, tmp_path / "f", 2)
    write(store, tmp_path / "f", 4)
    store.put(checkpoints.step_prefix(KEY, "w", 4) + "a.pt", b"changed" if at == 2 else b"state4")
    with pytest.raises(StorageError, match="does not answer"):
        newest(cast(Store, Failing(store, call, at)), tmp_path)
    (found, _), _ = newest(store, tmp_path)
    assert found.step == (2 if at == 2 else 4)


def test_nor_is_a_disk_of_this_machine_that_fails(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path / "f", 2)
    (tmp_path / "resume").mkdir()
    (tmp_path / "resume" / "step-2").write_bytes(b"no folder")
    with pytest.raises(StorageError, match=r"step-2.*; check the disk"):
        newest(store, tmp_path)


ANEW = {"rows": InputRef(key="r" * 64, content_digest="d" * 64)}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"zero_stage": 3}, "it was written at ZeRO stage 2, this run has 3"),
        ({"inputs": ANEW}, "input rows had content cccccccccccc when it was written, and has dddddddddddd now"),
        ({"inputs": {}}, "input rows had content cccccccccccc when it was written, and has none now"),
        ({"steps": 1}, "it was written by a run of 12 steps, this one has 1"),
    ],
)
def test_one_on_another_trajectory_is_passed_over(
    store: Store, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    write(store, tmp_path / "f", 2)
    found, said = newest(store, tmp_path, RUN.model_copy(update=changes))
    prefix = checkpoints.step_prefix(KEY, "w", 2)
    assert (found, said) == (None, [f"checkpoint {prefix} is passed over: {why}"])


def test_without_a_manifest_there_is_no_checkpoint(store: Store, tmp_path: Path) -> None:
    store.put(checkpoints.step_prefix(KEY, "w", 4) + "a.pt", b"half")
    assert newest(store, tmp_path) == (None, [])


def test_all_are_deleted_once_the_artifact_exists(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path / "f", 2)
    store.put(checkpoints.step_prefix(KEY, "other", 4) + "a.pt", b"half")
    checkpoints.delete_all(store, KEY)
    assert list(store.list("work/")) == []


def test_each_rank_uploads_its_shards_and_the_first_what_all_share() -> None:
    names = ["mp_rank_00_model_states.pt", "train.jsonl", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]
    names += ["bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_pp_rank_10_mp_rank_00_optim_states.pt"]
    shares = [checkpoints.own_files(names, rank) for rank in (0, 1, 10)]
    assert [len(share) for share in shares] == [3, 1, 1]
    assert sorted(name for share in shares for name in share) == sorted(names)
