"""DistillationJob: one run, from a teacher and a dataset to a published student."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kd_runtime.api.classes import Unkeyed
from kd_runtime.api.data_stages import (
    Capture,
    Generate,
    Operator,
    Prepare,
    Profile,
    Prune,
    PruneBy,
    RandomInit,
    Sampling,
    Synthesize,
)
from kd_runtime.api.dataset import Dataset, DatasetFields, DatasetFormat, Holdout, LossOn, Reasoning
from kd_runtime.api.metadata import JobMeta, ObjectMeta
from kd_runtime.api.model import (
    Model,
    ModelSource,
    NameReference,
    Rule,
    Seconds,
    SecretReference,
    at_most_one,
    exactly_one,
    immutable,
    unchanged,
)
from kd_runtime.api.operation import (
    Artifacts,
    Backoff,
    Budget,
    FailurePolicy,
    OnExceeded,
    Preflight,
    PreflightMode,
    Recipe,
    Resources,
    Retention,
    Scheduling,
    Toleration,
)
from kd_runtime.api.outcome_stages import (
    Compress,
    CompressMethod,
    Evaluate,
    Gate,
    GateMetric,
    GateOp,
    Measure,
    Publish,
    Suite,
    Target,
)
from kd_runtime.api.stage import BODIES, CacheMode, Stage, StageBody, StageInputs
from kd_runtime.api.status import JobStatus
from kd_runtime.api.teacher import (
    Dtype,
    Engine,
    ExternalTeacher,
    HostedTeacher,
    Limits,
    NamedTeacher,
    Parallelism,
    Protocol,
    Quantization,
    Serving,
    Teacher,
)
from kd_runtime.api.train import (
    Checkpoint,
    DeepSpeed,
    Divergence,
    LoRA,
    MissingLogits,
    Objective,
    Offload,
    Optimizer,
    OptimizerName,
    Precision,
    Schedule,
    ScheduleName,
    Tracker,
    Train,
    TrainMethod,
)

__all__ = [
    "BODIES",
    "SINGLE_TEACHER",
    "Artifacts",
    "Backoff",
    "Budget",
    "CacheMode",
    "Capture",
    "Checkpoint",
    "Compress",
    "CompressMethod",
    "Dataset",
    "DatasetFields",
    "DatasetFormat",
    "DeepSpeed",
    "DistillationJob",
    "DistillationJobSpec",
    "Divergence",
    "Dtype",
    "Engine",
    "Evaluate",
    "ExternalTeacher",
    "FailurePolicy",
    "Gate",
    "GateMetric",
    "GateOp",
    "Generate",
    "Holdout",
    "HostedTeacher",
    "JobMeta",
    "Limits",
    "LoRA",
    "LossOn",
    "Measure",
    "MissingLogits",
    "ModelSource",
    "NameReference",
    "NamedTeacher",
    "ObjectMeta",
    "Objective",
    "Offload",
    "OnExceeded",
    "Operator",
    "Optimizer",
    "OptimizerName",
    "Parallelism",
    "Precision",
    "Preflight",
    "PreflightMode",
    "Prepare",
    "Profile",
    "Protocol",
    "Prune",
    "PruneBy",
    "Publish",
    "Quantization",
    "RandomInit",
    "Reasoning",
    "Recipe",
    "Resources",
    "Retention",
    "Sampling",
    "Schedule",
    "ScheduleName",
    "Scheduling",
    "SecretReference",
    "Serving",
    "Stage",
    "StageBody",
    "StageInputs",
    "Student",
    "Suite",
    "Synthesize",
    "Target",
    "Teacher",
    "Toleration",
    "Tracker",
    "Train",
    "TrainMethod",
]

SINGLE_TEACHER = "teacher"
"""What plans call the teacher of a spec that has just one."""


class Student(Model):
    """The model that learns."""

    model: ModelSource
    """Weights, tokenizer and configuration that training starts from."""


_OPENAI = "has({0}.external) && (!has({0}.external.protocol) || {0}.external.protocol == 'OpenAI')"
_VLLM = "has({0}.hosted) && has({0}.hosted.engine) && {0}.hosted.engine == 'VLLM'"
_ASKS = "(has(s.generate) || has(s.capture) || has(s.synthesize))"
_WHITE_BOX = "(has(s.capture) || (has(s.train) && s.train.method == 'OnPolicyKD'))"
_WHOLE_DISTRIBUTION = (
    "(has(s.capture) && ((has(s.capture.profile) && s.capture.profile == 'Unbiased')"
    " || (has(s.capture.entropy) && s.capture.entropy)"
    " || (has(s.capture.temperatures) && s.capture.temperatures.exists(t, t != 1.0))))"
)
_SCORES = (
    "the OpenAI protocol has no score route, so it gives no logits; use protocol KD, a hosted teacher, or no such stage"
)
_SEES = "engine VLLM sees no whole distribution, so no Unbiased, entropy or temperature; use engine Transformers"


def _no_stage_of_teacher(stage: str, teacher: str, message: str) -> tuple[Rule, Rule]:
    """The rules that no stage of the CEL condition ``stage`` asks a teacher of the condition ``teacher``."""
    alone, one = teacher.format("self.teacher"), teacher.format("t")
    return (
        Rule(
            f"!has(self.teacher) || !({alone}) || !has(self.stages) || !self.stages.exists(s, {stage})",
            message,
            "stages",
        ),
        Rule(
            "!has(self.teachers) || !has(self.stages) || !self.stages.exists(s, has(s.teacher) && "
            f"{stage} && self.teachers.exists(t, t.name == s.teacher && {one}))",
            message,
            "stages",
        ),
    )


class DistillationJobSpec(Model):
    """What is made, from what, and how it is run."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("recipe", "stages"),
        at_most_one("teacher", "teachers"),
        Rule(
            f"has(self.teacher) || has(self.teachers) || !has(self.stages) || !self.stages.exists(s, {_ASKS})",
            "a stage asks a teacher, and there is none; add spec.teacher",
            "teacher",
        ),
        Rule(
            "!has(self.stages) || self.stages.all(s, self.stages.exists_one(t, t.name == s.name))",
            "two stages have the same name; rename one",
            "stages",
        ),
        Rule(
            "!has(self.teachers) || self.teachers.all(t, self.teachers.exists_one(u, u.name == t.name))",
            "two teachers have the same name; rename one",
            "teachers",
        ),
        Rule(
            "!has(self.teachers) || !has(self.stages)"
            " || self.teachers.all(t, !self.stages.exists(s, s.name == t.name))",
            "a teacher and a stage have the same name, and so would their pods; rename one",
            "teachers",
        ),
        Rule(
            f"!has(self.teachers) || !has(self.stages) || self.stages.all(s, !{_ASKS} || has(s.teacher))",
            "there are several teachers, and a stage that asks does not say which; give it `teacher: NAME`",
            "stages",
        ),
        Rule(
            "!has(self.stages) || self.stages.all(s, !has(s.teacher)"
            " || (has(self.teachers) && self.teachers.exists(t, t.name == s.teacher)))",
            "a stage names a teacher that spec.teachers does not have; name one of them",
            "stages",
        ),
        *_no_stage_of_teacher(_WHITE_BOX, _OPENAI, _SCORES),
        *_no_stage_of_teacher(_WHOLE_DISTRIBUTION, _VLLM, _SEES),
        *immutable(
            "runtimeRef",
            "teacher",
            "teachers",
            "student",
            "dataset",
            "artifacts",
            "preflight",
            "recipe",
            "stages",
            "scheduling.nodeSelector",
            "scheduling.tolerations",
            "failurePolicy",
            "activeDeadlineSeconds",
            "pendingDeadlineSeconds",
        ),
    )
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (("teacher", "teachers"), ("recipe", "stages"))

    suspend: Annotated[bool, Unkeyed] = False
    """Ends the job's pods after a checkpoint; created with true, no pod starts."""
    runtime_ref: NameReference | None = None
    """The ClusterDistillationRuntime; absent takes the default one."""
    teacher: Teacher | None = None
    """The teacher, where a stage asks one."""
    teachers: Annotated[tuple[NamedTeacher, ...], Field(min_length=1, max_length=8)] | None = None
    """Several teachers; each asking stage names one."""
    student: Student
    """The model that learns."""
    dataset: Dataset
    """What is learned from."""
    artifacts: Artifacts
    """Where artifacts are stored."""
    preflight: Preflight = Preflight()
    """Cheap checks before dear work."""
    recipe: Recipe | None = None
    """A named list of stages, instead of stages."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=16)] = ()
    """What is done, in order."""
    scheduling: Scheduling = Scheduling()
    """Where and when pods run."""
    failure_policy: FailurePolicy = FailurePolicy()
    """How often a stage is tried."""
    budget: Budget | None = None
    """How much the job may use."""
    active_deadline_seconds: Annotated[Seconds | None, Unkeyed] = None
    """The job fails if it runs longer; starts again at a resume."""
    pending_deadline_seconds: Annotated[Seconds | None, Unkeyed] = None
    """The job fails if it waits longer for its first pod."""
    retention: Retention = Retention()
    """What is kept after the end."""

    def named_teachers(self) -> dict[str, Teacher]:
        """All teachers by name; the only one of a spec with `teacher` is called `teacher`."""
        if self.teacher is not None:
            return {SINGLE_TEACHER: self.teacher}
        return {teacher.name: teacher for teacher in self.teachers or ()}


class DistillationJob(Model):
    """One run, from a teacher and a dataset to a published student."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(oldSelf.status) || !has(oldSelf.status.admittedTime) || ("
            + unchanged("scheduling.queueName", "self.spec", "oldSelf.spec")
            + ")",
            "cannot change once the job is admitted; suspend the job first",
            "spec.scheduling.queueName",
        ),
    )

    api_version: Annotated[Literal["kubedistill.io/v1alpha1"], Unkeyed] = "kubedistill.io/v1alpha1"
    """kubedistill.io/v1alpha1"""
    kind: Annotated[Literal["DistillationJob"], Unkeyed] = "DistillationJob"
    """DistillationJob"""
    metadata: JobMeta
    """Name, namespace, labels, annotations."""
    spec: DistillationJobSpec
    """What is made, from what, and how it is run."""
    status: Annotated[JobStatus | None, Unkeyed] = None
    """Written by the operator alone."""
