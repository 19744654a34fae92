"""A rank's side of checkpoints: DeepSpeed writes its state, each rank uploads its files, rank 0 commits; and the way back."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from kd_runtime.artifacts.manifest import ObjectRef
from kd_runtime.artifacts.store import open_store
from kd_runtime.training import checkpoints
from kd_runtime.training.checkpoints import LOG
from kd_runtime.training.loop import Trainer
from kd_runtime.training.task import RankTask, zero_stage


def encoded_log(records: list[dict[str, Any]]) -> bytes:
    """One JSON line a step."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@dataclass
class Saver:
    """Writes checkpoints of one run; every rank has one and calls `save` for the same steps."""

    trainer: Trainer
    task: RankTask
    heard: Callable[[], None]
    last: float = field(default_factory=time.monotonic)

    def due(self, done: int) -> bool:
        """True where a checkpoint is due once ``done`` steps are: by number, or (rank 0's clock) by time."""
        settings = self.task.train.checkpoint
        by_time = self.trainer.place.rank == 0 and time.monotonic() - self.last >= settings.every_seconds
        return done % settings.every_steps == 0 or by_time

    def save(self, done: int, log: list[dict[str, Any]]) -> str:
        """Write a checkpoint after ``done`` steps; where in the store it lies. StorageError where the store refuses it."""
        trainer, task = self.trainer, self.task
        key, writer = task.work_prefix.strip("/").split("/")[-2:]
        folder, tag = task.out / "checkpoint", f"step-{done}"
        trainer.engine.save_checkpoint(
            str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=task.train.lora is not None
        )
        if trainer.place.rank == 0:
            (folder / tag / LOG).write_bytes(encoded_log(log))
        self.heard()
        store = open_store(task.store.uri, endpoint=task.store.endpoint, region=task.store.region)
        names = checkpoints.own_files([p.name for p in (folder / tag).iterdir() if p.is_file()], trainer.place.rank)
        prefix = checkpoints.step_prefix(key, writer, done)
        refs = self._gather(checkpoints.upload(store, prefix, folder / tag, names, self.heard))
        if trainer.place.rank == 0:
            checkpoint = checkpoints.Checkpoint(
                step=done,
                world_size=trainer.place.world,
                trajectory=task.trajectory,
                micro_batch=trainer.rule.facts(),
                threads=task.threads,
                writer=writer,
                objects=tuple(refs),
            )
            checkpoints.commit(store, key, checkpoint, task.train.checkpoint.keep_last)
        dist.barrier()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            shutil.rmtree(folder, ignore_errors=True)
        self.last = time.monotonic()
        return prefix

    def _gather(self, mine: list[ObjectRef]) -> list[ObjectRef]:
        """The objects of all ranks, on rank 0."""
        place = self.trainer.place
        parts: list[Any] = [None] * place.world
        dist.all_gather_object(parts, [ref.model_dump() for ref in mine])
        return sorted((ObjectRef(**ref) for part in parts for ref in part), key=lambda ref: ref.path)


def restore(trainer: Trainer, task: RankTask) -> list[dict[str, Any]]:
    """Load the checkpoint in ``task.resume`` into the engine; the log up to it."""
    assert task.resume is not None
    folder = Path(task.resume)
    settings = [_settings(group) for group in trainer.engine.optimizer.param_groups]
    path, _ = trainer.engine.load_checkpoint(
        str(folder.parent), tag=folder.name, load_module_strict=task.train.lora is None
    )
    if path is None:
        raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")
    if task.universal and zero_stage(task.train) == 3:
        _repair(trainer.engine.optimizer.optimizer, settings)
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _repair(optimizer: Any, settings: list[dict[str, Any]]) -> None:
    """What DeepSpeed 0.19.8 gets wrong at ZeRO 3: all groups share one counter of steps, and the first group's weight decay."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
