"""Whose pods are whose: labels alone make no pod the job's, since people copy them to pods of their own (pure)."""

from __future__ import annotations

from dataclasses import replace

from kd_operator.children.context import Component
from kd_operator.decide.draft import Draft
from kd_operator.decision import Delete
from kd_operator.names import child_name
from kd_operator.observed import Observed, PodSeen
from kd_operator.status.conditions import Said
from kd_runtime.api.labels import UID_LABEL
from kd_runtime.api.reasons import Reason

SURE_LENGTH = 50
"""So much of its owner's name a pod's name surely begins with: Kubernetes shortens long ones."""


def own_pods(observed: Observed) -> tuple[Observed, tuple[PodSeen, ...]]:
    """What is seen, with the job's own pods alone; and the others that bear its labels."""
    made = {child.uid for child in observed.children if child.owner_uid == observed.job.uid}
    foreign = {child.uid for child in observed.children} - made
    judged = [(pod, pod.owner_uid in made or _made_by_us(observed, foreign, pod)) for pod in observed.pods]
    own, others = (tuple(pod for pod, ours in judged if ours is wanted) for wanted in (True, False))
    return replace(observed, pods=own), others


def _made_by_us(observed: Observed, foreign: set[str], pod: PodSeen) -> bool:
    """Whether a pod's controller was a child of the job that is gone, or was cut off from it (``--cascade=orphan``)."""
    child = child_name(observed.job.name, pod.stage, observed.job.uid, pod.attempt)
    if pod.owner_uid is None:
        return pod.name.startswith(f"{child}-"[:SURE_LENGTH])
    of_replicas = pod.component == Component.Teacher and pod.owner_name.startswith(f"{child}-")
    return pod.owner_uid not in foreign and (pod.owner_name == child or of_replicas)


def end_orphans(d: Draft) -> None:
    """Delete pods of the job that nothing controls any more: they hold GPUs, and nobody else ends them."""
    orphans = (pod for pod in d.seen.pods if pod.owner_uid is None and pod.alive and pod.deleted_at is None)
    d.delete.extend(Delete("Pod", pod.name, pod.uid) for pod in orphans)


def tell_strangers(d: Draft, strangers: tuple[PodSeen, ...]) -> None:
    """The job's trouble, where nothing is worse: a pod of nobody that says that it is the job's."""
    found = next((pod for pod in strangers if pod.owner_uid is None and pod.alive), None)
    if found is not None and d.facts.trouble is None:
        message = (
            f"pod {found.name} has the labels of this job's pods, but the job did not make it: it is not counted; "
        )
        d.facts.trouble = Said(Reason.PodForeign, f"{message}remove its label {UID_LABEL}, or delete it")
