"""The life of one attempt of the plan or of a stage: claimed, its children created, watched, over (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from kd_operator.children.context import Component
from kd_operator.decide.draft import Draft, ended
from kd_operator.decide.failures import (
    DISRUPTION,
    Kind,
    Verdict,
    being_taken,
    counted,
    disruption,
    failure_of,
    final_ending,
    freely,
    of_pod,
    outgrew_scratch,
    pod_class,
    poison,
    scratch_full,
    verdict,
    was_free,
)
from kd_operator.decide.pending import pending_trouble
from kd_operator.decide.sidecars import all_done, kept, said_of
from kd_operator.decide.strays import cannot_end, silent_node
from kd_operator.decision import Create, Delete, EventNote
from kd_operator.names import PLAN
from kd_operator.observed import MainChild, PodSeen
from kd_operator.status.accounting import gpu_seconds
from kd_operator.status.conditions import Said
from kd_operator.status.states import State, moment, stamp
from kd_runtime.api.failures import ExitClass
from kd_runtime.api.poison import TIMES, poison_sentence
from kd_runtime.api.reasons import Reason
from kd_runtime.api.status import Attempts, Failure, Repeated, RunStatus, StageStatus, StageTimes

LOST_LIMIT = 3
CREATED_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Part:
    """What an attempt needs to know about the plan or a stage."""

    name: str
    build: Callable[[int], Sequence[Create]]
    """The children of an attempt."""
    timeout_seconds: int | None = None
    may_claim: Callable[[], bool] = lambda: True
    may_create: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Over:
    """An attempt has ended: well, if its Job is complete and ``verdict`` is None."""

    child: str
    pods: tuple[PodSeen, ...]
    verdict: Verdict | None = None
    tries: int = 1
    """How often it counts: workers are tried again by their own Job, up to backoffLimit."""
    replaced: int = 0
    """Pods that its own Job started anew, free of charge."""


def advance(d: Draft, part: Part) -> Over | None:
    """One step of the part's newest attempt; how it ended, once it has."""
    run = d.run(part.name)
    if run.state in (None, State.Waiting, State.Backoff):
        _claim(d, part, run)
        return None
    child = d.child(part.name, run.attempt)
    if run.child_uid is None:
        if child is None:
            _create(d, part, run)
            return None
        d.set(part.name, child_uid=child.uid, state=State.Starting, reason=Reason.Starting, message=_named(child))
    elif child is None or child.uid != run.child_uid:
        return _gone(d, part, run, child)
    return _watch(d, part, child)


def _claim(d: Draft, part: Part, run: RunStatus) -> None:
    """Claim the next attempt, once no pod of the part is left; the children come in a later pass."""
    if d.waits_until(run.next_attempt_time):
        d.facts.trouble = Said(run.reason or Reason.Backoff, run.message or "")
        d.doing(Reason.Backoff, f"{part.name}: the next attempt is at {run.next_attempt_time}")
        return
    left = d.left(part.name)
    if left is not None:
        d.doing(Reason.Queued, f"{part.name}: {left} of an earlier attempt is still there")
        d.look(CREATED_LOOK_SECONDS)
        return
    if not part.may_claim():
        return
    attempt = run.attempt + 1
    changes: dict[str, object] = {
        "attempt": attempt,
        "state": State.Queued,
        "child_uid": None,
        "next_attempt_time": None,
        "reason": Reason.Queued,
        "message": f"attempt {attempt} is claimed",
    }
    if part.name != PLAN:
        changes["times"] = StageTimes(queued=stamp(d.now))
        changes["progress"] = None
    d.set(part.name, **changes)
    d.doing(Reason.Queued, f"{part.name}: attempt {attempt} begins")
    d.look(0.0)


def _create(d: Draft, part: Part, run: RunStatus) -> None:
    if run.child_uid is None and part.may_create():
        d.create.extend(part.build(run.attempt))
        d.doing(Reason.Queued, f"{part.name}: attempt {run.attempt} begins")
        d.look(CREATED_LOOK_SECONDS)


def _gone(d: Draft, part: Part, run: RunStatus, another: MainChild | None) -> Over | None:
    """The main child was deleted by someone else: the attempt is over once its pods are gone.

    ``another`` has its name since, by a POST that came late: that one goes too.
    """
    if another is not None:
        d.remove(another)
    left = d.alive(part.name)
    if left:
        d.doing(Reason.Disrupted, f"{part.name}: its Job was deleted; pod {left[0].name} is still ending")
        return None
    name = d.name_of(part.name, run.attempt)
    return Over(name, (), disruption(None, f"Job {name} was deleted by somebody else"))


def _watch(d: Draft, part: Part, child: MainChild) -> Over | None:
    pods, policy = d.pods_of(child), d.job.spec.failure_policy
    shared = child.component == Component.Workers
    replaced = sum(was_free(pod) for pod in pods) if shared else 0
    if child.complete:
        return Over(child.name, tuple(pods), replaced=replaced)
    taken = None if shared else _taken_away(d, part, child, pods)
    final = final_ending(pods, broken=taken is not None)
    if final is not None and (child.failed or _must_be_ended(final, shared)):
        return Over(child.name, tuple(pods), of_pod(final), replaced=replaced)
    outgrown = next((pod for pod in pods if outgrew_scratch(pod)), None)
    if outgrown is not None:  # their Job would take it for an eviction, and start another free of charge
        return Over(child.name, tuple(pods), scratch_full(outgrown), replaced=replaced)
    poisoned = poison(pods) if shared else None
    if poisoned is not None:  # their Job would go on asking, up to backoffLimit
        return Over(child.name, tuple(pods), poisoned, len(counted(pods)), replaced)
    lost = next((pod for pod in pods if cannot_end(d, pod)), None)
    if lost is not None:
        d.remove(child)  # by a finalizer it holds a pod until that has ended, even one that is deleted for good
        said = disruption(lost, f"pod {lost.name} cannot end: its node {lost.node} is lost")
        return Over(child.name, tuple(pods), said, replaced=replaced)
    if child.failed_reason == "DeadlineExceeded":
        return Over(child.name, tuple(pods), _timeout(part, child))
    if child.failed:
        left = [pod for pod in pods if pod.alive]
        if left:
            d.doing(Reason.Running, f"{part.name}: Job {child.name} has failed; pod {left[0].name} is still ending")
            return None
        said = verdict(pods, child, peer_lost_before=_peer_lost_before(d, part), taken_before=taken)
        return Over(child.name, tuple(pods), said, policy.backoff_limit + 1 if shared else 1, replaced)
    held = kept(d, pods)
    if held:
        over = _over_but_held(d, part, child, pods, held)
        if over is not None:
            return replace(over, replaced=replaced)
    if replaced and replaced + (d.status.attempts or Attempts()).disruptions > policy.disruption_limit:
        said = disruption(None, f"{replaced} pods of {child.name} were taken from their nodes")
        return Over(child.name, tuple(pods), said, replaced=replaced)
    if _timed_out(d, part, child):
        return Over(child.name, tuple(pods), _timeout(part, child))
    if child.component == Component.Trainer and not child.deleting and child.name not in d.seen.services:
        # somebody deleted it: a gang's pods find each other by it
        d.create.extend(c for c in part.build(child.attempt) if c.manifest["kind"] == "Service")
    _say_running(d, part, child, pods)
    if held:
        d.facts.trouble = said_of(held)
    return None


def _taken_away(d: Draft, part: Part, child: MainChild, pods: Sequence[PodSeen]) -> Failure | None:
    """The pod of this attempt that is, or was, on its way from its node. It is told at once, in lastFailure: once it has ended it
    may be gone before anybody reads of its end."""
    known = d.run(part.name).last_failure
    if known is not None and known.class_ == DISRUPTION and (known.pod or "").startswith(f"{child.name}-"):
        return known
    pod = being_taken(pods)
    if pod is None:
        return None
    failure = failure_of(pod, DISRUPTION, pod.ending)
    d.set(part.name, last_failure=failure)
    return failure


def _over_but_held(
    d: Draft, part: Part, child: MainChild, pods: Sequence[PodSeen], held: Sequence[PodSeen]
) -> Over | None:
    """How an attempt ended whose pods sidecars keep; None while others of it are at work. A worker that failed is deleted: so
    it ends, and its Job tries it again."""
    final = final_ending(held)
    failed = [pod for pod in held if pod.ending is not None and pod.ending.exit_code]
    over: Over | None = None
    if final is not None:
        over = Over(child.name, tuple(pods), of_pod(final))
    elif failed and child.component != Component.Workers:
        over = Over(child.name, tuple(pods), verdict(pods, child, peer_lost_before=_peer_lost_before(d, part)))
    elif all_done(child, pods, held):
        over = Over(child.name, tuple(pods))
    if over is None:
        d.delete.extend(Delete("Pod", pod.name, pod.uid) for pod in failed)
        return None
    told = d.facts.trouble = said_of(held)
    if child.attempt == 1:  # the stage's events are bounded; it will be so each time
        d.events.append(EventNote("Warning", told.reason, f"{part.name}: {told.message}"))
    return over


def _peer_lost_before(d: Draft, part: Part) -> bool:
    run = d.run(part.name)
    return bool(run.last_failure and run.last_failure.class_ == ExitClass.PeerLost.name)


def _must_be_ended(final: PodSeen, shared: bool) -> bool:
    """Whether the Job would go on by itself: no rule of its pod failure policy knows of memory. Any other is left to fail, so
    that its pods stay for a look."""
    return shared and pod_class(final) is ExitClass.HostOutOfMemory


def _timed_out(d: Draft, part: Part, child: MainChild) -> bool:
    return d.past(stamp(child.created), part.timeout_seconds)


def _timeout(part: Part, child: MainChild) -> Verdict:
    message = f"{child.name} took longer than {part.timeout_seconds} s (timeoutSeconds) and was ended"
    return Verdict(Kind.Retry, Reason.DeadlineExceeded, message, Failure(class_=ExitClass.Transient.name))


def _say_running(d: Draft, part: Part, child: MainChild, pods: Sequence[PodSeen]) -> None:
    begun = [pod.started for pod in pods if pod.started is not None]
    if child.deleting:
        d.doing(Reason.Running, f"{part.name}: Job {child.name} is being deleted")
        return
    trouble = pending_trouble(pods, child, d.now) or silent_node(pods)
    d.facts.trouble = trouble or d.facts.trouble
    if begun:
        said = trouble or Said(Reason.Running, _named(child))
        d.set(part.name, state=State.Running, reason=said.reason, message=said.message)
        if part.name != PLAN:
            times = d.stage(part.name).times or StageTimes()
            d.set(part.name, times=times.model_copy(update={"started": times.started or stamp(min(begun))}))
        d.doing(Reason.Running if part.name != PLAN else Reason.Planning, _named(child))
        return
    d.doing(Reason.Starting, _named(child))
    if trouble is not None:
        d.set(part.name, reason=trouble.reason, message=trouble.message)


def _named(child: MainChild) -> str:
    return f"{child.kind} {child.name}"


def end_attempt(d: Draft, part: str, verdict: Verdict, *, tries: int = 1, replaced: int = 0) -> None:
    """What follows from a verdict: the job fails, or the next attempt waits for its time. ``tries``, ``replaced``: `Over`'s."""
    run, policy = d.run(part), d.job.spec.failure_policy
    for child in d.children(part):
        if child.attempt == run.attempt and not ended(child):
            d.remove(child)
    count_waste(d, _wasted(d, part, run, verdict))
    again = freely(run.last_failure)
    changes: dict[str, object] = {
        "failures": run.failures + (tries if verdict.kind is Kind.Retry else 0),
        "disruptions": run.disruptions + max(replaced, verdict.kind is Kind.Free),
        "lost": run.lost + 1 if verdict.kind is Kind.Lost else 0,
        "repeated": _repeated(run, verdict),
        "last_failure": verdict.failure if verdict.kind is not Kind.Lost else run.last_failure,
    }
    d.set(part, **changes)
    sum_attempts(d)
    run = d.run(part)
    if verdict.kind is Kind.Final:
        d.fail(verdict.reason, f"{part}: {verdict.message}", part, verdict)
    elif run.repeated is not None and run.repeated.count >= TIMES:
        said = f"{part}: {poison_sentence(verdict.class_name, verdict.position, verdict.message)}"
        d.fail(Reason.Bug, said, part, verdict)
    elif run.failures > policy.backoff_limit:
        said = f"{part}: failed {run.failures} times (failurePolicy.backoffLimit {policy.backoff_limit}): {verdict.message}"
        d.fail(Reason.RetriesExhausted, said, part, verdict)
    elif d.status.attempts is not None and d.status.attempts.disruptions > policy.disruption_limit:
        said = f"{part}: disrupted more than {policy.disruption_limit} times (failurePolicy.disruptionLimit): {verdict.message}"
        d.fail(Reason.DisruptionsExhausted, said, part, verdict)
    elif run.lost >= LOST_LIMIT:
        d.fail(Reason.ResultLost, f"{part}: {LOST_LIMIT} results in a row were lost: {verdict.message}", part, verdict)
    else:
        _back_off(d, part, run, verdict, again)


def _back_off(d: Draft, part: str, run: RunStatus, verdict: Verdict, again: bool) -> None:
    """``again``: the attempt before ended free of charge too."""
    backoff = d.job.spec.failure_policy.backoff
    changes: dict[str, object] = {"state": State.Backoff, "reason": verdict.reason, "message": verdict.message}
    pauses = run.failures if verdict.kind is Kind.Retry else 0
    if verdict.kind is Kind.Free and again and not verdict.at_once:
        pauses = run.disruptions - 1
    if pauses:
        wait = min(backoff.base_seconds * 2 ** (pauses - 1), backoff.max_seconds)
        wait *= 0.75 + 0.5 * d.jitter(part, run.attempt)
        changes["next_attempt_time"] = stamp(d.now + timedelta(seconds=wait))
    d.set(part, **changes)
    if part != PLAN:
        look_up_again(d)
    d.facts.trouble = Said(verdict.reason, f"{part}: {verdict.message}")
    d.doing(Reason.Backoff, f"{part}: attempt {run.attempt} has ended")
    d.look(0.0)


def look_up_again(d: Draft) -> None:
    """Before anything else runs, the plan is looked up anew (contract 12)."""
    if d.run(PLAN).state == State.Succeeded:
        d.set(PLAN, state=State.Waiting)


def _repeated(run: RunStatus, verdict: Verdict) -> Repeated | None:
    if verdict.kind is not Kind.Retry:
        return run.repeated  # what was taken away says nothing about the place
    if not verdict.position:
        return None
    before, position = run.repeated, verdict.position[:64]
    same = before is not None and (before.class_, before.position) == (verdict.class_name, position)
    count = verdict.times + (before.count if before is not None and same else 0)
    return Repeated(class_=verdict.class_name, position=position, count=count)


def sum_attempts(d: Draft) -> None:
    """What the job's own counters say: the sum over its parts."""
    runs = [d.run(part) for part in d.parts()]
    attempts = (d.status.attempts or Attempts()).model_copy(
        update={"counted": sum(r.failures for r in runs), "disruptions": sum(r.disruptions for r in runs)}
    )
    d.update(attempts=attempts)


def _wasted(d: Draft, part: str, run: RunStatus, verdict: Verdict) -> float:
    """GPU seconds of an attempt whose work is lost; what a drained one did, or one up to its checkpoint, is kept."""
    if verdict.class_name == ExitClass.Drained.name:
        return 0.0
    saved = run.checkpoint.time if isinstance(run, StageStatus) and run.checkpoint is not None else None
    return gpu_seconds(d.pods(part, run.attempt), moment(saved) if saved else None, d.now)


def count_waste(d: Draft, seconds: float) -> None:
    """Add GPU seconds to those that were for nothing; of all that were used, no more."""
    usage = d.status.usage
    if usage is not None and round(seconds):
        wasted = min(usage.wasted_gpu_seconds + round(seconds), sum(usage.gpu_seconds_by_flavor.values()))
        d.update(usage=usage.model_copy(update={"wasted_gpu_seconds": wasted}))
