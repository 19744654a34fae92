"""`decide`: from what is seen of a job to what is to be done about it. Pure: no I/O, no clock, no randomness."""

from __future__ import annotations

from datetime import datetime

from kd_operator.children.build import config_map, network_policy
from kd_operator.children.context import Component
from kd_operator.decide import ending, suspension, teachers
from kd_operator.decide.draft import Draft, ended
from kd_operator.decide.planning import planned
from kd_operator.decide.refusals import tell_refusals
from kd_operator.decide.stages import advance_stage, known_stages, waited_for_peer
from kd_operator.decide.strangers import end_orphans, own_pods, tell_strangers
from kd_operator.decide.strays import end_stuck_pods, remove_strays, tell_silent_nodes, tell_stuck_pods
from kd_operator.decision import Claim, Create, Decision
from kd_operator.names import PLAN, not_reconciled
from kd_operator.observed import Observed
from kd_operator.settings import Settings
from kd_operator.status.accounting import accounted
from kd_operator.status.conditions import Said, conditions, current_stage, phase, progress_words
from kd_operator.status.states import AT_WORK, SETTLED, State, moment, stamp
from kd_operator.status.transitions import events_between, worth_writing
from kd_runtime.api.labels import RETRY_ANNOTATION
from kd_runtime.api.reasons import Reason
from kd_runtime.api.status import Attempts, CheckpointStatus, RunStatus, RuntimeStatus

HELD_SECONDS = 300.0
"""A teacher is kept for an attempt that comes so soon: loading it again would take longer."""
OVER_LOOK_SECONDS = 900.0
"""A job that is over, of which nothing is alive, is looked at again at least so often, while anything of it is kept: such
jobs are many, and nothing but time changes them."""


def decide(observed: Observed, now: datetime, settings: Settings) -> Decision:
    """What is to be done about a job. Called again on the result of what it decided, it decides to do nothing."""
    job = observed.job
    if job.deleting or not_reconciled(job.annotations):
        return Decision(requeue_after=None)
    observed, strangers = own_pods(observed)
    d = Draft(observed, now, settings, accounted(job.status, observed.pods, now))
    if d.status.start_time is None:
        d.update(start_time=stamp(now))
    over = ending.finished(job.status)
    if over is not None and job.spec is not None and ending.asked_again(d):
        over = None
    if over is not None and not any(pod.alive for pod in observed.pods):
        d.look_after = OVER_LOOK_SECONDS
    end_stuck_pods(d)
    end_orphans(d)
    look: float | None
    if over is not None:
        look = ending.tidy(d, over)
    else:
        _go_on(d)
        tell_silent_nodes(d)
        tell_stuck_pods(d)
        tell_strangers(d, strangers)
        look = d.look_after
    return _decision(d, look)


def _go_on(d: Draft) -> None:
    """One step of a job that is not over."""
    if _refused(d) or _conflicting(d):
        pass
    elif d.status.runtime is None or not d.status.stages:
        _begin(d)
        if not suspension.suspended(d):
            planned(d)
    elif not _pinned(d) or ending.deadline_over(d):
        pass
    else:
        ending.asked_again(d)
        if not suspension.suspended(d):
            _progress(d)
            _run(d)
        remove_strays(d)
    if d.facts.failed is not None:
        _stop(d)
    else:
        tell_refusals(d)


def _refused(d: Draft) -> bool:
    """True where the job is not accepted. One without a runtime waits for it; all else is final, and ends what runs."""
    job = d.seen.job
    if job.refusal is None:
        return False
    reason, message = Reason(job.refusal), "; ".join(job.errors)
    if d.status.runtime is not None and d.seen.config and job.spec is None:
        return _unreadable(d, message)
    d.facts.refused = Said(reason, message)
    if _started(d) and d.seen.runtime is None:
        return _failed(d, Reason.RuntimeChanged, f"the job's ConfigMap is gone and so is its runtime: {message}")
    if reason is Reason.RuntimeMissing or (job.spec is None and d.seen.runtime is None):
        d.doing(reason, message)
        d.facts.trouble = d.facts.refused
        return True
    if d.seen.runtime is not None and d.seen.runtime.pinned:
        d.facts.refused = None  # accepted once by the runtime that it keeps; a later version's rules do not end it
        if job.spec is None:
            return _failed(d, reason, message)
        if d.context.priority_class != job.spec.spec.scheduling.priority_class_name:
            d.facts.trouble = Said(
                Reason.NotAllowed, f"pods that are made from now on have no priority class: {message}"
            )
        return False
    return _failed(d, reason, message)


def _unreadable(d: Draft, message: str) -> bool:
    """Another version of the operator accepted the job, and this one can neither go on with it nor says that it is wrong."""
    said = f"the job began under another version of the operator, which this one cannot read; upgrade it: {message}"
    d.facts.trouble = Said(Reason.OtherVersion, said)
    d.doing(Reason.OtherVersion, said)
    return True


def _failed(d: Draft, reason: Reason, message: str) -> bool:
    d.fail(reason, message)
    return True


def _conflicting(d: Draft) -> bool:
    if not d.seen.conflicts:
        return False
    d.fail(
        Reason.NameConflict,
        f"{d.seen.conflicts[0]} is there already and belongs to something else; "
        f"delete or rename it, then annotate {RETRY_ANNOTATION}: plan/<nonce>",
    )
    return True


def _begin(d: Draft) -> None:
    """The first status: the runtime is fixed from here on."""
    assert d.seen.runtime is not None
    runtime = d.seen.runtime
    d.update(
        runtime=RuntimeStatus(name=runtime.runtime.metadata.name, hash=runtime.hash),
        stages=known_stages(d),
        attempts=Attempts(),
    )
    d.doing(Reason.Planning, "the job was seen")
    remove_strays(d)
    d.look(0.0)


def _started(d: Draft) -> bool:
    """Whether anything of the job was ever claimed: one that has only been suspended so far keeps to no runtime yet."""
    return any(d.run(part).attempt > 0 for part in d.parts())


def _pinned(d: Draft) -> bool:
    """False where the ConfigMap that fixes job and runtime is gone and cannot be made again."""
    runtime, pinned = d.seen.runtime, d.status.runtime
    assert runtime is not None and pinned is not None
    if not runtime.pinned and runtime.hash != pinned.hash and not _started(d):
        d.update(runtime=RuntimeStatus(name=runtime.runtime.metadata.name, hash=runtime.hash))
    elif not runtime.pinned and runtime.hash != pinned.hash:
        d.fail(
            Reason.RuntimeChanged,
            f"the job's ConfigMap is gone and the runtime {pinned.name} has changed since the job began",
        )
        return False
    if runtime.live_hash is not None and runtime.live_hash != runtime.hash:
        d.facts.drifted = f"the runtime {pinned.name} has changed since the job began, which keeps the former"
    if d.seen.job.suspend:
        return True  # no child is created
    if not d.seen.config:
        d.create.append(Create(config_map(d.context, original=d.seen.job.document), Claim("", 0)))
    if not d.seen.network:
        d.create.append(Create(network_policy(d.context), Claim("", 0)))
    return True


def _run(d: Draft) -> None:
    """The plan, then the first stage that is not settled."""
    stage = current_stage(d.status)
    if stage is not None and stage.state == State.Backoff and d.waits_until(stage.next_attempt_time):
        d.facts.trouble = Said(stage.reason or Reason.Backoff, f"{stage.name}: {stage.message}")
        d.doing(Reason.Backoff, f"{stage.name}: the next attempt is at {stage.next_attempt_time}")
        if _comes_late(d, stage):
            teachers.release(d)
        return
    if stage is not None and waited_for_peer(d, stage):
        d.look(0.0)
    looked_up = d.run(PLAN).state == State.Succeeded
    if not planned(d):
        if _plan_comes_late(d):
            teachers.release(d)
        return
    if not (looked_up or _goes_on(d)):
        return
    while (stage := current_stage(d.status)) is not None:
        advance_stage(d, stage)
        if d.stage(stage.name).state not in SETTLED or not _goes_on(d):
            return
    if teachers.release(d):
        ending.complete(d)


def _comes_late(d: Draft, run: RunStatus) -> bool:
    """Whether the next attempt comes so late that no teacher is kept for it."""
    return run.next_attempt_time is not None and (
        (moment(run.next_attempt_time) - d.now).total_seconds() > HELD_SECONDS
    )


def _plan_comes_late(d: Draft) -> bool:
    """The same of the plan's pod, which a stage waits for: in a pause, refused, or not begun for as long."""
    run = d.run(PLAN)
    if run.state == State.Backoff:
        return _comes_late(d, run)
    child = d.child(PLAN, run.attempt)
    if child is None:
        return any(creation.child in d.seen.refused for creation in d.create)
    begun = any(pod.started is not None for pod in d.pods_of(child))
    return not begun and not ended(child) and d.past(stamp(child.created), int(HELD_SECONDS))


def _goes_on(d: Draft) -> bool:
    """Whether what comes after a step that was just done may be claimed in the same breath: its peers are known, and nobody
    waits for the moment at which nothing is at work."""
    return d.seen.peers is not None and not ending.retry_wanted(d)


def _progress(d: Draft) -> None:
    """What pods last posted."""
    for name, progress in d.seen.progress.items():
        if d.stage(name).state == State.Running:
            d.set(name, progress=progress)
    for name, where in d.seen.checkpoints.items():
        stage, uri = d.stage(name), f"{d.job.spec.artifacts.uri.rstrip('/')}/{where}"
        if stage.state == State.Running and (stage.checkpoint is None or stage.checkpoint.uri != uri):
            step = int(where.rstrip("/").rpartition("-")[2])
            d.set(name, checkpoint=CheckpointStatus(uri=uri, step=step, time=stamp(d.now)))


def _stop(d: Draft) -> None:
    """The job has failed: whatever of it runs is deleted, what has ended is kept for a look."""
    for child in d.own:
        if not ended(child):
            d.remove(child)
    d.create.clear()
    for part in d.parts():
        if d.run(part).state in (State.Queued, State.Starting, State.Running, State.Draining, State.Backoff):
            d.set(part, state=State.Failed if part != "plan" else State.Waiting, next_attempt_time=None)


def _decision(d: Draft, look: float | None) -> Decision:
    job, before = d.seen.job, d.seen.job.status
    d.facts.released = not (
        any(pod.alive for pod in d.seen.pods)
        or any(child.component == Component.Teacher for child in d.own)
        or any(d.run(part).state in AT_WORK for part in d.parts())
    )
    d.facts.serves_teacher = job.spec is not None and teachers.serves_any(d)
    stage = current_stage(d.status)
    at_plan = d.status.plan is not None and d.status.plan.state != State.Succeeded
    d.update(
        observed_generation=job.generation,
        phase=phase(d.status, d.facts),
        current_stage=None if d.facts.finished else "plan" if at_plan else stage.name if stage else None,
        progress=progress_words(d.status),
        conditions=conditions(d.status, d.facts, job.generation, d.now),
    )
    write = worth_writing(before, d.status, d.seen.progress_due)
    deletes = list(dict.fromkeys(d.delete))
    return Decision(
        status=d.status if write else None,
        create=tuple(d.create),
        delete=tuple(deletes),
        events=(*d.events, *events_between(before, d.status)) if write else (),
        requeue_after=look,
        waits_for_peers=d.waits_for_peers,
    )
