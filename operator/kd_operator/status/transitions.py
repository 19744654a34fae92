"""What changed between two statuses: whether it is worth a write, and which events tell of it (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from kd_operator.decision import EventNote
from kd_operator.status.states import SETTLED, State
from kd_runtime.api.reasons import ConditionType
from kd_runtime.api.status import JobStatus, RunStatus, StageStatus

TOLD = frozenset({State.Running, State.Succeeded, State.Skipped, State.Backoff, State.Failed, State.Draining})
WARNED = frozenset({State.Backoff, State.Failed})
TOLD_ATTEMPTS = 4
"""So many attempts of a stage have events of their own, two each. With how it ended, what its children met, and one event
that counts for all later attempts, a stage has at most twelve."""


def lasting(status: JobStatus) -> JobStatus:
    """``status`` without what changes all the time: progress, use of GPUs."""
    stages = tuple(
        stage.model_copy(update={"progress": None, "gpu_seconds": 0, "checkpoint": None}) for stage in status.stages
    )
    return status.model_copy(update={"stages": stages, "usage": None, "progress": None})


def worth_writing(before: JobStatus, after: JobStatus, progress_due: bool) -> bool:
    """True where something changed that lasts, or progress did and is due."""
    if lasting(before) != lasting(after):
        return True
    return progress_due and _timeless(before) != _timeless(after)


def _timeless(status: JobStatus) -> JobStatus:
    """``status`` without the moment until which GPU seconds are counted, which alone is no news."""
    if status.usage is None:
        return status
    return status.model_copy(update={"usage": status.usage.model_copy(update={"accounted_time": None})})


def events_between(before: JobStatus, after: JobStatus) -> tuple[EventNote, ...]:
    """An event for each stage or teacher that changed its state, and for the job's own turns."""
    return (*_of_plan(before, after), *_of_stages(before, after), *_of_teachers(before, after), *_of_job(before, after))


def _of_plan(before: JobStatus, after: JobStatus) -> Iterator[EventNote]:
    digest = after.plan.digest if after.plan else None
    if after.plan and digest and (before.plan is None or before.plan.digest != digest):
        yield EventNote("Normal", "Planned", f"plan {digest[:12]}: {after.plan.estimate}")
    if after.plan and _turned(before.plan, after.plan, WARNED):
        yield EventNote("Warning", after.plan.reason or str(after.plan.state), f"plan: {after.plan.message}")


def _of_stages(before: JobStatus, after: JobStatus) -> Iterator[EventNote]:
    known = {stage.name: stage for stage in before.stages}
    for stage in after.stages:
        if not _turned(known.get(stage.name), stage, TOLD):
            continue
        if stage.attempt > TOLD_ATTEMPTS and stage.state not in (*SETTLED, State.Failed):
            said = f"{stage.name}: attempts after the {TOLD_ATTEMPTS}th are told of in status.stages"
            yield EventNote("Warning", "StageTriedAgain", said)
            continue
        kind = "Warning" if stage.state in WARNED else "Normal"
        yield EventNote(kind, f"Stage{stage.state}", _stage_sentence(stage))


def _stage_sentence(stage: StageStatus) -> str:
    said = f"{stage.name}: {stage.message}" if stage.message else stage.name
    return said if stage.state == State.Skipped else f"{said} (attempt {stage.attempt})"


def _of_teachers(before: JobStatus, after: JobStatus) -> Iterator[EventNote]:
    known = {teacher.name: teacher for teacher in before.teachers}
    for teacher in after.teachers:
        if _turned(known.get(teacher.name), teacher, frozenset({State.Running})):
            yield EventNote("Normal", "TeacherReady", f"{teacher.name} answers (attempt {teacher.attempt})")


def _of_job(before: JobStatus, after: JobStatus) -> Iterator[EventNote]:
    earlier = {c.type: c.status for c in before.conditions}
    for condition in after.conditions:
        if condition.status != "True" or earlier.get(condition.type) == "True":
            continue
        if condition.type in (ConditionType.Complete, ConditionType.Suspended):
            yield EventNote("Normal", condition.type, condition.message or condition.reason)
        if condition.type == ConditionType.Failed:
            yield EventNote("Warning", condition.reason, condition.message)


def _turned(before: RunStatus | None, after: RunStatus, into: frozenset[State]) -> bool:
    """True where a run came into one of these states, or into it again by another attempt."""
    if after.state not in into:
        return False
    return before is None or (before.state, before.attempt) != (after.state, after.attempt)
