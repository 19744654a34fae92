"""The Services of teachers and training gangs."""

from __future__ import annotations

from kd_operator.children.context import ChildContext, Component, Manifest


def service(ctx: ChildContext, component: Component, part: str, attempt: int, more: Manifest) -> Manifest:
    """A Service of exactly the pods of one attempt of ``part``; ``more`` is the rest of its spec."""
    labels = ctx.labels(component, part, attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": ctx.metadata(ctx.child_name(part, attempt), labels),
        "spec": {"selector": labels, **more},
    }
