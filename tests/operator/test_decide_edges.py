"""What comes at a bad moment, or in an order that nobody planned: each of these ended a job wrongly, or held its GPUs, once."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

import pytest
from kd_operator.cluster.errors import error_of
from operator_nodes import FOREVER, GOOD, NODE, End, condition
from operator_world import LOGITS, LONG, STUDENT, TEACHER, Job, World, runtime_document

from kd_runtime.api.labels import RETRY_ANNOTATION
from kd_runtime.api.reasons import REMEDIES, Reason

NO_NODE = End(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")


def away(world: World, seconds: float) -> None:
    """Let time pass with no operator, which then starts anew."""
    operator = world.operators.pop()
    world.wait(seconds)
    world.operators.append(operator)
    operator.start()


# ---- what a runtime allows ---------------------------------------------------------------------------------------------


def test_a_priority_class_that_is_edited_in_is_used_only_where_the_runtime_allows_it() -> None:
    world = World(runtime=runtime_document(allowed={"priorityClasses": ["low"]}))
    world.nodes.scripts["dataset"] = lambda attempt, index: FOREVER
    job = world.apply(scheduling={"priorityClassName": "low"})
    job.reach("dataset", "Running")
    job.edit(scheduling={"priorityClassName": "system-cluster-critical"})
    world.nodes.scripts["dataset"] = lambda attempt, index: GOOD
    world.server.delete("Job", job.child("dataset", 1))
    job.reach("logits", "Running")
    of_pods = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"].get("priorityClassName")
        for kind in ("Job", "Deployment")
        for one in world.server.owned(kind, job.uid)
    }
    assert of_pods.pop(job.child("plan", 1)) == "low"
    assert set(of_pods.values()) == {None}
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "NotAllowed")
    assert "spec.scheduling.priorityClassName" in message
    job.edit(scheduling={"priorityClassName": "low"})
    assert job.finish() == "Succeeded"
    assert job.condition("Degraded")[0] == "False"


def test_a_job_without_a_deadline_has_the_runtimes_limit_for_one() -> None:
    world = World(runtime=runtime_document(limits={"activeDeadlineSeconds": 600}))
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    job = world.apply()
    assert job.finish() == "DeadlineExceeded"
    assert "limits.activeDeadlineSeconds of the runtime cpu" in job.condition("Failed")[2]


@pytest.mark.parametrize("gone", [False, True], ids=["edited", "deleted and made again"])
def test_a_job_that_was_only_ever_suspended_takes_the_runtime_as_it_is_when_it_begins(gone: bool) -> None:
    world = World()
    job = world.apply(suspend=True)
    world.wait(60)
    if gone:
        world.server.delete("ClusterDistillationRuntime", "cpu")
        world.wait(4300)
        assert job.end is None
        world.server.create(runtime_document(env=[{"name": "A", "value": "1"}]))
    else:
        world.server.change(
            world.runtime, metadata={"generation": 2}, spec=runtime_document(env=[{"name": "A", "value": "1"}])["spec"]
        )
    world.wait(4300)
    assert (job.end, job.status.phase) == (None, "Suspended")
    job.edit(suspend=False)
    assert job.finish() == "Succeeded"


# ---- what is done is done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [137, 70])
def test_a_teacher_that_ends_after_its_stage_is_done_does_not_fail_the_stage(world: World, code: int) -> None:
    world.nodes.scripts["logits"] = lambda attempt, index: End(seconds=600)
    job = world.apply(failurePolicy={"backoffLimit": 0})
    job.reach("logits", "Running")
    operator = world.operators.pop()
    world.wait(900)
    reason = "OOMKilled" if code == 137 else "Error"
    world.nodes.finish(job.pods("teacher/teacher")[0], End(code, reason=reason, result=False))
    world.wait(5)
    world.operators.append(operator)
    operator.start()
    assert job.finish() == "Succeeded"
    assert job.stage("logits").attempt == 1


def test_a_worker_whose_memory_ran_out_before_its_job_succeeded_all_the_same_fails_nothing(world: World) -> None:
    ended: list[int] = []

    def script(attempt: int, index: int) -> End:
        if index == 0 and not ended:
            return End(137, seconds=20, reason="OOMKilled", result=False)
        return End(seconds=60)

    world.nodes.scripts["logits"] = script
    job = world.apply()
    job.reach("logits", "Running")
    operator = world.operators.pop()
    world.wait(25)
    ended.append(1)
    world.wait(600)
    world.operators.append(operator)
    operator.start()
    assert job.finish() == "Succeeded"


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ({"activeDeadlineSeconds": 7200}, 10000),
        ({"budget": {"maxGPUHours": "1.9", "onExceeded": "Fail"}}, 3620),
        ({"budget": {"maxGPUHours": "1.9"}}, 3620),
    ],
    ids=["deadline", "budget fails", "budget suspends"],
)
def test_what_was_done_within_its_limits_counts_whenever_the_operator_sees_it(
    world: World, limit: dict[str, Any], seconds: float
) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(seconds=3600)
    job = world.apply(**limit)
    job.reach("student", "Running")
    away(world, seconds)
    assert job.finish(within=1200) == "Succeeded"


# ---- suspension and deadlines ------------------------------------------------------------------------------------------


def test_a_deadline_does_not_end_a_job_that_drains(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER if attempt == 1 else GOOD
    job = world.apply(activeDeadlineSeconds=3600)
    job.reach("student", "Running")
    admitted = datetime.fromisoformat(str(job.status.admitted_time))
    world.wait(3580 - (world.server.now - admitted).total_seconds())
    world.nodes.lingering = True
    job.edit(suspend=True)
    world.wait(60)
    assert (job.end, job.status.phase) == (None, "Suspending")
    world.nodes.lingering = False
    world.until(lambda: job.condition("Suspended")[0] == "True")
    job.edit(suspend=False)
    assert job.finish() == "Succeeded"


def test_a_deadline_begins_anew_also_where_the_job_goes_on_before_it_was_drained(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    job = world.apply(activeDeadlineSeconds=3600)
    job.reach("student", "Running")
    admitted = job.status.admitted_time
    world.wait(1800)
    world.nodes.lingering = True
    job.edit(suspend=True)
    job.reach("student", "Draining")
    job.edit(suspend=False)
    world.wait(30)
    world.nodes.lingering = False
    world.until(lambda: job.stage("student").attempt == 2)
    assert job.status.admitted_time != admitted


# ---- retry -------------------------------------------------------------------------------------------------------------


def test_a_retry_after_too_many_disruptions_begins_with_none(world: World) -> None:
    world.nodes.scripts["first"] = lambda attempt, index: End(80) if attempt <= 2 else GOOD
    world.nodes.scripts["second"] = lambda attempt, index: End(80) if attempt <= 1 else GOOD
    stages = [LOGITS, {**STUDENT, "name": "first"}, {**STUDENT, "name": "second"}]
    job = world.apply(stages=stages, failurePolicy={"disruptionLimit": 2})
    assert job.finish() == "DisruptionsExhausted"
    job.annotate(RETRY_ANNOTATION, "second/1")
    world.until(lambda: job.end is None)
    assert job.finish() == "Succeeded"


def test_a_retry_does_not_wait_for_later_stages_of_the_same_teacher(world: World) -> None:
    world.nodes.scripts["answers"] = lambda attempt, index: End(seconds=600)
    world.nodes.scripts["logits"] = lambda attempt, index: End(seconds=3600)
    job = world.apply(stages=LONG)
    job.reach("answers", "Running")
    job.annotate(RETRY_ANNOTATION, "answers/again")
    job.reach("logits", "Queued", "Starting", "Running")
    assert job.status.retry == "answers/again"
    assert job.finish() == "Succeeded"


# ---- teachers ----------------------------------------------------------------------------------------------------------


def plan_fails(world: World, end: End) -> Job:
    """A job whose worker Job was deleted while its teacher runs, and whose plan pod does not come back."""
    fails: list[int] = []
    world.nodes.scripts["plan"] = lambda attempt, index: end if fails else GOOD
    world.nodes.scripts["logits"] = lambda attempt, index: FOREVER
    job = world.apply(failurePolicy={"backoffLimit": 50, "backoff": {"baseSeconds": 30, "maxSeconds": 7200}})
    job.reach("logits", "Running")
    fails.append(1)
    world.server.delete("Job", job.child("logits", 1))
    return job


@pytest.mark.parametrize("end", [End(74), NO_NODE], ids=["it fails", "it finds no node"])
def test_no_teacher_is_kept_for_a_plan_pod_that_does_not_come(world: World, end: End) -> None:
    job = plan_fails(world, end)
    world.wait(4 * 3600)
    assert job.end is None
    assert job.pods("teacher/teacher") == []
    assert job.teacher().state == "Waiting"


def test_how_a_replica_ended_long_ago_is_no_reason_once_all_miss_a_probe(world: World) -> None:
    teacher = copy.deepcopy(TEACHER)
    teacher["hosted"]["replicas"] = 2
    world.nodes.scripts["logits"] = lambda attempt, index: FOREVER
    job = world.apply(teacher=teacher)
    job.reach("logits", "Running")
    pod = job.pods("teacher/teacher")[0]
    world.nodes.finish(pod, End(137, reason="OOMKilled", result=False))
    world.wait(60)
    raw = world.server.read("Pod", pod.name)
    world.server.change(raw, status={**raw["status"], **condition("Ready")})
    world.wait(3 * 24 * 3600)
    for replica in job.pods("teacher/teacher"):
        raw = world.server.read("Pod", replica.name)
        world.server.change(raw, status={key: said for key, said in raw["status"].items() if key != "conditions"})
    world.wait(10)
    assert job.end is None


def test_a_teacher_that_was_preempted_costs_the_stage_no_attempt(world: World) -> None:
    preempted: list[int] = []
    world.nodes.scripts["logits"] = lambda attempt, index: End(69, seconds=600) if preempted else FOREVER
    job = world.apply()
    job.reach("logits", "Running")
    preempted.append(1)
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: NO_NODE
    world.nodes.disrupt(job.pods("teacher/teacher")[0])
    world.wait(6 * 3600)
    assert job.end is None
    assert (job.stage("logits").failures, job.stage("logits").disruptions) == (0, 1)
    assert (job.teacher().state, job.teacher().reason) == ("Starting", "Unschedulable")
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: FOREVER
    world.nodes.scripts["logits"] = lambda attempt, index: GOOD
    assert job.finish() == "Succeeded"


def test_a_secret_that_a_quota_refuses_by_a_conflict_is_made_later(world: World) -> None:
    refused: list[int] = []

    def refuses(manifest: dict[str, Any]) -> Exception | None:
        if manifest["kind"] != "Secret" or refused:
            return None
        refused.append(1)
        return error_of(409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "q"')

    world.server.refuses = refuses
    job = world.apply()
    job.reach("teacher/teacher", "Running")
    assert len(job.children("Secret")) == 1


# ---- failures ----------------------------------------------------------------------------------------------------------


def test_a_pod_that_outgrows_its_own_scratch_is_not_taken_for_evicted() -> None:
    world = World(runtime=runtime_document(pod={"trainer": {"scratch": {"size": "10Gi"}}}))
    world.nodes.scripts["student"] = lambda attempt, index: End(137, seconds=600, disrupted=True, result=False)
    finish = world.nodes.finish

    def finished(pod: Any, end: End) -> None:
        finish(pod, end)
        if end.disrupted:
            raw = world.server.read("Pod", pod.name)
            said = 'Usage of EmptyDir volume "scratch" exceeds the limit "10Gi".'
            world.server.change(raw, status={**raw["status"], "reason": "Evicted", "message": said})

    world.nodes.finish = finished  # type: ignore[method-assign]
    job = world.apply(failurePolicy={"backoffLimit": 1})
    assert job.finish() == "RetriesExhausted"
    assert job.stage("student").failures == 2
    message = job.condition("Failed")[2]
    assert 'exceeds the limit "10Gi"' in message
    assert REMEDIES[Reason.ScratchFull] in message


@pytest.mark.parametrize(("part", "where"), [("plan", "spec.pod.plan"), ("teacher/teacher", "spec.pod.teacher")])
def test_whose_memory_is_to_be_raised_is_said(world: World, part: str, where: str) -> None:
    world.nodes.scripts[part] = lambda attempt, index: End(137, reason="OOMKilled", result=False)
    job = world.apply()
    assert job.finish() == "HostOutOfMemory"
    assert f"{where}.resources" in job.condition("Failed")[2]


def test_a_webhook_that_is_down_is_told_of(world: World) -> None:
    down = 'Internal error occurred: failed calling webhook "validate.kyverno.svc-fail": connection refused'
    world.server.refuses = lambda manifest: error_of(500, "InternalError", down) if manifest["kind"] == "Job" else None
    job = world.apply()
    world.wait(600)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "ChildRefused")
    assert "validate.kyverno" in message
    assert "mend that webhook" in message
    world.server.refuses = lambda manifest: None
    assert job.finish() == "Succeeded"


FAILURES = {
    "BadSettings": End(64),
    "BadData": End(65),
    "Bug": End(70),
    "AcceleratorOutOfMemory": End(71),
    "Denied": End(77),
    "RetriesExhausted": End(75),
    "ResultLost": End(0, result=False),
}


@pytest.mark.parametrize("reason", FAILURES)
def test_what_to_do_about_a_failure_is_said_with_it(world: World, reason: str) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FAILURES[reason]
    job = world.apply(failurePolicy={"backoffLimit": 0})
    assert job.finish() == reason
    for kind in ("Failed", "Stalled", "Ready"):
        assert job.condition(kind)[2].endswith(REMEDIES[Reason(reason)])


def test_what_a_pause_is_for_and_what_used_all_retries_up_is_said(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(74, message="s3://b/x: 503 after 5 tries")
    job = world.apply(failurePolicy={"backoffLimit": 1})
    job.reach("student", "Backoff")
    assert job.stage("student").reason == job.condition("Degraded")[1] == "StorageUnavailable"
    assert job.finish() == "RetriesExhausted"
    message = job.condition("Failed")[2]
    assert "503 after 5 tries" in message
    assert message.endswith(f"{REMEDIES[Reason.StorageUnavailable]} {REMEDIES[Reason.RetriesExhausted]}")


def test_a_stage_has_at_most_twelve_events_however_often_it_is_tried(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(143) if attempt <= 15 else GOOD
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert job.stage("student").attempt == 16
    told = {note for note in world.operators[0].notes.posted if note.message.startswith("student:")}
    assert len(told) <= 12
    assert any(note.reason == "StageSucceeded" for note in told)


# ---- late and foreign --------------------------------------------------------------------------------------------------


def test_a_child_that_is_made_after_the_end_is_deleted(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: FOREVER
    job = world.apply(activeDeadlineSeconds=3600)
    job.reach("student", "Running")
    raw = world.server.read("Job", job.child("student", 1))
    late = {"kind": "Job", "spec": raw["spec"], "metadata": {
        key: raw["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")
    }}  # fmt: skip
    assert job.finish() == "DeadlineExceeded"
    world.wait(2 * 3600)
    assert job.children("Job") == []
    world.server.create(late)
    world.wait(60)
    assert job.children("Job") == []
    assert job.pods() == []


def test_a_reason_of_a_later_version_is_kept_as_it_is(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(75) if attempt == 1 else GOOD
    job = world.apply(
        failurePolicy={"backoff": {"baseSeconds": 600, "maxSeconds": 600}}, retention={"ttlSecondsAfterFinished": 3600}
    )
    job.reach("student", "Backoff")
    rewrite(world, job, "stages", lambda stage: stage["name"] == "student")
    assert job.finish() == "Succeeded"
    rewrite(world, job, "conditions", lambda one: one["type"] == "Complete")
    world.wait(4000)
    assert job.gone


def rewrite(world: World, job: Job, field: str, which: Any) -> None:
    status = job.raw["status"]
    changed = [{**one, "reason": "NewerReason"} if which(one) else one for one in status[field]]
    world.server.change(job.raw, status={**status, field: changed})


# ---- what was used, and for nothing ------------------------------------------------------------------------------------


def test_training_is_wasted_only_since_its_last_checkpoint(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(75, seconds=3600) if attempt == 1 else GOOD
    job = world.apply()
    job.reach("student", "Running")
    board = world.operators[0].worker.observer.progress
    where = f"work/{'a' * 64}/writer/step-400/"
    board.checkpoints = lambda uid: {"student": where}  # type: ignore[method-assign]
    world.wait(3000)
    world.operators[0].worker.child_changed(("team", "tutor"))
    world.settle()
    job.reach("student", "Backoff")
    checkpoint = job.stage("student").checkpoint
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.uri) == (400, f"s3://team-a/kd/{where}")
    assert job.status.usage is not None
    assert 0 < job.status.usage.wasted_gpu_seconds <= 2 * 3600


def test_a_teacher_that_never_answered_is_wasted(world: World) -> None:
    world.nodes.scripts["teacher/teacher"] = lambda attempt, index: End(1, seconds=300, result=False)
    job = world.apply(failurePolicy={"backoffLimit": 0})
    assert job.finish() == "RetriesExhausted"
    assert job.status.usage is not None
    assert job.status.usage.wasted_gpu_seconds > 0


def test_gpus_are_counted_by_what_their_node_calls_them(world: World) -> None:
    node = world.server.read("Node", NODE)
    world.server.change(node, metadata={"labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}})
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert job.status.usage is not None
    assert set(job.status.usage.gpu_seconds_by_flavor) == {"NVIDIA-H100-80GB-HBM3"}


def test_tokens_and_bytes_are_those_of_every_stage(world: World) -> None:
    ends = {
        "dataset": End(counts={"in": 10, "tokens": 999}, written=1),
        "answers": End(counts={"promptTokens": 100, "completionTokens": 50, "tokens": 150}, written=20),
        "logits": End(counts={"tokens": 150}, written=300),
        "student": End(counts={"tokens": 999}, written=4000),
    }
    for stage, end in ends.items():
        world.nodes.scripts[stage] = lambda attempt, index, end=end: end  # type: ignore[misc]
    job = world.apply(stages=LONG)
    assert job.finish() == "Succeeded"
    usage = job.status.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.bytes_staged) == (250, 50, 4321)
