"""A node that falls silent under a job: it is told while it lasts, and of what it took nothing is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from kd_operator.cluster.reading import is_silenced
from kd_operator.decide.failures import Kind, final_ending, verdict
from kd_operator.decide.strays import silent_node
from kd_operator.observed import Ending, MainChild, PodSeen
from kd_operator.status.conditions import Said
from operator_nodes import FOREVER, GOOD, NODE, End, condition
from operator_world import START, Job, World, told, training

from kd_runtime.api.reasons import Reason
from kd_runtime.api.status import Failure


def taken(world: World, job: Job, *, lost: bool = True) -> str:
    """A trainer is marked for deletion, by the node controller or a drain; its name."""
    pod = job.pods("student")[0]
    if lost:
        world.nodes.lose()
    said = condition("DisruptionTarget", "DeletionByTaintManager")
    world.server.change(pod.raw, status={**pod.raw["status"], **said})
    world.server.delete("Pod", pod.name)
    return pod.name


# ---- told --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["logits", "student"])
def test_a_silent_node_is_told_by_conditions_stage_and_one_event_and_only_so_long(world: World, stage: str) -> None:
    world.nodes.scripts[stage] = lambda attempt, index: End(seconds=900)
    job = world.apply()
    job.reach(stage, "Running")
    names = sorted(pod.name for pod in job.pods(stage))
    world.nodes.lose()
    world.wait(120)
    for kind, holds in (("Degraded", "True"), ("Ready", "False")):
        status, reason, message = job.condition(kind)
        assert (status, reason) == (holds, "NodeNotReady")
        assert message.startswith(f"node {NODE} has not been ready since ")
        assert any(f"pod {name}" in message for name in names)
    assert (job.run(stage).state, job.run(stage).reason) == ("Running", "NodeNotReady")
    world.wait(120)
    assert [note.type for note in told(world) if note.reason == "NodeNotReady"] == ["Warning"]
    world.nodes.regain()
    world.wait(70)
    assert job.condition("Degraded")[0] == "False"
    assert job.run(stage).reason == "Running"
    assert job.finish() == "Succeeded"
    assert job.run(stage).attempt == 1


def test_a_teacher_whose_node_is_silent_is_told(world: World) -> None:
    world.nodes.scripts["logits"] = lambda attempt, index: FOREVER
    job = world.apply()
    job.reach("logits", "Running")
    world.nodes.lose()
    world.wait(70)
    assert job.condition("Degraded")[:2] == ("True", "NodeNotReady")


def test_a_suspension_that_a_silent_node_holds_up_says_so(world: World) -> None:
    job = training(world)
    world.nodes.lose()
    job.edit(suspend=True)
    world.wait(10)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "NodeNotReady")
    assert "must leave it" in message


def test_a_pod_that_its_node_ceases_to_speak_for_has_that_node_read_at_once(world: World) -> None:
    job = training(world)
    world.wait(61)  # a look, after which the node is known for half a minute
    world.nodes.lose()
    for pod in job.pods("student"):
        containers = [{**one, "ready": True} for one in pod.raw["status"]["containerStatuses"]]
        silenced = [{"type": "Ready", "status": "False"}]
        world.server.change(
            pod.raw, status={**pod.raw["status"], "containerStatuses": containers, "conditions": silenced}
        )
    world.settle()
    assert job.condition("Degraded")[:2] == ("True", "NodeNotReady")


@pytest.mark.parametrize(
    ("ready", "containers", "silenced"),
    [
        ("False", [True, True], True),
        ("False", [True, False], False),
        ("False", [], False),
        ("True", [True], False),
        ("", [True], False),
    ],
)
def test_a_pod_is_silenced_where_it_is_not_ready_though_its_containers_were(
    ready: str, containers: list[bool], silenced: bool
) -> None:
    said = [{"type": "Ready", "status": ready}] if ready else []
    assert (
        is_silenced({"status": {"conditions": said, "containerStatuses": [{"ready": one} for one in containers]}})
        is silenced
    )


def test_only_pods_that_may_be_at_work_on_a_node_that_is_not_ready_are_told() -> None:
    assert silent_node([pod(0), pod(1, phase="Succeeded", node_ready=False)]) is None
    said = silent_node([pod(0), pod(1, node_ready=False), pod(2, node_ready=False)])
    assert isinstance(said, Said)
    assert said.reason is Reason.NodeNotReady
    assert "pod p1 and 1 more may run on there unseen" in said.message


# ---- remembered --------------------------------------------------------------------------------------------------------


def test_a_trainer_on_its_way_from_its_node_is_told_in_last_failure_before_anything_has_ended(world: World) -> None:
    job = training(world, failurePolicy={"backoffLimit": 0})
    name = taken(world, job)
    world.wait(5)
    failure = job.stage("student").last_failure
    assert failure is not None
    assert (failure.class_, failure.pod, failure.node) == ("Disruption", name, NODE)
    assert failure.reason == "DeletionByTaintManager"
    assert job.stage("student").disruptions == 0


@pytest.mark.parametrize("lost", [True, False])
def test_a_gang_whose_pods_are_gone_before_their_end_is_read_still_says_which_node_took_one(
    world: World, lost: bool
) -> None:
    job = training(world, failurePolicy={"backoffLimit": 0})
    world.nodes.lingering = True
    name = taken(world, job, lost=lost)
    world.wait(5)
    for other in job.pods("student"):
        world.server.delete("Pod", other.name)
    world.nodes.lingering = False
    world.nodes.regain()
    while job.pods("student"):  # no operator looks meanwhile
        assert world.nodes.step()
    world.until(lambda: job.stage("student").state == "Backoff")
    student = job.stage("student")
    assert student.message == f"pod {name} was taken from node {NODE} (DeletionByTaintManager)"
    assert student.last_failure is not None
    assert (student.last_failure.pod, student.last_failure.node) == (name, NODE)
    assert job.finish() == "Succeeded"
    assert (job.stage("student").failures, job.stage("student").disruptions) == (0, 1)


def test_what_one_attempt_lost_is_not_held_against_the_next(world: World) -> None:
    ends = {1: FOREVER, 2: End(75)}
    world.nodes.scripts["student"] = lambda attempt, index: ends.get(attempt, GOOD)
    job = world.apply(failurePolicy={"backoffLimit": 1})
    job.reach("student", "Running")
    taken(world, job, lost=False)
    assert job.finish() == "Succeeded"
    student = job.stage("student")
    assert (student.attempt, student.failures, student.disruptions) == (3, 1, 1)


def test_the_classes_of_the_rest_of_a_gang_are_a_consequence_of_a_pod_that_is_gone_but_for_memory() -> None:
    bug, memory = pod(1, phase="Failed", ending=ending(70)), pod(1, phase="Failed", ending=ending(137, "OOMKilled"))
    gone = Failure(class_="Disruption", pod="j-0-abc", node=NODE, reason="DeletionByTaintManager")
    assert final_ending([bug]) is bug
    assert final_ending([bug], broken=True) is None
    assert final_ending([memory], broken=True) is memory
    said = verdict([bug], gang(), taken_before=gone)
    assert (said.kind, said.reason, said.failure) == (Kind.Free, Reason.Disrupted, gone)
    assert said.message == f"pod j-0-abc was taken from node {NODE} (DeletionByTaintManager)"
    assert verdict([memory], gang(), taken_before=gone).reason is Reason.HostOutOfMemory


def test_a_gang_of_which_nothing_is_left_and_nothing_was_seen_says_just_that() -> None:
    said = verdict([], gang(failed_message="Job has reached the specified backoff limit"))
    assert (said.kind, said.reason) == (Kind.Free, Reason.Disrupted)
    assert said.message.startswith("j has failed and none of its pods is left")


def gang(**more: Any) -> MainChild:
    made: dict[str, Any] = {"kind": "Job", "name": "j", "uid": "j", "owner_uid": "o", "component": "trainer"}
    return MainChild(**made, stage="s", attempt=1, created=START, completions=2, failed=True, **more)


def pod(index: int, phase: str = "Running", **more: Any) -> PodSeen:
    made: dict[str, Any] = {"name": f"p{index}", "uid": f"p{index}", "owner_uid": "j", "component": "trainer"}
    return PodSeen(**made, stage="s", attempt=1, phase=phase, index=index, node=NODE, **more)


def ending(code: int, reason: str = "Error") -> Ending:
    return Ending(exit_code=code, signal=None, reason=reason, message="", finished=None)
