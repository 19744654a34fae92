"""Names and labels of everything that the operator creates (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from kd_runtime.api.labels import RECONCILE_ANNOTATION
from kd_runtime.api.model import GROUP

PLAN = "plan"
"""What the plan pod goes by where a stage has its name: no stage may be called so."""

CONTAINER = "main"
"""What a pod's own container is called: others, a mesh's proxy above all, may be put beside it or before it."""
TEACHER_PORT = 8000


def not_reconciled(annotations: Mapping[str, str]) -> bool:
    """Whether somebody asked the operator to leave the object of these annotations alone."""
    return annotations.get(RECONCILE_ANNOTATION) == "disabled"


def short(uid: str) -> str:
    """The first five characters of a uid: two jobs of one name, one after the other, never share a child's name."""
    return uid[:5]


def child_name(job: str, part: str, uid: str, attempt: int) -> str:
    """``<job>-<stage>-<uid5>-<attempt>``: of a stage's, the plan's or a teacher's main child, and its Service."""
    return f"{job}-{part}-{short(uid)}-{attempt}"


def config_name(job: str, uid: str) -> str:
    """Of the ConfigMap that holds the job and its runtime as they were at the start."""
    return f"{job}-config-{short(uid)}"


def network_name(job: str, uid: str) -> str:
    """Of the job's NetworkPolicy."""
    return f"{job}-network-{short(uid)}"


def teacher_secret_name(job: str, uid: str) -> str:
    """Of the Secret with the key that the job's teachers want: by the full uid, so that whoever finds it there owns it."""
    return f"{job}-teacher-{uid}"


def audience(uid: str) -> str:
    """The audience of the token with which a job's pods post their progress."""
    return f"{GROUP}/jobs/{uid}"
