"""Checkpoints in the store: work/<key>/<writer>/step-<n>/, each whole once its manifest is there (contract 8)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import InputRef, ObjectRef
from kd_runtime.artifacts.store import Missing, Store, body_sha256, local_errors

MANIFEST = "manifest.json"
LOG = "train.jsonl"
"""The training log up to the checkpoint, beside DeepSpeed's files."""


class Damaged(StorageError):
    """A checkpoint is there and is not what was written: no other try mends it."""


class Trajectory(BaseModel):
    """What a run must have in common with a checkpoint to go on from it, and what their common key does not pin."""

    model_config = ConfigDict(frozen=True)

    zero_stage: int
    inputs: dict[str, InputRef]
    """By role, as the artifact's manifest will record them: an input can be made anew, with other content, under its key."""
    steps: int
    """Of the whole run: the learning rate of each follows from it."""

    def departs(self, other: Trajectory) -> str | None:
        """Why a run on ``other`` cannot go on from a checkpoint on this one, or None."""
        if self.zero_stage != other.zero_stage:
            return f"it was written at ZeRO stage {self.zero_stage}, this run has {other.zero_stage}"
        for role in sorted({*self.inputs, *other.inputs}):
            was, now = self.inputs.get(role), other.inputs.get(role)
            if was != now:
                return f"input {role} had content {_content(was)} when it was written, and has {_content(now)} now"
        if self.steps != other.steps:
            return f"it was written by a run of {self.steps} steps, this one has {other.steps}"
        return None


def _content(ref: InputRef | None) -> str:
    return ref.content_digest[:12] if ref is not None else "none"


class Checkpoint(BaseModel):
    """What one checkpoint consists of, and which runs can go on from it."""

    model_config = ConfigDict(frozen=True)

    version: int = 2
    step: int
    """Optimizer steps that are done: the next step's number, from 0. The sampler's position, the learning rate and the
    random numbers of a step all follow from it."""
    world_size: int
    trajectory: Trajectory
    micro_batch: dict[str, int]
    """What Auto chose, or the setting: going on with another would round sums otherwise."""
    threads: int
    writer: str
    objects: tuple[ObjectRef, ...]
    """``path`` is relative to the checkpoint's folder."""

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(ref.size for ref in self.objects)


def work_prefix(key: str) -> str:
    """Where the checkpoints of the train stage with ``key`` lie."""
    return f"work/{key}/"


def step_prefix(key: str, writer: str, step: int) -> str:
    """Where one checkpoint's objects lie."""
    return f"{work_prefix(key)}{writer}/step-{step}/"


def upload(store: Store, prefix: str, folder: Path, names: Iterable[str], heard: Callable[[], None]) -> list[ObjectRef]:
    """Put files of ``folder`` below ``prefix``; ``heard`` is called after each."""
    refs = []
    for name in names:
        path = folder / name
        digest = body_sha256(path)
        store.put(prefix + name, path, sha256=digest)
        refs.append(ObjectRef(name=prefix + name, size=path.stat().st_size, sha256=digest, path=name))
        heard()
    return refs


def commit(store: Store, key: str, checkpoint: Checkpoint, keep_last: int) -> None:
    """Write the manifest: the checkpoint exists from now on. Then keep ``keep_last`` of the stage: it, and the newest others.

    First go those that this run could not go on from.
    """
    written = step_prefix(key, checkpoint.writer, checkpoint.step) + MANIFEST
    store.put(written, checkpoint.model_dump_json().encode())
    others = [name for name in _manifest_names(store, key) if name != written]
    others.sort(key=lambda name: _departs(store, name, checkpoint))  # stable: the newest first of either kind
    for name in others[keep_last - 1 :]:
        _delete(store, name)


def _departs(store: Store, name: str, written: Checkpoint) -> bool:
    """True where a run that has just written ``written`` passed the other checkpoint over, or would.

    One of a later step is damaged: this run would have begun there.
    """
    if _step(name) > written.step:
        return True
    try:
        return _read(store, name).trajectory.departs(written.trajectory) is not None
    except (Missing, Damaged):
        return True


def delete_all(store: Store, key: str) -> None:
    """Remove every checkpoint of the stage: its artifact exists now."""
    for name in _manifest_names(store, key):
        store.delete(name)
    for info in list(store.list(work_prefix(key))):
        store.delete(info.name)


def newest(
    store: Store, key: str, trajectory: Trajectory, folder: Path, say: Callable[[str], None]
) -> tuple[Checkpoint, Path] | None:
    """Download the newest checkpoint that verifies into ``folder``; None where there is none.

    One that is damaged, gone or not on this run's ``trajectory`` is passed over for the next older, and ``say`` is told.

    Raises:
        StorageError: the store or the disk of ``folder`` fails: what it holds is not known, and nothing may be begun anew.
    """
    for name in _manifest_names(store, key):
        prefix = name.removesuffix(MANIFEST)
        try:
            checkpoint = _read(store, name)
            reason = checkpoint.trajectory.departs(trajectory)
            if reason is None:
                return checkpoint, _download(store, checkpoint, folder / f"step-{checkpoint.step}")
        except (Missing, Damaged) as error:
            reason = str(error)
        say(f"checkpoint {prefix} is passed over: {reason}")
    return None


def _manifest_names(store: Store, key: str) -> list[str]:
    """Manifests of all the stage's checkpoints, the newest step first."""
    names = [info.name for info in store.list(work_prefix(key)) if info.name.endswith(f"/{MANIFEST}")]
    return sorted(names, key=lambda name: (_step(name), name), reverse=True)


def _step(name: str) -> int:
    with contextlib.suppress(ValueError, IndexError):
        return int(name.split("/")[-2].removeprefix("step-"))
    return -1


def _read(store: Store, name: str) -> Checkpoint:
    try:
        return Checkpoint.model_validate_json(store.get(name))
    except ValidationError as error:
        raise Damaged(f"{name} is not a checkpoint's manifest ({error.error_count()} errors)") from error


def _download(store: Store, checkpoint: Checkpoint, folder: Path) -> Path:
    for ref in checkpoint.objects:
        target = folder / ref.path
        store.download(ref.name, target, size=ref.size)
        with local_errors(target):
            whole = target.stat().st_size == ref.size and body_sha256(target) == ref.sha256
        if not whole:
            raise Damaged(f"{ref.name} is damaged: its bytes have another sha256 than its manifest says")
    return folder


def _delete(store: Store, name: str) -> None:
    """Remove a checkpoint by its manifest's name: its objects lie under the writers of all its nodes."""
    listed: list[str] = []
    with contextlib.suppress(Missing, Damaged):
        listed = [ref.name for ref in _read(store, name).objects]
    store.delete(name)
    below = [info.name for info in store.list(name.removesuffix(MANIFEST))]
    for other in sorted({*listed, *below}):
        store.delete(other)


def own_files(names: Sequence[str], rank: int) -> list[str]:
    """Which of a checkpoint folder's files ``rank`` uploads: its shards; rank 0 also what all share."""
    mine = [name for name in names if f"zero_pp_rank_{rank}_" in name]
    shared = [name for name in names if "zero_pp_rank_" not in name]
    return sorted(mine + (shared if rank == 0 else []))
