"""Workers: the pods of ingest, synthesize, generate and capture, which share a stage's units."""

from __future__ import annotations

from kd_operator.children.context import ChildContext, Manifest
from kd_operator.children.jobs import batch_job
from kd_operator.children.stages import stage_pod
from kd_operator.names import CONTAINER
from kd_runtime.api.failures import ExitClass

FREE_ENDINGS = (ExitClass.Drained, ExitClass.Killed)
"""Endings after which a worker is started again without being counted."""
FINAL_ENDINGS = tuple(sorted(kind for kind in ExitClass if kind.final))
"""Endings after which no other try can help: the Job fails at the first."""


def workers_manifest(ctx: ChildContext, name: str, attempt: int, teacher_attempt: int) -> Manifest:
    """The Job of one attempt of a stage that workers share. Each of them is tried again by itself, up to backoffLimit."""
    stage = ctx.stage(name)
    pod = stage_pod(ctx, name, attempt, teacher_attempt=teacher_attempt)
    more: Manifest = {
        "backoffLimitPerIndex": ctx.job.spec.failure_policy.backoff_limit,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {"rules": _rules()},
    }
    if stage is not None and stage.timeout_seconds is not None:
        more["activeDeadlineSeconds"] = stage.timeout_seconds
    return batch_job(ctx, pod, completions=stage.workers if stage is not None else 1, more=more)


def _rules() -> list[Manifest]:
    """The first that fits counts."""
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    return [
        {"action": "Ignore", "onPodConditions": disrupted},
        {"action": "Ignore", "onExitCodes": _codes(FREE_ENDINGS)},
        {"action": "FailJob", "onExitCodes": _codes(FINAL_ENDINGS)},
    ]


def _codes(endings: tuple[ExitClass, ...]) -> Manifest:
    return {"containerName": CONTAINER, "operator": "In", "values": [int(ending) for ending in endings]}
