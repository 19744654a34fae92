"""What every pod of a stage has in common: `kd stage run`, the teacher's address, Secrets that it needs, and progress."""

from __future__ import annotations

from kd_operator.children.context import COMPONENTS, ChildContext
from kd_operator.children.environment import (
    Environment,
    base_environment,
    dataset_token,
    from_secret,
    hub_tokens,
    plain,
    store_arguments,
)
from kd_operator.children.pods import GRACE_SECONDS, Mount, Pod
from kd_operator.children.resources import container_resources
from kd_operator.names import audience, teacher_secret_name
from kd_runtime.api.wiring import DATASET

TEACHER_KEY = "apiKey"
"""Of the Secret with the key that the job's teachers want."""
TOKEN_FOLDER = "/var/run/secrets/kubedistill"
TOKEN_SECONDS = 3600
_READS_STUDENT = ("ingest", "generate", "train")
"""Stages that render with the student's tokenizer; others read the student where no stage makes their model."""


def stage_pod(
    ctx: ChildContext,
    name: str,
    attempt: int,
    *,
    teacher_attempt: int,
    more: Environment | None = None,
    grace_seconds: int = GRACE_SECONDS,
    subdomain: str | None = None,
) -> Pod:
    """The pod of one attempt of stage ``name``."""
    artifacts, component = ctx.job.spec.artifacts, COMPONENTS[ctx.stage_type(name)]
    arguments = ("stage", "run", "--store", artifacts.uri, "--plan", ctx.planned(), "--stage", name)
    environment = {
        **(more or {}),
        **base_environment(ctx, component),
        **_secrets(ctx, name),
        **_teacher(ctx, name, teacher_attempt),
        **_progress(ctx),
    }
    return Pod(
        component=component,
        part=name,
        attempt=attempt,
        image=ctx.runtime.spec.images.runtime or ctx.settings.runtime_image,
        arguments=(*arguments, "--attempt", str(attempt), *store_arguments(ctx)),
        environment=environment,
        resources=container_resources(ctx, component, ctx.stage_resources(name)),
        grace_seconds=grace_seconds,
        mounts=_token(ctx),
        subdomain=subdomain,
    )


def _secrets(ctx: ChildContext, name: str) -> Environment:
    """Hub tokens for what this very stage reads from outside."""
    found = dataset_token(ctx) if name == DATASET else {}
    if ctx.stage_type(name) in _READS_STUDENT or ctx.wired.wirings[name].from_spec:
        found |= hub_tokens(ctx.job.spec.student.model)
    return found


def _teacher(ctx: ChildContext, name: str, teacher_attempt: int) -> Environment:
    """Where the teacher answers and its key, for a stage that asks one."""
    asked = ctx.asked_teacher(name)
    if asked is None:
        return {}
    called, teacher = asked
    if teacher.external is None:
        key = from_secret(teacher_secret_name(ctx.name, ctx.uid), TEACHER_KEY)
        return {**plain(KD_TEACHER_URL=ctx.teacher_url(called, teacher_attempt)), "KD_TEACHER_KEY": key}
    reference = teacher.external.api_key_secret_ref
    found = plain(KD_TEACHER_URL=teacher.external.base_url)
    return found if reference is None else {**found, "KD_TEACHER_KEY": from_secret(reference.name, reference.key)}


def _progress(ctx: ChildContext) -> Environment:
    if ctx.settings.progress_url is None:
        return {}
    url = f"{ctx.settings.progress_url.rstrip('/')}/v1/progress/{ctx.namespace}/{ctx.name}"
    return plain(KD_PROGRESS_URL=url, KD_PROGRESS_TOKEN_FILE=f"{TOKEN_FOLDER}/token")


def _token(ctx: ChildContext) -> tuple[Mount, ...]:
    """A token that is good for nothing but this job's progress."""
    if ctx.settings.progress_url is None:
        return ()
    token = {"audience": audience(ctx.uid), "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    source = {"projected": {"sources": [{"serviceAccountToken": token}]}}
    return (Mount("progress-token", TOKEN_FOLDER, source, read_only=True),)
