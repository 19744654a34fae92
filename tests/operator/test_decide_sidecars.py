"""Containers that others put beside a pod's own, such as a mesh's proxy: they are not the pod, and they do not hold a job up."""

from __future__ import annotations

from typing import Any

import pytest
from kd_operator.cluster.reading import pod_seen
from operator_nodes import FOREVER, GOOD, End, Pod
from operator_world import Job, World, told

BEGAN = "2026-01-05T10:00:00Z"
RUNNING = {"running": {"startedAt": BEGAN}}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": BEGAN, "finishedAt": BEGAN}}


def pod(containers: list[str], statuses: dict[str, Any], *, inits: dict[str, Any] | None = None, **status: Any) -> Any:
    """A pod of these containers, of which init containers called ``*-sidecar`` are native ones."""
    policies = {name: {"restartPolicy": "Always"} if name.endswith("-sidecar") else {} for name in inits or ()}
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {}},
        "spec": {
            "containers": [{"name": name} for name in containers],
            "initContainers": [{"name": name, **policy} for name, policy in policies.items()],
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": name, "state": state} for name, state in statuses.items()],
            "initContainerStatuses": [
                {"name": name, "restartCount": 1, **said} for name, said in (inits or {}).items()
            ],
            **status,
        },
    }


def sidecar(world: World, pod: Pod, end: End) -> None:
    """The pod's own container ends, and another runs on."""
    world.nodes.finish(pod, end)
    (main,) = world.server.read("Pod", pod.name)["status"]["containerStatuses"]
    proxy = {"name": "istio-proxy", "state": RUNNING}
    world.server.change(pod.raw, status={"phase": "Running", "containerStatuses": [proxy, main]})


def first_attempt_lasts(world: World, stage: str) -> Job:
    world.nodes.scripts[stage] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply()
    job.reach(stage, "Running")
    return job


# ---- what is seen ------------------------------------------------------------------------------------------------------


def test_a_proxy_that_a_mesh_puts_first_does_not_hide_the_pods_own_container() -> None:
    raw = pod(["istio-proxy", "main"], {"istio-proxy": ended(0, "Completed"), "main": ended(65)}, phase="Failed")
    ending = pod_seen(raw).ending
    assert ending is not None
    assert ending.exit_code == 65


def test_a_native_sidecar_that_begins_again_is_no_ending_of_the_pod() -> None:
    out_of_memory = {"proxy-sidecar": {"state": ended(137, "OOMKilled")}}
    assert pod_seen(pod(["main"], {"main": RUNNING}, inits=out_of_memory)).ending is None
    assert pod_seen(pod(["main"], {}, inits=out_of_memory, phase="Pending")).ending is None
    crashes = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(1)}
    seen = pod_seen(pod(["main"], {}, inits={"proxy-sidecar": crashes}, phase="Pending"))
    assert (seen.ending, seen.waiting) == (None, "CrashLoopBackOff")
    assert pod_seen(pod(["main"], {"main": RUNNING}, inits={"proxy-sidecar": crashes})).waiting == ""


def test_an_init_container_that_ends_badly_counts_where_it_is_not_tried_again_at_once() -> None:
    failed = {"weights": {"state": ended(74)}}
    assert pod_seen(pod(["main"], {}, inits=failed, phase="Pending")).ending is None
    final = pod_seen(pod(["main"], {}, inits=failed, phase="Failed")).ending
    assert final is not None
    assert final.exit_code == 74
    crashes = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ended(1)}
    again = pod_seen(pod(["main"], {}, inits={"weights": crashes}, phase="Pending")).ending
    assert again is not None
    assert again.exit_code == 1


# ---- what is done ------------------------------------------------------------------------------------------------------


def test_a_native_sidecar_out_of_memory_does_not_fail_the_job(world: World) -> None:
    job = first_attempt_lasts(world, "logits")
    one = job.pods("logits")[0]
    init = {"name": "istio-proxy", "restartCount": 1, "state": ended(137, "OOMKilled")}
    world.server.change(one.raw, status={**one.raw["status"], "initContainerStatuses": [init]})
    world.settle()
    assert (job.end, job.stage("logits").state) == (None, "Running")


def test_a_native_sidecar_that_ends_while_its_teacher_loads_does_not_fail_the_job(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(waiting=("PodInitializing", ""))
    job = world.apply()
    world.until(lambda: job.pods("teacher/teacher"))
    init = {"name": "istio-proxy", "restartCount": 1, "state": ended(70)}
    one = job.pods("teacher/teacher")[0]
    world.server.change(one.raw, status={"phase": "Pending", "initContainerStatuses": [init]})
    world.settle()
    assert (job.end, job.teacher().state) == (None, "Starting")


def test_the_work_of_pods_that_a_sidecar_keeps_counts_after_a_minute_and_frees_them(world: World) -> None:
    job = first_attempt_lasts(world, "student")
    pods = job.pods("student")
    for one in pods:
        sidecar(world, one, GOOD)
    world.wait(55)
    assert (job.stage("student").state, len(job.pods("student"))) == ("Running", len(pods))
    world.wait(60)
    assert (job.stage("student").state, job.stage("student").attempt) == ("Succeeded", 1)
    assert job.pods("student") == []
    assert any(note.reason == "PodKept" and "istio-proxy" in note.message for note in told(world))
    assert job.finish() == "Succeeded"


@pytest.mark.parametrize(("code", "end"), [(74, "Succeeded"), (64, "BadSettings")])
def test_a_gang_that_failed_and_is_kept_by_a_sidecar_is_judged_as_any_other(world: World, code: int, end: str) -> None:
    job = first_attempt_lasts(world, "student")
    for one in job.pods("student"):
        sidecar(world, one, End(code))
    assert job.finish(within=3600) == end
    assert job.stage("student").failures == (1 if code == 74 else 0)


def test_of_workers_the_one_that_is_kept_waits_for_the_others_and_says_so(world: World) -> None:
    job = first_attempt_lasts(world, "logits")
    first, second = job.pods("logits")
    sidecar(world, first, GOOD)
    world.wait(120)
    assert job.condition("Degraded")[:2] == ("True", "PodKept")
    assert first.name in job.condition("Degraded")[2]
    assert job.stage("logits").state == "Running"
    world.nodes.finish(second, GOOD)
    world.wait(10)
    assert (job.stage("logits").state, job.stage("logits").attempt) == ("Succeeded", 1)


def test_a_worker_that_failed_and_is_kept_is_ended_so_that_its_job_tries_it_again(world: World) -> None:
    job = first_attempt_lasts(world, "logits")
    first, second = job.pods("logits")
    sidecar(world, first, End(74))
    world.wait(120)
    assert job.stage("logits").attempt == 1
    left = [one.name for one in job.pods("logits")]
    assert first.name not in left
    assert second.name in left
    assert len(left) == 2
