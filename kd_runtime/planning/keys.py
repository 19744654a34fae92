"""Keys: the digest of what makes an artifact (contract 1), and of what a teacher is asked (contract 4)."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from kd_runtime.api.failures import SettingsError
from kd_runtime.planning.plan import StageType

SEMANTICS: dict[StageType, int] = {
    StageType.Ingest: 2,
    StageType.Prepare: 1,
    StageType.Generate: 3,
    StageType.Capture: 1,
    StageType.Train: 2,
    StageType.Evaluate: 2,
    StageType.Publish: 1,
}
"""Raised by hand when a stage's output changes for equal settings."""
ASKING_SEMANTICS: dict[StageType, int] = {StageType.Generate: 1, StageType.Capture: 1}
"""Raised by hand when a teacher is asked otherwise for equal settings, or answers are kept otherwise: all is asked anew then."""


def digest(value: dict[str, Any]) -> str:
    """sha256 hex of RFC 8785 JSON; NaN and integers beyond 2^53 are refused.

    Raises:
        SettingsError: the value holds such a number.
    """
    try:
        return hashlib.sha256(rfc8785.dumps(_numbers(value))).hexdigest()
    except (rfc8785.CanonicalizationError, ValueError) as error:
        raise SettingsError(f"a setting cannot be part of a key ({error}); use finite numbers below 2^53") from error


def _numbers(value: Any) -> Any:
    """1.0 and 1 are one number: whole floats become integers, so that an API server's rewriting changes no key."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(v) for v in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def stage_key(
    kind: StageType,
    keyed: dict[str, Any],
    inputs: dict[str, str],
    externals: dict[str, str],
    uncached: str | None = None,
) -> str:
    """The key of a stage: type, semantics version, class (a) settings, keys of inputs, digests of externals.

    ``uncached`` is the job's uid (locally the run's id) where the stage says ``cache: Never``.
    """
    parts: dict[str, Any] = {
        "type": kind.value,
        "semantics": SEMANTICS[kind],
        "settings": keyed,
        "inputs": inputs,
        "externals": externals,
    }
    if uncached is not None:
        parts["uncached"] = uncached
    return digest(parts)


def asking_key(kind: StageType, teacher: dict[str, Any], asked: dict[str, Any], uncached: str | None = None) -> str:
    """The key under which units lie: what the teacher is and is asked, but neither the dataset nor how many samples."""
    parts: dict[str, Any] = {
        "type": kind.value,
        "semantics": ASKING_SEMANTICS[kind],
        "teacher": teacher,
        "asked": asked,
    }
    if uncached is not None:
        parts["uncached"] = uncached
    return digest(parts)
