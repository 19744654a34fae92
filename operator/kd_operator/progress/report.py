"""What a pod posts, checked at the door: the fields of ``kd_runtime.telemetry.progress.Progress``, each within bounds.

All but its message, which is for a terminal: no status has use for it, so it is not kept.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST = 2**53 - 1
"""Of any count: beyond it JSON readers disagree."""

Amount = Annotated[int, Field(ge=0, le=MOST)]


class Report(BaseModel):
    """One post. What a newer runtime adds is passed over; NaN and infinity are refused, for no status may hold them."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    stage: Annotated[str, Field(min_length=1, max_length=16)]
    index: Annotated[int, Field(ge=0, le=MOST)] = 0
    """What the pod says; its label decides."""
    completed: Amount
    total: Amount
    unit: Annotated[str, Field(max_length=64)]
    tokens: Amount = 0
    tokens_per_second: Annotated[float, Field(ge=0, le=1e12)] = 0.0
    loss: Annotated[float, Field(ge=-1e12, le=1e12)] | None = None
    checkpoint: Annotated[str, Field(max_length=256, pattern=r"^(work/[0-9A-Za-z._/-]+/step-[0-9]{1,12}/)?$")] = ""
    """Where the newest one lies in the job's store."""
