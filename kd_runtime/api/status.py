"""The status of a DistillationJob. No enums: a value that a later version adds must not make an object unreadable."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from kd_runtime.api.model import ListMap, Model, Rule

Word = Annotated[str, Field(max_length=64)]
Sentence = Annotated[str, Field(max_length=1024)]
Digest = Annotated[str, Field(max_length=128)]
Uri = Annotated[str, Field(max_length=2048)]
Time = Annotated[str, Field(max_length=64)]
Count = Annotated[int, Field(ge=0)]


class StatusModel(Model):
    """A part of the status; what a later version added is passed over."""

    model_config = ConfigDict(extra="ignore")

    rules: ClassVar[tuple[Rule, ...]] = ()


class Condition(StatusModel):
    """A condition, of the shape that all of Kubernetes uses."""

    type: Annotated[str, Field(max_length=64)]
    """Accepted, Planned, Admitted, TeacherReady, Reconciling, Stalled, Suspended, Degraded, Ready, Complete, Failed, …"""
    status: Word
    """True, False or Unknown."""
    observed_generation: Count | None = None
    """The generation that it is about."""
    last_transition_time: Time
    """When its status last changed."""
    reason: Word
    """One word; docs/ has a remedy for each."""
    message: Sentence = ""
    """One sentence."""


class Attempts(StatusModel):
    """How often stages were tried."""

    counted: Count = 0
    """Attempts that count towards backoffLimit."""
    disruptions: Count = 0
    """Attempts that were disrupted, which are free."""


class RuntimeStatus(StatusModel):
    """The runtime as it was at the job's start."""

    name: Annotated[str, Field(max_length=253)] | None = None
    """Its name."""
    hash: Digest | None = None
    """Its hash."""


class Failure(StatusModel):
    """How an attempt ended."""

    class_: Annotated[Word | None, Field(alias="class")] = None
    """The exit class."""
    pod: Annotated[str, Field(max_length=253)] | None = None
    """The pod that tells."""
    container: Annotated[str, Field(max_length=253)] | None = None
    """Its container."""
    exit_code: int | None = None
    """Its exit code."""
    signal: int | None = None
    """The signal that ended it."""
    reason: Word | None = None
    """One word."""
    node: Annotated[str, Field(max_length=253)] | None = None
    """Where it ran."""
    time: Time | None = None
    """When."""


class Repeated(StatusModel):
    """A failure that keeps coming at one place: three times is poison."""

    class_: Annotated[Word, Field(alias="class")]
    """The exit class."""
    position: Word
    """Where: `step 12`, `unit 3`."""
    count: Count = 0
    """How often in a row."""


class RunStatus(StatusModel):
    """What the plan, a stage and a teacher have in common: an attempt is claimed here before its children exist."""

    state: Word | None = None
    """Waiting, Queued, Starting, Running, Draining, Backoff, Succeeded, Skipped or Failed."""
    attempt: Count = 0
    """The newest attempt that was claimed."""
    child_uid: Word | None = None
    """Uid of its main child, once it was seen."""
    failures: Count = 0
    """Attempts that failed and count."""
    disruptions: Count = 0
    """Attempts that were disrupted, which are free."""
    lost: Count = 0
    """Results that were lost in a row."""
    repeated: Repeated | None = None
    """A failure that came again at the same place."""
    next_attempt_time: Time | None = None
    """Before then no attempt is claimed."""
    reason: Word | None = None
    """One word."""
    message: Sentence | None = None
    """One sentence."""
    last_failure: Failure | None = None
    """How the last failed attempt ended."""


class PlanStatus(RunStatus):
    """The plan of the job, and the pod that looks it up."""

    digest: Digest | None = None
    """Its digest."""
    estimate: Sentence | None = None
    """What it will cost, in words."""
    retry: Annotated[str, Field(max_length=253)] | None = None
    """The retry annotation that the newest attempt carries out."""


class TeacherStatus(RunStatus):
    """A hosted teacher."""

    name: Word
    """Its name."""
    url: Uri | None = None
    """Where it answers."""
    ready: Count = 0
    """Replicas that answer."""
    desired: Count = 0
    """Replicas that are wanted."""


class StageProgress(StatusModel):
    """How far a stage is."""

    completed: Count = 0
    """Units done."""
    total: Count = 0
    """Units in all."""
    unit: Word | None = None
    """What a unit is: rows, steps."""
    percent: Count = 0
    """Share done."""
    eta_seconds: Count | None = None
    """Seconds until the end."""
    tokens_per_second: float | None = None
    """Speed."""
    loss: float | None = None
    """Training loss."""


class RowCounts(StatusModel):
    """Rows of a stage: in = done + rejected."""

    in_: Annotated[Count, Field(alias="in")] = 0
    """Rows read."""
    done: Count = 0
    """Rows done."""
    rejected: Count = 0
    """Rows rejected."""
    out: Count = 0
    """Rows written."""


class Metric(StatusModel):
    """A figure of a stage."""

    name: Annotated[str, Field(max_length=128)]
    """Its name."""
    value: float
    """Its value."""


class CheckpointStatus(StatusModel):
    """The newest checkpoint."""

    uri: Uri | None = None
    """Where it lies."""
    step: Count = 0
    """Its step."""
    time: Time | None = None
    """When it was told of."""


class StageTimes(StatusModel):
    """When a stage began and ended."""

    queued: Time | None = None
    """When it could begin."""
    started: Time | None = None
    """When its first pod ran."""
    finished: Time | None = None
    """When it ended."""


class StageStatus(RunStatus):
    """A stage."""

    name: Word
    """Its name."""
    type: Word | None = None
    """Its type."""
    found: bool = False
    """Whether its artifact was there already."""
    key: Digest | None = None
    """Its key."""
    manifest_sha256: Digest | None = None
    """sha256 of its artifact's manifest."""
    uri: Uri | None = None
    """Where its artifact lies."""
    times: StageTimes | None = None
    """When it began and ended."""
    progress: StageProgress | None = None
    """How far it is."""
    rows: RowCounts | None = None
    """Its rows."""
    metrics: Annotated[tuple[Metric, ...], Field(max_length=32)] = ()
    """Figures."""
    gates_unmet: Annotated[tuple[Sentence, ...], Field(max_length=16)] = ()
    """Gates that the evaluated model does not reach."""
    checkpoint: CheckpointStatus | None = None
    """Its newest checkpoint."""
    gpu_seconds: Count = 0
    """GPU seconds so far."""


class Usage(StatusModel):
    """What the job used."""

    gpu_hours: Word | None = None
    """GPU hours, as a string."""
    gpu_seconds_by_flavor: Annotated[dict[str, int], Field(max_length=32)] = Field(default_factory=dict)
    """GPU seconds by kind of GPU."""
    wasted_gpu_seconds: Count = 0
    """GPU seconds of attempts that failed: of training since its last checkpoint, of a teacher that never answered."""
    prompt_tokens: Count = 0
    """Tokens that teachers read."""
    completion_tokens: Count = 0
    """Tokens that teachers wrote."""
    bytes_staged: Count = 0
    """Bytes of the artifacts that its stages made, and of what was published."""
    accounted_time: Time | None = None
    """Until when GPU seconds are counted."""


class ArtifactLinks(StatusModel):
    """Where the results lie."""

    student: Uri | None = None
    """The student."""
    dataset: Uri | None = None
    """The rows it learned from."""
    report: Uri | None = None
    """The report."""
    lineage: Uri | None = None
    """The manifests that lead to it."""


class JobStatus(StatusModel):
    """What the operator says about a job."""

    observed_generation: Count | None = None
    """The generation of the spec that this is about."""
    phase: Word | None = None
    """One word for people; nothing decides by it."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), ListMap("type")] = ()
    """The state, in the shape that all of Kubernetes uses."""
    current_stage: Word | None = None
    """The stage at work."""
    progress: Word | None = None
    """How far it is, in a few words."""
    start_time: Time | None = None
    """When the job was first seen."""
    admitted_time: Time | None = None
    """When its queue admitted it."""
    completion_time: Time | None = None
    """When it ended."""
    attempts: Attempts | None = None
    """How often stages were tried."""
    plan: PlanStatus | None = None
    """The plan."""
    runtime: RuntimeStatus | None = None
    """The runtime as it was at the start."""
    retry: Annotated[str, Field(max_length=253)] | None = None
    """The last retry annotation that was answered."""
    teachers: Annotated[tuple[TeacherStatus, ...], Field(max_length=8), ListMap("name")] = ()
    """Hosted teachers."""
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=17), ListMap("name")] = ()
    """Stages, `dataset` first."""
    usage: Usage | None = None
    """What the job used."""
    artifacts: ArtifactLinks | None = None
    """Where the results lie."""
