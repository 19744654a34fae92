"""A job that the operator is to leave alone, and its peers, in a world of virtual time: one behaviour a test."""

from __future__ import annotations

from datetime import timedelta

import pytest
from kd_operator import queue, worker
from kd_operator.queue import WorkQueue
from operator_nodes import FOREVER, GOOD
from operator_world import ANSWERS, LOGITS, STUDENT, Job, Operator, World

from kd_runtime.api.labels import RECONCILE_ANNOTATION


def left_alone(world: World, name: str, part: str, *states: str) -> Job:
    """A job that is left alone from the moment that a part of it is in one of ``states``."""
    job = world.apply(name)
    job.reach(part, *states)
    job.annotate(RECONCILE_ANNOTATION, "disabled")
    return job


UNCLAIMED = {"state": "Waiting", "attempt": 0, "reason": "Planned", "message": "its turn comes"}
CLAIMED = {"state": "Queued", "attempt": 1, "reason": "Queued", "message": "claimed in turn"}
WITHDRAWN = {"state": "Waiting", "attempt": 1, "reason": "WaitingForPeer", "message": "another operator saw a peer"}


def rewrite(job: Job, stage: str, claim: dict[str, object]) -> None:
    """Another operator's status: ``claim`` is what it says of a stage."""
    stages = [{**s, **(claim if s["name"] == stage else {})} for s in job.raw["status"]["stages"]]
    job.world.server.change(job.raw, status={**job.raw["status"], "stages": stages})


def about_to_claim(world: World, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[Job]:
    """Jobs that would make the same, the oldest first, none of which has claimed its first stage yet."""
    monkeypatch.setattr(worker, "MOST_CLAIMS", 0)  # a pass ends with its claim: others may do something in between
    monkeypatch.setattr(queue, "HEAD_START_SECONDS", 0.0)  # turn and turn about
    jobs = sorted((world.apply(name) for name in names), key=lambda job: job.uid)
    world.until(lambda: all(job.stage("dataset").key for job in jobs))
    assert not any("dataset" in child for job in jobs for child in job.children("Job"))
    for job in jobs:
        rewrite(job, "dataset", UNCLAIMED)
    return jobs


def is_about_to_create(operator: Operator, child: str) -> bool:
    """Whether an operator has decided to, and not done so yet."""
    return any(one.child == f"Job/{child}" for one in operator.decided[-1][1].create) if operator.decided else False


def about_to_create(world: World) -> tuple[Operator, Job, str]:
    """An operator that has claimed a job's first stage and decided to create its batch Job, of that name, and the job."""
    operator = world.operators[0]
    operator.stepwise = True
    job = world.apply()
    job.reach("dataset", "Queued")
    child = job.child("dataset", 1)
    world.until(lambda: is_about_to_create(operator, child))
    assert f"Job/{child}" not in job.children()
    return operator, job, child


def takes_up(operator: Operator, job: Job) -> Operator:
    """An operator that has been told of that job alone."""
    operator.worker.queue = WorkQueue(operator.world.seconds, jitter=lambda: 0.0)
    operator.worker.job_changed((job.raw["metadata"]["namespace"], job.name))
    return operator


def test_pods_of_a_job_that_is_left_alone_hold_its_stage_and_who_waits_says_so(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    alone = left_alone(world, "alone", "student", "Running")
    job = world.apply("waits")
    world.wait(600)
    for kind in ("Reconciling", "Degraded", "Ready"):
        _, reason, message = job.condition(kind)
        assert reason == "WaitingForPeer"
        assert "job alone" in message and f"{RECONCILE_ANNOTATION}: disabled" in message and "remove" in message
    assert (job.stage("student").state, job.stage("student").attempt) == ("Waiting", 0)

    world.nodes.scripts["student"] = lambda attempt, index: GOOD
    world.server.delete("Job", alone.child("student", 1))
    assert job.finish() == "Succeeded"
    assert job.condition("Degraded")[0] == "False"
    assert world.nodes.made == ["dataset", "logits", "student"]


def test_what_pods_of_a_job_that_is_left_alone_have_made_is_found(world: World) -> None:
    alone = left_alone(world, "alone", "student", "Running")
    job = world.apply("waits")
    assert job.finish() == "Succeeded"
    assert alone.stage("student").state == "Running"
    assert job.stage("student").state == "Skipped"
    assert world.nodes.made == ["dataset", "logits", "student"]


@pytest.mark.parametrize("state", ["Queued", "Backoff"])
def test_a_job_that_is_left_alone_without_a_pod_holds_nobody_up(world: World, state: str) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    alone = left_alone(world, "alone", "student", "Running")
    world.server.delete("Job", alone.child("student", 1))
    world.settle()
    stages = [{**s, **({"state": state} if s["name"] == "student" else {})} for s in alone.raw["status"]["stages"]]
    world.server.change(alone.raw, status={**alone.raw["status"], "stages": stages})
    world.nodes.scripts["student"] = lambda attempt, index: GOOD
    job = world.apply("other")
    assert job.finish(within=3600) == "Succeeded"
    assert job.stage("student").attempt == 1
    alone.annotate(RECONCILE_ANNOTATION, None)
    assert alone.finish() == "Succeeded"
    assert world.nodes.made == ["dataset", "logits", "student"]


def test_who_comes_back_to_a_claim_of_long_ago_waits_for_who_has_begun_meanwhile(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    operator = world.operators[0]
    older = world.apply("older")
    older.reach("student", "Queued", "Starting")
    operator.finish()
    older.annotate(RECONCILE_ANNOTATION, "disabled")
    for name in older.children("Job", "Service"):
        world.server.delete(*name.split("/"))
    stages = [
        {k: v for k, v in {**s, "state": "Queued" if s["name"] == "student" else s["state"]}.items() if k != "childUID"}
        for s in older.raw["status"]["stages"]
    ]
    world.server.change(older.raw, status={**older.raw["status"], "stages": stages})
    younger = world.apply("younger")
    younger.reach("student", "Running")
    older.annotate(RECONCILE_ANNOTATION, None)
    older.reach("student", "Waiting")
    assert older.stage("student").reason == "WaitingForPeer"
    assert not any("student" in name for name in older.children("Job"))
    world.wait(600)
    assert younger.stage("student").state == "Running"
    world.nodes.scripts["student"] = lambda attempt, index: GOOD
    assert (younger.finish(), older.finish()) == ("Succeeded", "Succeeded")
    assert world.nodes.made == ["dataset", "logits", "student"]
    assert older.stage("student").failures == 0


def test_no_child_is_made_of_a_job_that_was_left_alone_since_it_was_looked_at(world: World) -> None:
    _, job, child = about_to_create(world)
    job.annotate(RECONCILE_ANNOTATION, "disabled")
    world.wait(120)
    assert f"Job/{child}" not in job.children()
    job.annotate(RECONCILE_ANNOTATION, None)
    assert job.finish() == "Succeeded"
    assert job.stage("dataset").attempt == 1


def test_no_teacher_is_held_while_the_stage_that_asks_it_waits_for_a_peer(world: World) -> None:
    world.nodes.scripts["logits"] = lambda attempt, index: FOREVER
    logits = {**LOGITS, "inputs": {"rows": "dataset"}}
    peer = world.apply("peer", stages=[logits, STUDENT])
    peer.reach("logits", "Running")
    job = world.apply("waits", stages=[ANSWERS, logits, STUDENT])
    job.reach("teacher/teacher", "Running")  # for answers, which no peer makes
    world.wait(600)
    assert (job.stage("answers").state, job.stage("logits").reason) == ("Succeeded", "WaitingForPeer")
    assert (job.pods(), job.children("Deployment", "Service")) == ([], [])
    assert job.condition("ResourcesReleased")[0] == "True"
    world.nodes.scripts["logits"] = lambda attempt, index: GOOD
    assert (peer.finish(), job.finish()) == ("Succeeded", "Succeeded")
    assert sorted(world.nodes.made) == ["answers", "dataset", "logits", "student"]


# ---- claims in the same moment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_jobs_that_claim_at_the_same_moment_the_oldest_goes_on_and_the_others_withdraw_uncounted(
    world: World, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    jobs = about_to_claim(world, monkeypatch, "one", "two", "six")
    for place in order:
        rewrite(jobs[place], "dataset", CLAIMED)
    for other in jobs[1:]:
        other.reach("dataset", "Waiting")
        assert other.stage("dataset").reason == "WaitingForPeer"
    assert [job.finish() for job in jobs] == ["Succeeded"] * 3
    assert jobs[0].stage("dataset").state == "Succeeded"
    assert jobs[0].stage("dataset").attempt == 1
    assert not any("dataset" in child for other in jobs[1:] for child in other.children("Job"))
    assert sorted(world.nodes.made) == ["dataset", "logits", "student"]
    assert [other.stage("dataset").failures for other in jobs[1:]] == [0, 0]


@pytest.mark.parametrize("first", [0, 1])
def test_a_job_that_is_written_to_between_its_claim_and_its_child_is_not_taken_for_the_later(
    world: World, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    jobs = about_to_claim(world, monkeypatch, "ada", "bea")
    early, late = jobs[first], jobs[1 - first]
    child = early.child("dataset", 1)
    rewrite(early, "dataset", CLAIMED)
    operator = takes_up(world.operators[0], early)
    operator.stepwise = True
    while not is_about_to_create(operator, child):  # it has seen nobody beside it
        assert operator.step()
    written = world.puts
    while operator.decided[-1][1].status is not None and world.puts == written:
        assert operator.step()
    assert f"Job/{child}" not in early.children("Job")

    rewrite(late, "dataset", CLAIMED)
    early.annotate("note", "of anybody")
    another = takes_up(Operator(world, "two"), late)
    for _ in range(20):
        another.step()
    assert not any("dataset" in name for name in late.children("Job"))
    assert late.stage("dataset").reason == "WaitingForPeer"
    assert late.stage("dataset").state == ("Queued" if first else "Waiting")  # the older keeps its claim

    operator.stepwise = False
    operator.finish()
    assert f"Job/{child}" in early.children("Job")
    world.operators.append(another)
    assert [job.finish() for job in jobs] == ["Succeeded", "Succeeded"]
    assert sorted(world.nodes.made) == ["dataset", "logits", "student"]
    assert not any("dataset" in name for name in late.children("Job"))
    assert late.stage("dataset").failures == 0


def test_a_stage_that_is_to_be_tried_again_is_left_to_a_peer_that_has_claimed_it_meanwhile(world: World) -> None:
    """Each waits for the other's claim to end: neither may keep it in its pause."""
    world.nodes.scripts["dataset"] = lambda attempt, index: FOREVER
    older = world.apply("older")
    older.reach("dataset", "Running")
    world.server.now += timedelta(seconds=5)
    younger = world.apply("younger")
    younger.reach("dataset", "Waiting")
    world.nodes.scripts["dataset"] = lambda attempt, index: GOOD
    world.operators[0].finish()
    rewrite(younger, "dataset", {"state": "Backoff", "attempt": 1, "reason": "Transient", "message": "of a moment ago"})
    rewrite(older, "dataset", {**CLAIMED, "childUID": None})
    world.server.delete("Job", older.child("dataset", 1))
    assert (older.finish(), younger.finish()) == ("Succeeded", "Succeeded")
    assert sorted(world.nodes.made) == ["dataset", "logits", "student"]


def test_no_child_is_made_of_a_claim_that_another_operator_has_withdrawn_since(world: World) -> None:
    operator, job, child = about_to_create(world)
    rewrite(job, "dataset", WITHDRAWN)
    operator.finish()
    assert f"Job/{child}" not in job.children("Job")
    assert job.finish() == "Succeeded"
    assert job.stage("dataset").attempt == 2
    assert world.nodes.made == ["dataset", "logits", "student"]
