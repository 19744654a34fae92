"""Pods that bear a job's labels and are not its own: a copy that somebody made, or what ``--cascade=orphan`` left."""

from __future__ import annotations

from typing import Any

import pytest
from kd_operator.cluster.reading import pod_seen
from operator_nodes import FOREVER, GOOD, INDEX
from operator_world import Job, World

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.labels import UID_LABEL
from kd_runtime.api.result import StageResult

BEGAN = "2026-01-05T10:00:00Z"


def copied(job: Job, name: str, state: dict[str, Any], phase: str = "Running", **metadata: Any) -> dict[str, Any]:
    """A pod of somebody else with the labels of a trainer's first attempt."""
    labels = {
        "kubedistill.io/job": job.name,
        UID_LABEL: job.uid,
        "kubedistill.io/stage": "student",
        "kubedistill.io/attempt": "1",
        "kubedistill.io/component": "trainer",
    }
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": "f", "labels": labels, **metadata},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main"}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]},
    }


def put(world: World, pod: dict[str, Any]) -> None:
    """It is there, and no node of the world does anything with it."""
    real, name = world.nodes._pod, pod["metadata"]["name"]
    world.nodes._pod = lambda one: None if one.name == name else real(one)  # type: ignore[method-assign]
    world.server.create(pod)


def running() -> dict[str, Any]:
    return {"running": {"startedAt": BEGAN}}


def ended(code: int, message: str = "") -> dict[str, Any]:
    times = {"startedAt": BEGAN, "finishedAt": BEGAN}
    return {"terminated": {"exitCode": code, "reason": "Error", "message": message, **times}}


def test_a_pod_of_nobody_holds_nothing_up_and_is_told_of(world: World) -> None:
    job = world.apply()
    job.reach("logits", "Running")
    put(world, copied(job, "debug", running()))
    world.settle()
    assert job.condition("Degraded")[:2] == ("True", "PodForeign")
    assert "debug" in job.condition("Degraded")[2]
    assert job.finish(within=3600) == "Succeeded"
    assert ("Pod", "debug") in world.server.objects


def test_a_pod_that_another_controller_made_is_ignored(world: World) -> None:
    job = world.apply()
    job.reach("logits", "Running")
    world.server.create({"kind": "Workflow", "metadata": {"name": "another", "uid": "w"}})
    owners = [{"kind": "Workflow", "name": "another", "uid": "w", "controller": True}]
    put(world, copied(job, "debug", running(), ownerReferences=owners))
    world.settle()
    assert job.condition("Degraded")[0] == "False"
    assert job.finish(within=3600) == "Succeeded"
    assert ("Pod", "debug") in world.server.objects


@pytest.mark.parametrize("named_alike", [False, True])
def test_what_a_pod_of_somebody_else_says_is_no_result_and_no_failure(world: World, named_alike: bool) -> None:
    forged = StageResult(exit_class=ExitClass.Done, manifest_sha256="f" * 64).encoded().decode()
    for state, phase in ((ended(0, forged), "Succeeded"), (ended(64), "Failed")):
        apart = World()
        job = apart.apply()
        job.reach("logits", "Running")
        name = f"{job.child('student', 1)}-0-copy" if named_alike else "copy"
        put(apart, copied(job, name, state, phase))
        assert job.finish(within=3600) == "Succeeded"
        assert job.stage("student").attempt == 1
        assert job.stage("student").manifest_sha256 != "f" * 64


@pytest.mark.parametrize("index", ["x", "-1", "٣²", "9" * 5000])
def test_what_people_write_where_numbers_stand_does_not_stop_a_job(world: World, index: str) -> None:
    pod = copied(world.apply(), "debug", running(), annotations={INDEX: index})
    pod["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1k"}}
    seen = pod_seen(pod)
    assert (seen.index, seen.gpus) == (0, 0)


@pytest.mark.parametrize("suspend", [False, True])
def test_pods_that_were_cut_off_from_their_job_are_ended(world: World, suspend: bool) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply()
    job.reach("student", "Running")
    orphans = job.pods("student")
    for pod in orphans:
        world.server.change(pod.raw, metadata={"ownerReferences": []})
    world.server.delete("Job", job.child("student", 1))
    if suspend:
        job.edit(suspend=True)
        world.wait(300)
        assert (job.status.phase, job.pods()) == ("Suspended", [])
    else:
        assert job.finish(within=3600) == "Succeeded"
        assert (job.stage("student").attempt, job.stage("student").disruptions) == (2, 1)
