"""What every builder is handed: the job, its runtime, the operator's settings; and the labels that its children share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from kd_operator.names import TEACHER_PORT, child_name
from kd_operator.settings import Settings
from kd_runtime.api.allowed import permits
from kd_runtime.api.job import SINGLE_TEACHER, DistillationJob
from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_LABEL, STAGE_LABEL, UID_LABEL
from kd_runtime.api.model import GROUP, VERSION
from kd_runtime.api.operation import Resources
from kd_runtime.api.runtime import ClusterDistillationRuntime
from kd_runtime.api.runtime_pods import PodSettings
from kd_runtime.api.stage import Stage
from kd_runtime.api.teacher import HostedTeacher, Teacher
from kd_runtime.api.wiring import DATASET, Wired, wire

Manifest = dict[str, Any]


class Component(StrEnum):
    """What a pod is for: its label, and whose settings in the runtime it gets."""

    Plan = "plan"
    Teacher = "teacher"
    Workers = "workers"
    Trainer = "trainer"
    Tools = "tools"


COMPONENTS = {
    "ingest": Component.Workers,
    "synthesize": Component.Workers,
    "generate": Component.Workers,
    "capture": Component.Workers,
    "train": Component.Trainer,
    "prepare": Component.Tools,
    "compress": Component.Tools,
    "evaluate": Component.Tools,
    "publish": Component.Tools,
}
"""Stage type -> the component that its pods are."""


@dataclass(frozen=True)
class ChildContext:
    """One job, as its children are built from it."""

    job: DistillationJob
    """With every default filled in."""
    namespace: str
    uid: str
    runtime: ClusterDistillationRuntime
    settings: Settings
    plan: str | None = None
    """The plan's digest, once there is one."""

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.metadata.name

    @cached_property
    def wired(self) -> Wired:
        """Which stage reads what."""
        return wire(self.job.spec.stages)

    def planned(self) -> str:
        """The plan's digest. Raises ValueError where no plan has been made yet: only the plan pod runs without."""
        if self.plan is None:
            raise ValueError(f"{self.namespace}/{self.name}: has no plan yet, so no stage or teacher can start")
        return self.plan

    def child_name(self, part: str, attempt: int) -> str:
        """Name of the main child, and of the Service, of one attempt of ``part``."""
        return child_name(self.name, part, self.uid, attempt)

    def labels(
        self, component: Component | None = None, part: str | None = None, attempt: int | None = None
    ) -> dict[str, str]:
        """Labels of a child: of the whole job's with the job alone. The job's own labels are not copied."""
        labels = {JOB_LABEL: self.name, UID_LABEL: self.uid}
        if component is not None and part is not None and attempt is not None:
            labels |= {COMPONENT_LABEL: component.value, STAGE_LABEL: part, ATTEMPT_LABEL: str(attempt)}
        return labels

    def metadata(self, name: str, labels: dict[str, str]) -> Manifest:
        """Metadata of a child: owned by the job, so that it goes with it even while the operator is down."""
        owner = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "DistillationJob",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        return {"name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner]}

    @property
    def priority_class(self) -> str | None:
        """The job's priority class, where its runtime allows it: unlike all else that a runtime allows or not, it may be
        edited after the job was accepted."""
        named = self.job.spec.scheduling.priority_class_name
        allowed = self.runtime.spec.allowed.priority_classes
        return named if named is not None and permits(allowed, named) else None

    def pod_settings(self, component: Component) -> PodSettings:
        """What the runtime gives to pods of ``component``."""
        settings: PodSettings = getattr(self.runtime.spec.pod, component.value)
        return settings

    def stage(self, name: str) -> Stage | None:
        """The stage called ``name``; None for `dataset`, which a manifest does not list. Raises KeyError for another."""
        if name == DATASET:
            return None
        for stage in self.job.spec.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def stage_type(self, name: str) -> str:
        """`ingest` for the dataset, else the stage's body."""
        stage = self.stage(name)
        return stage.type if stage is not None else "ingest"

    def stage_resources(self, name: str) -> Resources:
        """The stage's own `resources`."""
        stage = self.stage(name)
        return stage.resources if stage is not None else Resources()

    def asked_teacher(self, name: str) -> tuple[str, Teacher] | None:
        """The teacher that stage ``name`` asks, and what it is called; None where it asks none."""
        stage = self.stage(name)
        if stage is None or not stage.asks_teacher:
            return None
        called = SINGLE_TEACHER if self.job.spec.teacher is not None else stage.teacher or ""
        return called, self.job.spec.named_teachers()[called]

    def hosted_teacher(self, name: str) -> HostedTeacher:
        """The hosted teacher called ``name``. Raises KeyError where there is none of that name that the job serves."""
        hosted = self.job.spec.named_teachers()[name].hosted
        if hosted is None:
            raise KeyError(name)
        return hosted

    def teacher_url(self, name: str, attempt: int) -> str:
        """Where an attempt of a hosted teacher answers, in the whole cluster."""
        return f"http://{self.child_name(name, attempt)}.{self.namespace}.svc:{TEACHER_PORT}"
