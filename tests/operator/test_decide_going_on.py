"""A step that is done and the claim of the next one: one status, unless somebody waits in between."""

from __future__ import annotations

from kd_operator.observe import goes_on
from kd_operator.observed import MainChild
from operator_world import START, World

from kd_runtime.api.labels import RETRY_ANNOTATION
from kd_runtime.api.status import JobStatus, PlanStatus, StageStatus

MOST_STATUSES = 17
"""Of a plan, three stages and a teacher: each is claimed, there, at work; of the teacher, one of each of its replicas' pods; its
end before the student's claim; and the end of all."""


def states(status: JobStatus) -> dict[str, str | None]:
    return {"plan": status.plan.state if status.plan else None, **{s.name: s.state for s in status.stages}}


def first(world: World, part: str, state: str) -> dict[str, str | None]:
    """All states in the status that was the first to say ``state`` of a part."""
    return next(found for found in map(states, world.statuses) if found[part] == state)


def test_what_is_done_and_what_is_claimed_next_are_said_in_one_status(world: World) -> None:
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert states(world.statuses[0]) == {
        "plan": "Queued", "dataset": "Waiting", "logits": "Waiting", "student": "Waiting"
    }  # fmt: skip
    assert first(world, "plan", "Succeeded")["dataset"] == "Queued"
    assert first(world, "dataset", "Succeeded")["logits"] == "Queued"
    assert first(world, "logits", "Succeeded")["student"] == "Waiting"  # the teacher's GPUs are not free yet
    assert next(s for s in world.statuses if states(s)["student"] == "Succeeded").completion_time is not None
    assert world.puts <= MOST_STATUSES


def test_a_retry_that_is_asked_for_meanwhile_comes_before_the_next_claim(world: World) -> None:
    job = world.apply()
    job.reach("dataset", "Running")
    job.annotate(RETRY_ANNOTATION, "dataset/again")
    assert job.finish() == "Succeeded"
    assert first(world, "dataset", "Succeeded")["logits"] == "Waiting"
    assert job.run("plan").attempt == 2
    assert job.stage("dataset").attempt == 2


def test_a_retry_that_is_asked_for_in_the_last_stage_comes_before_the_end(world: World) -> None:
    job = world.apply()
    job.reach("student", "Running")
    job.annotate(RETRY_ANNOTATION, "student/again")
    assert job.finish() == "Succeeded"
    assert job.stage("student").attempt == 2


def test_peers_are_read_where_something_at_work_is_complete() -> None:
    status = JobStatus(
        plan=PlanStatus(state="Succeeded", child_uid="p"),
        stages=(StageStatus(name="a", state="Succeeded", child_uid="a"), StageStatus(name="b", state="Running", child_uid="b")),
    )  # fmt: skip

    def child(uid: str, complete: bool = True) -> MainChild:
        return MainChild("Job", f"job-{uid}", uid, "owner", "workers", "s", 1, START, complete=complete)

    assert goes_on(status, [child("a"), child("b")])
    assert not goes_on(status, [child("a"), child("p"), child("b", complete=False)])


def test_a_job_that_is_over_is_looked_at_seldom_while_its_pods_are_kept_and_nothing_of_it_is_remembered(
    world: World,
) -> None:
    job = world.apply()
    assert job.finish() == "Succeeded"
    operator = world.operators[0]
    assert job.children("Job")
    looks = operator.passes
    world.wait(3000)
    assert operator.passes - looks <= 4
    observer = operator.worker.observer
    assert (observer._fixed, observer._uids, observer._told, len(observer.progress)) == ({}, {}, {}, 0)  # type: ignore[arg-type]
    world.wait(1000)
    assert job.children("Job") == []
