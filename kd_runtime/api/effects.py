"""Settings that have no effect where they stand: a warning each (contract 14)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from kd_runtime.api.data_stages import Capture, Generate, Prepare, Profile, PruneBy
from kd_runtime.api.dataset import Dataset, DatasetFormat
from kd_runtime.api.errors import FieldError
from kd_runtime.api.job import DistillationJob, DistillationJobSpec
from kd_runtime.api.job_rules import teacher_paths
from kd_runtime.api.model import ModelSource
from kd_runtime.api.operation import Preflight, PreflightMode, Resources
from kd_runtime.api.stage import Stage
from kd_runtime.api.teacher import Engine, HostedTeacher
from kd_runtime.api.train import Divergence, Train, TrainMethod

_OF_DIVERGENCE = {
    "beta": (Divergence.JSD,),
    "beta_schedule": (Divergence.JSD,),
    "skew": (Divergence.Skew, Divergence.ReverseSkew),
    "a": (Divergence.AlphaBeta,),
    "b": (Divergence.AlphaBeta,),
    "mass": (Divergence.AdaptiveKL,),
}
"""Parameters of an objective -> the divergences that have them."""
_OF_CLUSTER = (
    "suspend",
    "scheduling",
    "budget",
    "active_deadline_seconds",
    "pending_deadline_seconds",
    "retention",
)
"""Fields of the spec that only a cluster acts on."""


def effectless(job: DistillationJob, local: bool = False) -> Iterator[FieldError]:
    """Settings of ``job`` without effect; ``local``: also those that only a cluster acts on."""
    spec = job.spec
    yield from _source(spec.student.model, "spec.student.model")
    yield from _dataset(spec.dataset)
    yield from _preflight(spec.preflight)
    yield from _teachers(spec)
    for number, stage in enumerate(spec.stages):
        yield from _stage(stage, f"spec.stages[{number}]")
    if local:
        yield from _on_a_laptop(spec)


def _unused(
    instance: BaseModel, path: str, attributes: Iterator[str] | tuple[str, ...], why: str
) -> Iterator[FieldError]:
    """A warning for each of ``attributes`` that was written."""
    for attribute in attributes:
        value = getattr(instance, attribute)
        if attribute in instance.model_fields_set and value is not None:
            name = type(instance).model_fields[attribute].alias or attribute
            yield FieldError(f"{path}.{name}", _plain(value), f"has no effect: {why}", "remove it")


def _plain(value: Any) -> Any:
    return None if isinstance(value, BaseModel | tuple | dict) else value


def _source(model: ModelSource, path: str) -> Iterator[FieldError]:
    if not model.uri.startswith("hf://"):
        yield from _unused(model, path, ("revision", "secret_ref"), "only hf:// has it")


def _dataset(dataset: Dataset) -> Iterator[FieldError]:
    path = "spec.dataset"
    if not dataset.uri.startswith("hf://"):
        yield from _unused(dataset, path, ("revision", "secret_ref"), "only hf:// has it")
    if dataset.format is not DatasetFormat.HuggingFace:
        yield from _unused(dataset, path, ("split",), "only format HuggingFace has splits")
    if dataset.holdout.fraction == 0:
        yield from _unused(dataset.holdout, f"{path}.holdout", ("seed",), "nothing is held out")


def _preflight(preflight: Preflight) -> Iterator[FieldError]:
    if preflight.mode is PreflightMode.Off:
        yield from _unused(preflight, "spec.preflight", ("smoke_rows", "min_passed_ratio", "train_step"), "mode is Off")


def _teachers(spec: DistillationJobSpec) -> Iterator[FieldError]:
    asked = {stage.teacher for stage in spec.stages if stage.asks_teacher}
    for path, teacher in teacher_paths(spec):
        if getattr(teacher, "name", None) not in asked:
            yield FieldError(path, None, "has no effect: no stage asks it", "remove it")
        if teacher.hosted is not None:
            yield from _hosted(teacher.hosted, f"{path}.hosted")


def _hosted(hosted: HostedTeacher, path: str) -> Iterator[FieldError]:
    yield from _source(hosted.model, f"{path}.model")
    if hosted.engine is Engine.Transformers:
        why = "engine Transformers answers each request alone, on one device"
        yield from _unused(hosted.parallelism, f"{path}.parallelism", ("tensor", "pipeline"), why)


def _stage(stage: Stage, path: str) -> Iterator[FieldError]:
    if stage.prepare is not None:
        yield from _prepare(stage.prepare, f"{path}.prepare")
    if stage.generate is not None:
        yield from _generate(stage.generate, f"{path}.generate")
    if stage.capture is not None:
        yield from _capture(stage.capture, f"{path}.capture")
    if stage.train is not None:
        yield from _train(stage.train, f"{path}.train")
        if stage.train.method is TrainMethod.SFT:
            yield from _unused(stage.inputs, f"{path}.inputs", ("logits",), "SFT reads no logits")


def _prepare(prepare: Prepare, path: str) -> Iterator[FieldError]:
    if prepare.prune is not None and prepare.prune.by is PruneBy.Uniform:
        yield from _unused(prepare.prune, f"{path}.prune", ("calibration_rows",), "Uniform looks at no rows")


def _generate(generate: Generate, path: str) -> Iterator[FieldError]:
    if generate.sampling.temperature == 0:
        yield from _unused(generate.sampling, f"{path}.sampling", ("top_p", "seed"), "temperature 0 draws nothing")


def _capture(capture: Capture, path: str) -> Iterator[FieldError]:
    if capture.profile is Profile.Label:
        yield from _unused(capture, path, ("top_k",), "profile Label stores the label alone")


def _train(train: Train, path: str) -> Iterator[FieldError]:
    if train.method is TrainMethod.SFT:
        yield from _unused(train, path, ("objective",), "SFT has no divergence")
        return
    for attribute, divergences in _OF_DIVERGENCE.items():
        if train.objective.divergence not in divergences:
            why = f"only {' and '.join(divergences)} has it"
            yield from _unused(train.objective, f"{path}.objective", (attribute,), why)


def _on_a_laptop(spec: DistillationJobSpec) -> Iterator[FieldError]:
    why = "only a cluster acts on it"
    yield from _changed(spec, "spec", _OF_CLUSTER, why)
    yield from _changed(spec.failure_policy, "spec.failurePolicy", ("disruption_limit",), why)
    yield from _changed(spec.artifacts, "spec.artifacts", ("credentials_secret_ref", "service_account_name"), why)
    for path, teacher in teacher_paths(spec):
        if teacher.hosted is not None:
            yield from _changed(teacher.hosted, f"{path}.hosted", ("replicas", "gpus_per_replica"), why)
    for number, stage in enumerate(spec.stages):
        placed = {"nodes", "gpus_per_node"} if stage.train is not None else set()
        fields = tuple(
            field for field in Resources.model_fields if field not in placed
        )  # those say how many ranks train
        yield from _changed(stage.resources, f"spec.stages[{number}].resources", fields, why)


def _changed(instance: BaseModel, path: str, attributes: tuple[str, ...], why: str) -> Iterator[FieldError]:
    """A warning for each of ``attributes`` that is not at its default."""
    for attribute in attributes:
        value, info = getattr(instance, attribute), type(instance).model_fields[attribute]
        if value != info.get_default(call_default_factory=True):
            yield FieldError(f"{path}.{info.alias or attribute}", _plain(value), f"has no effect here: {why}", "")
