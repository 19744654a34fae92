"""What befalls a job seldom, decided by the real operator in a world of virtual time: one behaviour a test."""

from __future__ import annotations

from dataclasses import replace

import pytest
from job_children import context, only
from kd_operator.children import build
from kd_operator.children.context import ChildContext
from kd_operator.names import config_name
from kd_operator.observe import FIXED_SECONDS
from kd_operator.progress.board import Board
from kd_operator.progress.identity import Sender
from kd_operator.progress.report import Report
from operator_nodes import FOREVER, GOOD, End
from operator_server import NAMESPACE
from operator_world import LOGITS, STUDENT, Job, World, runtime_document, training
from statuses import kstatus

from kd_runtime.api.labels import RETRY_ANNOTATION

# ---- objects of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Job", "Service"])
def test_a_foreign_object_under_a_childs_name_fails_the_job_which_goes_on_once_it_is_gone_and_asked_to(
    world: World, kind: str
) -> None:
    job = world.apply()
    job.reach("logits", "Running")
    name = job.child("student", 1)
    theirs = world.server.create({"kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {}})
    assert job.finish() == "NameConflict"
    _, _, message = job.condition("Failed")
    assert f"{kind}/{name}" in message
    assert f"delete or rename it, then annotate {RETRY_ANNOTATION}" in message
    assert job.pods() == []
    assert world.server.read(kind, name) == theirs

    world.wait(2 * 3600)
    assert job.end == "NameConflict"
    assert world.server.read(kind, name) == theirs  # also where children of ours are tidied up

    world.server.delete(kind, name)
    job.annotate(RETRY_ANNOTATION, "student/now")
    world.until(lambda: job.end == "Succeeded")
    assert world.nodes.made == ["dataset", "logits", "student"]


def test_a_foreign_config_map_under_the_jobs_name_is_left_alone(world: World) -> None:
    job = world.apply()
    name = config_name(job.name, job.uid)
    theirs = world.server.create({"kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}, "data": {}})
    assert job.finish() == "NameConflict"
    assert f"ConfigMap/{name}" in job.condition("Failed")[2]
    job.annotate(RETRY_ANNOTATION, "plan/too-soon")
    world.until(lambda: job.status.retry == "plan/too-soon" and job.end == "NameConflict")
    assert world.server.read("ConfigMap", name) == theirs
    world.server.delete("ConfigMap", name)
    job.annotate(RETRY_ANNOTATION, "plan/now")
    world.until(lambda: job.end == "Succeeded")


@pytest.mark.parametrize("copied", [False, True])
def test_a_child_of_an_attempt_that_nobody_claimed_goes_with_the_very_first_look(world: World, copied: bool) -> None:
    job = world.apply()
    stray = only(build.stage(context_of(job), "student", 7, teacher_attempt=1))
    stray["metadata"]["name"] = "copy" if copied else job.child("student", 7)
    world.server.create(stray)
    world.operators[0].step()
    world.operators[0].finish()
    assert job.status.runtime is not None
    assert f"Job/{stray['metadata']['name']}" not in job.children()
    assert job.finish() == "Succeeded"
    assert job.stage("student").attempt == 1


@pytest.mark.parametrize("part", ["student", "teacher/teacher"])
def test_a_service_that_somebody_deletes_is_made_again_in_a_minute_and_a_half(world: World, part: str) -> None:
    for name in ("student", "logits"):
        world.nodes.scripts[name] = lambda attempt, index: FOREVER
    if part == "student":
        del world.nodes.scripts["logits"]
    job = world.apply()
    job.reach("student" if part == "student" else "logits", "Running")
    name = job.child(part, 1)
    before = world.server.read("Service", name)
    world.server.delete("Service", name)
    world.wait(60 + FIXED_SECONDS)
    after = world.server.read("Service", name)
    assert (after["spec"], after["metadata"]["labels"]) == (before["spec"], before["metadata"]["labels"])
    assert (job.run(part).attempt, job.run(part).state) == (1, "Running")
    made = after["metadata"]["uid"]
    world.wait(600)
    assert world.server.read("Service", name)["metadata"]["uid"] == made
    job.edit(suspend=True)
    world.until(lambda: job.condition("Suspended")[0] == "True")
    assert job.children("Service") == []


def teacher_urls(job: Job) -> set[str]:
    """Where the workers that ask the teacher look for it."""
    containers = [pod.raw["spec"]["containers"][0] for pod in job.pods("logits")]
    return {entry["value"] for one in containers for entry in one["env"] if entry["name"] == "KD_TEACHER_URL"}


def asking(world: World) -> Job:
    """A job whose first attempt to ask the teacher lasts until something happens to it."""
    world.nodes.scripts["logits"] = lambda attempt, index: FOREVER if attempt == 1 else End(seconds=600)
    job = world.apply(failurePolicy={"backoffLimit": 0})
    job.reach("logits", "Running")
    return job


def test_a_teacher_whose_deployment_somebody_deletes_is_asked_again_at_its_new_address_free_of_charge(
    world: World,
) -> None:
    job = asking(world)
    deployment = job.child("teacher/teacher", 1)
    world.server.delete("Deployment", deployment)
    world.until(lambda: job.stage("logits").state == "Backoff")
    assert job.condition("Degraded")[:2] == ("True", "Disrupted")
    assert f"Deployment {deployment} was deleted by somebody else" in job.condition("Degraded")[2]
    world.until(lambda: job.stage("logits").state == "Running" and job.stage("logits").attempt == 2)
    assert teacher_urls(job) == {job.teacher().url}
    assert job.children("Deployment", "Service") == [
        f"{kind}/{job.child('teacher/teacher', 2)}" for kind in ("Deployment", "Service")
    ]
    assert job.finish() == "Succeeded"
    assert (job.stage("logits").failures, job.stage("logits").disruptions) == (0, 1)


def test_a_teacher_that_gives_up_ends_the_attempt_that_asks_it_and_the_next_has_its_new_address(world: World) -> None:
    job = asking(world)
    job.edit(failurePolicy={"backoffLimit": 3})
    world.nodes.finish(job.pods("teacher/teacher")[0], End(74))
    world.wait(60)
    assert (job.stage("logits").attempt, job.stage("logits").state) == (
        1,
        "Running",
    )  # it answered: workers wait for it
    world.server.delete("Deployment", job.child("teacher/teacher", 1))
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(1, seconds=30) if attempt == 2 else FOREVER
    world.until(lambda: job.stage("logits").state == "Running" and job.stage("logits").attempt > 1)
    assert job.teacher().attempt == 3
    assert teacher_urls(job) == {job.teacher().url}
    assert job.finish() == "Succeeded"


def test_deployments_that_are_deleted_again_and_again_end_the_job(world: World) -> None:
    world.nodes.scripts["logits"] = lambda attempt, index: FOREVER
    job = world.apply(failurePolicy={"disruptionLimit": 2})
    for attempt in (1, 2, 3):
        world.until(lambda: job.stage("logits").state == "Running" and job.stage("logits").attempt == attempt)  # noqa: B023
        world.server.delete(*job.children("Deployment")[0].split("/"))
    assert job.finish() == "DisruptionsExhausted"
    assert (job.pods(), job.children("Deployment", "Service")) == ([], [])


def test_a_gang_of_one_has_no_service(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    job = world.apply(stages=[LOGITS, {**STUDENT, "resources": {"nodes": 1, "gpusPerNode": 1}}])
    job.reach("student", "Running")
    world.wait(300)
    assert job.children("Service") == []


# ---- disruptions, budget, retry ----------------------------------------------------------------------------------------


def test_a_gang_whose_every_pod_is_evicted_costs_no_attempt(world: World) -> None:
    job = training(world, failurePolicy={"backoffLimit": 0})
    gang = job.pods("student")
    assert len(gang) == 2
    for pod in gang:
        world.nodes.disrupt(pod)
    assert job.finish() == "Succeeded"
    student = job.stage("student")
    assert (student.attempt, student.failures, student.disruptions) == (2, 0, 1)
    assert job.status.attempts is not None
    assert (job.status.attempts.counted, job.status.attempts.disruptions) == (0, 1)


def pausing(world: World) -> Job:
    """A job that trained in vain for an hour on two GPUs, and pauses."""
    world.nodes.scripts["student"] = lambda attempt, index: End(75, seconds=3600.0) if attempt == 1 else GOOD
    job = world.apply(
        budget={"maxGPUHours": "10"}, failurePolicy={"backoff": {"baseSeconds": 1000, "maxSeconds": 1000}}
    )
    job.reach("student", "Backoff")
    return job


def test_a_budget_that_is_used_up_in_a_pause_suspends_and_a_larger_one_goes_on(world: World) -> None:
    job = pausing(world)
    job.edit(budget={"maxGPUHours": "1"})
    world.until(lambda: job.condition("Suspended")[0] == "True", within=60)
    assert job.condition("Suspended")[1] == "BudgetExceeded"
    assert job.condition("ResourcesReleased")[0] == "True"
    assert job.stage("student").state == "Waiting"  # no peer is to wait for it
    world.wait(2 * 3600)
    assert (job.pods(), job.stage("student").attempt) == ([], 1)
    job.edit(budget={"maxGPUHours": "10"})
    assert job.finish() == "Succeeded"
    assert (job.stage("student").attempt, job.stage("student").failures) == (2, 1)


def test_a_budget_that_is_used_up_in_a_pause_can_end_the_job(world: World) -> None:
    job = pausing(world)
    job.edit(budget={"maxGPUHours": "1", "onExceeded": "Fail"})
    assert job.finish(within=60) == "BudgetExceeded"
    assert (job.stage("student").attempt, job.stage("student").state, job.pods()) == (1, "Failed", [])


def test_a_retry_that_is_asked_for_in_a_drain_is_carried_out_after_the_suspension(world: World) -> None:
    job = training(world)
    world.nodes.lingering = True
    job.edit(suspend=True)
    job.reach("student", "Draining")
    job.annotate(RETRY_ANNOTATION, "logits/again")
    world.wait(300)
    assert (job.stage("student").state, job.status.retry) == ("Draining", None)
    world.nodes.lingering = False
    world.until(lambda: job.condition("Suspended")[0] == "True")
    world.wait(300)
    assert (job.condition("Suspended")[0], job.pods()) == ("True", [])
    assert not any("--retry" in arguments for arguments in world.nodes.asked)
    job.edit(suspend=False)
    assert job.finish() == "Succeeded"
    assert job.status.retry == "logits/again"
    assert sum("--retry logits/again" in arguments for arguments in world.nodes.asked) == 1
    assert world.nodes.made.count("logits") == 2


# ---- what the runtime allows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ({"allowed": {"uris": ["s3://elsewhere/"]}}, ["s3://models/", "use one of: s3://elsewhere/"]),
        ({"allowed": {"secrets": ["other-*"]}}, ["credentialsSecretRef", "store", "use one of: other-*"]),
        ({"limits": {"nodes": 1}}, ["resources.nodes", "2", "exceeds 1, the limit of the runtime cpu"]),
        ({"allowed": {"namespaces": {"matchLabels": {"team": "a"}}}}, [NAMESPACE, "allowed.namespaces selects"]),
    ],
)
def test_what_the_runtime_does_not_allow_makes_no_child_until_it_is_widened_and_the_job_asked_again(
    world: World, rule: dict[str, object], values: list[str]
) -> None:
    widen(world, 2, **rule)
    job = world.apply()
    assert job.finish() == "NotAllowed"
    assert (kstatus(job.raw), job.children(), job.pods()) == ("Failed", [], [])
    _, _, message = job.condition("Failed")
    assert [value for value in values if value not in message] == []
    assert job.condition("Accepted")[:2] == ("False", "NotAllowed")

    job.annotate(RETRY_ANNOTATION, "plan/too-soon")
    world.until(lambda: job.status.retry == "plan/too-soon" and job.end == "NotAllowed")
    assert job.children() == []

    widen(world, 3)
    world.wait(600)
    assert job.end == "NotAllowed"  # what has failed stays so until somebody asks again
    job.annotate(RETRY_ANNOTATION, "plan/now")
    world.until(lambda: job.end == "Succeeded")
    assert job.condition("Accepted")[0] == "True"


def widen(world: World, generation: int, **rule: object) -> None:
    """Change what the runtime allows."""
    world.server.change(world.runtime, metadata={"generation": generation}, spec=runtime_document(**rule)["spec"])


def context_of(job: Job) -> ChildContext:
    """What the operator builds this job's children from, a plan being there."""
    raw = job.raw
    document = {**raw, "metadata": {"name": job.name, "namespace": NAMESPACE, "uid": job.uid}}
    return replace(context(document, job.world.runtime), uid=job.uid)


# ---- what is kept of a job ---------------------------------------------------------------------------------------------


def posted(job: Job) -> Board:
    """The operator's board, after a pod of the job's training has posted its progress."""
    board = job.world.operators[0].worker.observer.progress
    assert isinstance(board, Board)
    sender = Sender(NAMESPACE, job.name, job.uid, "a-pod", "trainer", "student", 1, 0)
    board.post(sender, Report(stage="student", completed=5, total=10, unit="steps"))
    assert len(board) == 1
    return board


def test_posts_of_a_job_that_is_over_are_forgotten(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(seconds=600.0)
    job = world.apply()
    job.reach("student", "Running")
    board = posted(job)
    world.until(lambda: (progress := job.stage("student").progress) and progress.completed == 5)
    assert job.finish() == "Succeeded"
    world.wait(2 * 3600)
    assert len(board) == 0


@pytest.mark.parametrize("again", [False, True])
def test_posts_of_a_job_that_is_deleted_are_forgotten(world: World, again: bool) -> None:
    job = training(world)
    board, former = posted(job), job.uid
    job.delete()
    if again:
        world.apply(job.name)
    world.wait(60)
    assert board.stage_progress(former) == {}
    assert again or len(board) == 0
