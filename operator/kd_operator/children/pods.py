"""The pod template that all children share: the `restricted` profile, scratch, cache, placement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from kd_operator.children.context import ChildContext, Component, Manifest
from kd_operator.children.environment import (
    CA_PATH,
    CACHE_PATH,
    RESULT_PATH,
    SCRATCH_PATH,
    Environment,
    scratch_size,
)
from kd_operator.children.resources import ContainerResources
from kd_operator.names import CONTAINER

USER = 10001
GRACE_SECONDS = 30
_SHARED_MEMORY = (Component.Teacher, Component.Trainer, Component.Tools)
"""PyTorch and NCCL pass tensors through /dev/shm, of which a container has 64 MiB otherwise."""


@dataclass(frozen=True)
class Mount:
    """A volume and where it is mounted."""

    name: str
    path: str
    source: Manifest
    """The volume's source, such as ``{"emptyDir": {}}``."""
    read_only: bool = False
    sub_path: str | None = None

    def volume(self) -> Manifest:
        """As a pod's `volumes` hold it."""
        return {"name": self.name, **self.source}

    def mount(self) -> Manifest:
        """As a container's `volumeMounts` hold it."""
        mount: Manifest = {"name": self.name, "mountPath": self.path}
        if self.read_only:
            mount["readOnly"] = True
        if self.sub_path is not None:
            mount["subPath"] = self.sub_path
        return mount


@dataclass(frozen=True)
class Pod:
    """What differs from pod to pod."""

    component: Component
    part: str
    """A stage's name, `plan`, or the teacher's name: its label."""
    attempt: int
    image: str
    arguments: tuple[str, ...]
    """Of `kd`."""
    environment: Environment
    resources: ContainerResources
    grace_seconds: int = GRACE_SECONDS
    restarts: bool = False
    """Whether its container is started again where it is: a teacher's alone."""
    mounts: tuple[Mount, ...] = ()
    container: Manifest = field(default_factory=dict)
    """More of the container: ports, probes."""
    subdomain: str | None = None


def pod_template(ctx: ChildContext, pod: Pod) -> Manifest:
    """The template of a Job's or a Deployment's pods."""
    metadata: Manifest = {"labels": ctx.labels(pod.component, pod.part, pod.attempt)}
    annotations = ctx.pod_settings(pod.component).annotations
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"metadata": metadata, "spec": _pod_spec(ctx, pod)}


def _pod_spec(ctx: ChildContext, pod: Pod) -> Manifest:
    mounts = (*_common_mounts(ctx, pod.component), *pod.mounts)
    spec: Manifest = {
        "restartPolicy": "Always" if pod.restarts else "Never",
        "terminationGracePeriodSeconds": pod.grace_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called vllm would set VLLM_PORT
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # a cache of terabytes is not walked at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(ctx, pod, mounts)],
        "volumes": [mount.volume() for mount in mounts],
        **_placement(ctx, pod.component),
    }
    if pod.subdomain is not None:
        spec["subdomain"] = pod.subdomain
    return spec


def _container(ctx: ChildContext, pod: Pod, mounts: tuple[Mount, ...]) -> Manifest:
    return {
        "name": CONTAINER,
        "image": pod.image,
        "imagePullPolicy": ctx.settings.image_pull_policy,
        "command": ["kd"],
        "args": list(pod.arguments),
        "env": [{"name": name, **value} for name, value in pod.environment.items()],
        "resources": {"requests": pod.resources.requests, "limits": pod.resources.limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [mount.mount() for mount in mounts],
        "terminationMessagePath": RESULT_PATH,
        # A stage's message is its result file or nothing; a teacher writes none, and its last words say why it died.
        "terminationMessagePolicy": "FallbackToLogsOnError" if pod.restarts else "File",
        **pod.container,
    }


def _common_mounts(ctx: ChildContext, component: Component) -> tuple[Mount, ...]:
    settings = ctx.pod_settings(component)
    mounts = [Mount("scratch", SCRATCH_PATH, _scratch(ctx, component))]
    if component in _SHARED_MEMORY:
        # Without a size it is as large as the memory limit, towards which it counts.
        mounts.append(Mount("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}))
    if settings.cache is not None:
        claim = {"persistentVolumeClaim": {"claimName": settings.cache.claim_name}}
        mounts.append(Mount("cache", CACHE_PATH, claim, sub_path=settings.cache.sub_path))
    bundle = ctx.runtime.spec.ca_bundle_config_map
    if bundle is not None:
        items = [{"key": bundle.key, "path": bundle.key}]
        mounts.append(Mount("ca", CA_PATH, {"configMap": {"name": bundle.name, "items": items}}, read_only=True))
    return tuple(mounts)


def _scratch(ctx: ChildContext, component: Component) -> Manifest:
    """The node's own disk, or a volume of a storage class that ends with the pod."""
    scratch = ctx.pod_settings(component).scratch
    if scratch.storage_class_name is None:
        return {"emptyDir": {"sizeLimit": scratch.size} if scratch.size is not None else {}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": scratch.storage_class_name,
        "resources": {"requests": {"storage": scratch_size(scratch)}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": ctx.labels()}, "spec": claim}}}


def _placement(ctx: ChildContext, component: Component) -> Manifest:
    """Where the pod may run, as whom, and which Secrets pull its image. The runtime's node labels go before the job's."""
    settings, scheduling, runtime = ctx.pod_settings(component), ctx.job.spec.scheduling, ctx.runtime.spec
    tolerations = dict.fromkeys(_dumped(t) for t in (*settings.tolerations, *scheduling.tolerations))
    chosen: Manifest = {
        "serviceAccountName": ctx.job.spec.artifacts.service_account_name,
        "imagePullSecrets": [{"name": secret.name} for secret in runtime.image_pull_secrets],
        "runtimeClassName": settings.runtime_class_name,
        "priorityClassName": ctx.priority_class,
        "nodeSelector": {**scheduling.node_selector, **settings.node_selector},
        "tolerations": [dict(toleration) for toleration in tolerations],
        "affinity": _plain(settings.affinity) if settings.affinity is not None else None,
    }
    return {name: value for name, value in chosen.items() if value}


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _dumped(model: BaseModel) -> tuple[tuple[str, Any], ...]:
    return tuple(_plain(model).items())
