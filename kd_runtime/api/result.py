"""The result file: how a process says how it ended (contract 6)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kd_runtime.api.failures import ExitClass

LIMIT_BYTES = 4096
MESSAGE_BYTES = 400


class GateOutcome(BaseModel):
    """One gate: its metric's value, the bound that is compared, and whether it passed."""

    model_config = ConfigDict(frozen=True)

    metric: str
    of: str
    value: float
    bound: float
    passed: bool


class StageResult(BaseModel):
    """One JSON object of at most 4,096 bytes, written to ``$KD_RESULT_FILE`` just before a process ends."""

    model_config = ConfigDict(frozen=True)

    exit_class: ExitClass
    message: str = ""
    manifest_sha256: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    gates: tuple[GateOutcome, ...] = ()

    def encoded(self) -> bytes:
        """The bytes of the file: the message cut to 400 bytes; metrics, then counts, left out if all would exceed 4,096."""
        message = self.message.encode()[:MESSAGE_BYTES].decode(errors="ignore")
        result = self.model_copy(update={"message": message})
        drops: tuple[dict[str, object], ...] = (
            {},
            {"metrics": {}},
            {"metrics": {}, "counts": {}},
            {"metrics": {}, "counts": {}, "gates": ()},
        )
        for drop in drops:
            body = json.dumps(result.model_copy(update=drop).model_dump(mode="json"), separators=(",", ":")).encode()
            if len(body) <= LIMIT_BYTES:
                return body
        raise ValueError(f"a result of {len(body)} bytes exceeds {LIMIT_BYTES}")

    def write(self, path: str | None = None) -> None:
        """Write to ``path``, default ``$KD_RESULT_FILE``; nothing happens where neither is given."""
        target = path or os.environ.get("KD_RESULT_FILE")
        if target:
            Path(target).write_bytes(self.encoded())

    @classmethod
    def read(cls, path: Path) -> StageResult | None:
        """The result at ``path``, or None where it is absent or cut off (a lost result costs nothing)."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None
