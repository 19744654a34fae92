"""The conditions of a job, its phase and the words of its columns, from what was found out about it (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from kd_operator.status.states import AT_WORK, SETTLED, State, stamp
from kd_runtime.api.reasons import ConditionType, Reason
from kd_runtime.api.status import Condition, JobStatus, StageStatus

MESSAGE_LENGTH = 1024


@dataclass(frozen=True)
class Said:
    """A reason and its sentence."""

    reason: str
    """A `Reason`; or one that a later version wrote, kept as it is."""
    message: str = ""


@dataclass
class Facts:
    """What one pass found out about a job."""

    refused: Said | None = None
    """Not accepted: invalid, not allowed, or without a runtime."""
    drifted: str | None = None
    """The runtime has changed since the job began: a sentence."""
    doing: Said = field(default_factory=lambda: Said(Reason.Planning))
    """What an unfinished job is at."""
    trouble: Said | None = None
    """What keeps it from going on as it should."""
    suspending: bool = False
    suspended: Said | None = None
    released: bool = False
    """No pod and no teacher of it is left."""
    failed: Said | None = None
    complete: Said | None = None
    serves_teacher: bool = False
    """The job has a teacher of its own to run."""

    @property
    def finished(self) -> bool:
        """True at its end, good or bad."""
        return self.failed is not None or self.complete is not None


def conditions(status: JobStatus, facts: Facts, generation: int, now: datetime) -> tuple[Condition, ...]:
    """All conditions. One whose status did not change keeps its transition time."""
    before = {condition.type: condition for condition in status.conditions}
    made = []
    for kind, holds, said in _judged(status, facts):
        old = before.get(kind)
        value = str(holds)
        made.append(
            Condition(
                type=kind,
                status=value,
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old and old.status == value else stamp(now),
                reason=said.reason,
                message=said.message[:MESSAGE_LENGTH],
            )
        )
    return tuple(made)


def _judged(status: JobStatus, facts: Facts) -> Iterable[tuple[ConditionType, bool, Said]]:
    over = facts.failed or facts.complete
    doing = over or facts.suspended or facts.doing
    yield ConditionType.Accepted, facts.refused is None, facts.refused or _accepted(facts)
    planned = bool(status.plan and status.plan.digest)
    yield ConditionType.Planned, planned, _planned(status) if planned else Said(Reason.Planning)
    halted = facts.suspended or (Said(Reason.Draining, facts.doing.message) if facts.suspending else None)
    yield ConditionType.Admitted, halted is None, halted or Said(Reason.Admitted)
    if facts.serves_teacher:
        yield _teacher(status)
    yield ConditionType.Suspended, facts.suspended is not None, halted or Said(doing.reason)
    yield ConditionType.ResourcesReleased, facts.released, _released(facts)
    yield ConditionType.Degraded, facts.trouble is not None, facts.trouble or Said(doing.reason)
    at_work = over is None and facts.suspended is None
    yield ConditionType.Reconciling, at_work, facts.trouble if at_work and facts.trouble else doing
    yield ConditionType.Stalled, facts.failed is not None, facts.failed or Said(doing.reason)
    yield ConditionType.Ready, facts.complete is not None, facts.trouble if at_work and facts.trouble else doing
    yield ConditionType.Complete, facts.complete is not None, facts.complete or Said(doing.reason)
    yield ConditionType.Failed, facts.failed is not None, facts.failed or Said(doing.reason)


def _accepted(facts: Facts) -> Said:
    return Said(Reason.RuntimeDrift, facts.drifted) if facts.drifted else Said(Reason.Accepted)


def _planned(status: JobStatus) -> Said:
    assert status.plan is not None
    return Said(Reason.Planned, status.plan.estimate or "")


def _teacher(status: JobStatus) -> tuple[ConditionType, bool, Said]:
    ready = [t for t in status.teachers if t.state == State.Running]
    if ready:
        return ConditionType.TeacherReady, True, Said(Reason.TeacherReady, f"teacher {ready[0].name} answers")
    starting = [t for t in status.teachers if t.state in AT_WORK]
    if starting:
        said = starting[0].message or f"teacher {starting[0].name} is loading"
        return ConditionType.TeacherReady, False, Said(Reason.TeacherStarting, said)
    return ConditionType.TeacherReady, False, Said(Reason.TeacherStopped)


def _released(facts: Facts) -> Said:
    return Said(Reason.ResourcesReleased) if facts.released else Said(Reason.Running, "pods of the job are there")


def phase(status: JobStatus, facts: Facts) -> str:
    """One word for people."""
    if facts.failed:
        return "Failed"
    if facts.complete:
        return "Succeeded"
    if facts.suspended:
        return "Suspended"
    if facts.suspending:
        return "Suspending"
    if facts.refused:
        return "Pending"
    if status.plan is None or status.plan.digest is None:
        return "Planning" if status.plan else "Pending"
    running = any(run.state in (State.Running, State.Draining) for run in (*status.stages, *status.teachers))
    return "Running" if running or any(s.state in (State.Starting, State.Backoff) for s in status.stages) else "Queued"


def current_stage(status: JobStatus) -> StageStatus | None:
    """The first stage that is not settled."""
    return next((stage for stage in status.stages if stage.state not in SETTLED), None)


def progress_words(status: JobStatus) -> str | None:
    """``3/7 42%``: stages that are settled, of how many, and how far the one at work is."""
    if not status.stages:
        return None
    settled = sum(stage.state in SETTLED for stage in status.stages)
    current = current_stage(status)
    percent = f" {current.progress.percent}%" if current and current.progress and current.progress.total else ""
    return f"{settled}/{len(status.stages)}{percent}"
