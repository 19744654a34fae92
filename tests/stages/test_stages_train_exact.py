"""A model with an operation that cannot give the same bits twice is trained all the same, and that is said and recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from training.tiny_runs import KEY, WRITER, settings

from kd_runtime.api.failures import ExitClass
from kd_runtime.stages import train
from kd_runtime.stages.context import StageContext
from kd_runtime.training.checkpoints import Trajectory
from kd_runtime.training.faults import INEXACT, recognised
from kd_runtime.training.gang import GangError, Placement
from kd_runtime.training.task import MicroBatchBound, RankTask, StoreAddress

PLACE = Placement(1, 0, 1, "127.0.0.1", 29500)


@dataclass
class Gangs:
    """Ranks whose model has such an operation, or fails otherwise."""

    error: Exception
    asked: list[bool]

    def __call__(self, ctx: StageContext, task: RankTask, placement: Placement, *, drains: bool) -> Gangs:
        self.asked.append(task.exact)
        return self

    def run(self) -> None:
        if self.asked[-1]:
            raise self.error


@pytest.fixture
def task(tmp_path: Path) -> RankTask:
    return RankTask(
        train=settings(),
        model=tmp_path,
        vocabulary=512,
        rows=(),
        selection=tmp_path / "selection.npz",
        micro_batch=MicroBatchBound(rows=4),
        out=tmp_path / "out",
        store=StoreAddress(uri=f"file://{tmp_path}/store"),
        trajectory=Trajectory(zero_stage=0, inputs={}, steps=3),
        work_prefix=f"work/{KEY}/{WRITER}/",
    )


def test_it_is_run_again_without_asking_and_that_is_said(task: RankTask, monkeypatch: pytest.MonkeyPatch) -> None:
    torchs = RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use")
    gangs, said = Gangs(GangError(ExitClass.BadSettings, str(recognised(torchs))), []), []
    monkeypatch.setattr(train, "_gang", gangs)
    monkeypatch.setattr(train, "_say", lambda ctx, message: said.append(message))
    ran = train._run(cast(Any, None), task, PLACE)
    assert gangs.asked == [True, False]
    assert not ran.exact
    assert said == [
        f"train: cumsum_cuda_kernel {INEXACT}; going on without: should it be interrupted, it ends in other bits than undisturbed"
    ]
    assert train._facts(ran, {"world": 1})["exact"] is False


def test_any_other_failure_is_one(task: RankTask, monkeypatch: pytest.MonkeyPatch) -> None:
    gangs = Gangs(GangError(ExitClass.Bug, "shape mismatch"), [])
    monkeypatch.setattr(train, "_gang", gangs)
    with pytest.raises(GangError, match="shape mismatch"):
        train._run(cast(Any, None), task, PLACE)
    assert gangs.asked == [True]
