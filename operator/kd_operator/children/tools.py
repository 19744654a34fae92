"""Tools: the one pod of prepare, compress, evaluate and publish."""

from __future__ import annotations

from kd_operator.children.context import ChildContext, Component, Manifest
from kd_operator.children.environment import plain
from kd_operator.children.jobs import batch_job
from kd_operator.children.resources import container_resources
from kd_operator.children.stages import stage_pod


def tools_manifest(ctx: ChildContext, name: str, attempt: int, teacher_attempt: int) -> Manifest:
    """The Job of one attempt of such a stage."""
    stage = ctx.stage(name)
    if stage is None:
        raise KeyError(name)
    reserved = container_resources(ctx, Component.Tools, stage.resources)
    threads = plain(OMP_NUM_THREADS=str(reserved.threads))
    pod = stage_pod(ctx, name, attempt, teacher_attempt=teacher_attempt, more=threads)
    deadline = {} if stage.timeout_seconds is None else {"activeDeadlineSeconds": stage.timeout_seconds}
    return batch_job(ctx, pod, more=deadline)
