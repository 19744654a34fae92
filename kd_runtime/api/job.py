"""DistillationJob: one run, from a teacher and a dataset to a published student."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kd_runtime.api.classes import Structural, Unkeyed
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
    Seconds,
    SecretReference,
    StageName,
    StageReference,
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

StageBody = Prepare | Synthesize | Generate | Capture | Train | Compress | Evaluate | Publish
BODIES: tuple[str, ...] = (
    "prepare",
    "synthesize",
    "generate",
    "capture",
    "train",
    "compress",
    "evaluate",
    "publish",
)
"""The stage types that a manifest may name."""
SINGLE_TEACHER = "teacher"
"""What plans call the teacher of a spec that has just one."""


class CacheMode(StrEnum):
    """Whether an artifact that is there is used again."""

    Auto = "Auto"
    Never = "Never"


class StageInputs(Model):
    """Names of the earlier stages that a stage reads, where the default is not meant."""

    rows: Annotated[StageReference | None, Structural] = None
    """Rows: of generate, synthesize, or `dataset`."""
    logits: Annotated[StageReference | None, Structural] = None
    """Logits: of capture."""
    model: Annotated[StageReference | None, Structural] = None
    """A model: of prepare, train or compress."""


class Stage(Model):
    """One stage: a name, what it reads, and exactly one body."""

    name: Annotated[StageName, Structural]
    """A lower-case word of at most 16 letters and digits."""
    inputs: StageInputs = StageInputs()
    """Default: the newest earlier stage that makes what is read, else the spec's."""
    teacher: Annotated[StageName | None, Structural] = None
    """Which of `teachers` is asked."""
    workers: Annotated[int, Field(ge=1, le=1024), Unkeyed] = 1
    """Processes that share the work; generate and capture only."""
    resources: Resources = Resources()
    """What the stage's pods get."""
    timeout_seconds: Annotated[Seconds | None, Unkeyed] = None
    """A longer attempt is ended."""
    stall_timeout_seconds: Annotated[Seconds, Unkeyed] = 1800
    """An attempt without progress for so long is ended (exit 75)."""
    cache: Annotated[CacheMode, Structural] = CacheMode.Auto
    """Never makes the artifact anew for each job: the job's uid enters the key."""
    prepare: Prepare | None = None
    """Makes the model that training starts from."""
    synthesize: Synthesize | None = None
    """Makes new prompts."""
    generate: Generate | None = None
    """Asks the teacher for answers."""
    capture: Capture | None = None
    """Asks the teacher for logits."""
    train: Train | None = None
    """Trains the student."""
    compress: Compress | None = None
    """Quantises a model."""
    evaluate: Evaluate | None = None
    """Examines a model."""
    publish: Publish | None = None
    """Copies a model to where it is used."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (BODIES,)

    @property
    def type(self) -> str:
        """Which body is set: `prepare`, `generate`, …"""
        return next(name for name in BODIES if getattr(self, name) is not None)

    @property
    def body(self) -> StageBody:
        """The body that is set."""
        body: StageBody = getattr(self, self.type)
        return body

    @property
    def asks_teacher(self) -> bool:
        """True where the stage needs a running teacher."""
        if self.train is not None:
            return self.train.method is TrainMethod.OnPolicyKD
        return self.type in ("synthesize", "generate", "capture")


class Student(Model):
    """The model that learns."""

    model: ModelSource
    """Weights, tokenizer and configuration that training starts from."""


class DistillationJobSpec(Model):
    """What is made, from what, and how it is run."""

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
    """A DistillationJob."""

    api_version: Annotated[Literal["kubedistill.io/v1alpha1"], Unkeyed] = "kubedistill.io/v1alpha1"
    """kubedistill.io/v1alpha1"""
    kind: Annotated[Literal["DistillationJob"], Unkeyed] = "DistillationJob"
    """DistillationJob"""
    metadata: JobMeta
    """Name, namespace, labels, annotations."""
    spec: DistillationJobSpec
    """What is made, from what, and how it is run."""
