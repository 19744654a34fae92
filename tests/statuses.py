"""One status for every state in the life of a job, and what GitOps tools must make of it.

`python tests/statuses.py` writes the objects as Argo CD's test data (charts/kubedistill/gitops/argocd).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kd_runtime.api.reasons import ConditionType, Reason
from kd_runtime.api.status import (
    ArtifactLinks,
    Attempts,
    Condition,
    Failure,
    JobStatus,
    PlanStatus,
    RowCounts,
    RuntimeStatus,
    StageProgress,
    StageStatus,
    StageTimes,
    TeacherStatus,
    Usage,
)

GITOPS = Path(__file__).parents[1] / "charts" / "kubedistill" / "gitops"
ARGO = GITOPS / "argocd" / "resource_customizations" / "kubedistill.io" / "DistillationJob"
UID = "0a1b2c3d-0000-4000-8000-000000000001"
CREATED = "2026-01-05T10:00:00Z"
STARTED = "2026-01-05T10:00:10Z"
LATER = "2026-01-05T10:30:00Z"
ENDED = "2026-01-05T12:00:00Z"
DIGEST = "d" * 64

C, R = ConditionType, Reason


def condition(kind: ConditionType, status: bool, reason: Reason, message: str = "", generation: int = 1) -> Condition:
    """A condition that has been so since the job began."""
    return Condition(
        type=kind,
        status=str(status),
        observed_generation=generation,
        last_transition_time=STARTED,
        reason=reason,
        message=message,
    )


def at_work(reason: Reason, message: str, *others: Condition) -> tuple[Condition, ...]:
    """Conditions of a job that is on its way: Reconciling, not Ready."""
    return (
        condition(C.Accepted, True, R.Accepted),
        *others,
        condition(C.Reconciling, True, reason, message),
        condition(C.Ready, False, reason, message),
    )


def whole(*, conditions: tuple[Condition, ...], **fields: Any) -> JobStatus:
    """A status with every condition, as the operator writes them: those that were not given are False, for Ready's reason."""
    given = {found.type: found for found in conditions}
    ready = Reason(given[C.Ready].reason)
    planned = fields.get("plan") is not None and fields["plan"].digest is not None
    given.setdefault(C.Planned, condition(C.Planned, planned, R.Planned if planned else R.Planning))
    halted = Reason(given[C.Suspended].reason) if C.Suspended in given else None
    given.setdefault(C.Admitted, condition(C.Admitted, halted is None, halted or R.Admitted))
    given.setdefault(C.ResourcesReleased, condition(C.ResourcesReleased, False, R.Running))
    for kind in ORDER:
        if kind is not C.TeacherReady:
            given.setdefault(kind, condition(kind, False, ready))
    return JobStatus(**fields, conditions=tuple(given[kind] for kind in ORDER if kind in given))


ORDER = (
    C.Accepted, C.Planned, C.Admitted, C.TeacherReady, C.Suspended, C.ResourcesReleased, C.Degraded, C.Reconciling,
    C.Stalled, C.Ready, C.Complete, C.Failed,
)  # fmt: skip


def stages(**states: str) -> tuple[StageStatus, ...]:
    """The stages of `job`, all Waiting but for those given."""
    return tuple(
        StageStatus(name=name, type=kind, state=states.get(name, "Waiting"), attempt=int(name in states))
        for name, kind in STAGES.items()
    )


STAGES = {
    "dataset": "ingest",
    "answers": "generate",
    "logits": "capture",
    "student": "train",
    "exam": "evaluate",
    "release": "publish",
}
PLANNED = condition(C.Planned, True, R.Planned)
ADMITTED = condition(C.Admitted, True, R.Admitted)
TEACHER_READY = condition(C.TeacherReady, True, R.TeacherReady)
RELEASED = condition(C.ResourcesReleased, True, R.ResourcesReleased)
PLAN = PlanStatus(state="Succeeded", attempt=1, digest=DIGEST, estimate="about 12 GPU-hours")
TIMES = StageTimes(queued=STARTED, started=STARTED)
COMMON: dict[str, Any] = {
    "observed_generation": 1,
    "start_time": STARTED,
    "attempts": Attempts(),
    "runtime": RuntimeStatus(name="cuda", hash="h" * 64),
}


def first_write() -> JobStatus:
    """What the operator writes first: seen, not ready."""
    return whole(**COMMON, phase="Pending", conditions=at_work(R.Planning, "the plan pod is not there yet"))


def planning() -> JobStatus:
    """The plan pod resolves and probes."""
    return whole(
        **COMMON,
        phase="Planning",
        plan=PlanStatus(state="Running", attempt=1),
        conditions=at_work(R.Planning, "the plan pod is at work", condition(C.Planned, False, R.Planning)),
    )


def queued() -> JobStatus:
    """A stage's pods have no node yet."""
    waiting = list(stages(dataset="Succeeded", answers="Queued"))
    waiting[1] = waiting[1].model_copy(
        update={"reason": R.Unschedulable, "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}
    )
    return whole(
        **COMMON,
        phase="Queued",
        current_stage="answers",
        plan=PLAN,
        stages=tuple(waiting),
        conditions=at_work(R.Queued, "pods of answers wait for a node", PLANNED),
    )


def waiting_for_peer() -> JobStatus:
    """Another job makes the same artifact."""
    return whole(
        **COMMON,
        phase="Queued",
        current_stage="answers",
        plan=PLAN,
        stages=stages(dataset="Skipped"),
        conditions=at_work(R.WaitingForPeer, "job math-tutor-2 is making answers", PLANNED),
    )


def teacher_starting() -> JobStatus:
    """The teacher loads its weights."""
    return whole(
        **COMMON,
        phase="Running",
        current_stage="answers",
        plan=PLAN,
        stages=stages(dataset="Succeeded", answers="Queued"),
        teachers=(TeacherStatus(name="teacher", state="Starting", attempt=1, ready=0, desired=2),),
        conditions=at_work(
            R.TeacherStarting,
            "0 of 2 replicas answer",
            PLANNED,
            ADMITTED,
            condition(C.TeacherReady, False, R.TeacherStarting),
        ),
    )


def running() -> JobStatus:
    """Training, with progress."""
    states = stages(dataset="Succeeded", answers="Succeeded", logits="Skipped", student="Running")
    return whole(
        **COMMON,
        phase="Running",
        current_stage="student",
        progress="3/6 42%",
        plan=PLAN,
        stages=tuple(_with_figures(stage) for stage in states),
        usage=Usage(gpu_hours="1.5"),
        conditions=at_work(R.Running, "stage student is at work", PLANNED, ADMITTED),
    )


def _with_figures(stage: StageStatus) -> StageStatus:
    done = StageTimes(queued=STARTED, started=STARTED, finished="2026-01-05T10:12:10Z")
    figures: dict[str, dict[str, Any]] = {
        "answers": {"times": done, "rows": RowCounts(in_=2400, done=2393, rejected=7, out=2393)},
        "logits": {"found": True, "attempt": 0},
        "student": {
            "times": TIMES,
            "progress": StageProgress(
                completed=504,
                total=1200,
                unit="steps",
                percent=42,
                eta_seconds=1080,
                tokens_per_second=8123.4,
                loss=0.8721,
            ),
        },
    }
    return stage.model_copy(update=figures.get(stage.name, {}))


def backoff() -> JobStatus:
    """An attempt failed; the next waits."""
    failed = Failure(
        class_="Storage",
        pod="math-tutor-answers-0a1b2-1-0-x7k2p",
        container="stage",
        exit_code=74,
        node="node-3",
        time=LATER,
    )
    state = StageStatus(
        name="answers",
        type="generate",
        state="Backoff",
        attempt=1,
        failures=1,
        reason=R.StorageUnavailable,
        message="s3://team-a/kd/: 503 SlowDown for 60 s",
        next_attempt_time="2026-01-05T10:31:00Z",
        last_failure=failed,
    )
    others = stages(dataset="Succeeded")
    return whole(
        **{**COMMON, "attempts": Attempts(counted=1)},
        phase="Running",
        current_stage="answers",
        plan=PLAN,
        stages=(others[0], state, *others[2:]),
        conditions=at_work(
            R.Backoff,
            "stage answers is tried again after a pause",
            PLANNED,
            condition(
                C.Degraded, True, R.StorageUnavailable, "answers: pod math-tutor-answers-0a1b2-1-0-x7k2p ended with 74"
            ),
        ),
    )


def suspending() -> JobStatus:
    """Training writes its checkpoint."""
    return whole(
        **COMMON,
        phase="Suspending",
        current_stage="student",
        plan=PLAN,
        stages=stages(dataset="Succeeded", answers="Succeeded", logits="Succeeded", student="Draining"),
        conditions=at_work(
            R.Draining, "stage student writes a checkpoint", PLANNED, condition(C.Suspended, False, R.Draining)
        ),
    )


def suspended(reason: Reason = R.Suspended, message: str = "spec.suspend is true") -> JobStatus:
    """No pod is left, and none is made."""
    return whole(
        **COMMON,
        phase="Suspended",
        current_stage="student",
        plan=PLAN,
        stages=stages(dataset="Succeeded", answers="Succeeded", logits="Succeeded"),
        conditions=(
            condition(C.Accepted, True, R.Accepted),
            PLANNED,
            RELEASED,
            condition(C.Suspended, True, reason, message),
            condition(C.Reconciling, False, reason),
            condition(C.Ready, False, reason, message),
        ),
    )


def over_budget() -> JobStatus:
    """Suspended by its budget, not by its spec."""
    return suspended(R.BudgetExceeded, "200 of 200 GPU-hours are used")


def succeeded() -> JobStatus:
    """All is done."""
    return whole(
        **COMMON,
        phase="Succeeded",
        completion_time=ENDED,
        progress="6/6",
        plan=PLAN,
        stages=stages(**dict.fromkeys(STAGES, "Succeeded")),
        usage=Usage(gpu_hours="11.9"),
        artifacts=ArtifactLinks(student="s3://models/math-tutor/", report=f"s3://team-a/kd/reports/{DIGEST}.html"),
        conditions=(
            condition(C.Accepted, True, R.Accepted),
            PLANNED,
            RELEASED,
            condition(C.Reconciling, False, R.Succeeded),
            condition(C.Complete, True, R.Succeeded, "6 stages are done"),
            condition(C.Ready, True, R.Succeeded, "6 stages are done"),
        ),
    )


OUT_OF_MEMORY = "pod math-tutor-student-0a1b2-1-0-zz9qk ended with 72 (OOMKilled) at its limit of 400Gi"


def failed(
    reason: Reason = R.HostOutOfMemory, message: str = OUT_OF_MEMORY, class_: str = "HostOutOfMemory"
) -> JobStatus:
    """A stage failed for good."""
    failure = Failure(
        class_=class_, pod="math-tutor-student-0a1b2-1-0-zz9qk", container="stage", exit_code=137, signal=9,
        reason="OOMKilled", node="node-3", time=LATER,
    )  # fmt: skip
    done = stages(dataset="Succeeded", answers="Succeeded", logits="Succeeded")
    state = StageStatus(
        name="student", type="train", state="Failed", attempt=1, reason=reason, message=message, last_failure=failure
    )
    return whole(
        **COMMON,
        phase="Failed",
        completion_time=ENDED,
        plan=PLAN,
        stages=(*done[:3], state, *done[4:]),
        conditions=(
            condition(C.Accepted, True, R.Accepted),
            PLANNED,
            RELEASED,
            condition(C.Reconciling, False, reason),
            condition(C.Stalled, True, reason, message),
            condition(C.Failed, True, reason, message),
            condition(C.Ready, False, reason, message),
        ),
    )


def runtime_missing() -> JobStatus:
    """The runtime that the job names is not there, and may come."""
    said = (R.RuntimeMissing, "no ClusterDistillationRuntime is called cuda")
    return whole(
        **COMMON,
        phase="Pending",
        conditions=(
            condition(C.Accepted, False, *said),
            condition(C.Degraded, True, *said),
            condition(C.Reconciling, True, *said),
            condition(C.Ready, False, *said),
        ),
    )


REFUSAL = "spec.stages[2].resources: 16 GPUs with its teacher exceeds 8, the limit of the runtime cuda; ask for less"


def refused() -> JobStatus:
    """The runtime does not allow it: nothing was created."""
    return whole(
        **COMMON,
        phase="Failed",
        completion_time=STARTED,
        conditions=(
            condition(C.Accepted, False, R.NotAllowed, REFUSAL),
            condition(C.Stalled, True, R.NotAllowed, REFUSAL),
            condition(C.Failed, True, R.NotAllowed, REFUSAL),
            condition(C.Ready, False, R.NotAllowed, REFUSAL),
        ),
    )


@dataclass(frozen=True)
class Case:
    """A state, and what the tools must say of it."""

    name: str
    status: JobStatus | None
    kstatus: str
    """InProgress, Current, Failed or Terminating: what `kubectl wait`-like tools and Flux's default say."""
    argo: str
    """Healthy, Progressing, Degraded or Suspended."""
    argo_message: str
    flux: str | None
    """By our healthCheckExprs; None: they cannot be evaluated yet, so that Flux waits."""
    metadata: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The object as the API server holds it."""
        return job(self.status, metadata=self.metadata, spec=self.spec)


def job(
    status: JobStatus | None, *, metadata: dict[str, Any] | None = None, spec: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A DistillationJob of these stages with that status."""
    document: dict[str, Any] = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {
            "name": "math-tutor",
            "namespace": "default",
            "uid": UID,
            "generation": 1,
            "resourceVersion": "100",
            "creationTimestamp": CREATED,
            **(metadata or {}),
        },
        "spec": {
            "runtimeRef": {"name": "cuda"},
            "teacher": {
                "hosted": {
                    "model": {"uri": "s3://models/teacher/"},
                    "engine": "VLLM",
                    "dtype": "bfloat16",
                    "maxModelLen": 4096,
                }
            },
            "student": {"model": {"uri": "s3://models/student/"}},
            "dataset": {"uri": "s3://data/questions.jsonl", "format": "JSONL", "fields": {"prompt": "question"}},
            "artifacts": {"uri": "s3://team-a/kd/"},
            "stages": [
                {"name": "answers", "workers": 2, "generate": {"sampling": {"maxTokens": 256, "seed": 7}}},
                {"name": "logits", "capture": {"profile": "Exact", "topK": 32}},
                {
                    "name": "student",
                    "train": {
                        "method": "KD",
                        "epochs": 1,
                        "globalBatchSize": 64,
                        "maxLength": 1024,
                        "precision": "bf16",
                    },
                },
                {"name": "exam", "evaluate": {"suites": [{"name": "HeldOut"}], "gates": [GATE]}},
                {"name": "release", "publish": {"targets": [{"uri": "s3://models/math-tutor/"}]}},
            ],
            **(spec or {}),
        },
    }
    if status is not None:
        document["status"] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return document


GATE = {"metric": "recoveredGap", "of": "KL", "op": "AtLeast", "value": 0.5}
SUSPEND = {"suspend": True}
UNSEEN = "Waiting for the operator to look at the job"
LAG = "Waiting for the operator to look at the newest spec"
CASES: Sequence[Case] = (
    Case("no_status", None, "Current", "Progressing", UNSEEN, None),
    Case("first_write", first_write(), "InProgress", "Progressing", "Planning: the plan pod is not there yet", "InProgress"),
    Case("runtime_missing", runtime_missing(), "InProgress", "Progressing",
         "RuntimeMissing: no ClusterDistillationRuntime is called cuda", "InProgress"),
    Case("planning", planning(), "InProgress", "Progressing", "Planning: the plan pod is at work", "InProgress"),
    Case("queued", queued(), "InProgress", "Progressing", "Queued: pods of answers wait for a node", "InProgress"),
    Case("waiting_for_peer", waiting_for_peer(), "InProgress", "Progressing",
         "WaitingForPeer: job math-tutor-2 is making answers", "InProgress"),
    Case("teacher_starting", teacher_starting(), "InProgress", "Progressing",
         "TeacherStarting: 0 of 2 replicas answer", "InProgress"),
    Case("running", running(), "InProgress", "Progressing", "Running: stage student is at work", "InProgress"),
    Case("backoff", backoff(), "InProgress", "Progressing", "Backoff: stage answers is tried again after a pause", "InProgress"),
    Case("suspending", suspending(), "InProgress", "Progressing", "Draining: stage student writes a checkpoint", "InProgress",
         spec=SUSPEND),
    Case("suspended", suspended(), "InProgress", "Suspended", "Suspended: spec.suspend is true", "InProgress", spec=SUSPEND),
    Case("over_budget", over_budget(), "InProgress", "Suspended", "BudgetExceeded: 200 of 200 GPU-hours are used", "InProgress"),
    Case("succeeded", succeeded(), "Current", "Healthy", "Succeeded: 6 stages are done", "Current"),
    Case("failed", failed(), "Failed", "Degraded", f"HostOutOfMemory: {OUT_OF_MEMORY}", "Failed"),
    Case("refused", refused(), "Failed", "Degraded", f"NotAllowed: {REFUSAL}", "Failed"),
    Case("generation_lag", succeeded(), "InProgress", "Progressing", LAG, "InProgress", metadata={"generation": 2}),
    Case("deleting", running(), "Terminating", "Progressing", "The job is being deleted", "InProgress",
         metadata={"deletionTimestamp": LATER}),
    Case("deleting_a_finished_job", succeeded(), "Terminating", "Progressing", "The job is being deleted", "Current",
         metadata={"deletionTimestamp": LATER}),
)  # fmt: skip
"""Every state of the life of a job."""


def case(name: str) -> Case:
    """The case of that name."""
    return next(one for one in CASES if one.name == name)


def kstatus(document: dict[str, Any]) -> str:
    """What kstatus (Flux, kpt, `cli-utils`) calls a custom resource: Terminating, InProgress, Failed or Current.

    The first of Reconciling and Stalled that is True decides, in the order of the list; then Ready; and an object without
    any of them is Current.
    """
    metadata, status = document["metadata"], document.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    observed = status.get("observedGeneration")
    if observed is not None and observed != metadata["generation"]:
        return "InProgress"
    conditions = status.get("conditions") or []
    for condition in conditions:
        if condition["status"] == "True" and condition["type"] in ("Reconciling", "Stalled"):
            return {"Reconciling": "InProgress", "Stalled": "Failed"}[condition["type"]]
    ready = [condition["status"] for condition in conditions if condition["type"] == "Ready"]
    return "Current" if not ready or ready[0] == "True" else "InProgress"


def argo_tests() -> dict[str, str]:
    """The files of Argo CD's own test layout, by their path below the kind's folder."""
    files = {f"testdata/{one.name}.yaml": yaml.safe_dump(one.document(), sort_keys=False, width=140) for one in CASES}
    tests = [
        {"healthStatus": {"status": one.argo, "message": one.argo_message}, "inputPath": f"testdata/{one.name}.yaml"}
        for one in CASES
    ]
    return files | {"health_test.yaml": yaml.safe_dump({"tests": tests}, sort_keys=False, width=140)}


if __name__ == "__main__":
    for name, text in argo_tests().items():
        (ARGO / name).parent.mkdir(parents=True, exist_ok=True)
        (ARGO / name).write_text(text)
