"""What the operator is told by its command line: where it runs, what it watches, which image plans."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The operator's own settings; the chart's values become its flags."""

    namespace: str
    """Its own namespace: of its Lease."""
    identity: str
    """Its pod's name: holder of the Lease."""
    plan_image: str
    """Image of plan pods where the runtime names none: the operator's own."""
    runtime_image: str
    """Image of every other pod where the runtime names none."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all."""
    progress_url: str | None = None
    """Where pods post progress, such as http://kubedistill-operator.kubedistill.svc:8080; None: nowhere."""
    port: int = 8080
    """Of progress, metrics and probes."""
    image_pull_policy: str = "IfNotPresent"
    workers: int = 16
    """Jobs that are worked on at the same time."""
    lease_name: str = "kubedistill-operator"
    operator_labels: tuple[tuple[str, str], ...] = (("app.kubernetes.io/name", "kubedistill"),)
    """Labels of the operator's pods: jobs' pods may connect to them (NetworkPolicy)."""
