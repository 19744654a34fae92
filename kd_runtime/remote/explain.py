"""`kd explain`: why a job does not run, and what to do (pure: from evidence to findings, the gravest first)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kd_runtime.api.labels import RECONCILE_ANNOTATION
from kd_runtime.api.reasons import REMEDIES, ConditionType, Reason
from kd_runtime.api.status import RunStatus
from kd_runtime.local.tables import duration
from kd_runtime.remote.evidence import Event, Evidence
from kd_runtime.remote.jobs import RemoteJob, moment
from kd_runtime.remote.plain import line
from kd_runtime.remote.pods import Pod
from kd_runtime.remote.view import headline, until, without_remedy

SHOWN_EVENTS = 8
SHOWN_PODS = 10
UNSEEN = "See whether the operator runs and watches this namespace: `kubectl get deploy -A -l app.kubernetes.io/name=kubedistill`."
WAITING_REASONS: dict[str, Reason] = {
    "ImagePullBackOff": Reason.ImageNotPulled,
    "ErrImagePull": Reason.ImageNotPulled,
    "ErrImageNeverPull": Reason.ImageNotPulled,
    "InvalidImageName": Reason.ImageNotPulled,
    "CreateContainerConfigError": Reason.PodMisconfigured,
    "CreateContainerError": Reason.PodMisconfigured,
    "RunContainerError": Reason.PodMisconfigured,
}
"""Why the node does not start a container, and the reason that says what to do."""
EVENT_REASONS: dict[str, Reason] = {
    "FailedCreate": Reason.PodRefused,
    "FailedScheduling": Reason.Unschedulable,
    "FailedMount": Reason.PodMisconfigured,
    "FailedAttachVolume": Reason.PodMisconfigured,
}
"""Warnings of Kubernetes' own controllers that keep pods from starting."""
GOOD_WHEN_TRUE = (
    ConditionType.Accepted,
    ConditionType.Planned,
    ConditionType.Admitted,
    ConditionType.TeacherReady,
)
UNREMARKABLE = frozenset(
    {
        *(Reason.Planning, Reason.Queued, Reason.TeacherStarting, Reason.TeacherStopped, Reason.Starting),
        *(Reason.Draining, Reason.Suspended, Reason.BudgetExceeded),
    }
)
"""Reasons of a condition that is False and will be True by itself, or that is told of the condition Suspended."""
TROUBLED = ("Backoff", "Failed")


@dataclass(frozen=True)
class Finding:
    """One thing that keeps the job from running, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """The answer."""

    verdict: str
    """One sentence."""
    findings: tuple[Finding, ...]


def explain(evidence: Evidence, now: datetime) -> Explanation:
    """Why the job is where it is."""
    job = evidence.job
    findings = list(
        dict.fromkeys([*_of_the_operator(job), *_of_conditions(job), *_of_parts(job, now), *_of_children(evidence)])
    )
    return Explanation(_verdict(job, findings), tuple(_without_repeats(findings)))


def _verdict(job: RemoteJob, findings: list[Finding]) -> str:
    if job.holds(ConditionType.Complete):
        return f"{job.name} has succeeded; there is nothing to do"
    if job.holds(ConditionType.Failed):
        return f"{job.name} has failed, and will not go on by itself"
    if job.deleting:
        return f"{job.name} is being deleted"
    stage = next((s for s in job.stages if s.name == job.status.current_stage), None)
    if stage is not None and stage.state == "Running":
        return f"{job.name} is running stage {stage.name}" + ("; see below" if findings else "; there is nothing to do")
    if findings:
        return f"{job.name} is not running"
    at = f" at stage {job.status.current_stage}" if job.status.current_stage else ""
    return f"{job.name} is {job.status.phase or 'Pending'}{at}; nothing is wrong that can be seen from here: wait"


def _of_the_operator(job: RemoteJob) -> Iterator[Finding]:
    if job.annotations.get(RECONCILE_ANNOTATION) == "disabled":
        yield Finding(
            f"the annotation {RECONCILE_ANNOTATION}: disabled keeps the operator from it",
            f"Remove it: kubectl annotate dj {job.name} {RECONCILE_ANNOTATION}-",
        )
    elif job.status.observed_generation is None:
        yield Finding("the operator has not looked at the job yet", UNSEEN)
    elif not job.seen:
        yield Finding(
            f"the operator has not looked at its newest spec (generation {job.metadata.get('generation')},"
            f" status is of {job.status.observed_generation})",
            UNSEEN,
        )
    if job.suspend and not job.ended:
        yield Finding("spec.suspend is true", f"kubectl kd resume {job.name}")


def _of_conditions(job: RemoteJob) -> Iterator[Finding]:
    bad = [ConditionType.Failed, ConditionType.Stalled, ConditionType.Suspended, ConditionType.Degraded]
    told = {run.reason for run in job.parts().values() if run.state in TROUBLED}
    for kind in bad:
        found = job.condition(kind)
        asked = kind is ConditionType.Suspended and job.suspend
        if found is not None and found.status == "True" and found.reason not in told and not asked:
            yield _finding(job, kind)
    if job.ended:
        return
    for kind in GOOD_WHEN_TRUE:
        found = job.condition(kind)
        if found is not None and found.status == "False" and found.reason not in UNREMARKABLE:
            yield _finding(job, kind)
    ready = job.condition(ConditionType.Ready)
    if ready is not None and ready.reason == Reason.WaitingForPeer:
        yield _finding(job, ConditionType.Ready)


def _finding(job: RemoteJob, kind: ConditionType) -> Finding:
    found = job.condition(kind)
    assert found is not None, kind
    return Finding(_said(found.reason, without_remedy(found)), _remedy(found.reason))


def _of_parts(job: RemoteJob, now: datetime) -> Iterator[Finding]:
    for name, run in job.parts().items():
        if run.state in TROUBLED:
            yield Finding(_part(name, run, now), _part_remedy(job, name, run))
        elif run.state in ("Queued", "Starting") and run.reason and run.reason not in UNREMARKABLE and not job.ended:
            yield Finding(f"{name}: {_said(run.reason, run.message or '')}", _remedy(run.reason))


def _part(name: str, run: RunStatus, now: datetime) -> str:
    text = f"{name}, attempt {run.attempt}: {run.state}"
    if run.reason or run.message:
        text += f", {_said(run.reason or '', run.message or '')}"
    last = run.last_failure
    if last is not None:
        told = [f"pod {last.pod}" if last.pod else "", f"container {last.container}" if last.container else "",
                f"exit code {last.exit_code}" if last.exit_code is not None else "",
                f"signal {last.signal}" if last.signal else "", last.reason or "",
                f"on {last.node}" if last.node else ""]  # fmt: skip
        text += f" ({line(last.class_ or 'unknown')}: {', '.join(line(t) for t in told if t)})"
    again = moment(run.next_attempt_time)
    if run.state == "Backoff" and again is not None:
        text += f"; it is tried again {until(again, now)}"
    return text


def _part_remedy(job: RemoteJob, name: str, run: RunStatus) -> str:
    reason = run.reason if run.reason not in (None, Reason.Backoff) else (run.last_failure and run.last_failure.class_)
    return f"{_remedy(reason or '')} Its log: kubectl kd logs {job.name} {name}".strip()


def _of_children(evidence: Evidence) -> Iterator[Finding]:
    if evidence.job.ended:
        return
    for pod in evidence.pods:
        yield from _of_pod(pod)
    alive = {pod.name for pod in evidence.pods if not pod.over}
    for event in evidence.events:
        reason = EVENT_REASONS.get(event.reason)
        kind, _, name = event.about.partition("/")
        if reason and event.warning and (kind != "Pod" or name in alive):
            yield Finding(f"{event.about}: {event.message}", REMEDIES[reason])


def _of_pod(pod: Pod) -> Iterator[Finding]:
    if pod.over:
        return
    if pod.unschedulable:
        yield Finding(f"pod {pod.name} has no node: {pod.unschedulable}", REMEDIES[Reason.Unschedulable])
    for container in pod.containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        why, said = line(str(waiting.get("reason", ""))), line(str(waiting.get("message", "")))
        reason = WAITING_REASONS.get(why)
        if reason:
            yield Finding(f"pod {pod.name}, container {container['name']}: {_said(why, said)}", REMEDIES[reason])
        elif why == "CrashLoopBackOff":
            yield Finding(
                f"pod {pod.name}, container {container['name']}: {_crashed(container)}",
                f"Its last log: kubectl logs {pod.name} -c {container['name']} --previous",
            )


def _crashed(container: dict[str, Any]) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    code = f", last with exit code {ended['exitCode']} ({ended.get('reason', 'Error')})" if "exitCode" in ended else ""
    return f"it ended {container.get('restartCount', 0)} times{code}"


def _said(reason: str, message: str) -> str:
    return ": ".join(line(word) for word in (reason, message) if word)


def _remedy(reason: str) -> str:
    return REMEDIES[Reason(reason)] if reason in REMEDIES else ""


def _without_repeats(findings: list[Finding]) -> Iterator[Finding]:
    """Failed and Stalled, or a pod and its event, say the same: once is enough."""
    seen: list[str] = []
    for finding in findings:
        told = finding.what.partition(": ")[2] or finding.what
        if not any(told in earlier for earlier in seen):
            seen.append(finding.what)
            yield finding


def explanation_view(evidence: Evidence, answer: Explanation, now: datetime) -> Group:
    """What is printed."""
    parts: list[RenderableType] = [headline(evidence.job, now), Text(answer.verdict, style="bold")]
    for finding in answer.findings:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text("why", style="yellow"), Text(line(finding.what)))
        if finding.remedy:
            grid.add_row(Text("do", style="green"), Text(finding.remedy))
        parts.append(Padding(grid, (1, 0, 0, 2)))
    pods = [pod for pod in evidence.pods if not pod.over] or list(evidence.pods)
    if pods and not evidence.job.holds(ConditionType.Complete):
        parts.append(Padding(_pod_table(pods[-SHOWN_PODS:]), (1, 0, 0, 2)))
    if evidence.events and not evidence.job.ended:
        parts.append(Padding(_event_table(evidence.events[:SHOWN_EVENTS], now), (1, 0, 0, 2)))
    if evidence.unread:
        words = " and ".join(evidence.unread)
        parts.append(
            Text(f"\n  you may not read {words} in this namespace, so they were not looked at", style="yellow")
        )
    return Group(*parts)


def _pod_table(pods: list[Pod]) -> Table:
    table = Table("pod", "stage", "attempt", "phase", "", box=None, pad_edge=False, header_style="dim")
    for pod in pods:
        waits = next(
            (str(w.get("reason", "")) for c in pod.containers if (w := (c.get("state") or {}).get("waiting"))), ""
        )
        table.add_row(line(pod.name), line(pod.stage), str(pod.attempt), pod.phase, line(pod.unschedulable or waits))
    return table


def _event_table(events: tuple[Event, ...], now: datetime) -> Table:
    table = Table("event", "about", "reason", "message", box=None, pad_edge=False, header_style="dim")
    for event in events:
        ago = f"{duration(max(0.0, (now - event.last).total_seconds()))} ago" if event.last else ""
        style = "yellow" if event.warning else ""
        times = f" ({event.count} times)" if event.count > 1 else ""
        table.add_row(ago, line(event.about), Text(event.reason, style=style), Text(event.message + times))
    return table
