"""How a job ended, as an exit class: so that a script that waits for a job can tell why it failed."""

from __future__ import annotations

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.reasons import ConditionType, Reason
from kd_runtime.remote.jobs import RemoteJob

CLASSES: dict[str, ExitClass] = {
    Reason.InvalidSpec: ExitClass.BadSettings,
    Reason.RuntimeMissing: ExitClass.BadSettings,
    Reason.RuntimeChanged: ExitClass.BadSettings,
    Reason.BadSettings: ExitClass.BadSettings,
    Reason.NameConflict: ExitClass.BadSettings,
    Reason.ImageNotPulled: ExitClass.BadSettings,
    Reason.PodMisconfigured: ExitClass.BadSettings,
    Reason.BadData: ExitClass.BadData,
    Reason.GateFailed: ExitClass.GateUnmet,
    Reason.TeacherUnreachable: ExitClass.TeacherUnreachable,
    Reason.Bug: ExitClass.Bug,
    Reason.AcceleratorOutOfMemory: ExitClass.AcceleratorOutOfMemory,
    Reason.HostOutOfMemory: ExitClass.HostOutOfMemory,
    Reason.StorageUnavailable: ExitClass.Storage,
    Reason.NotAllowed: ExitClass.Denied,
    Reason.Denied: ExitClass.Denied,
    Reason.PodRefused: ExitClass.Denied,
}
"""By the reason of the condition Failed; what is not named here would perhaps pass by itself: 75."""


def outcome(job: RemoteJob) -> ExitClass | None:
    """The class that ``job`` ended with; None while it has not."""
    if job.holds(ConditionType.Complete):
        return ExitClass.Done
    if not job.holds(ConditionType.Failed):
        return None
    failed = job.condition(ConditionType.Failed)
    reason = failed.reason if failed else ""
    if reason == Reason.RetriesExhausted:
        return _last_class(job)
    return CLASSES.get(reason, ExitClass.Transient)


def _last_class(job: RemoteJob) -> ExitClass:
    part = job.failed_part
    failure = part[1].last_failure if part else None
    name = failure.class_ if failure else None
    return ExitClass.__members__.get(name or "", ExitClass.Transient)
