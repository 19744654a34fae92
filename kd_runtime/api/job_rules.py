"""What CEL cannot say about a job: rules over its resolved inputs and its completed settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kd_runtime.api.data_stages import Profile
from kd_runtime.api.dataset import LossOn
from kd_runtime.api.errors import FieldError
from kd_runtime.api.job import DistillationJob, DistillationJobSpec
from kd_runtime.api.outcome_stages import Gate, GateMetric, Measure
from kd_runtime.api.stage import Stage
from kd_runtime.api.teacher import Teacher
from kd_runtime.api.train import Divergence, Objective, TrainMethod
from kd_runtime.api.wiring import DATASET, Wired, Wiring, evaluations, wire

OF_DISTRIBUTION = frozenset({Measure.KL, Measure.Agreement})
OF_RESPONSES = frozenset({Measure.CrossEntropy, Measure.Perplexity})
DECIDED_ELSEWHERE = {
    "train_batch_size": "globalBatchSize",
    "train_micro_batch_size_per_gpu": "microBatchSize",
    "gradient_accumulation_steps": "globalBatchSize and microBatchSize",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "precision",
    "fp16": "precision",
    "gradient_clipping": "optimizer.gradientClipping",
    "activation_checkpointing": "gradientCheckpointing",
    "checkpoint": "checkpoint",
    "zero_optimization.stage": "deepspeed.zeroStage",
    "zero_optimization.offload_optimizer": "deepspeed.offloadOptimizer",
    "zero_optimization.offload_param": "deepspeed.offloadParameters",
}
"""DeepSpeed's settings that other fields decide -> the field."""


@dataclass(frozen=True)
class _Place:
    """A stage in its job."""

    spec: DistillationJobSpec
    wired: Wired
    number: int
    stage: Stage

    @property
    def path(self) -> str:
        return f"spec.stages[{self.number}]"

    @property
    def wiring(self) -> Wiring:
        return self.wired.wirings[self.stage.name]

    def input(self, role: str) -> Stage | None:
        """The stage that plays ``role``, unless it is the dataset or absent."""
        name = self.wiring.inputs.get(role)
        return next((stage for stage in self.spec.stages if stage.name == name), None)


def job_errors(job: DistillationJob) -> Iterator[FieldError]:
    """Everything that is wrong with a job beyond its schema and its CEL rules."""
    stages = job.spec.stages
    if len({stage.name for stage in stages}) < len(stages) or any(len(stage.bodies) != 1 for stage in stages):
        return  # CEL rules say so; inputs cannot be resolved
    wired = wire(job.spec.stages)
    yield from wired.errors
    yield from _parallelism(job.spec)
    for number, stage in enumerate(job.spec.stages):
        place = _Place(job.spec, wired, number, stage)
        for rule in (_responses, _distribution, _batch, _deepspeed, _held_out, _gates, _published):
            yield from rule(place)


def _parallelism(spec: DistillationJobSpec) -> Iterator[FieldError]:
    for path, teacher in teacher_paths(spec):
        hosted = teacher.hosted
        if hosted is None or hosted.gpus_per_replica == 0:
            continue
        ranks = hosted.parallelism.tensor * hosted.parallelism.pipeline
        if ranks > hosted.gpus_per_replica:
            yield FieldError(
                f"{path}.hosted.parallelism",
                None,
                f"tensor x pipeline is {ranks}, more than gpusPerReplica, {hosted.gpus_per_replica}",
                "lower one of them or raise gpusPerReplica",
            )


def teacher_paths(spec: DistillationJobSpec) -> Iterator[tuple[str, Teacher]]:
    """(path, teacher) of every teacher of the spec."""
    if spec.teacher is not None:
        yield "spec.teacher", spec.teacher
    for number, teacher in enumerate(spec.teachers or ()):
        yield f"spec.teachers[{number}]", teacher


def _has_responses(place: _Place) -> bool:
    rows = place.wiring.inputs.get("rows")
    if rows is None or place.wired.types[rows] == "generate":
        return True
    fields = place.spec.dataset.fields
    return rows == DATASET and (fields.response is not None or fields.messages is not None)


def _responses(place: _Place) -> Iterator[FieldError]:
    """Capture and train need something to score."""
    if place.stage.type not in ("capture", "train") or _has_responses(place):
        return
    if place.stage.type == "capture" and place.spec.dataset.loss_on is LossOn.All:
        return
    yield FieldError(
        f"{place.path}.inputs.rows",
        place.wiring.inputs["rows"],
        "has no responses",
        "add a generate stage before, or name a column in spec.dataset.fields.response",
    )


def _distribution(place: _Place) -> Iterator[FieldError]:
    """A divergence needs logits that hold a distribution, at its temperature."""
    train, source = place.stage.train, place.input("logits")
    if train is None or source is None or source.capture is None or train.method is TrainMethod.SFT:
        return
    if source.capture.profile is Profile.Label:
        yield FieldError(
            f"{place.path}.inputs.logits",
            source.name,
            "has profile Label, which holds no distribution",
            "capture with profile Exact",
        )
        return
    known, objective = source.capture.temperatures, train.objective
    for field, temperature in _temperatures(objective).items():
        if temperature not in known:
            yield FieldError(
                f"{place.path}.train.objective.{field}",
                temperature,
                f"is not among the temperatures of {source.name}",
                f"add it to capture.temperatures, or use one of {', '.join(map(str, known))}",
            )
    if objective.entropy_weighting and not (source.capture.entropy or source.capture.profile is Profile.Unbiased):
        yield FieldError(
            f"{place.path}.train.objective.entropyWeighting",
            objective.entropy_weighting.value,
            f"needs the teacher's entropy, which {source.name} does not store",
            "set capture.entropy: true",
        )
    if source.capture.profile is Profile.Unbiased and train.objective.divergence is not Divergence.ForwardKL:
        yield FieldError(
            f"{place.path}.train.objective.divergence",
            train.objective.divergence.value,
            f"is biased on the draws of {source.name} (profile Unbiased)",
            "use ForwardKL, or capture with profile Exact or Compact",
        )


def _temperatures(objective: Objective) -> dict[str, float]:
    """The temperatures that training uses, by field."""
    ramp = objective.temperature_schedule
    if ramp is None:
        return {"temperature": objective.temperature}
    return {"temperatureSchedule.start": ramp.start, "temperatureSchedule.end": ramp.end}


def _batch(place: _Place) -> Iterator[FieldError]:
    train = place.stage.train
    if train is None or train.micro_batch_size == "Auto" or train.micro_batch_size <= train.global_batch_size:
        return
    yield FieldError(
        f"{place.path}.train.microBatchSize",
        train.micro_batch_size,
        f"exceeds globalBatchSize, {train.global_batch_size}",
        "lower it, or use Auto",
    )


def _deepspeed(place: _Place) -> Iterator[FieldError]:
    if place.stage.train is None:
        return
    config = place.stage.train.deepspeed.config
    zero = config.get("zero_optimization")
    flat = {**config, **{f"zero_optimization.{k}": v for k, v in (zero.items() if isinstance(zero, dict) else ())}}
    for name in flat:
        if name in DECIDED_ELSEWHERE:
            yield FieldError(
                f"{place.path}.train.deepspeed.config.{name}",
                flat[name],
                f"is decided by {DECIDED_ELSEWHERE[name]}",
                f"remove it and set {DECIDED_ELSEWHERE[name]}",
            )


def _held_out(place: _Place) -> Iterator[FieldError]:
    if place.stage.evaluate is not None and place.spec.dataset.holdout.fraction == 0:
        yield FieldError(
            "spec.dataset.holdout.fraction",
            0,
            f"leaves no rows for {place.stage.name}",
            "hold some out, or remove the stage",
        )


def _gates(place: _Place) -> Iterator[FieldError]:
    for number, gate in enumerate(place.stage.evaluate.gates if place.stage.evaluate else ()):
        lacking = _lacking(place, gate)
        if lacking:
            yield FieldError(f"{place.path}.evaluate.gates[{number}].of", gate.of.value, *lacking)


def _lacking(place: _Place, gate: Gate) -> tuple[str, str] | None:
    """What a gate needs and the stage does not have: (message, remedy)."""
    compares = gate.metric in (GateMetric.recoveredGap, GateMetric.change)
    with_teacher = gate.metric is GateMetric.recoveredGap
    logits = place.input("logits")
    known = (*place.wiring.inputs, *place.wiring.from_spec)
    if compares and "model" in known and "baseline" not in known:
        return (
            "needs a baseline, and the model is not trained by this job",
            "evaluate a trained model, or use metric value",
        )
    if gate.of in OF_DISTRIBUTION:
        if logits is None or logits.capture is None:
            return "needs logits", "add a capture stage, or gate something else"
        if logits.capture.profile is Profile.Label:
            return f"needs a distribution, and {logits.name} has profile Label", "capture with profile Exact"
        return None
    if gate.of in OF_RESPONSES:
        if with_teacher and logits is None:
            return "of the teacher needs logits", "add a capture stage, or use metric value or change"
        return None if _has_responses(place) else ("needs responses", "name a column in spec.dataset.fields.response")
    fields = place.spec.dataset.fields
    if gate.of is Measure.ExactMatch and fields.response is None and fields.messages is None:
        return "needs references", "name a column in spec.dataset.fields.response"
    if with_teacher and "answers" not in place.wiring.inputs:
        return "of the teacher needs its answers", "add a generate stage, or use metric value or change"
    return None


def _published(place: _Place) -> Iterator[FieldError]:
    """What is published was evaluated before, by gates if they are asked for."""
    publish = place.stage.publish
    if publish is None:
        return
    model = place.wiring.inputs.get("model")
    if model is None and "model" not in place.wiring.from_spec:
        return
    before = [role.partition(".")[2] for role in place.wiring.inputs if role.startswith("evaluation.")]
    for name in evaluations(place.wired, model):
        if name not in before:
            yield FieldError(
                f"{place.path}.publish",
                None,
                f"comes before {name}, which evaluates the same model",
                f"move {place.stage.name} behind {name}",
            )
    gated = [s for s in place.spec.stages if s.name in before and s.evaluate is not None and s.evaluate.gates]
    if publish.require_gates and not gated:
        yield FieldError(
            f"{place.path}.publish.requireGates",
            True,
            f"needs gates, and no earlier evaluate stage of {model or 'the student'} has any",
            "add gates to one, or set requireGates: false",
        )
