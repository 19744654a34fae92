"""What befalls a job from outside, decided by the real operator in a world of virtual time: one behaviour a test."""

from __future__ import annotations

import pytest
from operator_nodes import FOREVER, GOOD, NODE, End
from operator_world import LONG, TEACHER, World, runtime_document, training
from statuses import kstatus

from kd_runtime.api.labels import RETRY_ANNOTATION

# ---- disruptions -------------------------------------------------------------------------------------------------------


def test_an_evicted_trainer_is_tried_again_free_of_charge(world: World) -> None:
    job = training(world, failurePolicy={"backoffLimit": 0})
    world.nodes.disrupt(job.pods("student")[0])
    assert job.finish() == "Succeeded"
    assert (job.stage("student").failures, job.stage("student").disruptions) == (0, 1)


def test_a_pod_that_its_lost_node_cannot_end_is_deleted_for_good_a_minute_after_its_grace(world: World) -> None:
    job = training(world)
    stuck = job.pods("student")[0]
    grace = stuck.raw["spec"]["terminationGracePeriodSeconds"]
    world.nodes.disrupt(stuck, node=NODE)
    world.wait(grace + 55)
    assert stuck.name in [pod.name for pod in job.pods("student")]
    assert job.stage("student").attempt == 1
    world.wait(10)
    assert stuck.name not in [pod.name for pod in job.pods("student")]


def test_disruptions_end_at_their_limit(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(143)
    job = world.apply(failurePolicy={"disruptionLimit": 2})
    assert job.finish() == "DisruptionsExhausted"
    assert job.stage("student").attempt == 3


def test_a_first_lost_peer_is_free_and_a_second_in_a_row_counts(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(78) if attempt < 4 else GOOD
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert (job.stage("student").disruptions, job.stage("student").failures) == (1, 2)


def test_a_failed_job_of_workers_is_final(world: World) -> None:
    world.nodes.scripts["dataset"] = lambda attempt, index: End(74)
    job = world.apply(failurePolicy={"backoffLimit": 1})
    assert job.finish() == "RetriesExhausted"
    assert (job.stage("dataset").attempt, job.stage("dataset").failures) == (1, 2)


def test_a_worker_out_of_memory_ends_the_stage_though_its_job_would_go_on(world: World) -> None:
    world.nodes.scripts["dataset"] = lambda attempt, index: End(137, reason="OOMKilled", result=False)
    job = world.apply()
    assert job.finish() == "HostOutOfMemory"
    assert job.stage("dataset").attempt == 1


# ---- pods that do not start --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (End(waiting=("ErrImagePull", "not found")), "ImageNotPulled"),
        (End(waiting=("CreateContainerConfigError", 'secret "store" not found')), "PodMisconfigured"),
        (End(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "Unschedulable"),
    ],
)
def test_a_pod_that_cannot_start_degrades_the_job_and_says_why(world: World, end: End, reason: str) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: end
    job = world.apply()
    world.wait(600)
    status, said, message = job.condition("Degraded")
    assert (status, said) == ("True", reason)
    assert (end.waiting[1] or end.unschedulable) in message
    assert kstatus(job.raw) == "InProgress"


def test_pods_that_a_quota_refuses_are_told_of(world: World) -> None:
    world.nodes.refuses_pods = True
    job = world.apply()
    world.wait(120)
    assert job.condition("Degraded")[:2] == ("True", "PodRefused")
    world.nodes.refuses_pods = False
    assert job.finish() == "Succeeded"


# ---- time and budget ---------------------------------------------------------------------------------------------------


def test_a_stage_that_takes_too_long_is_ended_and_counted(world: World) -> None:
    stages = [LONG[1], {**LONG[2], "timeoutSeconds": 600}]
    job = training(world, stages=stages)
    assert job.finish() == "Succeeded"
    assert (job.stage("student").attempt, job.stage("student").failures) == (2, 1)


def test_a_budget_that_fails_ends_the_job(world: World) -> None:
    job = training(world, budget={"maxGPUHours": "1", "onExceeded": "Fail"})
    assert job.finish() == "BudgetExceeded"
    assert job.pods() == []


def test_results_that_are_lost_but_committed_are_found(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(seconds=60, result=bool(index))
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert world.nodes.made.count("student") == 1


# ---- acceptance --------------------------------------------------------------------------------------------------------


def test_a_job_without_a_runtime_waits_for_it(world: World) -> None:
    world.server.delete("ClusterDistillationRuntime", "cpu")
    job = world.apply()
    world.wait(60)
    assert job.condition("Accepted")[:2] == ("False", "RuntimeMissing")
    assert (kstatus(job.raw), job.children()) == ("InProgress", [])
    world.server.create(runtime_document())
    assert job.finish() == "Succeeded"


def test_a_spec_that_is_not_valid_fails_without_a_child(world: World) -> None:
    job = world.apply(stages=[{**LONG[1], "inputs": {"rows": "nosuch"}}, LONG[2]])
    assert job.finish() == "InvalidSpec"
    assert (kstatus(job.raw), job.children()) == ("Failed", [])


def test_a_runtime_that_changes_is_reported_and_not_applied(world: World) -> None:
    job = training(world)
    world.server.change(
        world.runtime, metadata={"generation": 2}, spec={**world.runtime["spec"], "env": [{"name": "A", "value": "1"}]}
    )
    world.wait(120)
    assert job.condition("Accepted")[:2] == ("True", "RuntimeDrift")


def test_a_config_map_that_somebody_deletes_comes_back_while_its_runtime_is_the_same(world: World) -> None:
    job = training(world)
    (config,) = job.children("ConfigMap")
    world.server.delete(*config.split("/"))
    world.wait(120)
    assert job.children("ConfigMap") == [config]


@pytest.mark.parametrize("gone", [True, False])
def test_a_config_map_deleted_after_its_runtime_changed_or_went_fails_the_job(world: World, gone: bool) -> None:
    job = training(world)
    if gone:
        world.server.delete("ClusterDistillationRuntime", "cpu")
    else:
        world.server.change(
            world.runtime,
            metadata={"generation": 2},
            spec={**world.runtime["spec"], "env": [{"name": "A", "value": "1"}]},
        )
    world.server.delete(*job.children("ConfigMap")[0].split("/"))
    assert job.finish() == "RuntimeChanged"
    assert job.pods() == []


# ---- peers, gates, teachers --------------------------------------------------------------------------------------------


def test_gates_that_are_not_reached_fail_a_job_without_publish(world: World) -> None:
    world.nodes.unmet["exam"] = "recoveredGap of KL is 0.4"
    job = world.apply(stages=LONG)
    assert job.finish() == "GateFailed"
    assert job.stage("exam").state == "Succeeded"


def test_a_teacher_that_never_answers_is_started_anew_for_each_attempt_and_ends_at_the_limit(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(1, seconds=30)
    job = world.apply(failurePolicy={"backoffLimit": 1})
    assert job.finish() == "RetriesExhausted"
    assert job.teacher().attempt == 2
    assert job.children("Deployment") == []


NO_GPU = End(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")


def test_a_teacher_that_waits_for_a_gpu_degrades_the_job_and_is_never_given_up(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: NO_GPU
    job = world.apply()
    job.reach("teacher/teacher", "Starting")
    world.wait(12 * 3600)
    assert (job.end, job.teacher().attempt, job.stage("logits").failures) == (None, 1, 0)
    for said in (job.condition("Degraded"), job.condition("Ready")):
        assert said[1] == job.teacher().reason == "Unschedulable"
        assert NO_GPU.unschedulable in said[2]
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: FOREVER
    assert job.finish() == "Succeeded"
    assert job.condition("Degraded")[0] == "False"
    assert job.stage("logits").attempt == 1


def test_a_teacher_that_waits_for_a_gpu_ends_with_the_jobs_own_deadline(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: NO_GPU
    job = world.apply(activeDeadlineSeconds=2 * 3600)
    assert job.finish() == "DeadlineExceeded"
    assert (job.teacher().attempt, job.pods()) == (1, [])


def test_the_time_to_start_of_a_teacher_counts_from_when_its_container_did(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: NO_GPU
    job = world.apply(failurePolicy={"backoffLimit": 0})
    job.reach("teacher/teacher", "Starting")
    world.wait(2 * 3600)
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(
        1, seconds=5000
    )  # it loads for longer than it may
    limit = TEACHER["hosted"]["startupTimeoutSeconds"]
    world.wait(limit)
    assert (job.end, job.teacher().state) == (None, "Starting")
    assert job.finish(within=120) == "RetriesExhausted"
    assert "startupTimeoutSeconds" in job.condition("Failed")[2]


@pytest.mark.parametrize("code", [0, 1])
def test_a_container_of_a_teacher_that_is_started_again_has_no_more_time_to_start(world: World, code: int) -> None:
    limit = TEACHER["hosted"]["startupTimeoutSeconds"]
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(code, seconds=limit)  # as its probe ends it
    job = world.apply(failurePolicy={"backoffLimit": 0})
    job.reach("teacher/teacher", "Starting")
    assert job.finish(within=limit + 120) == "RetriesExhausted"


def test_a_teacher_that_ends_well_without_ever_answering_is_given_up(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(0, seconds=30)
    job = world.apply(failurePolicy={"backoffLimit": 0})
    job.reach("teacher/teacher", "Starting")
    assert job.finish(within=300) == "RetriesExhausted"
    assert "exit code 0" in job.condition("Failed")[2]


# ---- retry, deletion ---------------------------------------------------------------------------------------------------


def test_a_retry_of_a_finished_job_asks_again_and_reaches_its_end(world: World) -> None:
    job = world.apply()
    job.finish()
    job.annotate(RETRY_ANNOTATION, "logits/again")
    world.until(lambda: job.status.retry == "logits/again" and job.end)
    assert job.end == "Succeeded"
    assert any("--retry logits/again" in arguments for arguments in world.nodes.asked)
    assert world.nodes.made.count("logits") == 2


def test_a_retry_longer_than_a_status_may_say_is_answered_once(world: World) -> None:
    job = world.apply()
    job.finish()
    job.annotate(RETRY_ANNOTATION, "x" * 5000)
    world.wait(120)
    assert (job.end, len(job.status.retry or "")) == ("Succeeded", 253)


@pytest.mark.parametrize(
    ("part", "state"),
    [
        ("plan", "Queued"),
        ("plan", "Running"),
        ("dataset", "Queued"),
        ("dataset", "Running"),
        ("teacher/teacher", "Starting"),
        ("teacher/teacher", "Running"),
        ("student", "Starting"),
        ("student", "Running"),
    ],
)
def test_a_job_deleted_in_any_state_leaves_nothing(world: World, part: str, state: str) -> None:
    job = world.apply()
    job.reach(part, state)
    job.delete()
    world.wait(600)
    left = {kind for kind, _ in world.server.objects} - {"ClusterDistillationRuntime", "Namespace", "Node"}
    assert left == set()


def test_kstatus_is_right_about_every_status_on_the_way(world: World) -> None:
    job = world.apply(stages=LONG)
    job.finish()
    document = job.raw
    said = [kstatus({**document, "status": s.model_dump(mode="json", by_alias=True)}) for s in world.statuses]
    assert set(said[:-1]) == {"InProgress"}
    assert said[-1] == "Current"
