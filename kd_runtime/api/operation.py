"""Settings of a job that say how it is run, not what it makes: store, preflight, scheduling, failures, budget, retention."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from kd_runtime.api.classes import Structural, Unkeyed
from kd_runtime.api.model import LocalName, Model, NameReference, ObjectName, Quantity, Ratio, Rule, S3Endpoint, Seconds


class Artifacts(Model):
    """The object store: every stage's artifact lies in it."""

    uri: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^(s3://[^/].*|file://.+|[^:]+)$"), Unkeyed]
    """s3://BUCKET/PREFIX/, or (locally) file:// and relative paths."""
    endpoint: Annotated[S3Endpoint | None, Unkeyed] = None
    """Address of an S3 server that is not Amazon's."""
    region: Annotated[Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[-a-z0-9]+$")] | None, Unkeyed] = (
        None
    )
    """Region of the bucket."""
    credentials_secret_ref: NameReference | None = None
    """A Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where there is one, AWS_SESSION_TOKEN."""
    service_account_name: Annotated[ObjectName | None, Unkeyed] = None
    """A ServiceAccount with rights of its own to the bucket, instead of a Secret."""


class PreflightMode(StrEnum):
    """Whether cheap checks come before dear work."""

    Auto = "Auto"
    Off = "Off"


class Preflight(Model):
    """Cheap before dear: a few rows and one step before the rest."""

    mode: Annotated[PreflightMode, Unkeyed] = PreflightMode.Auto
    """Off skips both."""
    smoke_rows: Annotated[int, Field(ge=1, le=256), Unkeyed] = 16
    """Rows that a teacher is asked before all others."""
    min_passed_ratio: Annotated[Ratio, Unkeyed] = 0.9
    """Share of them that must be done."""
    train_step: Annotated[bool, Unkeyed] = True
    """Take one step on the longest batch first, in processes of its own."""


class Recipe(Model):
    """A named list of stages, instead of `stages`."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][-._A-Za-z0-9]*$"), Structural]
    """Name of the recipe."""
    params: Annotated[dict[str, Any], Structural] = Field(default_factory=dict)
    """The recipe's own settings."""


class Resources(Model):
    """What a stage's pods get; without effect on a laptop."""

    nodes: Annotated[int, Field(ge=1, le=1024), Unkeyed] = 1
    """Pods of a train stage."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64), Unkeyed] = 0
    """GPUs of each."""
    cpu: Annotated[Quantity | None, Unkeyed] = None
    """CPU of each, such as "32"."""
    memory: Annotated[Quantity | None, Unkeyed] = None
    """Memory of each, such as 400Gi."""


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    Exists = "Exists"
    Equal = "Equal"


class TaintEffect(StrEnum):
    """Which taints a toleration is about."""

    NoSchedule = "NoSchedule"
    PreferNoSchedule = "PreferNoSchedule"
    NoExecute = "NoExecute"


class Toleration(Model):
    """A taint of nodes that the job's pods tolerate."""

    key: Annotated[LocalName | None, Unkeyed] = None
    """The taint's key; absent is any."""
    operator: Annotated[TolerationOperator, Unkeyed] = TolerationOperator.Equal
    """Exists ignores the value."""
    value: Annotated[LocalName | None, Unkeyed] = None
    """The taint's value."""
    effect: Annotated[TaintEffect | None, Unkeyed] = None
    """The taint's effect; absent is any."""
    toleration_seconds: Annotated[Seconds | None, Unkeyed] = None
    """How long a NoExecute taint is tolerated."""


Labels = Annotated[dict[Annotated[str, Field(max_length=317)], LocalName], Field(max_length=64)]


class Scheduling(Model):
    """Where and when the job's pods run; without effect on a laptop."""

    queue_name: Annotated[ObjectName | None, Unkeyed] = None
    """A Kueue LocalQueue; may change until the job is admitted."""
    priority_class_name: Annotated[ObjectName | None, Unkeyed] = None
    """A PriorityClass that the runtime allows."""
    node_selector: Annotated[Labels, Unkeyed] = Field(default_factory=dict)
    """Labels of the nodes."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that are tolerated."""


class Backoff(Model):
    """The wait before an attempt: it doubles from base to max."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.baseSeconds) || !has(self.maxSeconds) || self.baseSeconds <= self.maxSeconds",
            "exceeds maxSeconds; lower it",
            "baseSeconds",
        ),
    )

    base_seconds: Annotated[Annotated[int, Field(ge=1, le=86_400)], Unkeyed] = 30
    """Before the second attempt."""
    max_seconds: Annotated[Annotated[int, Field(ge=1, le=86_400)], Unkeyed] = 1800
    """At most."""


class FailurePolicy(Model):
    """How often a stage is tried."""

    backoff_limit: Annotated[int, Field(ge=0, le=100), Unkeyed] = 3
    """Attempts of a stage after its first, disruptions aside."""
    disruption_limit: Annotated[int, Field(ge=0, le=10_000), Unkeyed] = 20
    """Free attempts after a lost node, a preemption or a drain."""
    backoff: Backoff = Backoff()
    """The wait between attempts."""


class OnExceeded(StrEnum):
    """What happens to a job that used up its budget."""

    Suspend = "Suspend"
    Fail = "Fail"


class Budget(Model):
    """How much a job may use."""

    max_gpu_hours: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[0-9]+(\.[0-9]{1,3})?$"), Unkeyed]
    """GPU hours of all pods, as a string: "200"."""
    on_exceeded: Annotated[OnExceeded, Unkeyed] = OnExceeded.Suspend
    """Suspend drains and waits for a larger budget; Fail ends the job."""


class Retention(Model):
    """What is kept after the end."""

    ttl_seconds_after_finished: Annotated[Seconds | None, Unkeyed] = None
    """The job object is deleted so long after its end; absent keeps it."""
    keep_pods_on_failure_seconds: Annotated[Seconds, Unkeyed] = 3600
    """Failed pods stay so long, for a look at them."""
