"""Children that have no right to be there (any more), and pods that their node cannot end (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from kd_operator.decide.draft import Draft, ended, part_of
from kd_operator.decision import Delete, EventNote
from kd_operator.observed import MainChild, PodSeen
from kd_operator.status.conditions import Said
from kd_operator.status.states import AT_WORK, stamp
from kd_runtime.api.reasons import ConditionType, Reason

STUCK_SECONDS = 60.0
LOST_SECONDS = 360.0
"""Kubernetes itself takes pods from a node that is not ready after five minutes, unless they tolerate it for longer."""
TOLD_SECONDS = 300.0
"""Beyond its grace a pod may take so long to end before that is told."""


def remove_strays(d: Draft) -> None:
    """Children of attempts that nobody claimed, at once; of earlier ones, once they are over and their pods were kept
    long enough; of attempts that are over, where they still run."""
    known = set(d.parts())
    for child in d.own:
        part = part_of(child)
        run = d.run(part)
        unclaimed = part not in known or child.attempt > run.attempt or child.name != d.name_of(part, child.attempt)
        over = child.attempt < run.attempt or run.state not in AT_WORK
        if unclaimed or (over and (not ended(child) or kept_long_enough(d, child))):
            d.remove(child)


def kept_long_enough(d: Draft, child: MainChild) -> bool:
    """True where the pods of an ended child were kept for keepPodsOnFailureSeconds; else it is looked at again then."""
    endings = [pod.ending.finished for pod in d.pods_of(child) if pod.ending]
    over = max((end for end in endings if end is not None), default=child.created)
    until = over + timedelta(seconds=d.job.spec.retention.keep_pods_on_failure_seconds if d.seen.job.spec else 0)
    if until > d.now:
        d.look_at(until)
    return until <= d.now


def end_stuck_pods(d: Draft) -> None:
    """A pod Terminating beyond its grace on a node that is gone is deleted for good: two writers are harmless. One that nobody
    takes from a lost node, as it tolerates everything, is deleted at last."""
    for pod in d.seen.pods:
        if pod.deleted_at is None:
            _leave_lost_node(d, pod)
            continue
        when = pod.deleted_at + timedelta(seconds=STUCK_SECONDS)
        if when > d.now:
            d.look_at(when)
        elif cannot_end(d, pod):
            d.delete.append(Delete("Pod", pod.name, pod.uid, grace_seconds=0))


def cannot_end(d: Draft, pod: PodSeen) -> bool:
    """Whether nobody is there to end a pod that should have ended."""
    late = pod.deleted_at is not None and pod.deleted_at + timedelta(seconds=STUCK_SECONDS) <= d.now
    return late and pod.alive and not pod.node_ready


def _leave_lost_node(d: Draft, pod: PodSeen) -> None:
    if pod.node_ready or pod.node_since is None or not pod.alive:
        return
    when = pod.node_since + timedelta(seconds=LOST_SECONDS)
    if when > d.now:
        d.look_at(when)
    else:
        d.delete.append(Delete("Pod", pod.name, pod.uid))


def silent_node(pods: Sequence[PodSeen]) -> Said | None:
    """A node that is not ready, and what becomes of the pods that are on it; None where there is none."""
    stranded = [pod for pod in pods if pod.alive and not pod.node_ready]
    if not stranded:
        return None
    leaving = [pod for pod in stranded if pod.deleted_at is not None]
    told = [pod for pod in leaving or stranded if pod.node == (leaving or stranded)[0].node]
    first, more = told[0], len(told) - 1
    whose = f"pod {first.name}" + (f" and {more} more" if more else "")
    them, they, are = ("them", "they", "are") if more else ("it", "it", "is")
    since = f" since {stamp(first.node_since)}" if first.node_since else ""
    if first.deleted_at is not None:
        latest = max(pod.deleted_at for pod in told if pod.deleted_at) + timedelta(seconds=STUCK_SECONDS)
        then = (
            f"{whose} must leave it, which is waited for until {they} {'have' if more else 'has'} ended there, "
            f"or until {stamp(latest)} if the node stays away"
        )
    else:
        then = (
            f"{whose} may run on there unseen; if it comes back soon it keeps {them}, else {they} {are} taken from it "
            "(mostly after 5 minutes) and started anew elsewhere, free of charge"
        )
    return Said(Reason.NodeNotReady, f"node {first.node} has not been ready{since}: {then}")


def tell_silent_nodes(d: Draft) -> None:
    """The job's trouble, where nothing is worse: a node of its pods. An event says so once."""
    if d.facts.finished:
        return
    trouble = d.facts.trouble = d.facts.trouble or silent_node(d.seen.pods)
    before = next((c.reason for c in d.seen.job.status.conditions if c.type == ConditionType.Degraded), None)
    given_up = any(cannot_end(d, pod) for pod in d.seen.pods)
    if trouble is not None and trouble.reason == Reason.NodeNotReady and before != trouble.reason and not given_up:
        d.events.append(EventNote("Warning", trouble.reason, trouble.message))


def tell_stuck_pods(d: Draft) -> None:
    """The job's trouble, where nothing is worse: a pod that should have ended minutes ago."""
    for pod in d.seen.pods:
        if pod.deleted_at is None or d.facts.trouble is not None:
            continue
        when = pod.deleted_at + timedelta(seconds=TOLD_SECONDS)
        if when > d.now:
            d.look_at(when)
            continue
        message = (
            f"pod {pod.name} on node {pod.node} should have ended by {stamp(pod.deleted_at)}: its container runtime, "
            f"a volume or a finalizer holds it (kubectl describe pod {pod.name}); "
            f"once nothing of it runs: kubectl delete pod {pod.name} --force"
        )
        d.facts.trouble = Said(Reason.PodNotEnding, message)
