"""The life of a job, decided by the real operator in a world of virtual time: one behaviour a test."""

from __future__ import annotations

from datetime import timedelta

import pytest
from operator_nodes import FOREVER, GOOD, End
from operator_world import LONG, SHORT, World

from kd_runtime.api.labels import RECONCILE_ANNOTATION, RETRY_ANNOTATION


def test_every_stage_runs_in_its_turn_and_the_job_succeeds(world: World) -> None:
    job = world.apply(stages=LONG)
    assert job.finish() == "Succeeded"
    assert set(job.states().values()) == {"Succeeded"}
    assert world.nodes.made == ["dataset", "answers", "logits", "student", "exam"]
    assert job.condition("Ready")[0] == job.condition("ResourcesReleased")[0] == "True"
    assert job.condition("Reconciling")[0] == "False"


def test_at_most_ten_statuses_are_written_a_stage(world: World) -> None:
    job = world.apply(stages=LONG)
    job.finish()
    assert world.puts <= 10 * len(job.status.stages)


def test_a_second_look_at_the_end_decides_nothing(world: World) -> None:
    job = world.apply()
    job.finish()
    written = world.puts
    operator = world.operators[0]
    operator.start()
    world.settle()
    assert world.puts == written
    assert operator.decided[-1][1].create == operator.decided[-1][1].delete == ()


def test_where_everything_is_found_the_plan_pod_is_all_there_is(world: World) -> None:
    world.apply("first").finish()
    world.nodes.made.clear()
    job = world.apply("second")
    assert job.finish() == "Succeeded"
    assert world.nodes.made == []
    assert job.children("Job") == [f"Job/{job.child('plan', 1)}"]
    assert set(job.states().values()) == {"Skipped"}


def test_the_teacher_is_gone_before_training_begins(world: World) -> None:
    job = world.apply(stages=SHORT)
    job.reach("student", "Starting", "Running")
    assert job.pods("teacher/teacher") == []
    assert not list(job.children("Deployment"))


def test_ten_students_of_one_teacher_ask_it_once(world: World) -> None:
    jobs = [world.apply(f"student-{number}") for number in range(10)]
    assert [job.finish() for job in jobs] == ["Succeeded"] * 10
    assert sorted(world.nodes.made) == ["dataset", "logits", "student"]


def test_suspended_in_training_it_frees_everything_and_goes_on_later(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply()
    job.reach("student", "Running")
    job.edit(suspend=True)
    world.until(lambda: job.condition("Suspended")[0] == "True")
    assert job.pods() == []
    assert job.condition("ResourcesReleased")[0] == "True"
    assert job.status.attempts is not None
    assert job.status.attempts.counted == 0
    job.edit(suspend=False)
    assert job.finish() == "Succeeded"
    assert job.stage("student").attempt == 2


def test_a_suspension_that_began_is_carried_through(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply()
    job.reach("student", "Running")
    world.nodes.lingering = True
    job.edit(suspend=True)
    job.reach("student", "Draining")
    job.edit(suspend=False)
    world.wait(120)
    assert job.stage("student").attempt == 1
    world.nodes.lingering = False
    assert job.finish() == "Succeeded"
    assert job.stage("student").attempt == 2


def test_created_suspended_it_has_no_child_at_all(world: World) -> None:
    job = world.apply(suspend=True)
    world.wait(300)
    assert job.children() == []
    assert job.status.phase == "Suspended"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (64, "BadSettings"),
        (65, "BadData"),
        (66, "GateFailed"),
        (70, "Bug"),
        (71, "AcceleratorOutOfMemory"),
        (72, "HostOutOfMemory"),
        (77, "Denied"),
    ],
)
def test_what_no_retry_can_help_ends_the_job_at_once(world: World, code: int, reason: str) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=code)
    job = world.apply()
    assert job.finish() == reason
    assert job.stage("student").attempt == 1
    assert job.condition("Stalled")[0] == "True"
    assert job.pods() == []


@pytest.mark.parametrize("code", [69, 74, 75, 1, 139])
def test_what_passes_is_tried_again_and_counted(world: World, code: int) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=code) if attempt < 3 else GOOD
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert (job.stage("student").attempt, job.stage("student").failures) == (3, 2)


@pytest.mark.parametrize("code", [80, 143])
def test_what_was_ended_unasked_is_tried_again_free_of_charge(world: World, code: int) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=code) if attempt < 3 else GOOD
    job = world.apply(failurePolicy={"backoffLimit": 0})
    assert job.finish() == "Succeeded"
    assert (job.stage("student").failures, job.stage("student").disruptions) == (0, 2)


def test_retries_are_exhausted_at_backoff_limit(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=75)
    job = world.apply(failurePolicy={"backoffLimit": 2})
    assert job.finish() == "RetriesExhausted"
    assert job.stage("student").attempt == 3
    assert "backoffLimit" in job.condition("Failed")[2]


def test_out_of_memory_counts_above_everything_its_peers_say(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: (
        End(code=137, reason="OOMKilled", result=False) if index else End(code=78)
    )
    job = world.apply()
    assert job.finish() == "HostOutOfMemory"
    assert "resources.memory" in job.condition("Failed")[2]


def test_the_same_failure_at_the_same_step_three_times_is_poison(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=75, position="step 12")
    job = world.apply(failurePolicy={"backoffLimit": 9})
    assert job.finish() == "Bug"
    assert "poison" in job.condition("Failed")[2]
    assert job.stage("student").attempt == 3


def test_three_lost_results_in_a_row_end_the_job(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(result=False)
    job = world.apply()
    assert job.finish() == "ResultLost"
    assert job.stage("student").attempt == 3


def test_a_retry_annotation_tries_a_failed_stage_again(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=70) if attempt == 1 else GOOD
    job = world.apply()
    assert job.finish() == "Bug"
    job.annotate(RETRY_ANNOTATION, "student/n1")
    world.until(lambda: job.end == "Succeeded")
    assert job.status.retry == "student/n1"


def test_a_malformed_retry_is_said_and_left_alone(world: World) -> None:
    job = world.apply()
    job.finish()
    job.annotate(RETRY_ANNOTATION, "nosuch")
    world.wait(60)
    assert job.end == "Succeeded"
    assert any("nosuch" in note.message for note in world.operators[0].notes.posted)


def test_an_active_deadline_ends_the_job(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    job = world.apply(activeDeadlineSeconds=3600)
    assert job.finish() == "DeadlineExceeded"
    assert job.pods() == []


def test_a_pending_deadline_ends_a_job_whose_pods_find_no_node(world: World) -> None:
    world.nodes.scripts["dataset"] = lambda attempt, index: End(unschedulable="0/3 nodes are available")
    job = world.apply(pendingDeadlineSeconds=600)
    assert job.finish() == "DeadlineExceeded"


def test_why_pods_do_not_start_is_said(world: World) -> None:
    world.nodes.scripts["dataset"] = lambda attempt, index: End(waiting=("ImagePullBackOff", "no such image"))
    job = world.apply()
    world.wait(120)
    assert job.condition("Degraded")[:2] == ("True", "ImageNotPulled")
    assert "no such image" in job.condition("Reconciling")[2]


def test_a_budget_suspends_and_a_larger_one_goes_on(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(seconds=4 * 3600.0)
    job = world.apply(budget={"maxGPUHours": "2"})
    world.until(lambda: job.condition("Suspended")[0] == "True")
    assert job.condition("Suspended")[1] == "BudgetExceeded"
    assert job.pods() == []
    job.edit(budget={"maxGPUHours": "100"})
    assert job.finish() == "Succeeded"


def test_a_time_to_live_deletes_the_job_and_spares_what_git_would_make_again(world: World) -> None:
    plain = world.apply("plain", retention={"ttlSecondsAfterFinished": 60})
    managed = world.apply(
        "managed", labels={"argocd.argoproj.io/instance": "x"}, retention={"ttlSecondsAfterFinished": 60}
    )
    world.until(lambda: plain.gone)
    world.until(lambda: managed.end is not None)
    world.wait(7200)
    assert not managed.gone
    assert managed.children("Job", "Deployment", "Service", "ConfigMap", "NetworkPolicy") == []


def test_break_glass_leaves_a_job_alone(world: World) -> None:
    job = world.apply(annotations={RECONCILE_ANNOTATION: "disabled"})
    world.wait(300)
    assert job.children() == []


def test_a_deployment_that_somebody_deletes_is_made_again(world: World) -> None:
    world.nodes.scripts["logits"] = lambda attempt, index: End(seconds=600.0)
    job = world.apply()
    job.reach("logits", "Running")
    world.server.delete("Deployment", job.child("teacher/teacher", 1))
    assert job.finish() == "Succeeded"
    assert job.teacher().attempt >= 2


def test_a_job_that_somebody_deletes_is_a_disruption(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(seconds=600.0)
    job = world.apply()
    job.reach("student", "Running")
    world.server.delete("Job", job.child("student", 1))
    assert job.finish() == "Succeeded"
    assert (job.stage("student").disruptions, job.stage("student").failures) == (1, 0)


def test_pods_of_a_failed_stage_are_kept_for_a_look(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(code=70)
    job = world.apply(retention={"keepPodsOnFailureSeconds": 1800})
    job.finish()
    assert f"Job/{job.child('student', 1)}" in job.children("Job")
    world.wait(timedelta(minutes=40).total_seconds())
    assert job.children("Job", "Deployment") == []


def test_a_teacher_that_cannot_load_ends_the_job_at_once(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(code=64, message="no such model")
    job = world.apply()
    assert job.finish() == "BadSettings"
    assert "teacher" in job.condition("Failed")[2]


def test_what_becomes_of_an_ended_jobs_pods_is_no_news_and_its_children_go_in_their_time(world: World) -> None:
    """A cluster that holds more ended pods than it keeps deletes the oldest, by the dozen."""
    job = world.apply()
    assert job.finish() == "Succeeded"
    world.wait(1)
    passes = world.operators[0].passes
    left = [pod["metadata"]["name"] for pod in world.server.every("Pod")]
    assert left
    for name in left:
        world.server.delete("Pod", name, grace_seconds=0)
    world.settle()
    assert world.operators[0].passes == passes
    world.wait(2 * 3600)
    assert job.children("Job", "Deployment") == []


def test_an_ended_job_that_is_asked_for_again_hears_of_its_children_again(world: World) -> None:
    job = world.apply()
    assert job.finish() == "Succeeded"
    world.wait(1)
    job.annotate(RETRY_ANNOTATION, "student/1")
    job.reach("student", "Running")
    assert not any(memory.over for memory in world.operators[0].worker.memories.values())
    assert job.finish() == "Succeeded"


def test_a_suspended_job_is_looked_at_six_times_an_hour_and_at_once_when_it_is_resumed(world: World) -> None:
    job = world.apply(suspend=True)
    world.wait(60)
    passes = world.operators[0].passes
    world.wait(3600)
    assert world.operators[0].passes - passes == 6
    job.edit(suspend=False)
    world.wait(1)
    assert job.children("Job")
