"""`kd explain` names what keeps a job from running, and what to do about it."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console
from statuses import CASES, UID, Case, case, failed, job

from kd_runtime.api.reasons import REMEDIES, Reason
from kd_runtime.remote.evidence import Event, Evidence, concerns
from kd_runtime.remote.explain import EVENT_REASONS, WAITING_REASONS, Explanation, explain, explanation_view
from kd_runtime.remote.jobs import RemoteJob
from kd_runtime.remote.pods import Pod

NOW = datetime(2026, 1, 5, 10, 30, 30, tzinfo=UTC)
POD = "math-tutor-answers-0a1b2-1-0-x7k2p"


def pod(phase: str = "Pending", *, waiting: dict[str, str] | None = None, **status: Any) -> Pod:
    containers = [{"name": "stage", "restartCount": 4, "state": {"waiting": waiting}}] if waiting else []
    labels = {"kubedistill.io/stage": "answers", "kubedistill.io/attempt": "1", "kubedistill.io/component": "workers"}
    state = {"phase": phase, "containerStatuses": containers, **status}
    return Pod({"metadata": {"name": POD, "labels": labels}, "status": state})


def event(reason: str, message: str, about: str = "Job/math-tutor-answers-0a1b2-1", kind: str = "Warning") -> Event:
    return Event(about, kind, reason, message, 3, NOW)


def answer(name: str, *pods: Pod, events: tuple[Event, ...] = (), unread: tuple[str, ...] = ()) -> Explanation:
    return explain(Evidence(RemoteJob.of(case(name).document()), pods, events, unread), NOW)


def whats(found: Explanation) -> str:
    return "\n".join(finding.what for finding in found.findings)


def remedies(found: Explanation) -> str:
    return "\n".join(finding.remedy for finding in found.findings)


@pytest.mark.parametrize("name", ["succeeded", "running"])
def test_where_all_is_well_there_is_nothing_to_do(name: str) -> None:
    found = answer(name)
    assert found.findings == ()
    assert "there is nothing to do" in found.verdict


@pytest.mark.parametrize("name", ["first_write", "planning", "teacher_starting"])
def test_what_only_takes_its_time_is_to_be_waited_for(name: str) -> None:
    found = answer(name)
    assert found.findings == ()
    assert found.verdict.endswith("wait")


def test_a_job_that_nobody_looked_at_points_to_the_operator() -> None:
    found = answer("no_status")
    assert "the operator has not looked at the job yet" in whats(found)
    assert "kubectl get deploy -A" in remedies(found)


def test_an_edit_that_nobody_looked_at_is_named() -> None:
    assert "generation 2, status is of 1" in whats(answer("generation_lag"))


def test_the_break_glass_annotation_is_named() -> None:
    document = case("queued").document()
    document["metadata"]["annotations"] = {"kubedistill.io/reconcile": "disabled"}
    found = explain(Evidence(RemoteJob.of(document)), NOW)
    assert "reconcile: disabled" in found.findings[0].what
    assert "kubectl annotate dj math-tutor kubedistill.io/reconcile-" in found.findings[0].remedy


def test_a_person_s_suspension_is_undone_by_resume() -> None:
    found = answer("suspended")
    assert [finding.remedy for finding in found.findings] == ["kubectl kd resume math-tutor"]


def test_a_budget_s_suspension_is_undone_by_raising_it() -> None:
    assert REMEDIES[Reason.BudgetExceeded] in remedies(answer("over_budget"))


def test_a_missing_runtime_is_named_once() -> None:
    (finding,) = answer("runtime_missing").findings
    assert finding.what == "RuntimeMissing: no ClusterDistillationRuntime is called cuda"
    assert finding.remedy == REMEDIES[Reason.RuntimeMissing]


def test_a_peer_is_waited_for() -> None:
    found = answer("waiting_for_peer")
    assert "job math-tutor-2 is making answers" in whats(found)
    assert REMEDIES[Reason.WaitingForPeer] in remedies(found)


def test_a_failure_says_which_pod_container_code_and_node_and_where_the_log_is() -> None:
    found = answer("failed")
    assert "has failed" in found.verdict
    (finding,) = found.findings
    for part in ("student, attempt 1", "math-tutor-student-0a1b2-1-0-zz9qk", "exit code 137", "signal 9", "node-3"):
        assert part in finding.what
    assert finding.remedy == f"{REMEDIES[Reason.HostOutOfMemory]} Its log: kubectl kd logs math-tutor student"


def test_a_pause_says_when_it_ends() -> None:
    (finding,) = answer("backoff").findings
    assert "503 SlowDown" in finding.what
    assert "it is tried again in 30 s" in finding.what
    assert REMEDIES[Reason.StorageUnavailable] in finding.remedy


def test_a_refusal_names_the_rule_once() -> None:
    (finding,) = answer("refused").findings
    assert "16 GPUs with its teacher exceeds 8" in finding.what
    assert finding.remedy == REMEDIES[Reason.NotAllowed]


@pytest.mark.parametrize("why", WAITING_REASONS)
def test_what_the_node_says_of_a_container_has_a_remedy(why: str) -> None:
    found = answer("running", pod(waiting={"reason": why, "message": "secret store not found"}))
    assert f"pod {POD}, container stage: {why}: secret store not found" in whats(found)
    assert REMEDIES[WAITING_REASONS[why]] in remedies(found)


def test_a_crash_loop_points_to_the_last_log() -> None:
    crashing = pod("Running", waiting={"reason": "CrashLoopBackOff"})
    crashing.document["status"]["containerStatuses"][0]["lastState"] = {
        "terminated": {"exitCode": 71, "reason": "Error"}
    }
    found = answer("running", crashing)
    assert "it ended 4 times, last with exit code 71 (Error)" in whats(found)
    assert f"kubectl logs {POD} -c stage --previous" in remedies(found)


def test_what_the_scheduler_says_is_said_once() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    }
    events = (event("FailedScheduling", condition["message"], f"Pod/{POD}"),)
    found = answer("queued", pod(conditions=[condition]), events=events)
    assert whats(found).count("Insufficient nvidia.com/gpu") == 1
    assert REMEDIES[Reason.Unschedulable] in remedies(found)


def test_a_quota_shows_only_in_events_and_is_found_there() -> None:
    said = 'pods "math-tutor-answers-0a1b2-1-0-" is forbidden: exceeded quota: gpus'
    found = answer("first_write", events=(event("FailedCreate", said),))
    assert said in whats(found)
    assert found.findings[-1].remedy == REMEDIES[Reason.PodRefused]


def test_events_of_pods_that_are_gone_are_no_reason() -> None:
    assert (
        answer(
            "running", events=(event("FailedScheduling", "no node", "Pod/math-tutor-answers-0a1b2-1-0-gone"),)
        ).findings
        == ()
    )


def test_normal_events_are_no_reason() -> None:
    assert answer("running", events=(event("FailedCreate", "made", kind="Normal"),)).findings == ()


def test_a_pod_that_is_over_is_no_reason() -> None:
    assert answer("running", pod("Succeeded", waiting={"reason": "ImagePullBackOff"})).findings == ()


def test_every_remedy_for_events_is_one_of_ours() -> None:
    assert set(EVENT_REASONS.values()) <= set(Reason)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_every_state_has_an_answer_that_fits_a_terminal(one: Case) -> None:
    waiting = pod(waiting={"reason": "ImagePullBackOff", "message": "x" * 300})
    evidence = Evidence(RemoteJob.of(one.document()), (waiting,), (event("FailedCreate", "y" * 300),), ("events",))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(explanation_view(evidence, explain(evidence, NOW), NOW))
    text = console.export_text()
    assert "math-tutor" in text.splitlines()[0]
    assert max(map(len, text.splitlines())) <= 80
    assert "may not read events" in " ".join(text.split())


def test_what_is_said_cannot_command_the_terminal() -> None:
    evidence = Evidence(RemoteJob.of(job(failed(Reason.Bug, "\x1b[2Jgone [red]x[/red]"))), (), ())
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(explanation_view(evidence, explain(evidence, NOW), NOW))
    text = console.export_text()
    assert "\x1b" not in text
    assert "[red]x[/red]" in text


@pytest.mark.parametrize(
    ("about", "ours"),
    [
        ({"kind": "DistillationJob", "name": "math-tutor", "uid": UID}, True),
        ({"kind": "DistillationJob", "name": "math-tutor", "uid": "an earlier one"}, False),
        ({"kind": "DistillationJob", "name": "math-tutor-2", "uid": UID}, False),
        ({"kind": "Job", "name": "math-tutor-answers-0a1b2-1"}, True),
        ({"kind": "Pod", "name": POD}, True),
        ({"kind": "Job", "name": "math-tutor-answers-99999-1"}, False),
        ({"kind": "Job", "name": "other-answers-0a1b2-1"}, False),
    ],
)
def test_events_of_the_job_and_its_children_are_told_from_others(about: dict[str, str], ours: bool) -> None:
    document = {"involvedObject": about, "metadata": {}}
    assert concerns(document, RemoteJob.of(case("running").document())) is ours
