"""From an object as the API server tells it to what is seen of it (pure)."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from kd_operator.names import CONTAINER, not_reconciled
from kd_operator.observed import Ending, MainChild, PeerSeen, PodSeen
from kd_runtime.api.labels import ATTEMPT_LABEL, COMPONENT_LABEL, STAGE_LABEL

Object = dict[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
GPU_PRODUCT = "nvidia.com/gpu.product"
"""The label by which nodes say which GPUs they have."""
CLAIMED = frozenset({"Queued", "Starting", "Running", "Draining", "Backoff"})
BEGUN = frozenset({"Starting", "Running", "Draining"})
ENDED = ("Complete", "Failed")
MOST_DIGITS = 10
"""Of a number that is read: longer ones are nobody's."""


def time_of(text: str | None) -> datetime | None:
    """A timestamp of the API server."""
    return datetime.fromisoformat(text) if text else None


def controller(raw: Object) -> Object:
    """The reference to the object's controlling owner; empty where it has none."""
    owners = raw["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def controller_uid(raw: Object) -> str | None:
    """Uid of the object's controlling owner."""
    uid: str | None = controller(raw).get("uid")
    return uid


def conditions(raw: Object) -> dict[str, Object]:
    """The conditions of an object, by type."""
    return {condition["type"]: condition for condition in raw.get("status", {}).get("conditions") or ()}


def holds(found: dict[str, Object], *types: str) -> Object | None:
    """The first condition of ``types`` that is True."""
    return next((found[name] for name in types if name in found and found[name]["status"] == "True"), None)


def main_child(raw: Object, kind: str) -> MainChild:
    """A batch Job (``kind`` Job) or a Deployment."""
    metadata, status, found = raw["metadata"], raw.get("status", {}), conditions(raw)
    labels = metadata.get("labels", {})
    of_job = kind == "Job"
    failed = holds(found, "Failed", "FailureTarget") if of_job else None
    created = time_of(metadata["creationTimestamp"])
    assert created is not None
    return MainChild(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=controller_uid(raw),
        component=labels.get(COMPONENT_LABEL, ""),
        stage=labels.get(STAGE_LABEL, ""),
        attempt=_attempt(labels),
        created=created,
        deleting="deletionTimestamp" in metadata,
        complete=of_job and holds(found, "Complete", "SuccessCriteriaMet") is not None,
        failed=failed is not None,
        failed_reason=failed.get("reason", "") if failed else "",
        failed_message=failed.get("message", "") if failed else "",
        completions=raw["spec"].get("completions", 1) if of_job else 0,
        succeeded=status.get("succeeded", 0) if of_job else 0,
        counted=_status_time(metadata),
        ready=status.get("readyReplicas", 0),
        desired=0 if of_job else raw["spec"].get("replicas", 1),
    )


def _status_time(metadata: Object) -> datetime | None:
    """When somebody last wrote the object's status."""
    writes = (field for field in metadata.get("managedFields") or () if field.get("subresource") == "status")
    times = (time_of(field.get("time")) for field in writes)
    return max((time for time in times if time is not None), default=None)


def pod_seen(
    raw: Object,
    gpu_resource: str = "nvidia.com/gpu",
    *,
    node_ready: bool = True,
    node_since: datetime | None = None,
    gpu_product: str = "",
) -> PodSeen:
    """A pod; its own container is the one that counts, and an init container where that keeps it from beginning."""
    metadata, spec, status, found = raw["metadata"], raw["spec"], raw.get("status", {}), conditions(raw)
    labels = metadata.get("labels", {})
    name = _own_container(spec)
    main = _container(status.get("containerStatuses"), name)
    state = main.get("state", {})
    waiting = state.get("waiting") or {}
    ending = _ending(state.get("terminated"))
    if not (state.get("running") or ending):
        waiting, ending = _init(spec, status, waiting)
    scheduled = found.get("PodScheduled", {})
    gpus, disruption = _gpus(spec, gpu_resource), holds(found, "DisruptionTarget")
    return PodSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=controller_uid(raw),
        component=labels.get(COMPONENT_LABEL, ""),
        stage=labels.get(STAGE_LABEL, ""),
        attempt=_attempt(labels),
        phase=status.get("phase", "Pending"),
        index=_number({**metadata.get("annotations", {}), **labels}.get(INDEX, "0")),
        node=spec.get("nodeName"),
        node_ready=node_ready,
        node_since=node_since,
        scheduled=time_of(scheduled.get("lastTransitionTime") or metadata.get("creationTimestamp")),
        gpus=gpus,
        gpu_flavor=(gpu_product or (spec.get("nodeSelector") or {}).get(GPU_PRODUCT, gpu_resource)) if gpus else "",
        started=_started(main),
        ready=holds(found, "Ready") is not None,
        restarts=main.get("restartCount", 0),
        ending=ending,
        last_ending=_ending(main.get("lastState", {}).get("terminated")),
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        unschedulable=scheduled.get("message", "") if _unschedulable(scheduled) else "",
        deleted_at=time_of(metadata.get("deletionTimestamp")),
        disrupted=disruption is not None,
        disruption=disruption.get("reason", "") if disruption else "",
        pod_reason=status.get("reason", ""),
        pod_message=status.get("message", ""),
        owner_name=controller(raw).get("name", ""),
        kept_by=_kept_by(status, name) if ending is not None else "",
    )


def is_silenced(raw: Object) -> bool:
    """Whether a pod is not ready though its containers were when their node last spoke: so it is marked where a node falls silent."""
    statuses = raw.get("status", {}).get("containerStatuses") or ()
    ready = conditions(raw).get("Ready", {})
    return ready.get("status") == "False" and bool(statuses) and all(status.get("ready") for status in statuses)


def node_is_ready(raw: Object | None) -> bool:
    """Whether a node (None: it is gone) still speaks to the API server."""
    return raw is not None and holds(conditions(raw), "Ready") is not None


def node_since(raw: Object) -> datetime | None:
    """Since when a node is as its condition Ready says, or else there."""
    ready = conditions(raw).get("Ready", {})
    return time_of(ready.get("lastTransitionTime") or raw["metadata"].get("creationTimestamp"))


def peer_seen(raw: Object, alive: Collection[str] | None = None) -> PeerSeen | None:
    """Another job; None where it has ended, is suspended or being deleted, and so claims nothing.

    ``alive``: the stages of which something is at work, where no other claims anything.
    """
    metadata, found = raw["metadata"], conditions(raw)
    if "deletionTimestamp" in metadata or raw.get("spec", {}).get("suspend") or holds(found, *ENDED):
        return None
    created = time_of(metadata["creationTimestamp"])
    assert created is not None
    stages = [
        stage
        for stage in raw.get("status", {}).get("stages") or ()
        if stage.get("state") in CLAIMED and stage.get("key") and (alive is None or stage["name"] in alive)
    ]
    return PeerSeen(
        metadata["name"],
        metadata["uid"],
        created,
        claimed=frozenset(stage["key"] for stage in stages),
        begun=frozenset(stage["key"] for stage in stages if stage["state"] in BEGUN and stage.get("childUID")),
        disabled=not_reconciled(metadata.get("annotations", {})),
    )


def stages_alive(jobs: list[Object], pods: list[Object]) -> set[str]:
    """Stages of which a batch Job is not over, or a pod not gone."""
    children = (main_child(job, "Job") for job in jobs)
    at_work = {child.stage for child in children if not (child.complete or child.failed)}
    return at_work | {pod.stage for pod in map(pod_seen, pods) if pod.alive and pod.component != "teacher"}


def _attempt(labels: dict[str, str]) -> int:
    return _number(labels.get(ATTEMPT_LABEL, ""))


def _number(text: str) -> int:
    """What people can write is a number, or 0."""
    return int(text) if text.isdecimal() and len(text) < MOST_DIGITS else 0


def _own_container(spec: Object) -> str:
    """Its name: the one that children give it, wherever somebody else's are put; else the first."""
    names = [str(container["name"]) for container in spec["containers"]]
    return CONTAINER if CONTAINER in names else names[0]


def _init(spec: Object, status: Object, waiting: Object) -> tuple[Object, Ending | None]:
    """What a pod whose own container has not begun waits for, and how an init container ended for good.

    A native sidecar (``restartPolicy`` Always) ends and begins again beside the rest: no ending of it is the pod's.
    """
    inits = spec.get("initContainers") or ()
    sidecars = {container["name"] for container in inits if container.get("restartPolicy") == "Always"}
    ending: Ending | None = None
    for container in status.get("initContainerStatuses") or ():
        state = container.get("state", {})
        hanging, ended = state.get("waiting") or {}, state.get("terminated")
        if hanging.get("reason") not in (None, "PodInitializing"):
            waiting = hanging
        if container["name"] in sidecars or ending is not None:
            continue
        if hanging.get("reason") == "CrashLoopBackOff":
            ended = container.get("lastState", {}).get("terminated")
        elif status.get("phase") != "Failed":
            continue
        if ended and ended.get("exitCode"):
            ending = _ending(ended)
    return waiting, ending


def _kept_by(status: Object, own: str) -> str:
    """A container that still runs in a pod whose own has ended; native sidecars are no such: they are ended by the node."""
    if status.get("phase") != "Running":
        return ""
    others = (other for other in status.get("containerStatuses") or () if other["name"] != own)
    return next((str(other["name"]) for other in others if other.get("state", {}).get("running")), "")


def _container(statuses: list[Object] | None, name: str) -> Object:
    return next((status for status in statuses or () if status["name"] == name), {})


def _ending(terminated: Object | None) -> Ending | None:
    if not terminated:
        return None
    return Ending(
        exit_code=terminated["exitCode"],
        signal=terminated.get("signal"),
        reason=terminated.get("reason", ""),
        message=terminated.get("message", ""),
        finished=time_of(terminated.get("finishedAt")),
        started=time_of(terminated.get("startedAt")),
    )


def _started(main: Object) -> datetime | None:
    state = main.get("state", {})
    begun = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return time_of(begun)


def _unschedulable(scheduled: Object) -> bool:
    return scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"


def _gpus(spec: Object, resource: str) -> int:
    limits = (container.get("resources", {}).get("limits", {}).get(resource, 0) for container in spec["containers"])
    return sum(_number(str(limit)) for limit in limits)
