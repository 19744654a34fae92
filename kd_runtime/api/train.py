"""The body of the train stage."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kd_runtime.api.classes import Keyed, Recorded, Unkeyed
from kd_runtime.api.model import Model, Ratio, Rule, Seed, at_most_one


class TrainMethod(StrEnum):
    """How the student learns."""

    SFT = "SFT"
    KD = "KD"
    OnPolicyKD = "OnPolicyKD"
    DPO = "DPO"
    CogPO = "CogPO"
    Reward = "Reward"
    PPO = "PPO"
    GRPO = "GRPO"


class Divergence(StrEnum):
    """How far the student's distribution is from the teacher's."""

    ForwardKL = "ForwardKL"
    ReverseKL = "ReverseKL"
    JSD = "JSD"
    Skew = "Skew"
    ReverseSkew = "ReverseSkew"
    AdaptiveKL = "AdaptiveKL"
    AlphaBeta = "AlphaBeta"
    TVD = "TVD"
    Custom = "Custom"


class MissingLogits(StrEnum):
    """What happens to a row that the logits do not mention."""

    Fail = "Fail"
    CrossEntropy = "CrossEntropy"


class OptimizerName(StrEnum):
    """The optimiser's rule."""

    AdamW = "AdamW"


class ScheduleName(StrEnum):
    """The learning rate's course after its warm-up."""

    Cosine = "Cosine"
    Linear = "Linear"
    Constant = "Constant"


class Precision(StrEnum):
    """The number format of training."""

    bf16 = "bf16"
    fp32 = "fp32"


class Offload(StrEnum):
    """Where DeepSpeed keeps what does not fit."""

    None_ = "None"
    CPU = "CPU"


class Tracker(StrEnum):
    """Where training curves are shown."""

    TensorBoard = "TensorBoard"
    WandB = "WandB"
    MLflow = "MLflow"


class EntropyWeighting(StrEnum):
    """Which positions the divergence counts more."""

    Confident = "Confident"
    Uncertain = "Uncertain"


class Ramp(Model):
    """A number that changes linearly from the first optimiser step to the last."""

    start: Annotated[float, Field(ge=0, le=100), Keyed]
    """Its value at the first step."""
    end: Annotated[float, Field(ge=0, le=100), Keyed]
    """Its value at the last step."""


class Objective(Model):
    """The distillation loss: alpha * divergence + (1 - alpha) * cross-entropy."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.function) == (has(self.divergence) && self.divergence == 'Custom')",
            "divergence Custom, and no other, is a function of your own; set both or neither",
            "function",
        ),
        Rule(
            "!has(self.a) || !has(self.b) || self.a != 0.0 || self.b != 0.0",
            "a and b are both 0, which is no divergence; raise one",
            "b",
        ),
        at_most_one("alpha", "alphaSchedule"),
        at_most_one("beta", "betaSchedule"),
        at_most_one("temperature", "temperatureSchedule"),
        Rule(
            "!has(self.alphaSchedule) || (self.alphaSchedule.start <= 1.0 && self.alphaSchedule.end <= 1.0)",
            "alpha is at most 1; lower start or end",
            "alphaSchedule",
        ),
        Rule(
            "!has(self.betaSchedule) || (0.0 < self.betaSchedule.start && self.betaSchedule.start < 1.0"
            " && 0.0 < self.betaSchedule.end && self.betaSchedule.end < 1.0)",
            "beta is between 0 and 1, where JSD vanishes; change start or end",
            "betaSchedule",
        ),
    )

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("alpha", "alpha_schedule"),
        ("beta", "beta_schedule"),
        ("temperature", "temperature_schedule"),
    )

    divergence: Annotated[Divergence, Keyed] = Divergence.ForwardKL
    """How far the student is from the teacher."""
    alpha: Annotated[Ratio, Keyed] = 0.9
    """Weight of the divergence; the rest is cross-entropy on the labels."""
    temperature: Annotated[float, Field(gt=0, le=100), Keyed] = 1.0
    """Softens both distributions; other than 1 needs logits captured at it."""
    missing_logits: Annotated[MissingLogits, Keyed] = MissingLogits.Fail
    """What happens to a row without logits."""
    beta: Annotated[float, Field(gt=0, lt=1), Keyed] = 0.5
    """JSD: the teacher's share of the mixture."""
    skew: Annotated[float, Field(ge=0, lt=1), Keyed] = 0.1
    """Skew and ReverseSkew: how much of the one distribution is mixed into the other."""
    a: Annotated[float, Field(ge=0, le=2), Keyed] = 0.2
    """AlphaBeta: its alpha; (1, 0) is ForwardKL."""
    b: Annotated[float, Field(ge=0, le=2), Keyed] = 0.7
    """AlphaBeta: its beta; (0, 1) is ReverseKL."""
    mass: Annotated[float, Field(gt=0, lt=1), Keyed] = 0.5
    """AdaptiveKL: the teacher's mass that counts as its head."""
    function: Annotated[
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]*$")] | None, Keyed
    ] = None
    """Custom: name of an entry point of group kubedistill.divergences; give changed code another name."""
    alpha_schedule: Ramp | None = None
    """Instead of alpha: one that changes from step to step."""
    beta_schedule: Ramp | None = None
    """Instead of beta."""
    temperature_schedule: Ramp | None = None
    """Instead of temperature; each step takes the captured temperature that is nearest."""
    entropy_weighting: Annotated[EntropyWeighting | None, Keyed] = None
    """Weighs each position's divergence by the teacher's entropy H: Confident by exp(-H), Uncertain by 1 - exp(-H)."""


class Optimizer(Model):
    """How gradients become steps."""

    name: Annotated[OptimizerName, Keyed] = OptimizerName.AdamW
    """The rule."""
    learning_rate: Annotated[float, Field(gt=0, le=10), Keyed] = 2.0e-5
    """The highest learning rate, after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0, le=10), Keyed] = 0.05
    """Decoupled weight decay."""
    betas: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=2, max_length=2), Keyed] = (
        0.9,
        0.95,
    )
    """Decay of the first and second moment."""
    gradient_clipping: Annotated[float, Field(ge=0, le=1_000_000), Keyed] = 1.0
    """Norm to which gradients are cut; 0 cuts nothing."""


class Schedule(Model):
    """How the learning rate runs."""

    name: Annotated[ScheduleName, Keyed] = ScheduleName.Cosine
    """Its course after the warm-up."""
    warmup_ratio: Annotated[Ratio, Keyed] = 0.1
    """Share of the steps in which it rises from 0."""


class LoRA(Model):
    """Trains low-rank additions to some weights, and merges them at the end."""

    rank: Annotated[int, Field(ge=1, le=1024), Keyed]
    """Rank of the additions."""
    alpha: Annotated[float, Field(gt=0, le=65_536), Keyed] = 16.0
    """Scale: additions are multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1), Keyed] = 0.0
    """Dropout on their input."""
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=64), Keyed
    ] = ()
    """Names of the layers that get one; empty takes all linear layers but the output head."""


class DeepSpeed(Model):
    """How training is spread over ranks."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.offloadParameters) || self.offloadParameters == 'None' || !has(self.zeroStage)"
            " || self.zeroStage == 3",
            "only zeroStage 3 shards parameters; use None or zeroStage 3",
            "offloadParameters",
        ),
    )

    zero_stage: Annotated[int, Field(ge=0, le=3), Recorded] = 2
    """What is sharded: nothing, optimiser states, gradients too, parameters too."""
    offload_optimizer: Annotated[Offload, Recorded] = Offload.None_
    """Where optimiser states lie."""
    offload_parameters: Annotated[Offload, Recorded] = Offload.None_
    """Where parameters lie; needs zeroStage 3."""
    config: Annotated[dict[str, Any], Keyed] = Field(default_factory=dict)
    """Merged into DeepSpeed's configuration; what other fields of this API decide is refused."""


class Checkpoint(Model):
    """When training saves its state."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000), Unkeyed] = 200
    """Steps between checkpoints."""
    every_seconds: Annotated[int, Field(ge=1, le=86_400), Unkeyed] = 600
    """Seconds between checkpoints; whichever comes first."""
    keep_last: Annotated[int, Field(ge=1, le=100), Unkeyed] = 2
    """Older ones are deleted."""
    drain_seconds: Annotated[int, Field(ge=1, le=3600), Unkeyed] = 300
    """Time for a last checkpoint when the pod must go; its grace period is 30 seconds more."""


class Train(Model):
    """Trains the student."""

    rules: ClassVar[tuple[Rule, ...]] = (at_most_one("epochs", "maxSteps"),)
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("epochs", "max_steps"),)

    method: Annotated[TrainMethod, Keyed]
    """SFT learns responses; KD learns the teacher's logits, too."""
    objective: Objective = Objective()
    """KD's loss."""
    epochs: Annotated[int, Field(ge=1, le=1000), Keyed] = 1
    """Passes over the rows; without effect where maxSteps is set."""
    max_steps: Annotated[Annotated[int, Field(ge=1, le=100_000_000)] | None, Keyed] = None
    """Optimiser steps, instead of epochs."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576), Keyed] = 64
    """Rows of one optimiser step, over all ranks, packed or not."""
    micro_batch_size: Annotated[Annotated[int, Field(ge=1, le=65_536)] | Literal["Auto"], Recorded] = "Auto"
    """Rows of one forward pass on one rank; Auto is found by the train step before training."""
    max_length: Annotated[int, Field(ge=8, le=10_485_760), Keyed] = 4096
    """Longer rows are cut."""
    packing: Annotated[bool, Recorded] = True
    """Several rows in one sequence; no row sees another."""
    shuffle_window_blocks: Annotated[int, Field(ge=1, le=65_536), Keyed] = 64
    """Blocks of 256 rows among which rows are shuffled."""
    optimizer: Optimizer = Optimizer()
    """How gradients become steps."""
    schedule: Schedule = Schedule()
    """How the learning rate runs."""
    precision: Annotated[Precision, Keyed] = Precision.bf16
    """Number format."""
    lora: LoRA | None = None
    """Low-rank training; absent trains all weights."""
    gradient_checkpointing: Annotated[bool, Recorded] = True
    """Compute activations twice instead of storing them."""
    deepspeed: DeepSpeed = DeepSpeed()
    """How training is spread over ranks."""
    checkpoint: Checkpoint = Checkpoint()
    """When training saves its state."""
    seed: Annotated[Seed, Keyed] = 0
    """Order of rows, dropout, new weights."""
    report_to: Annotated[tuple[Tracker, ...], Field(max_length=3), Unkeyed] = ()
    """Where curves are shown, besides the job's own report."""
