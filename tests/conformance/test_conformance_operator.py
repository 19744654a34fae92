"""What the operator itself writes on its way, in a world of virtual time, reads rightly for Argo CD, Flux and kstatus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from gitops_tools import argo, flux
from kd_operator.cluster.errors import Denied
from operator_nodes import FOREVER, GOOD, End
from operator_world import LONG, Job, World, runtime_document, training
from statuses import kstatus

from kd_runtime.api.status import JobStatus


def planning(world: World) -> Job:
    world.nodes.scripts["plan"] = lambda attempt, index: FOREVER
    job = world.apply()
    job.reach("plan", "Running")
    return job


def unschedulable(world: World) -> Job:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(unschedulable="0/1 nodes are available")
    job = world.apply()
    job.reach("teacher/teacher", "Starting")
    world.settle()
    return job


def suspending(world: World) -> Job:
    job = training(world)
    world.nodes.lingering = True
    job.edit(suspend=True)
    job.reach("student", "Draining")
    return job


def suspended(world: World) -> Job:
    job = training(world)
    job.edit(suspend=True)
    world.until(lambda: job.condition("Suspended")[0] == "True")
    return job


def over_budget(world: World) -> Job:
    job = training(world, budget={"maxGPUHours": "1", "onExceeded": "Suspend"})
    world.until(lambda: job.condition("Suspended")[0] == "True")
    return job


def resumed(world: World) -> Job:
    job = suspended(world)
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    job.edit(suspend=False)
    world.until(lambda: job.stage("student").attempt == 2 and job.stage("student").state == "Running")
    return job


def waiting_for_a_peer(world: World) -> Job:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    world.apply("peer").reach("student", "Running")
    job = world.apply()
    world.until(lambda: job.stage("student").reason == "WaitingForPeer")
    return job


def backoff(world: World) -> Job:
    world.nodes.scripts["student"] = lambda attempt, index: End(75) if attempt == 1 else GOOD
    job = world.apply()
    job.reach("student", "Backoff")
    world.settle()
    return job


def child_refused(world: World) -> Job:
    world.server.refuses = lambda manifest: Denied(403, "Forbidden", "no") if manifest["kind"] == "Job" else None
    job = world.apply()
    world.wait(60)
    return job


def without_a_runtime(world: World) -> Job:
    job = world.apply(runtimeRef={"name": "cuda"})
    world.settle()
    return job


def refused(world: World) -> Job:
    rules = runtime_document(limits={"nodes": 1})["spec"]
    world.server.change(world.runtime, metadata={"generation": 2}, spec=rules)
    job = world.apply()
    job.finish()
    return job


def failed(world: World) -> Job:
    world.nodes.scripts["student"] = lambda attempt, index: End(71)
    job = world.apply()
    job.finish()
    return job


def succeeded(world: World) -> Job:
    job = world.apply(stages=LONG)
    job.finish()
    return job


def edited(world: World) -> Job:
    job = succeeded(world)
    job.edit(retention={"keepPodsOnFailureSeconds": 11})
    return job


@dataclass(frozen=True)
class Scene:
    """A moment of a job's life, and what the tools must say of it."""

    play: Callable[[World], Job]
    kstatus: str
    argo: str
    argo_reason: str
    """How Argo CD's message begins."""
    flux: str


SCENES = (
    Scene(planning, "InProgress", "Progressing", "Planning: ", "InProgress"),
    Scene(unschedulable, "InProgress", "Progressing", "Unschedulable: pod tutor-teacher-", "InProgress"),
    Scene(training, "InProgress", "Progressing", "Running: Job tutor-student-", "InProgress"),
    Scene(suspending, "InProgress", "Progressing", "Draining: ", "InProgress"),
    Scene(suspended, "InProgress", "Suspended", "Suspended: spec.suspend is true", "InProgress"),
    Scene(over_budget, "InProgress", "Suspended", "BudgetExceeded: ", "InProgress"),
    Scene(resumed, "InProgress", "Progressing", "Running: Job tutor-student-", "InProgress"),
    Scene(waiting_for_a_peer, "InProgress", "Progressing", "WaitingForPeer: student: job peer ", "InProgress"),
    Scene(backoff, "InProgress", "Progressing", "Backoff: ", "InProgress"),
    Scene(child_refused, "InProgress", "Progressing", "ChildRefused: ", "InProgress"),
    Scene(without_a_runtime, "InProgress", "Progressing", "RuntimeMissing: ", "InProgress"),
    Scene(refused, "Failed", "Degraded", "NotAllowed: ", "Failed"),
    Scene(failed, "Failed", "Degraded", "AcceleratorOutOfMemory: student: ", "Failed"),
    Scene(succeeded, "Current", "Healthy", "Succeeded: ", "Current"),
    Scene(edited, "InProgress", "Progressing", "Waiting for the operator to look at the newest spec", "InProgress"),
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.play.__name__)
def test_the_tools_say_of_a_job_that_the_operator_wrote_what_a_person_would(scene: Scene) -> None:
    job = scene.play(World())
    said = argo(job.raw)
    assert (kstatus(job.raw), said["status"], flux(job.raw)) == (scene.kstatus, scene.argo, scene.flux)
    assert said["message"].startswith(scene.argo_reason)


AGREE = {
    "InProgress": {("Progressing", "InProgress"), ("Suspended", "InProgress")},
    "Failed": {("Degraded", "Failed")},
    "Current": {("Healthy", "Current")},
}
"""By what kstatus says: what Argo CD and Flux may."""


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.play.__name__)
def test_on_the_way_there_the_tools_agree_on_every_status_and_only_the_last_ends_the_wait(scene: Scene) -> None:
    world = World()
    job = scene.play(world)
    written = [as_written(job, status) for status in world.statuses]
    said = [kstatus(one) for one in written]
    assert [
        one for one, word in zip(written, said, strict=True) if (argo(one)["status"], flux(one)) not in AGREE[word]
    ] == []
    assert set(said[:-1]) <= {"InProgress"}


def as_written(job: Job, status: JobStatus) -> dict[str, Any]:
    """The job as it was when the operator had just written that status."""
    raw = job.raw
    metadata = {**raw["metadata"], "generation": status.observed_generation}
    return {**raw, "metadata": metadata, "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
