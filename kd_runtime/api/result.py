"""The result file: how a process says how it ended (contract 6)."""

from __future__ import annotations

import base64
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
    value: float | None
    """None where there is no gap to recover: the baseline is at the teacher or beyond."""
    bound: float | None
    """None where that may be so, at the gate's confidence."""
    passed: bool

    def measured(self, bound: str = "bound") -> str:
        """``is 0.43, its bound 0.39``, or why there is no such number."""
        if self.value is None:
            return "has no gap to recover: the untrained model is at the teacher's value or beyond it"
        if self.bound is None:
            return (
                f"is {self.value:.4g}, without a {bound}: there may be no gap to recover, so close is the untrained model "
                "to the teacher; hold more prompts out"
            )
        return f"is {self.value:.4g}, its {bound} {self.bound:.4g}"


class StageResult(BaseModel):
    """One JSON object of at most 4,096 bytes, written to ``$KD_RESULT_FILE`` just before a process ends."""

    model_config = ConfigDict(frozen=True)

    exit_class: ExitClass
    message: str = ""
    manifest_sha256: str | None = None
    position: str = ""
    """Where it failed, for those who look for what fails at the same place again: `step 12`, `unit 3`."""
    counts: dict[str, int] = Field(default_factory=dict)
    written: int = 0
    """Bytes of the artifact that it made, and of what it published."""
    metrics: dict[str, float] = Field(default_factory=dict)
    gates: tuple[GateOutcome, ...] = ()

    def encoded(self) -> bytes:
        """The bytes of the file: the message cut to 400 bytes; metrics, then counts, left out if all would exceed 4,096."""
        result = self.model_copy(update={"message": _cut(self.message, MESSAGE_BYTES)})
        drops: tuple[dict[str, object], ...] = (
            {},
            {"metrics": {}},
            {"metrics": {}, "counts": {}},
            {"metrics": {}, "counts": {}, "gates": ()},
        )
        for drop in drops:
            body = _compact(result.model_copy(update=drop))
            if len(body) <= LIMIT_BYTES:
                return body
        raise ValueError(f"a result of {len(body)} bytes exceeds {LIMIT_BYTES}")

    def write(self, path: str | None = None) -> None:
        """Write to ``path``, default ``$KD_RESULT_FILE``; nothing happens where neither is given."""
        _write(self.encoded(), path)

    @classmethod
    def read(cls, path: Path) -> StageResult | None:
        """The result at ``path``, or None where it is absent or cut off (a lost result costs nothing)."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None

    @classmethod
    def parse(cls, text: str) -> StageResult | None:
        """The result in a termination message, or None where it is absent or cut off."""
        try:
            return cls.model_validate_json(text)
        except ValueError:
            return None


class PlannedState(BaseModel):
    """One stage as the plan pod found it."""

    model_config = ConfigDict(frozen=True)

    name: str
    key: str
    """64 hex digits."""
    state: str
    """Found, ToDo, Stale or NotNeeded."""
    manifest: str | None = None
    """sha256 hex of the manifest, where it is found."""


class PlanResult(BaseModel):
    """What the plan pod says (contract 12): at most 4,096 bytes, digests in base64url."""

    model_config = ConfigDict(frozen=True)

    exit_class: ExitClass
    message: str = ""
    digest: str | None = None
    """64 hex digits."""
    estimate: str = ""
    stages: tuple[PlannedState, ...] = ()
    unmet: dict[str, str] = Field(default_factory=dict)
    """Evaluate stage that is found -> its gates that are not reached, in one sentence."""

    def encoded(self) -> bytes:
        """The bytes of the file; sentences about gates are cut to what fits."""
        result = self.model_copy(
            update={"message": _cut(self.message, MESSAGE_BYTES), "estimate": _cut(self.estimate, MESSAGE_BYTES)}
        )
        for length in (400, 80, 20):
            unmet = {name: _cut(sentence, length) for name, sentence in self.unmet.items()}
            body = _compact(_Written.of(result.model_copy(update={"unmet": unmet})))
            if len(body) <= LIMIT_BYTES:
                return body
        raise ValueError(f"a result of {len(body)} bytes exceeds {LIMIT_BYTES}")

    def write(self, path: str | None = None) -> None:
        """Write to ``path``, default ``$KD_RESULT_FILE``; nothing happens where neither is given."""
        _write(self.encoded(), path)

    @classmethod
    def parse(cls, text: str) -> PlanResult | None:
        """The result in a termination message, or None where it is absent or cut off."""
        try:
            return _Written.model_validate_json(text).result()
        except ValueError:
            return None


class _Written(BaseModel):
    """A PlanResult as it is written: one short list a stage."""

    exit_class: ExitClass
    message: str
    digest: str | None
    estimate: str
    stages: list[tuple[str, str, str, str]]
    unmet: dict[str, str]

    @classmethod
    def of(cls, result: PlanResult) -> _Written:
        stages = [(s.name, _short(s.key), s.state, _short(s.manifest) if s.manifest else "") for s in result.stages]
        digest = _short(result.digest) if result.digest else None
        return cls(**{**dict(result), "digest": digest, "stages": stages})

    def result(self) -> PlanResult:
        stages = tuple(
            PlannedState(name=name, key=_long(key), state=state, manifest=_long(manifest) if manifest else None)
            for name, key, state, manifest in self.stages
        )
        digest = _long(self.digest) if self.digest else None
        return PlanResult(**{**dict(self), "digest": digest, "stages": stages})


def _short(digest: str) -> str:
    """64 hex digits as 43 characters of base64url."""
    return base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode()


def _long(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=").hex()


def _cut(text: str, limit: int) -> str:
    """At most ``limit`` bytes of UTF-8."""
    return text.encode()[:limit].decode(errors="ignore")


def _compact(model: BaseModel) -> bytes:
    return json.dumps(model.model_dump(mode="json"), separators=(",", ":")).encode()


def _write(body: bytes, path: str | None) -> None:
    target = path or os.environ.get("KD_RESULT_FILE")
    if target:
        Path(target).write_bytes(body)
