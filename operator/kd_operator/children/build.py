"""The front of this room: what `decide` asks for, as objects to create, each with the attempt that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd_operator.children import config, network
from kd_operator.children.context import COMPONENTS, ChildContext, Component, Manifest
from kd_operator.children.plan import plan_manifest
from kd_operator.children.stages import TEACHER_KEY
from kd_operator.children.teacher import teacher_deployment, teacher_secret, teacher_service
from kd_operator.children.tools import tools_manifest
from kd_operator.children.trainer import meets, trainer_manifest, trainer_service
from kd_operator.children.workers import workers_manifest
from kd_operator.decision import Claim, Create
from kd_operator.names import PLAN


def config_map(ctx: ChildContext, *, original: Mapping[str, Any]) -> Manifest:
    """The job's ConfigMap; ``original`` is the DistillationJob as the API server holds it. Its claim is of part ""."""
    return config.config_map(ctx, original)


def network_policy(ctx: ChildContext) -> Manifest:
    """The job's NetworkPolicy. Its claim is of part ""."""
    return network.network_policy(ctx)


def plan_job(ctx: ChildContext, attempt: int, *, retry: str | None) -> list[Create]:
    """One attempt of the plan pod: look-up and probes alone where ``ctx.plan`` is known. ``retry`` is stage/nonce."""
    return [Create(plan_manifest(ctx, attempt, retry), Claim(PLAN, attempt))]


def teacher(ctx: ChildContext, name: str, attempt: int) -> list[Create]:
    """One attempt of a hosted teacher: its Secret, its Service, and the Deployment last.

    Raises:
        KeyError: the job serves no teacher of that name. ValueError: there is no plan yet.
    """
    claim = Claim(f"teacher/{name}", attempt)
    return [
        Create(teacher_secret(ctx), claim, secret_key=TEACHER_KEY),
        Create(teacher_service(ctx, name, attempt), claim),
        Create(teacher_deployment(ctx, name, attempt), claim),
    ]


def stage(ctx: ChildContext, name: str, attempt: int, *, teacher_attempt: int) -> list[Create]:
    """One attempt of a stage, `dataset` included: its Service where its pods must meet, and its Job last.

    ``teacher_attempt`` is the attempt of the hosted teacher that it asks; any number where it asks none.

    Raises:
        KeyError: the job has no such stage. ValueError: there is no plan yet.
    """
    claim = Claim(name, attempt)
    component = COMPONENTS[ctx.stage_type(name)]
    if component is Component.Workers:
        return [Create(workers_manifest(ctx, name, attempt, teacher_attempt), claim)]
    if component is Component.Tools:
        return [Create(tools_manifest(ctx, name, attempt, teacher_attempt), claim)]
    gang = [Create(trainer_service(ctx, name, attempt), claim)] if meets(ctx, name) else []
    return [*gang, Create(trainer_manifest(ctx, name, attempt, teacher_attempt), claim)]


def teacher_url(ctx: ChildContext, name: str, attempt: int) -> str:
    """Where an attempt of a hosted teacher answers."""
    return ctx.teacher_url(name, attempt)
