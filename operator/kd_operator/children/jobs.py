"""The batch Job that runs a plan or a stage."""

from __future__ import annotations

from kd_operator.children.context import ChildContext, Manifest
from kd_operator.children.pods import Pod, pod_template


def batch_job(ctx: ChildContext, pod: Pod, *, completions: int = 1, more: Manifest | None = None) -> Manifest:
    """An Indexed Job of ``completions`` pods that run side by side.

    It is never tried again by itself (backoffLimit 0), unless ``more`` of the Job's spec says so: each attempt is claimed
    by the operator first. A pod is replaced only once the last one is gone for sure.
    """
    more = more or {}
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": completions,
        "parallelism": completions,
        "podReplacementPolicy": "Failed",
        **({} if "backoffLimitPerIndex" in more else {"backoffLimit": 0}),
        **more,
        "template": pod_template(ctx, pod),
    }
    labels = ctx.labels(pod.component, pod.part, pod.attempt)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": ctx.metadata(ctx.child_name(pod.part, pod.attempt), labels),
        "spec": spec,
    }
