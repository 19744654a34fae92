"""A job that the operator is to leave alone, and its peers, in a world of virtual time: one behaviour a test."""

from __future__ import annotations

import pytest
from operator_nodes import FOREVER, GOOD
from operator_world import ANSWERS, LOGITS, STUDENT, Job, World

from kd_runtime.api.labels import RECONCILE_ANNOTATION


def left_alone(world: World, name: str, part: str, *states: str) -> Job:
    """A job that is left alone from the moment that a part of it is in one of ``states``."""
    job = world.apply(name)
    job.reach(part, *states)
    job.annotate(RECONCILE_ANNOTATION, "disabled")
    return job


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
    operator = world.operators[0]
    operator.stepwise = True
    job = world.apply()
    job.reach("dataset", "Queued")
    name = job.child("dataset", 1)
    world.until(lambda: name in [one.manifest["metadata"]["name"] for one in operator.decided[-1][1].create])
    assert f"Job/{name}" not in job.children()  # decided, and not done yet
    job.annotate(RECONCILE_ANNOTATION, "disabled")
    world.wait(120)
    assert f"Job/{name}" not in job.children()
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
