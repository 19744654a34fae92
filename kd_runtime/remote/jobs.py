"""A job as the API server holds it, and how it is found by name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.reasons import ConditionType
from kd_runtime.api.status import Condition, JobStatus, RunStatus, StageStatus
from kd_runtime.remote.cluster import JOBS, Cluster, Document, NotFound, near

PLAN = "plan"
TEACHER = "teacher"
DATASET = "dataset"
"""The implicit first stage."""


@dataclass(frozen=True)
class RemoteJob:
    """A DistillationJob with its status parsed."""

    document: Document
    status: JobStatus

    @classmethod
    def of(cls, document: Document) -> RemoteJob:
        """From what the API server answers; a status that this version cannot read is an error that says so."""
        try:
            status = JobStatus.model_validate(document.get("status") or {})
        except ValidationError as wrong:
            raise SettingsError(
                f"job {document['metadata']['name']}: its status is not one that this kd reads ({wrong.errors()[0]['msg']});"
                " use a kd of the operator's version"
            ) from wrong
        return cls(document, status)

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata."""
        found: dict[str, Any] = self.document["metadata"]
        return found

    @property
    def spec(self) -> dict[str, Any]:
        """What was asked."""
        found: dict[str, Any] = self.document.get("spec") or {}
        return found

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.metadata["name"])

    @property
    def uid(self) -> str:
        """Its uid."""
        return str(self.metadata.get("uid", ""))

    @property
    def created(self) -> datetime | None:
        """When it was created."""
        return moment(self.metadata.get("creationTimestamp"))

    @property
    def deleting(self) -> bool:
        """It is being deleted."""
        return bool(self.metadata.get("deletionTimestamp"))

    @property
    def suspend(self) -> bool:
        """What spec.suspend says."""
        return bool(self.spec.get("suspend"))

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations."""
        return self.metadata.get("annotations") or {}

    @property
    def seen(self) -> bool:
        """The operator has looked at its newest spec."""
        return self.status.observed_generation == self.metadata.get("generation")

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type."""
        return next((found for found in self.status.conditions if found.type == kind), None)

    def holds(self, kind: ConditionType) -> bool:
        """Whether the condition is there and True."""
        found = self.condition(kind)
        return found is not None and found.status == "True"

    @property
    def ended(self) -> bool:
        """It has succeeded or failed."""
        return self.holds(ConditionType.Complete) or self.holds(ConditionType.Failed)

    @property
    def stages(self) -> tuple[StageStatus, ...]:
        """Its stages; before the plan is made, those of the spec."""
        if self.status.stages:
            return self.status.stages
        return tuple(StageStatus(name=name, state="Waiting") for name in stage_names(self.spec))

    def parts(self) -> dict[str, RunStatus]:
        """All that runs of it, by the name that `kd logs` takes: plan, teachers, stages."""
        found: dict[str, RunStatus] = {PLAN: self.status.plan} if self.status.plan else {}
        found |= {teacher.name: teacher for teacher in self.status.teachers}
        return found | {stage.name: stage for stage in self.status.stages}

    @property
    def failed_part(self) -> tuple[str, RunStatus] | None:
        """What failed: the stage, teacher or plan, by name."""
        return next(((name, run) for name, run in self.parts().items() if run.state == "Failed"), None)


def stage_names(spec: dict[str, Any]) -> list[str]:
    """Names of a job's stages, the implicit `dataset` first."""
    stages = spec.get("stages") or []
    return [DATASET, *(str(stage["name"]) for stage in stages if isinstance(stage, dict) and "name" in stage)]


def teacher_names(spec: dict[str, Any]) -> list[str]:
    """Names of a job's hosted teachers; the only one is called `teacher`."""
    many = [str(one["name"]) for one in spec.get("teachers") or [] if one.get("hosted")]
    return many + ([TEACHER] if (spec.get("teacher") or {}).get("hosted") else [])


def find_job(cluster: Cluster, name: str) -> RemoteJob:
    """The job of that name.

    Raises:
        NotFound: there is none; the message has names like it.
    """
    try:
        return RemoteJob.of(cluster.get(cluster.url(JOBS, name)))
    except NotFound:
        names = [str(item["metadata"]["name"]) for item in cluster.list(cluster.url(JOBS))]
        instead = near(name, names, "it has") if names else "there are no jobs in it; name another namespace with -n"
        raise NotFound(f"no job {name} in namespace {cluster.namespace}; {instead}") from None


def list_jobs(cluster: Cluster) -> list[RemoteJob]:
    """All jobs of the namespace, oldest first."""
    jobs = [RemoteJob.of(document) for document in cluster.list(cluster.url(JOBS))]
    return sorted(jobs, key=lambda job: str(job.metadata.get("creationTimestamp")))


def moment(text: str | None) -> datetime | None:
    """A time of Kubernetes' (RFC 3339)."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
