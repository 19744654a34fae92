"""What is known of a job when one asks why it does not run: the job, its pods, the events about it and them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kd_runtime.api.failures import DeniedError
from kd_runtime.remote.cluster import Cluster, Document
from kd_runtime.remote.jobs import RemoteJob, find_job, moment
from kd_runtime.remote.plain import line
from kd_runtime.remote.pods import CORE, Pod, list_pods


@dataclass(frozen=True)
class Event:
    """Something that happened to the job or to a child of it."""

    about: str
    """`Job/math-tutor-answers-1a2b3-1`."""
    type: str
    reason: str
    message: str
    count: int
    last: datetime | None

    @property
    def warning(self) -> bool:
        """It is no good news."""
        return self.type == "Warning"


@dataclass(frozen=True)
class Evidence:
    """All of it, at one moment."""

    job: RemoteJob
    pods: tuple[Pod, ...] = ()
    events: tuple[Event, ...] = ()
    """The newest first."""
    unread: tuple[str, ...] = ()
    """What this user may not read."""


def gather(cluster: Cluster, name: str) -> Evidence:
    """Read it. What the user may not read is left out and named. Raises NotFound where there is no such job."""
    job, unread = find_job(cluster, name), []
    pods: list[Pod] = []
    events: list[Event] = []
    try:
        pods = list_pods(cluster, job)
    except DeniedError:
        unread.append("pods")
    try:
        events = [_event(one) for one in cluster.list(cluster.url("events", api=CORE)) if concerns(one, job)]
    except DeniedError:
        unread.append("events")
    events.sort(key=lambda event: event.last.timestamp() if event.last else 0.0, reverse=True)
    return Evidence(job, tuple(pods), tuple(events), tuple(unread))


def concerns(event: Document, job: RemoteJob) -> bool:
    """Whether an event is about the job or a child, whose names all hold the first five characters of its uid."""
    about = event.get("involvedObject") or {}
    name = str(about.get("name", ""))
    if about.get("kind") == "DistillationJob":
        return name == job.name and about.get("uid") in (None, "", job.uid)
    return name.startswith(f"{job.name}-") and f"-{job.uid[:5]}" in name


def _event(document: Document) -> Event:
    about = document.get("involvedObject") or {}
    series = document.get("series") or {}
    last = series.get("lastObservedTime") or document.get("lastTimestamp") or document.get("eventTime")
    return Event(
        f"{about.get('kind')}/{about.get('name')}",
        str(document.get("type", "")),
        line(str(document.get("reason", ""))),
        line(str(document.get("message", ""))),
        int(series.get("count") or document.get("count") or 1),
        moment(last or document["metadata"].get("creationTimestamp")),
    )
