"""A hosted teacher: a Secret with the key that it wants, a Service, and the Deployment that serves it."""

from __future__ import annotations

from kd_operator.children.context import ChildContext, Component, Manifest
from kd_operator.children.environment import base_environment, from_secret, hub_tokens, store_arguments
from kd_operator.children.pods import Pod, pod_template
from kd_operator.children.resources import container_resources
from kd_operator.children.services import service
from kd_operator.children.stages import TEACHER_KEY
from kd_operator.names import TEACHER_PORT, teacher_secret_name
from kd_runtime.api.operation import Resources
from kd_runtime.api.teacher import HostedTeacher

PORT_NAME = "http"
STARTUP_PERIOD_SECONDS = 2
_PROBE = {"httpGet": {"path": "/health", "port": PORT_NAME}, "timeoutSeconds": 5}


def teacher_secret(ctx: ChildContext) -> Manifest:
    """The Secret, without its random value; one for all teachers of the job. The operator can create it and not read it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": ctx.metadata(teacher_secret_name(ctx.name, ctx.uid), ctx.labels()),
        "type": "Opaque",
        "immutable": True,
    }


def teacher_service(ctx: ChildContext, name: str, attempt: int) -> Manifest:
    """The Service in front of the replicas."""
    ports = [{"name": PORT_NAME, "port": TEACHER_PORT, "targetPort": PORT_NAME, "protocol": "TCP"}]
    return service(ctx, Component.Teacher, name, attempt, {"ports": ports})


def teacher_deployment(ctx: ChildContext, name: str, attempt: int) -> Manifest:
    """The Deployment. Raises KeyError where the job serves no teacher called ``name``."""
    hosted = ctx.hosted_teacher(name)
    labels = ctx.labels(Component.Teacher, name, attempt)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": ctx.metadata(ctx.child_name(name, attempt), labels),
        "spec": {
            "replicas": hosted.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": hosted.startup_timeout_seconds + 60,
            "template": pod_template(ctx, _pod(ctx, name, attempt, hosted)),
        },
    }


def _pod(ctx: ChildContext, name: str, attempt: int, hosted: HostedTeacher) -> Pod:
    store = ("--store", ctx.job.spec.artifacts.uri, "--plan", ctx.planned(), *store_arguments(ctx))
    address = ("--host", "0.0.0.0", "--port", str(TEACHER_PORT))
    key = from_secret(teacher_secret_name(ctx.name, ctx.uid), TEACHER_KEY)
    own = Resources(gpus_per_node=hosted.gpus_per_replica)
    return Pod(
        component=Component.Teacher,
        part=name,
        attempt=attempt,
        image=ctx.runtime.spec.images.runtime or ctx.settings.runtime_image,
        arguments=("teacher", "serve", *store, "--teacher", name, *address),
        environment={**base_environment(ctx, Component.Teacher), **hub_tokens(hosted.model), "KD_TEACHER_KEY": key},
        resources=container_resources(ctx, Component.Teacher, own),
        restarts=True,
        container=_serving(hosted),
    )


def _serving(hosted: HostedTeacher) -> Manifest:
    """Its port, and probes: it has ``startupTimeoutSeconds`` until /health says that the model answers."""
    tries = -(-hosted.startup_timeout_seconds // STARTUP_PERIOD_SECONDS)
    return {
        "ports": [{"name": PORT_NAME, "containerPort": TEACHER_PORT, "protocol": "TCP"}],
        "startupProbe": {**_PROBE, "periodSeconds": STARTUP_PERIOD_SECONDS, "failureThreshold": max(1, tries)},
        "readinessProbe": {**_PROBE, "periodSeconds": 5, "failureThreshold": 3},
    }
