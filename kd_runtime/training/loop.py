"""The training loop on a DeepSpeed engine: what one optimizer step is, when a checkpoint is due, what is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import Objective, Train, TrainMethod
from kd_runtime.training.batches import MicroBatch, MicroBatchRule, collate, share_out
from kd_runtime.training.examples import ExampleSource
from kd_runtime.training.order import Batch, TrainingOrder, splitmix64
from kd_runtime.training.prefetch import Prefetcher
from kd_runtime.training.schedule import Moment, learning_rate, moment
from kd_runtime.training.student import SUMS, Student, parameters_of
from kd_runtime.training.task import zero_stage


@dataclass(frozen=True)
class Place:
    """Which rank this is."""

    rank: int
    world: int
    device: torch.device


@dataclass(frozen=True)
class Wishes:
    """What a rank wants the whole gang to do after the step that begins now."""

    drain: bool = False
    """It got SIGTERM."""
    checkpoint: bool = False


@dataclass(frozen=True)
class StepTotals:
    """Of one step, over all ranks, known before its first backward pass."""

    kd: int
    """Positions with a teacher's distribution."""
    kd_weight: float
    """N_kd: as many, or the sum of their weights where entropy weighs them."""
    ce: int
    """Positions with a label: N_ce."""
    tokens: int
    drain: bool
    checkpoint: bool


@dataclass(frozen=True)
class StepOutcome:
    """What a finished step leaves: its line of the log, and the gang's agreed wishes."""

    record: dict[str, float | int]
    totals: StepTotals


@dataclass
class Trainer:
    """One rank's half of every step. All ranks call `step` for the same steps in the same order."""

    engine: Any
    student: Student
    train: Train
    order: TrainingOrder
    source: ExampleSource
    rule: MicroBatchRule
    lengths: Any
    """[rows of the artifact]: tokens, cut to maxLength."""
    head_entries: int
    """K, with the draws of profile Unbiased; 0 without logits."""
    place: Place
    temperatures: tuple[float, ...] = (1.0,)
    """Where the logits' targets can be had."""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "forward", "backward", "step"), 0.0)
    )

    def moment(self, number: int) -> Moment:
        """The objective at a step; SFT is cross-entropy alone."""
        if self.train.method is not TrainMethod.KD:
            return Moment(0.0, 1.0, self.train.objective.beta)
        return moment(self.train.objective, number, self.order.steps, self.temperatures)

    def step(self, number: int, wishes: Wishes) -> StepOutcome:
        """Take optimizer step ``number`` (from 0).

        Raises:
            SettingsError: the loss is no finite number any more.
        """
        clock = _Clock(self.seconds)
        batch, prepared = self.prefetcher.get(number)
        totals = self._totals(prepared, wishes)  # counted in the host's memory: a card would have to be waited for
        micro_batches = [each.to(self.place.device) for each in prepared]
        self._seed(number)
        clock.lap("data")
        now = self.moment(number)
        parameters = replace(parameters_of(self.train.objective), beta=now.beta)
        self.student.head.adjust(temperature=now.temperature, parameters=parameters)
        sums = self._accumulate(micro_batches, totals, now.alpha, clock)
        rate = self._learning_rate(number)
        norm = self._update(rate)
        sums = self._reduce(sums)
        clock.lap("step")
        record = self._record(batch, totals, sums, now, rate, norm)
        if not math.isfinite(record["loss"]):
            raise SettingsError(
                f"train: the loss became {record['loss']} at step {number + 1} of {self.order.steps}; lower "
                f"optimizer.learningRate ({self.train.optimizer.learning_rate:g}) or set gradientClipping"
            )
        return StepOutcome(record, totals)

    @cached_property
    def prefetcher(self) -> Prefetcher[tuple[Batch, list[MicroBatch]]]:
        """Prepares steps, one ahead."""
        return Prefetcher(self._prepared, self.order.steps)

    def _prepared(self, number: int) -> tuple[Batch, list[MicroBatch]]:
        """A step's rows, and this rank's micro-batches of them, in host memory."""
        batch = self.order.batch(number)
        shares = share_out(self.lengths[batch.rows], self.place.world, self.rule, self.train.packing)
        temperature = self.moment(number).temperature
        mine = [self._gathered(batch.rows[share], temperature) for share in shares[self.place.rank]]
        return batch, [each.pinned() for each in mine] if self.place.device.type == "cuda" else mine

    def _gathered(self, rows: Any, temperature: float) -> MicroBatch:
        return collate(
            self.source.examples(rows, temperature),
            packing=self.train.packing,
            head_entries=self.head_entries,
            weighting=self.train.objective.entropy_weighting if self.train.method is TrainMethod.KD else None,
        )

    def _totals(self, micro_batches: Sequence[MicroBatch], wishes: Wishes) -> StepTotals:
        """Sum the counts that normalise the loss, and the wishes, over all ranks: one small vector."""
        mine: list[float] = [
            sum(int(b.kd_mask.sum()) for b in micro_batches),
            sum(float((b.kd_mask if b.kd_weights is None else b.kd_weights).double().sum()) for b in micro_batches),
            sum(int(b.ce_mask.sum()) for b in micro_batches),
            sum(b.tokens for b in micro_batches),
            int(wishes.drain),
            int(wishes.checkpoint),
        ]
        kd, weight, ce, tokens, drain, checkpoint = self._reduce(torch.tensor(mine, dtype=torch.float64)).tolist()
        return StepTotals(int(kd), weight, int(ce), int(tokens), drain > 0, checkpoint > 0)

    def _accumulate(
        self, micro_batches: Sequence[MicroBatch], totals: StepTotals, alpha: float, clock: _Clock
    ) -> torch.Tensor:
        """Forward and backward of all micro-batches; the sums that the log needs, where they were computed.

        Nothing here waits for a card: it is told of the next micro-batch while it works on this one.
        """
        world, sums = self.place.world, torch.zeros(len(SUMS), dtype=torch.float64, device=self.place.device)
        kd_weight = world * alpha / totals.kd_weight if totals.kd_weight else 0.0
        ce_weight = world * (1 - alpha) / totals.ce if totals.ce else 0.0
        ce_alone_weight = world / totals.ce if totals.ce else 0.0
        for index, batch in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            loss, part = self.engine(batch, kd_weight, ce_weight, ce_alone_weight)
            clock.lap("forward")
            self.engine.backward(loss, scale_wrt_gas=False)
            clock.lap("backward")
            sums += part
        return sums

    def _update(self, rate: float) -> float:
        """The optimizer's step at learning rate ``rate``; the gradient's norm before it was cut."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        norm = None
        if zero_stage(self.train) == 0:
            norm = self._clip_unsharded()
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        return float(norm) if norm is not None else 0.0

    def _clip_unsharded(self) -> float:
        """Cut the gradients as DeepSpeed would, which does not tell the norm in this one configuration."""
        limit = self.train.optimizer.gradient_clipping or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.student.parameters(), limit))

    def _reduce(self, vector: torch.Tensor) -> torch.Tensor:
        if self.place.world > 1:
            vector = vector.to(self.place.device)
            dist.all_reduce(vector)
        return vector.cpu()

    def _seed(self, number: int) -> None:
        """Random numbers (dropout) depend on seed, step and rank alone: a checkpoint has no generator's state to keep."""
        state = torch.tensor([self.train.seed, number, self.place.rank]).numpy().astype("uint64")
        mixed = splitmix64(splitmix64(splitmix64(state[:1]) ^ state[1:2]) ^ state[2:3])
        torch.manual_seed(int(mixed[0] >> 1))

    def _learning_rate(self, number: int) -> float:
        schedule, optimizer = self.train.schedule, self.train.optimizer
        return learning_rate(number, self.order.steps, optimizer.learning_rate, schedule.name, schedule.warmup_ratio)

    def _record(
        self, batch: Batch, totals: StepTotals, sums: torch.Tensor, now: Moment, rate: float, norm: float
    ) -> dict[str, float | int]:
        named = dict(zip(SUMS, sums.tolist(), strict=True))
        ce = named["ce"] / max(totals.ce, 1)
        weighted = named["kd_weighted"] / totals.kd_weight if totals.kd_weight else 0.0
        ce_alone = named["ce_alone"] / max(totals.ce, 1)
        record: dict[str, float | int] = {
            "step": batch.step + 1,
            "epoch": batch.epoch,
            "rows": len(batch.rows),
            "tokens": totals.tokens,
            "kd_positions": totals.kd,
            "ce_positions": totals.ce,
            "ce": ce,
            "loss": now.alpha * (weighted + ce_alone) + (1 - now.alpha) * ce,
            "lr": rate,
            "grad_norm": norm,
            "student_entropy": named["student_entropy"] / max(named["positions"], 1),
        }
        if totals.kd:
            record |= {
                "kd": named["kd"] / totals.kd,
                "head_mass_teacher": named["teacher_head_mass"] / totals.kd,
                "head_mass_student": named["student_head_mass"] / totals.kd,
                "agreement": named["top1_agree"] / totals.kd,
                "overlap": named["topk_overlap"] / totals.kd,
            }
        return record | _scheduled(self.train.objective, now)


def _scheduled(objective: Objective, now: Moment) -> dict[str, float]:
    """What of the objective has a schedule, for the log."""
    names = ("alpha", "beta", "temperature")
    return {name: getattr(now, name) for name in names if getattr(objective, f"{name}_schedule") is not None}


@dataclass
class _Clock:
    """Adds up where a step's time goes: the host's, so that what a card still works on counts where it is waited for."""

    seconds: dict[str, float]
    last: float = field(default_factory=time.perf_counter)

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what] += now - self.last
        self.last = now


def run_steps(
    trainer: Trainer,
    start: int,
    wishes: Callable[[int], Wishes],
    save: Callable[[int, StepOutcome], None],
    logged: Callable[[StepOutcome], None],
) -> bool:
    """Steps from ``start`` to the end; True where the run was drained before it.

    ``wishes`` is asked before each step; ``save`` (done steps, outcome) is called on every rank at once, where any rank
    wished it; ``logged`` after each step.
    """
    for number in range(start, trainer.order.steps):
        outcome = trainer.step(number, wishes(number))
        logged(outcome)
        done = number + 1
        if outcome.totals.drain or (outcome.totals.checkpoint and done < trainer.order.steps):
            save(done, outcome)
        if outcome.totals.drain:
            return True
    return False
