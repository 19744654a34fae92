"""What is to be done about a job: plain values that `worker` carries out, in the order status, deletes, creates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kd_runtime.api.status import JobStatus

LOOK_AGAIN_SECONDS = 60.0
"""Every unfinished job is looked at again at least so often, but for an idle one (`worker.IDLE_SECONDS`)."""


@dataclass(frozen=True)
class Claim:
    """Which claimed attempt a child belongs to; a live GET confirms it just before each POST."""

    part: str
    """A stage's name, `plan`, or `teacher/<name>`; empty for what belongs to the whole job."""
    attempt: int


@dataclass(frozen=True)
class Create:
    """An object to POST. 409 with our owner uid (or, for Secrets, at all) is success; with another, a name conflict."""

    manifest: dict[str, Any]
    claim: Claim
    secret_key: str | None = None
    """For a Secret: the key of stringData that gets a fresh random value just before the POST."""

    @property
    def child(self) -> str:
        """The object as ``kind/name``."""
        return f"{self.manifest['kind']}/{self.manifest['metadata']['name']}"


@dataclass(frozen=True)
class Delete:
    """An object to delete, with its pods (background propagation); 404 is success. ``uid`` is a precondition."""

    kind: str
    """Job, Deployment, Service, ConfigMap, NetworkPolicy, Secret, Pod or DistillationJob."""
    name: str
    uid: str | None = None
    grace_seconds: int | None = None


@dataclass(frozen=True)
class EventNote:
    """An event on the job; equal ones are counted, not repeated."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """The whole of it. An attempt's children are in ``create`` only once an earlier pass has written its claim."""

    status: JobStatus | None = None
    """The new status; None: leave it as it is."""
    create: tuple[Create, ...] = ()
    delete: tuple[Delete, ...] = ()
    events: tuple[EventNote, ...] = ()
    requeue_after: float | None = LOOK_AGAIN_SECONDS
    """Seconds until the next look, events aside; None: no look is needed (finished, nothing due)."""
    waits_for_peers: bool = False
    """Look again as soon as another job of the namespace changes."""
