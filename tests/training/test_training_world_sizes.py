"""A checkpoint of two ranks is gone on from by one, and the other way round: weights, both moments and the step count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training.test_training_interruptions import newest
from training.tiny_runs import Made, TinyRun, make, settings

from kd_runtime.api.failures import StorageError
from kd_runtime.training.reshaping import universal

pytestmark = pytest.mark.runtime

SAVED = 6
"""The step that the other number of ranks goes on after; the run has twelve."""
TOLERANCE = 1e-4
"""Relative, of each step's loss: what sums in another order leave (1e-6 measured) is far below, lost moments far above."""
BF16_TOLERANCE = 5e-3
"""The same where weights are rounded to 8 bits: that is itself 2e-3."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Made:
    return make(tmp_path_factory.mktemp("rows"), tiny_models, 21)


Runs = Callable[..., TinyRun]


@pytest.fixture(scope="module")
def prepared(made: Made, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    def run(ranks: int, **changes: Any) -> TinyRun:
        options = {"epochs": 4, "checkpoint": {"everySteps": SAVED}, **changes}
        return TinyRun(made, tiny_models / "student", tmp_path_factory.mktemp("run"), settings(**options), ranks)

    return run


@pytest.mark.parametrize(
    ("before", "then", "stage", "changes"),
    [
        pytest.param(2, 1, 1, {}, marks=pytest.mark.further),
        pytest.param(1, 2, 1, {}, marks=pytest.mark.further),
        (2, 1, 2, {}),
        pytest.param(1, 2, 2, {}, marks=pytest.mark.further),
        pytest.param(2, 1, 3, {}, marks=pytest.mark.further),
        (1, 2, 3, {}),
        pytest.param(2, 1, 2, {"lora": {"rank": 4}}, marks=pytest.mark.further),
        (2, 1, 1, {"precision": "bf16"}),
        pytest.param(1, 2, 2, {"precision": "bf16"}, marks=pytest.mark.further),
    ],
)
def test_another_number_of_ranks_goes_on_along_the_same_curve(
    prepared: Runs, before: int, then: int, stage: int, changes: Any
) -> None:
    tolerance = BF16_TOLERANCE if changes.get("precision") == "bf16" else TOLERANCE
    undisturbed = prepared(before, deepspeed={"zeroStage": stage}, **changes).run()
    checkpoint, folder = newest(undisturbed)
    assert (checkpoint.step, checkpoint.world_size) == (SAVED, before)

    changed = continued(undisturbed, then, universal(folder))
    assert changed.first_step == SAVED + 1
    assert losses(changed) == pytest.approx(losses(undisturbed), rel=tolerance)


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.further)])
def test_the_curve_would_tell_if_the_moments_were_lost(prepared: Runs, stage: int) -> None:
    undisturbed = prepared(2, deepspeed={"zeroStage": stage}).run()
    forgetful = continued(undisturbed, 1, without_moments(universal(newest(undisturbed)[1])))
    assert losses(forgetful)[SAVED + 1] == pytest.approx(losses(undisturbed)[SAVED + 1], rel=TOLERANCE)
    assert losses(forgetful) != pytest.approx(losses(undisturbed), rel=10 * TOLERANCE)


def continued(run: TinyRun, ranks: int, checkpoint: Path) -> TinyRun:
    """``run`` from a checkpoint in its universal form, by so many ranks, in a folder of its own."""
    folder = run.folder / f"continued-{len(list(run.folder.iterdir()))}"
    changed = TinyRun(run.made, run.model, folder, run.train, ranks, store=run.store)
    return changed.run(resume=checkpoint, resume_step=SAVED, universal=True)


def losses(run: TinyRun) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in run.records}


def without_moments(folder: Path) -> Path:
    """The checkpoint as if the optimizer had started anew."""
    for path in (*folder.glob("zero/*/exp_avg.pt"), *folder.glob("zero/*/exp_avg_sq.pt")):
        state = torch.load(path, weights_only=False)
        (state["param"] if isinstance(state, dict) else state).zero_()
        torch.save(state, path)
    return folder


def test_one_that_deepspeed_cannot_convert_is_a_fault_of_storage_that_names_the_log(tmp_path: Path) -> None:
    (tmp_path / "step-6").mkdir()
    with pytest.raises(StorageError, match=r"step-6: DeepSpeed could not convert it .*universal\.log"):
        universal(tmp_path / "step-6")
