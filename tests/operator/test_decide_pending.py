"""Pods that do not start, or do not end: what keeps them is told, and what can be done about it is done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kd_operator.cluster.reading import main_child
from kd_operator.decide.pending import pending_trouble
from kd_operator.observed import Ending, MainChild, PodSeen
from operator_nodes import FOREVER, GOOD, NODE, End
from operator_world import Operator, World

from kd_runtime.api.reasons import Reason

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def job(**more: Any) -> MainChild:
    """A Job of two pods, an hour old."""
    made: dict[str, Any] = {"kind": "Job", "name": "j", "uid": "j", "owner_uid": "o", "component": "workers"}
    return MainChild(**made, stage="s", attempt=1, created=NOW - timedelta(hours=1), completions=2, **more)


def pod(index: int, phase: str = "Running", **more: Any) -> PodSeen:
    made: dict[str, Any] = {"name": f"p{index}", "uid": f"p{index}", "owner_uid": "j", "component": "workers"}
    return PodSeen(**made, stage="s", attempt=1, phase=phase, index=index, **more)


# ---- one of several ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["logits", "student"])
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (End(waiting=("ImagePullBackOff", "no such image")), "ImageNotPulled"),
        (End(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "Unschedulable"),
    ],
)
def test_one_of_several_pods_that_cannot_start_is_told_though_another_runs(
    world: World, stage: str, end: End, reason: str
) -> None:
    world.nodes.scripts[stage] = lambda attempt, index: FOREVER if index == 0 else end
    job = world.apply()
    job.reach(stage, "Running")
    world.wait(120)
    assert job.condition("Degraded")[:2] == ("True", reason)
    assert (job.stage(stage).state, job.stage(stage).reason) == ("Running", reason)


def test_workers_of_which_one_is_refused_are_told_after_half_a_minute_and_only_so_long(world: World) -> None:
    world.nodes.scripts["logits"] = lambda attempt, index: End(seconds=3600)
    job = world.apply()
    job.reach("logits", "Running")
    real, world.nodes.refuses_pods = job.pods("logits"), True
    world.server.delete("Pod", real[1].name)
    world.wait(90)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "PodRefused")
    assert "1 of its 2 pods" in message
    world.nodes.refuses_pods = False
    world.wait(90)
    assert job.condition("Degraded")[0] == "False"
    assert job.stage("logits").reason == "Running"
    assert job.finish() == "Succeeded"


def test_a_job_whose_pods_were_just_counted_anew_is_not_yet_refused_one() -> None:
    for seconds, refused in ((10, False), (40, True)):
        said = pending_trouble([pod(0)], job(counted=NOW - timedelta(seconds=seconds)), NOW)
        assert (said is not None and said.reason is Reason.PodRefused) == refused


def test_a_pod_that_ended_well_and_is_gone_is_not_missed() -> None:
    assert pending_trouble([pod(1)], job(succeeded=1), NOW) is None
    assert pending_trouble([pod(0, "Succeeded"), pod(1)], job(succeeded=1), NOW) is None
    assert pending_trouble([pod(1)], job(), NOW) is not None


def test_what_a_pod_waited_for_that_was_taken_away_is_told_no_more() -> None:
    waits = {"waiting": "ImagePullBackOff", "disrupted": True}
    assert pending_trouble([pod(0, "Pending", **waits), pod(1)], job(), NOW) is not None
    assert pending_trouble([pod(0, "Failed", **waits), pod(0), pod(1)], job(), NOW) is None


def test_a_pod_that_failed_is_missed_once_its_controller_waits_no_longer() -> None:
    for minutes, refused in ((5, False), (15, True)):
        ending = Ending(74, None, "Error", "", NOW - timedelta(minutes=minutes))
        said = pending_trouble([pod(0), pod(1, "Failed", ending=ending)], job(), NOW)
        assert (said is not None and said.reason is Reason.PodRefused) == refused


def test_when_a_job_was_counted_is_read_and_is_no_news_of_its_own() -> None:
    raw = {
        "metadata": {"name": "j", "uid": "j", "creationTimestamp": "2026-01-05T11:00:00Z", "labels": {}},
        "spec": {"completions": 2},
        "status": {"succeeded": 1},
    }
    fields = [{"manager": "kube-controller-manager", "subresource": "status", "time": "2026-01-05T11:59:30Z"}]
    before, after = (
        main_child({**raw, "metadata": {**raw["metadata"], "managedFields": found}}, "Job")  # type: ignore[dict-item]
        for found in ([], [{"time": "2026-01-05T11:59:59Z"}, *fields])
    )
    assert (before.counted, before.succeeded, before.completions) == (None, 1, 2)
    assert after.counted == NOW - timedelta(seconds=30)
    assert (after, hash(after)) == (before, hash(before))


# ---- for ever ----------------------------------------------------------------------------------------------------------


def test_a_pod_whose_volume_does_not_mount_is_told_after_five_minutes(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(waiting=("ContainerCreating", ""))
    job = world.apply()
    job.reach("student", "Starting")
    world.wait(240)
    assert job.condition("Degraded")[0] == "False"
    world.wait(120)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "PodNotStarting")
    assert "ContainerCreating" in message
    assert f"kubectl describe pod {job.pods('student')[0].name}" in message


def test_a_container_that_crashes_again_and_again_has_begun_once() -> None:
    old = {"node": "n", "scheduled": NOW - timedelta(hours=1), "waiting": "CrashLoopBackOff"}
    assert pending_trouble([pod(0, **old), pod(1)], job(), NOW) is None
    assert pending_trouble([pod(0, "Pending", **old), pod(1)], job(), NOW) is not None


def test_a_pod_that_does_not_end_on_a_node_that_is_well_is_told(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply()
    job.reach("student", "Running")
    world.nodes.lingering = True
    stuck = job.pods("student")[0]
    grace = stuck.raw["spec"]["terminationGracePeriodSeconds"]
    world.server.delete("Job", job.child("student", 1))
    world.wait(grace + 290)
    assert job.condition("Degraded")[0] == "False"
    world.wait(20)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "PodNotEnding")
    assert f"kubectl delete pod {stuck.name} --force" in message
    world.nodes.lingering = False
    assert job.finish() == "Succeeded"


@pytest.mark.parametrize("gone", [False, True])
def test_a_pod_that_tolerates_a_lost_node_for_ever_is_taken_from_it(world: World, gone: bool) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply(scheduling={"tolerations": [{"operator": "Exists"}]})
    job.reach("student", "Running")
    stuck = [one.name for one in job.pods("student")]
    grace = job.pods("student")[0].raw["spec"]["terminationGracePeriodSeconds"]
    world.nodes.lose()
    if gone:
        world.server.delete("Node", NODE)
    world.wait(330)
    assert not any(one.leaving for one in job.pods("student"))
    world.wait(60 + grace + 90 + (60 if gone else 0))  # that one is gone is known from the next look on
    assert not {one.name for one in job.pods("student")} & set(stuck)
    world.nodes.regain()
    assert job.finish(within=3600) == "Succeeded"
    assert job.stage("student").failures == 0


def test_a_node_that_comes_back_in_time_keeps_its_pods(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(seconds=1800)
    job = world.apply()
    job.reach("student", "Running")
    world.nodes.lose()
    world.wait(300)
    world.nodes.regain()
    assert job.finish(within=7200) == "Succeeded"
    assert (job.stage("student").attempt, job.stage("student").disruptions) == (1, 0)


def test_a_node_is_read_once_in_half_a_minute_for_all_jobs_unless_a_pod_leaves_it(world: World) -> None:
    reads: list[datetime] = []
    real = world.watched

    def watched(operator: Operator, verb: str, one: dict[str, Any] | None) -> None:
        if verb == "GET Node":
            reads.append(world.server.now)
        real(operator, verb, one)

    world.watched = watched  # type: ignore[method-assign]
    world.nodes.scripts["plan"] = lambda attempt, index: FOREVER
    jobs = [world.apply(name) for name in ("one", "two", "three")]
    for job in jobs:
        job.reach("plan", "Running")
    reads.clear()
    world.wait(600)
    assert 0 < len(reads) <= 20
    world.nodes.lingering = True
    reads.clear()
    for job in jobs:
        world.server.delete("Job", job.child("plan", 1))
    world.settle()
    assert len(reads) >= len(jobs)


@pytest.mark.parametrize("stage", ["plan", "logits", "student"])
def test_a_pod_that_its_job_holds_on_a_lost_node_ends_with_its_job_and_free_of_charge(world: World, stage: str) -> None:
    world.nodes.scripts[stage] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply(failurePolicy={"backoffLimit": 0})
    job.reach(stage, "Running")
    stuck = job.pods(stage)[0]
    world.nodes.disrupt(stuck, node=NODE)
    world.wait(stuck.raw["spec"]["terminationGracePeriodSeconds"] + 65)
    assert ("Pod", stuck.name) not in world.server.objects
    world.nodes.regain()
    assert job.finish(within=3600) == "Succeeded"
    assert (job.run(stage).failures, job.run(stage).disruptions) == (0, 1)
