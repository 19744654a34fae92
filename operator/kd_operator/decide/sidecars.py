"""Pods whose work is over and which a sidecar keeps: their Job never ends by itself, so they are taken for ended (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from kd_operator.decide.draft import Draft
from kd_operator.observed import MainChild, PodSeen
from kd_operator.status.conditions import Said
from kd_runtime.api.reasons import Reason

KEPT_SECONDS = 60.0
"""So long a sidecar may take to notice that it is alone."""


def kept(d: Draft, pods: Sequence[PodSeen]) -> list[PodSeen]:
    """Pods that a sidecar has kept for longer than it may; others are looked at again then."""
    found = []
    for pod in pods:
        if not pod.kept_by or pod.deleted_at is not None or pod.ending is None or pod.ending.finished is None:
            continue
        until = pod.ending.finished + timedelta(seconds=KEPT_SECONDS)
        if until > d.now:
            d.look_at(until)
        else:
            found.append(pod)
    return found


def all_done(child: MainChild, pods: Sequence[PodSeen], held: Sequence[PodSeen]) -> bool:
    """Whether every pod that a Job was to have has done its work, though a sidecar keeps some of them."""
    over = (pod for pod in pods if pod.ending is not None and (pod in held or pod.phase == "Succeeded"))
    return len({pod.index for pod in over if pod.ending and pod.ending.exit_code == 0}) >= child.completions


def said_of(held: Sequence[PodSeen]) -> Said:
    """What is told of them."""
    pod = held[0]
    return Said(
        Reason.PodKept,
        f"container {pod.kept_by} keeps pod {pod.name}, whose own container has ended; "
        "turn its injection off for the pods of jobs (annotations of the runtime's spec.pod)",
    )
