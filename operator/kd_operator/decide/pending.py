"""Why pods of an attempt do not start: what their containers and the scheduler say (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from kd_operator.observed import MainChild, PodSeen
from kd_operator.status.conditions import Said
from kd_runtime.api.reasons import Reason

NO_POD_SECONDS = 30.0
"""A child that lacks a pod for so long is being refused it."""
REPLACED_SECONDS = 600.0
"""A Job's controller waits so long at most before it starts a pod that failed anew."""
NOT_STARTED_SECONDS = 300.0
"""A pod that has a node for so long without beginning is told of."""
NOT_PULLED = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
MISCONFIGURED = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def pending_trouble(pods: Sequence[PodSeen], child: MainChild, now: datetime) -> Said | None:
    """The first thing that keeps the attempt from starting; None where it just takes its time."""
    refused = _refused(pods, child, now)
    if refused is not None:
        return refused
    for pod in pods:
        if not pod.alive:
            continue
        if pod.waiting in NOT_PULLED:
            return Said(Reason.ImageNotPulled, f"pod {pod.name}: {pod.waiting}: {pod.waiting_message}")
        if pod.waiting in MISCONFIGURED:
            return Said(Reason.PodMisconfigured, f"pod {pod.name}: {pod.waiting}: {pod.waiting_message}")
        if pod.unschedulable:
            return Said(Reason.Unschedulable, f"pod {pod.name}: {pod.unschedulable}")
    return next((_not_started(pod) for pod in pods if _hangs(pod, now)), None)


def _hangs(pod: PodSeen, now: datetime) -> bool:
    """Whether a pod has had its node for longer than most need to begin."""
    begins = pod.phase == "Pending" and pod.deleted_at is None and pod.node is not None and pod.started is None
    return begins and pod.scheduled is not None and (now - pod.scheduled).total_seconds() > NOT_STARTED_SECONDS


def _not_started(pod: PodSeen) -> Said:
    why = ": ".join(word for word in (pod.waiting, pod.waiting_message) if word)
    return Said(
        Reason.PodNotStarting,
        f"pod {pod.name} has been on node {pod.node} for {NOT_STARTED_SECONDS / 60:.0f} minutes and has not begun"
        f"{f' ({why})' if why else ''}: a volume may not mount, or its image be large (kubectl describe pod {pod.name})",
    )


def _refused(pods: Sequence[PodSeen], child: MainChild, now: datetime) -> Said | None:
    """Said of a child that has fewer pods than it was to have, and of which nothing has changed for a while."""
    since = max(child.created, child.counted or child.created)
    if (now - since).total_seconds() <= NO_POD_SECONDS:
        return None
    number, wanted = (
        (_places(pods, child, now), child.completions) if child.kind == "Job" else (len(pods), child.desired)
    )
    if number >= wanted:
        return None
    has, whom = (f"{number} of its {wanted} pods", "the others") if number else ("no pod yet", "it")
    return Said(
        Reason.PodRefused,
        f"{child.kind} {child.name} has {has}: a quota or an admission rule may refuse {whom} "
        f"(kubectl describe {child.kind.lower()} {child.name})",
    )


def _places(pods: Sequence[PodSeen], child: MainChild, now: datetime) -> int:
    """Of how many of its indices a Job has a pod, or had one that ended well."""
    done = {pod.index for pod in pods if pod.phase == "Succeeded"}
    others = {pod.index for pod in pods if pod.phase != "Succeeded" and _there(pod, now)} - done
    return len(others) + max(len(done), child.succeeded)


def _there(pod: PodSeen, now: datetime) -> bool:
    """Whether a pod stands for its place: not where it failed so long ago that another should have come."""
    if pod.phase != "Failed" or pod.deleted_at is not None or pod.ending is None or pod.ending.finished is None:
        return True
    return (now - pod.ending.finished).total_seconds() <= REPLACED_SECONDS
