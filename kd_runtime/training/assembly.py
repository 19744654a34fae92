"""Putting a rank's parts together: order, rows, logits, student, engine."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.rows import RowsReader
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.training.batches import MicroBatchRule
from kd_runtime.training.engine import deepspeed_config, loading, sharded_loading, start_engine
from kd_runtime.training.examples import ExampleSource
from kd_runtime.training.loop import Place, Trainer
from kd_runtime.training.order import training_order
from kd_runtime.training.selection import Selection
from kd_runtime.training.student import build_student
from kd_runtime.training.task import RankTask


def assemble(task: RankTask) -> Trainer:
    """Everything that a rank trains with. All ranks call it at once: the engine's start is collective."""
    selection = Selection.load(task.selection)
    config = loading(deepspeed_config(task.train), universal=task.universal)
    with sharded_loading(config):
        student = build_student(task.model, task.train, task.vocabulary, trust_remote_code=task.trust_remote_code)
    spec = ShardSpec.of_metadata(task.logits_spec) if task.logits_spec else None
    student.draws = spec.m if spec else 0
    if task.train.objective.entropy_weighting and spec and not spec.entropy:
        raise SettingsError("objective.entropyWeighting: the logits hold no entropy; set capture.entropy: true")
    engine = start_engine(student, task.train, config)
    # The parent has verified every byte; an index of its own a rank costs 24 bytes a row in a file.
    logits = LogitsReader(task.logits, spec, verify=False, folder=task.out) if spec else None
    torch.set_flush_denormal(True)  # not before: numpy warns where it finds no subnormal numbers
    train = task.train
    return Trainer(
        engine=engine,
        student=student,
        train=train,
        order=training_order(train, selection.copies),
        source=ExampleSource(
            RowsReader(task.rows),
            logits,
            selection.has_targets,
            train.max_length,
            train.shuffle_window_blocks + 1,
        ),
        rule=MicroBatchRule(task.micro_batch.rows, task.micro_batch.tokens),
        lengths=selection.lengths,
        head_entries=spec.k + spec.m if spec else 0,
        temperatures=spec.known_temperatures if spec else (1.0,),
        place=place(),
    )


def place() -> Place:
    """This rank's place in the process group, and its device."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    return Place(dist.get_rank(), dist.get_world_size(), device)
