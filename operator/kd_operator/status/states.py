"""The states of a plan, a stage and a teacher, and how moments are written."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum


class State(StrEnum):
    """Of a run: the plan, a stage, a teacher."""

    Waiting = "Waiting"
    """Nothing is claimed: its turn has not come."""
    Queued = "Queued"
    """An attempt is claimed; its main child has not been seen."""
    Starting = "Starting"
    """Its main child is there; no pod has begun."""
    Running = "Running"
    """A pod has begun; of a teacher: it answers."""
    Draining = "Draining"
    """Its children are being deleted, and what they saved is kept: a suspension."""
    Backoff = "Backoff"
    """An attempt has ended; the next is claimed later."""
    Succeeded = "Succeeded"
    Skipped = "Skipped"
    """Its artifact was found, or nobody needs it."""
    Failed = "Failed"


CLAIMED = frozenset({State.Queued, State.Starting, State.Running, State.Draining, State.Backoff})
"""States in which other jobs leave the stage's key to this one."""
AT_WORK = frozenset({State.Queued, State.Starting, State.Running})
"""States in which children of the newest attempt may be there."""
SETTLED = frozenset({State.Succeeded, State.Skipped})
"""States after which the next stage's turn comes."""


def stamp(moment: datetime) -> str:
    """A moment as Kubernetes writes it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment(text: str) -> datetime:
    """A moment as it stands in a status."""
    return datetime.fromisoformat(text)
