"""Rows without logits are learnt by cross-entropy alone, at its whole weight, whatever alpha is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training.tiny_runs import Made, make, selection_of, settings

from kd_runtime.api.job import Train
from kd_runtime.artifacts.rows import RowsReader
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.losses import reference
from kd_runtime.training.batches import MicroBatch, MicroBatchRule, collate
from kd_runtime.training.examples import ExampleSource
from kd_runtime.training.loop import Place, Trainer, Wishes
from kd_runtime.training.order import Batch, training_order
from kd_runtime.training.student import Student, build_student

pytestmark = pytest.mark.runtime

ROWS, MISSING = 8, (2, 5)
PLACE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Made:
    return make(tmp_path_factory.mktemp("rows"), tiny_models, ROWS)


@dataclass
class Plain:
    """What the loop needs of DeepSpeed's engine, on one rank."""

    student: Student

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self.student(*arguments)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Nothing waits for it."""

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()


def trainer_of(made: Made, models: Path, train: Train, missing: tuple[int, ...]) -> Trainer:
    """Over all rows, those with numbers in ``missing`` without logits, three rows a forward pass."""
    selection = selection_of(made, train)
    has_targets = ~np.isin(np.arange(ROWS), missing)
    reader = LogitsReader(made.shards, made.spec)
    student = build_student(models / "student", train, made.vocabulary)
    return Trainer(
        engine=Plain(student),
        student=student,
        train=train,
        order=training_order(train, selection.copies),
        source=ExampleSource(RowsReader(made.row_files), reader, has_targets, train.max_length, 8),
        rule=MicroBatchRule(rows=3),
        lengths=selection.lengths,
        head_entries=made.spec.k,
        place=PLACE,
    )


def expected(trainer: Trainer, batch: MicroBatch, alpha: float) -> Tensor:
    """The first step's loss in float64: alpha of the mean divergence where there are logits, (1 - alpha) of cross-entropy
    there and all of it elsewhere, over all positions."""
    model = cast(nn.Module, trainer.student.language_model)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    z = logits.reshape(-1, logits.shape[-1])[batch.sources, : trainer.student.head.settings.vocab].double()
    assert batch.top_ids is not None and batch.top_lp is not None and batch.tail_lp is not None
    on = batch.kd_mask
    log_p = torch.cat([batch.top_lp, batch.tail_lp[:, None]], 1)[on]
    kd = reference.kd_loss(z[on], batch.top_ids[on], log_p, reference.forward_kl).mean() if on.any() else 0.0
    ce = reference.ce_loss(z, batch.label_ids)
    return alpha * kd + (torch.where(on, 1 - alpha, 1.0) * ce).sum() / len(ce)


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("missing", [MISSING, (), tuple(range(ROWS))], ids=["some", "none", "all"])
def test_loss_and_gradient_are_the_plain_references(
    made: Made, tiny_models: Path, missing: tuple[int, ...], alpha: float
) -> None:
    train = settings(objective={"alpha": alpha}, packing=False, globalBatchSize=ROWS)
    trainer = trainer_of(made, tiny_models, train, missing)
    parameters = [p for p in trainer.student.parameters() if p.requires_grad]
    examples = trainer.source.examples(np.arange(ROWS))
    whole = expected(trainer, collate(examples, packing=False, head_entries=made.spec.k), alpha)
    gradients = torch.autograd.grad(whole, parameters)

    batch, prepared = trainer._prepared(0)
    totals = trainer._totals(prepared, Wishes())
    sums = trainer._accumulate(prepared, totals, alpha, cast(Any, Clock()))
    record = trainer._record(cast(Batch, batch), totals, sums, trainer.moment(0), 0.0, 0.0)
    assert len(prepared) > 1
    assert record["loss"] == pytest.approx(float(whole.detach()), rel=1e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=2e-6)


class Clock:
    """Nobody looks at the time."""

    def lap(self, what: str) -> None:
        """Nothing."""
