"""The end of a job: reached, failed, tidied up, asked to be tried again (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from kd_operator.decide.attempts import sum_attempts
from kd_operator.decide.draft import TEACHER_PREFIX, Draft, ended
from kd_operator.decide.strays import kept_long_enough
from kd_operator.decide.suspension import budget_used, leaves
from kd_operator.decision import Delete, EventNote
from kd_operator.names import PLAN, config_name, network_name
from kd_operator.status.conditions import Said
from kd_operator.status.states import AT_WORK, State, stamp
from kd_runtime.api.labels import RETRY_ANNOTATION
from kd_runtime.api.operation import OnExceeded
from kd_runtime.api.reasons import ConditionType, Reason
from kd_runtime.api.status import ArtifactLinks, Condition, JobStatus, StageStatus

GITOPS_MARKS = (
    "app.kubernetes.io/instance",  # what Argo CD 2 tracks by, unless it is told otherwise
    "argocd.argoproj.io/instance",
    "argocd.argoproj.io/tracking-id",
    "kustomize.toolkit.fluxcd.io/name",
    "helm.toolkit.fluxcd.io/name",
)
"""Labels or annotations of objects that Argo CD or Flux would create again."""
RETRY_LENGTH = 253
"""Of an annotation, so much is answered for in the status."""


def finished(status: JobStatus) -> Condition | None:
    """The condition by which a job is over, Complete or Failed; None while it is not."""
    over = (ConditionType.Complete, ConditionType.Failed)
    return next((c for c in status.conditions if c.type in over and c.status == "True"), None)


def tidy(d: Draft, over: Condition) -> float | None:
    """After the end: end what runs, keep pods for a while, then delete children and, by its TTL, the job.

    Returns when to look again; None where nothing is left to do.
    """
    said = Said(over.reason, over.message)
    if over.type == ConditionType.Failed:
        d.facts.failed = said
        d.facts.refused = _refusal(d.status)
    else:
        d.facts.complete = said
    left = False
    for child in d.own:
        left = True
        if not ended(child) or kept_long_enough(d, child):
            d.remove(child)
    alive = any(pod.alive for pod in d.seen.pods)
    expired = _expired(d)
    if expired and not alive:
        d.delete.extend(_everything(d))
    waits = left or alive or (expired is False)
    return d.look_after if waits else None


def _refusal(status: JobStatus) -> Said | None:
    """Why a job that has failed was not accepted: that stays so."""
    accepted = next((c for c in status.conditions if c.type == ConditionType.Accepted), None)
    if accepted is None or accepted.status == "True":
        return None
    return Said(accepted.reason, accepted.message)


def _expired(d: Draft) -> bool | None:
    """Whether the job's time to live is over; None where it has none, or it was carried out as far as it may be."""
    ttl = d.job.spec.retention.ttl_seconds_after_finished if d.seen.job.spec else None
    if ttl is None:
        return None
    over = d.past(d.status.completion_time, ttl)
    if over and _watched_by_gitops(d) and not (d.own or d.seen.services or d.seen.config or d.seen.network):
        return None
    return over


def _everything(d: Draft) -> list[Delete]:
    """The job; or, where a GitOps tool would create it again, its children alone."""
    if not _watched_by_gitops(d):
        return [Delete("DistillationJob", d.seen.job.name, d.seen.job.uid)]
    context = d.context
    names = [Delete(child.kind, child.name, child.uid) for child in d.own]
    names += [Delete("Service", name) for name in sorted(d.seen.services)]
    if d.seen.config:
        names.append(Delete("ConfigMap", config_name(context.name, context.uid)))
    if d.seen.network:
        names.append(Delete("NetworkPolicy", network_name(context.name, context.uid)))
    return names


def _watched_by_gitops(d: Draft) -> bool:
    marks: Mapping[str, str] = {**d.seen.job.labels, **d.seen.job.annotations}
    return any(mark in marks for mark in GITOPS_MARKS)


def deadline_over(d: Draft) -> bool:
    """True, and the job has failed, where it took longer than it may, or its budget ends it; not for what it has done already."""
    if d.concluding():
        return False
    if not leaves(d) and _too_long(d):
        return True
    used, budget = budget_used(d), d.job.spec.budget
    if used is not None and budget is not None and budget.on_exceeded is OnExceeded.Fail:
        d.fail(Reason.BudgetExceeded, used)
        return True
    return False


def _too_long(d: Draft) -> bool:
    spec, status = d.job.spec, d.status
    longest, limit = spec.active_deadline_seconds, d.runtime.spec.limits.active_deadline_seconds
    if d.past(status.admitted_time, longest if longest is not None else limit):
        said = f"{longest} s (spec.activeDeadlineSeconds)"
        if longest is None:
            said = f"{limit} s (limits.activeDeadlineSeconds of the runtime {d.runtime.metadata.name})"
        d.fail(Reason.DeadlineExceeded, f"longer at work than {said}")
        return True
    begun = any(stage.times is not None and stage.times.started for stage in status.stages)
    if not begun and d.past(status.admitted_time, spec.pending_deadline_seconds):
        d.fail(
            Reason.DeadlineExceeded,
            f"no pod of a stage began within {spec.pending_deadline_seconds} s (spec.pendingDeadlineSeconds)",
        )
        return True
    return False


def complete(d: Draft) -> None:
    """Every stage is settled: the job has succeeded, unless a gate that no publish stage judged is not reached."""
    read = {
        source for s in d.job.spec.stages if s.publish for source in d.context.wired.wirings[s.name].inputs.values()
    }
    unmet = [f"{s.name}: {said}" for s in d.status.stages if s.name not in read for said in s.gates_unmet]
    d.update(artifacts=_links(d))
    if unmet:
        d.fail(Reason.GateFailed, "; ".join(unmet))
        return
    found = sum(stage.state == State.Skipped for stage in d.status.stages)
    made = len(d.status.stages) - found
    d.facts.complete = Said(Reason.Succeeded, f"{made} stages were made, {found} were found or not needed")
    d.update(completion_time=stamp(d.now))


def _links(d: Draft) -> ArtifactLinks:
    """Where the results lie."""
    store = d.job.spec.artifacts.uri.rstrip("/")
    digest = d.status.plan.digest if d.status.plan else None
    types = {stage.name: stage for stage in d.status.stages if stage.key}
    published = [target.uri for s in d.job.spec.stages if s.publish for target in s.publish.targets]
    models = [s for s in types.values() if s.type in ("prepare", "train", "compress")]
    rows = [s for s in types.values() if s.type in ("ingest", "generate")]
    student = published[0] if published else _artifact(store, models)
    return ArtifactLinks(
        student=student,
        dataset=_artifact(store, rows),
        report=f"{store}/reports/{digest}.html",
        lineage=f"{store}/plans/{digest}.json",
    )


def _artifact(store: str, stages: list[StageStatus]) -> str | None:
    return f"{store}/artifacts/{stages[-1].key}/" if stages else None


def retry_wanted(d: Draft) -> str:
    """What the retry annotation asks for and was not answered yet; empty where nothing is."""
    wanted = d.seen.job.annotations.get(RETRY_ANNOTATION, "")[:RETRY_LENGTH]
    answered = (d.status.retry, d.status.plan.retry if d.status.plan else None)
    return "" if wanted in answered else wanted


def asked_again(d: Draft) -> bool:
    """True where the retry annotation asks for something new and nothing is at work: the plan pod carries it out.

    A job that is over goes on, its counters for that stage at zero.
    """
    wanted = retry_wanted(d)
    if not wanted:
        return False
    name, slash, nonce = wanted.partition("/")
    known = [PLAN, *(stage.name for stage in d.status.stages)]
    if not slash or not nonce or name not in known:
        names = ", ".join(known)
        message = f"annotation {RETRY_ANNOTATION}: {wanted!r} is not <stage>/<nonce>; stages are {names}"
        d.events.append(EventNote("Warning", Reason.InvalidSpec, message))
        d.update(retry=wanted)
        return False
    steps = (part for part in d.parts() if not part.startswith(TEACHER_PREFIX))
    if any(d.run(part).state in (*AT_WORK, State.Draining) for part in steps):
        return False
    if name == PLAN:
        d.update(retry=wanted)
    else:
        d.set(name, state=State.Waiting, failures=0, disruptions=0, lost=0, repeated=None, next_attempt_time=None)
    for stage in d.status.stages:  # whichever stage failed goes on too
        if stage.state == State.Failed:
            d.set(stage.name, state=State.Waiting, failures=0, disruptions=0, lost=0, repeated=None)
    asked = wanted if name != PLAN else None
    d.set(PLAN, state=State.Waiting, retry=asked, failures=0, disruptions=0, lost=0, next_attempt_time=None)
    d.update(completion_time=None, admitted_time=stamp(d.now))
    sum_attempts(d)
    return True
