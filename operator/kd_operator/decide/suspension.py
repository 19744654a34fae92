"""Suspension: drain, free everything, and go on later; asked by people, or by a budget that is used up (pure)."""

from __future__ import annotations

from kd_operator.children.context import Component
from kd_operator.decide import teachers
from kd_operator.decide.attempts import look_up_again
from kd_operator.decide.draft import TEACHER_PREFIX, Draft, ended
from kd_operator.names import PLAN
from kd_operator.status.accounting import gpu_hours
from kd_operator.status.conditions import Said
from kd_operator.status.states import AT_WORK, State, stamp
from kd_runtime.api.operation import OnExceeded
from kd_runtime.api.reasons import Reason


def budget_used(d: Draft) -> str | None:
    """A sentence where the job used more GPU hours than it may."""
    budget = d.job.spec.budget
    if budget is None or gpu_hours(d.status) < float(budget.max_gpu_hours):
        return None
    return f"{gpu_hours(d.status):.2f} GPU hours of {budget.max_gpu_hours} (spec.budget.maxGPUHours) are used"


def suspended(d: Draft) -> bool:
    """True where the job is suspended, or on its way there: nothing else happens to it in this pass.

    A suspension that began is carried through, whatever spec.suspend says meanwhile.
    """
    why = _wanted(d)
    if why is None and not _drains(d):
        _admit(d)
        return False
    _drain(d)
    if _left(d):
        d.facts.suspending = True
        d.doing(Reason.Draining, "pods save what they have, and end")
        return True
    _settle(d)
    d.update(admitted_time=None)
    if why is not None:
        d.facts.suspended = why
    else:
        d.doing(Reason.Queued, "the suspension is over")
        d.look(0.0)
    return True


def leaves(d: Draft) -> bool:
    """Whether the job is suspended, or on its way there: its deadlines begin anew when it goes on."""
    return _wanted(d) is not None or _drains(d)


def _drains(d: Draft) -> bool:
    return any(d.run(part).state == State.Draining for part in d.parts())


def _wanted(d: Draft) -> Said | None:
    if d.seen.job.suspend:
        return Said(Reason.Suspended, "spec.suspend is true")
    used = budget_used(d)
    budget = d.job.spec.budget
    if used is not None and budget is not None and budget.on_exceeded is OnExceeded.Suspend and not d.concluding():
        return Said(Reason.BudgetExceeded, used)
    return None


def _admit(d: Draft) -> None:
    if d.status.admitted_time is None:
        d.update(admitted_time=stamp(d.now))


def _drain(d: Draft) -> None:
    """End the attempts at work. Teachers go when no stage asks them any more."""
    for part in d.parts():
        run = d.run(part)
        if not part.startswith(TEACHER_PREFIX) and run.state in AT_WORK:
            d.set(part, state=State.Draining, reason=Reason.Draining, message="ending for a suspension")
    for child in d.own:
        if child.component != Component.Teacher and d.run(child.stage).state == State.Draining and not ended(child):
            d.remove(child)
    if not any(pod.alive for pod in d.seen.pods if pod.component != Component.Teacher):
        teachers.release(d)


def _left(d: Draft) -> bool:
    return any(not ended(child) for child in d.own) or any(pod.alive for pod in d.seen.pods)


def _settle(d: Draft) -> None:
    """Everything is gone: attempts end uncounted, and the plan is looked up before the next."""
    for part in d.parts():
        if d.run(part).state in (*AT_WORK, State.Draining, State.Backoff):  # no peer is to wait for any of them
            d.set(part, state=State.Waiting, child_uid=None, reason=Reason.Suspended, message=None)
        if part == PLAN:
            look_up_again(d)
