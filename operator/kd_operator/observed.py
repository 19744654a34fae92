"""What is seen of a job and its children at one moment: plain values, read live, that `decide` decides on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kd_runtime.api.job import DistillationJob
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.status import JobStatus, StageProgress


@dataclass(frozen=True)
class JobSeen:
    """A DistillationJob as the API server holds it."""

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    created: datetime
    deleting: bool
    suspend: bool
    annotations: dict[str, str]
    labels: dict[str, str]
    status: JobStatus
    document: dict[str, Any]
    """The object itself, for the ConfigMap that keeps it."""
    spec: DistillationJob | None
    """With the runtime's defaults; None where it is not valid or its runtime is missing."""
    errors: tuple[str, ...] = ()
    """Why it is not valid, or not allowed: sentences with field, value and remedy."""
    refusal: str | None = None
    """RuntimeMissing, InvalidSpec or NotAllowed where ``spec`` is None or something is not allowed."""


@dataclass(frozen=True)
class RuntimeSeen:
    """The runtime that the job runs by: the one pinned in its ConfigMap, else the live one."""

    runtime: ClusterDistillationRuntime
    hash: str
    """As this version reads it: of what another one wrote it may differ from the status', which that one took."""
    pinned: bool
    """True where it was read from the job's ConfigMap."""
    live_hash: str | None
    """Of the live runtime of that name; None where it is gone."""


@dataclass(frozen=True)
class Ending:
    """How a container ended."""

    exit_code: int
    signal: int | None
    reason: str
    """OOMKilled, Error, Completed, …"""
    message: str
    """The termination message: a result file's JSON, or nothing."""
    finished: datetime | None
    started: datetime | None = None


@dataclass(frozen=True)
class PodSeen:
    """A pod of the job."""

    name: str
    uid: str
    owner_uid: str | None
    """Of its controller: the batch Job, or the Deployment's ReplicaSet."""
    component: str
    """plan, teacher, workers, trainer or tools."""
    stage: str
    """The stage's name, `plan`, or the teacher's name."""
    attempt: int
    phase: str
    index: int = 0
    node: str | None = None
    node_ready: bool = True
    """False where its node is gone or not ready."""
    node_since: datetime | None = None
    """Since when it is so."""
    scheduled: datetime | None = None
    """When it got its node, or else was made."""
    gpus: int = 0
    gpu_flavor: str = ""
    """The node's name for its GPUs; else the one that it was to have by its nodeSelector, or the resource's."""
    started: datetime | None = None
    """When its container began to run."""
    ready: bool = False
    restarts: int = 0
    ending: Ending | None = None
    """Of its container, where it has ended."""
    last_ending: Ending | None = None
    """Of its container's previous run, where it was started again."""
    waiting: str = ""
    """ImagePullBackOff, CreateContainerConfigError, CrashLoopBackOff, …"""
    waiting_message: str = ""
    unschedulable: str = ""
    """What the scheduler says."""
    deleted_at: datetime | None = None
    """Its deletionTimestamp: when its grace is over."""
    disrupted: bool = False
    """It has the condition DisruptionTarget."""
    disruption: str = ""
    """That condition's reason: DeletionByTaintManager, EvictionByEvictionAPI, PreemptionByScheduler, …"""
    pod_reason: str = ""
    """status.reason: Evicted, NodeLost, UnexpectedAdmissionError, …"""
    pod_message: str = ""
    """status.message: what its node says of it."""
    owner_name: str = ""
    """Of its controller."""
    kept_by: str = ""
    """A container that runs on after its own has ended, so that the pod does not end: somebody's sidecar."""

    @property
    def alive(self) -> bool:
        """True while it may hold a GPU or write: Pending, Running, Unknown, or still Terminating."""
        return self.phase not in ("Succeeded", "Failed") or self.deleted_at is not None


@dataclass(frozen=True)
class MainChild:
    """A batch Job or a Deployment of the job: the one object whose uid an attempt records."""

    kind: str
    """Job or Deployment."""
    name: str
    uid: str
    owner_uid: str | None
    component: str
    stage: str
    attempt: int
    created: datetime
    deleting: bool = False
    complete: bool = False
    """A Job's condition Complete (or SuccessCriteriaMet)."""
    failed: bool = False
    """A Job's condition Failed (or FailureTarget)."""
    failed_reason: str = ""
    failed_message: str = ""
    completions: int = 1
    """How many of a Job's pods have to end well."""
    succeeded: int = field(default=0, compare=False)
    """How many have, by its controller's count: pods that did may be gone."""
    counted: datetime | None = field(default=None, compare=False)
    """When its controller last counted its pods anew; it changes with every count, and so is no news of its own."""
    ready: int = 0
    """A Deployment's ready replicas."""
    desired: int = 0


def version_of(text: str) -> int:
    """A resourceVersion as a number: of two of one kind of object the later is greater, by Kubernetes' API conventions."""
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class PeerSeen:
    """Another job of the namespace that is neither finished nor suspended nor being deleted."""

    name: str
    uid: str
    created: datetime
    claimed: frozenset[str]
    """Keys of stages that it has claimed: Queued, Starting, Running, Draining or Backoff. Of a job that is not
    reconciled only those whose pods are there: nothing else of it goes on."""
    begun: frozenset[str] = frozenset()
    """Those of them whose children it has made."""
    disabled: bool = False
    """It is not reconciled, by its annotation."""


@dataclass(frozen=True)
class Observed:
    """Everything that lives of one job."""

    job: JobSeen
    runtime: RuntimeSeen | None
    children: tuple[MainChild, ...] = ()
    pods: tuple[PodSeen, ...] = ()
    services: frozenset[str] = frozenset()
    """Names of the job's Services."""
    config: bool = False
    """Whether the job's ConfigMap is there."""
    network: bool = False
    """Whether its NetworkPolicy is there."""
    conflicts: tuple[str, ...] = ()
    """Objects that have a child's name and another owner, as ``kind/name``."""
    refused: dict[str, str] = field(default_factory=dict)
    """Children, as ``kind/name``, that the API server refused to make when last asked, each with its words."""
    peers: tuple[PeerSeen, ...] | None = ()
    """None: they were not read, as nothing is about to be claimed."""
    progress: dict[str, StageProgress] = field(default_factory=dict)
    """By stage: what its pods last posted, put together."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """By stage: where its newest checkpoint lies in the store, `work/<key>/<writer>/step-<n>/`."""
    progress_due: bool = True
    """False within 60 s of the last status that was written for progress alone."""
