"""Pods of a job, as the API server holds them: which part of the job they belong to, and how they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.remote.cluster import Cluster, Document
from kd_runtime.remote.jobs import RemoteJob
from kd_runtime.remote.plain import line

CORE = "/api/v1"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Pod:
    """One pod."""

    document: Document

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.document["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return self.document["metadata"].get("labels") or {}

    @property
    def stage(self) -> str:
        """The stage, `plan`, or the teacher's name."""
        return self.labels.get(STAGE_LABEL, "")

    @property
    def component(self) -> str:
        """plan, teacher, workers, trainer or tools."""
        return self.labels.get(COMPONENT_LABEL, "")

    @property
    def attempt(self) -> int:
        """The attempt it belongs to."""
        text = self.labels.get(ATTEMPT_LABEL, "0")
        return int(text) if text.isdigit() else 0

    @property
    def index(self) -> int | None:
        """Its index in an Indexed Job."""
        metadata = self.document["metadata"]
        text = (metadata.get("annotations") or {}).get(INDEX_ANNOTATION) or self.labels.get(INDEX_ANNOTATION)
        return int(text) if text and text.isdigit() else None

    @property
    def status(self) -> dict[str, Any]:
        """What the node says of it."""
        return self.document.get("status") or {}

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded, Failed or Unknown."""
        return str(self.status.get("phase", "Unknown"))

    @property
    def over(self) -> bool:
        """It will write nothing more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Status of every container, of those that start before the others first."""
        return [*(self.status.get("initContainerStatuses") or []), *(self.status.get("containerStatuses") or [])]

    @property
    def started(self) -> bool:
        """A container has run, so that there is a log."""
        return any(
            {"running", "terminated"} & set(one.get("state") or {}) or one.get("lastState") for one in self.containers
        )

    @property
    def main_container(self) -> str | None:
        """Whose log it is about."""
        containers = (self.document.get("spec") or {}).get("containers") or []
        return str(containers[0]["name"]) if containers else None

    @property
    def unschedulable(self) -> str:
        """What the scheduler says."""
        for condition in self.status.get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                return line(str(condition.get("message") or condition.get("reason") or ""))
        return ""


def list_pods(cluster: Cluster, job: RemoteJob) -> list[Pod]:
    """All pods of the job that are still there, oldest first; not those of an earlier job of its name."""
    selector = f"{JOB_LABEL}={job.name},{UID_LABEL}={job.uid}"
    found = cluster.list(cluster.url("pods", api=CORE), labelSelector=selector)
    return [Pod(one) for one in sorted(found, key=lambda d: str(d["metadata"].get("creationTimestamp", "")))]
