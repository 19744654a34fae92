"""What a person asks of a job that is there: suspend, resume, retry. Each is one small patch of the object."""

from __future__ import annotations

import secrets

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.labels import RETRY_ANNOTATION
from kd_runtime.api.reasons import ConditionType, Reason
from kd_runtime.api.status import RunStatus, StageStatus
from kd_runtime.remote.cluster import JOBS, Cluster, near
from kd_runtime.remote.jobs import PLAN, RemoteJob, find_job, stage_names

ASKS_ROWS = ("generate", "capture")
"""Stages whose rejected rows can be asked again."""


def suspend(cluster: Cluster, name: str) -> str:
    """Ask the job to drain and free its GPUs; what to tell the person.

    Raises:
        SettingsError: the job has ended, or there is none.
    """
    job = _unended(cluster, name)
    if job.suspend:
        return f"{name} is suspended already" if job.holds(ConditionType.Suspended) else f"{name} is being suspended"
    _set_suspend(cluster, job, True)
    return f"{name} will be suspended: training writes a checkpoint first; `kubectl kd watch {name}` shows it"


def resume(cluster: Cluster, name: str) -> str:
    """Let the job go on; what to tell the person.

    Raises:
        SettingsError: the job has ended, there is none, or its budget holds it.
    """
    job = _unended(cluster, name)
    held = job.condition(ConditionType.Suspended)
    if held is not None and held.status == "True" and held.reason == Reason.BudgetExceeded:
        spent = job.spec.get("budget", {}).get("maxGPUHours")
        raise SettingsError(
            f"spec.budget.maxGPUHours: {spent} is used up, so {name} stays suspended; raise it with"
            f' kubectl patch dj {name} -n {cluster.namespace} --type merge -p \'{{"spec":{{"budget":{{"maxGPUHours":"…"}}}}}}\''
        )
    if not job.suspend:
        return f"{name} is not suspended"
    _set_suspend(cluster, job, False)
    return f"{name} goes on from its checkpoints"


def retry(cluster: Cluster, name: str, stage: str) -> str:
    """Ask for a failed stage, or the rejected rows of a teacher stage, once more; what to tell the person.

    Raises:
        SettingsError: no such stage, or nothing of it can be retried.
    """
    job = find_job(cluster, name)
    part = retryable(job, stage)
    value = f"{stage}/{secrets.token_hex(4)}"
    cluster.patch(cluster.url(JOBS, name), {"metadata": {"annotations": {RETRY_ANNOTATION: value}, "uid": job.uid}})
    again = stage == PLAN or part.state == "Failed"
    what = f"{stage} will be tried once more" if again else f"{stage}'s rejected rows will be asked again"
    return f"{name}: {what}; `kubectl kd watch {name}` shows it"


def retryable(job: RemoteJob, stage: str) -> RunStatus:
    """The part of ``job`` that a retry of ``stage`` is about. Raises SettingsError where there is nothing to retry."""
    names = [PLAN, *stage_names(job.spec)]
    if stage not in names:
        raise SettingsError(f"{job.name} has no stage {stage}; {near(stage, names[1:], 'it has')}")
    part = job.parts().get(stage, RunStatus())
    if part.state == "Failed" or (stage == PLAN and job.holds(ConditionType.Failed)):
        return part  # a job may also have failed before its plan, by a name that was taken or a rule of its runtime
    rejected = part.rows.rejected if isinstance(part, StageStatus) and part.rows else 0
    if rejected and isinstance(part, StageStatus) and part.type in ASKS_ROWS:
        return part
    raise SettingsError(
        f"{job.name}: {stage} is {part.state or 'Waiting'}, so there is nothing to retry;"
        " a stage that failed, or one that asked a teacher and lists rejected rows, can be"
    )


def _unended(cluster: Cluster, name: str) -> RemoteJob:
    job = find_job(cluster, name)
    if job.ended:
        raise SettingsError(
            f"{name} has ended ({job.status.phase}), so nothing of it runs; `kubectl kd retry` tries a failed stage again"
        )
    return job


def _set_suspend(cluster: Cluster, job: RemoteJob, value: bool) -> None:
    """The uid in the patch makes the server refuse it for another job of the same name."""
    cluster.patch(cluster.url(JOBS, job.name), {"spec": {"suspend": value}, "metadata": {"uid": job.uid}})
