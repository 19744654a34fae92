"""The training gang: one pod a node, which live and end together, and the Service by which they find each other."""

from __future__ import annotations

from kd_operator.children.context import ChildContext, Component, Manifest
from kd_operator.children.environment import plain
from kd_operator.children.jobs import batch_job
from kd_operator.children.resources import container_resources
from kd_operator.children.services import service
from kd_operator.children.stages import stage_pod
from kd_runtime.api.stage import Stage

MASTER_PORT = 29500
GRACE_AFTER_DRAIN_SECONDS = 30


def trainer_service(ctx: ChildContext, name: str, attempt: int) -> Manifest:
    """The headless Service that gives each pod its name; also before it is ready, since none ever says so."""
    port = {"name": "master", "port": MASTER_PORT, "targetPort": MASTER_PORT, "protocol": "TCP"}
    more = {"clusterIP": "None", "publishNotReadyAddresses": True, "ports": [port]}
    return service(ctx, Component.Trainer, name, attempt, more)


def trainer_manifest(ctx: ChildContext, name: str, attempt: int, teacher_attempt: int) -> Manifest:
    """The Job of one attempt to train: it fails with the first of its pods, and goes on from a checkpoint as another."""
    stage = _train_stage(ctx, name)
    nodes, meeting = stage.resources.nodes, ctx.child_name(name, attempt)
    assert stage.train is not None
    gang = plain(MASTER_ADDR=f"{meeting}-0.{meeting}", MASTER_PORT=str(MASTER_PORT)) if nodes > 1 else {}
    pod = stage_pod(
        ctx,
        name,
        attempt,
        teacher_attempt=teacher_attempt,
        more={**_threads(ctx, stage), **gang},
        grace_seconds=stage.train.checkpoint.drain_seconds + GRACE_AFTER_DRAIN_SECONDS,
        subdomain=meeting if nodes > 1 else None,
    )
    deadline = {} if stage.timeout_seconds is None else {"activeDeadlineSeconds": stage.timeout_seconds}
    return batch_job(ctx, pod, completions=nodes, more=deadline)


def meets(ctx: ChildContext, name: str) -> bool:
    """True where several pods train, which need a Service."""
    return _train_stage(ctx, name).resources.nodes > 1


def _threads(ctx: ChildContext, stage: Stage) -> dict[str, dict[str, str]]:
    """As many as the reserved CPU is good for: else each rank starts one for every core of a node that it shares."""
    reserved = container_resources(ctx, Component.Trainer, stage.resources)
    ranks = max(1, stage.resources.gpus_per_node)
    return plain(OMP_NUM_THREADS=str(max(1, reserved.threads // ranks)))


def _train_stage(ctx: ChildContext, name: str) -> Stage:
    stage = ctx.stage(name)
    if stage is None or stage.train is None:
        raise KeyError(name)
    return stage
