"""Children that the API server refuses to make, in a world of virtual time: the job says so until they are there."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from kd_operator.cluster.errors import ApiError, Denied, Refused
from kd_operator.decide.refusals import remedy
from kd_operator.worker import Memory
from operator_server import Object
from operator_world import World, told
from statuses import kstatus

QUOTA = "exceeded quota: jobs, requested: count/jobs.batch=1, used: count/jobs.batch={}, limited: count/jobs.batch=5"
WEBHOOK = 'admission webhook "labels.example.com" denied the request: label cost-centre is missing (trace {:032x})'


def refuse(world: World, kind: str, error: Callable[[str], ApiError], part: str = "") -> None:
    """From now on objects of a kind (of one part) are refused."""

    def refuses(manifest: Object) -> ApiError | None:
        name = manifest["metadata"]["name"]
        return error(name) if manifest["kind"] == kind and part in name else None

    world.server.refuses = refuses


@pytest.mark.parametrize(
    ("kind", "said", "kept", "remedy"),
    [
        ("Job", QUOTA, "requested: count/jobs.batch=1, limited: count/jobs.batch=5", "raise that ResourceQuota"),
        ("ConfigMap", WEBHOOK, "label cost-centre is missing", "do what the webhook asks for"),
    ],
)
def test_a_child_that_is_refused_is_told_in_steady_words_until_it_is_there(
    world: World, kind: str, said: str, kept: str, remedy: str
) -> None:
    counts = itertools.count(5)
    refuse(world, kind, lambda name: Denied(403, "Forbidden", f'"{name}" is forbidden: {said.format(next(counts))}'))
    job = world.apply()
    world.wait(600)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "ChildRefused")
    assert message.startswith(f"{kind} {job.name}-")
    assert kept in message
    assert remedy in message
    assert job.condition("Reconciling")[:2] == ("True", "ChildRefused")
    assert kstatus(job.raw) == "InProgress"
    written, first = world.puts, next(counts)
    world.wait(3600)
    assert world.puts == written  # nothing churns
    assert 55 <= next(counts) - first <= 125  # tried each minute, by no more than two requests
    assert len({note.message for note in told(world) if note.reason == "ChildRefused"}) == 1
    world.server.refuses = lambda manifest: None
    assert job.finish() == "Succeeded"
    assert job.condition("Degraded")[0] == "False"
    assert list(world.operators[0].worker.memories.values()) == [Memory(over=True)]


@pytest.mark.parametrize(("kind", "part"), [("Deployment", "teacher/teacher"), ("Job", "student")])
def test_the_part_whose_child_is_refused_says_so_and_goes_on_once_it_is_not(world: World, kind: str, part: str) -> None:
    name = part.rpartition("/")[2]
    refuse(world, kind, lambda child: Refused(422, "Invalid", f'{kind} "{child}" is invalid: spec: no'), name)
    job = world.apply()
    world.wait(3600)
    assert (job.run(part).state, job.run(part).attempt) == ("Queued", 1)
    assert job.run(part).reason == "ChildRefused"
    assert "is invalid: spec: no" in (job.run(part).message or "")
    world.server.refuses = lambda manifest: None
    assert job.finish() == "Succeeded"
    assert job.run(part).reason != "ChildRefused"
    assert (job.stage("student").attempt, job.stage("student").failures) == (1, 0)


def test_a_job_that_is_suspended_is_not_degraded_by_what_it_does_not_ask_for(world: World) -> None:
    refuse(world, "Job", lambda name: Denied(403, "Forbidden", QUOTA.format(5)), "student")
    job = world.apply()
    world.until(lambda: job.condition("Degraded")[:2] == ("True", "ChildRefused"))
    job.edit(suspend=True)
    world.wait(600)
    assert job.condition("Suspended")[0] == "True"
    assert job.condition("Degraded")[0] == "False"


def test_after_a_restart_a_refusal_is_told_again(world: World) -> None:
    refuse(world, "Job", lambda name: Denied(403, "Forbidden", QUOTA.format(5)))
    job = world.apply()
    world.wait(600)
    before = job.condition("Degraded")
    world.operators[0].crash()
    world.wait(60)
    assert job.condition("Degraded") == before


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ('pods "x" is forbidden: failed quota: q: must specify limits.memory for: main', "LimitRange"),
        ('pods "x" is forbidden: maximum cpu usage per Container is 1, but limit is 2', "LimitRange permits"),
        ('jobs.batch is forbidden: User "system:serviceaccount:kd:op" cannot create', "the operator's own rights"),
    ],
)
def test_each_kind_of_refusal_has_its_remedy(words: str, what: str) -> None:
    assert what in remedy(words)


@pytest.mark.parametrize(
    ("words", "steady"),
    [
        ("exceeded quota: q, requested: a=1,b=2, used: a=5,b=0, limited: a=5", "exceeded quota: q, requested: a=1,b=2, limited: a=5"),
        ("denied, request 5e4d8a5c-0000-4111-8222-123456789abc at 2026-01-05T10:00:00.5Z", "denied, request  at "),
        ("image kd@sha256:" + "ab" * 32 + " is not signed", "image kd@sha256:" + "ab" * 32 + " is not signed"),
    ],
)  # fmt: skip
def test_what_varies_of_a_refusal_is_left_out(words: str, steady: str) -> None:
    assert Denied(403, "Forbidden", words).steady == steady
