"""The plan pod: resolves, probes and looks up, without a GPU, before anything else of the job starts."""

from __future__ import annotations

from kd_operator.children.config import CONFIG_FOLDER, JOB_FILE, RUNTIME_FILE
from kd_operator.children.context import ChildContext, Component, Manifest
from kd_operator.children.environment import (
    Environment,
    base_environment,
    dataset_token,
    hub_tokens,
    secret_variables,
)
from kd_operator.children.jobs import batch_job
from kd_operator.children.pods import Mount, Pod
from kd_operator.children.resources import container_resources
from kd_operator.names import PLAN, config_name
from kd_runtime.api.operation import Resources


def plan_manifest(ctx: ChildContext, attempt: int, retry: str | None) -> Manifest:
    """The Job of one attempt to plan: anew, or where ``ctx`` knows the plan, look-up and probes alone.

    ``retry`` is ``stage/nonce``: rejected rows of that stage are to be asked again.
    """
    arguments = [
        "stage",
        "plan",
        "--job",
        f"{CONFIG_FOLDER}/{JOB_FILE}",
        "--runtime",
        f"{CONFIG_FOLDER}/{RUNTIME_FILE}",
    ]
    arguments += ["--plan", ctx.plan] if ctx.plan is not None else []
    arguments += ["--retry", retry] if retry is not None else []
    config = {"configMap": {"name": config_name(ctx.name, ctx.uid)}}
    pod = Pod(
        component=Component.Plan,
        part=PLAN,
        attempt=attempt,
        image=ctx.runtime.spec.images.plan or ctx.settings.plan_image,
        arguments=tuple(arguments),
        environment={**base_environment(ctx, Component.Plan), **_secrets(ctx)},
        resources=container_resources(ctx, Component.Plan, Resources()),
        mounts=(Mount("config", CONFIG_FOLDER, config, read_only=True),),
    )
    return batch_job(ctx, pod)


def _secrets(ctx: ChildContext) -> Environment:
    """All that the job names: what is wrong with one of them is found here."""
    teachers = ctx.job.spec.named_teachers().values()
    weights = [teacher.hosted.model for teacher in teachers if teacher.hosted is not None]
    keys = [teacher.external.api_key_secret_ref for teacher in teachers if teacher.external is not None]
    return {**hub_tokens(ctx.job.spec.student.model, *weights), **dataset_token(ctx), **secret_variables(keys)}
