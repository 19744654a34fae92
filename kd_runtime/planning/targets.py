"""Where models are published: the pointer of a target, and what looking at a target says of one model (contract 10)."""

from __future__ import annotations

import json
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.store import Missing, Store
from kd_runtime.planning.sources import POINTER

MARKER = "published.json"
"""Lies in a model's folder once a target's pointer has named it: how a target that has moved on is told from a new one."""


class Pointer(BaseModel):
    """``<target>/kd.json``: which folder of the target is current, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = 1
    path: str
    """The current model's folder below the target: its digest."""
    manifest: dict[str, str]
    """``key`` and ``contentDigest`` of the model's artifact."""
    job: str = ""

    def encoded(self) -> bytes:
        """The pointer's bytes; equal for equal models."""
        return (json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n").encode()


class TargetState(StrEnum):
    """What looking at one target says of one model."""

    Found = "Found"
    """Its pointer names the model."""
    Superseded = "Superseded"
    """It named this model before, and names another now."""
    ToDo = "ToDo"


def read_pointer(store: Store, prefix: str = "") -> Pointer | None:
    """The pointer below ``prefix`` of ``store``; None where there is none.

    Raises:
        StorageError: there is one, and it is garbled.
    """
    name = f"{prefix.rstrip('/')}/{POINTER}" if prefix else POINTER
    try:
        return Pointer.model_validate_json(store.get(name))
    except Missing:
        return None
    except ValidationError as error:
        raise StorageError(
            f"{store.uri}{name}: is no pointer of a published model ({error.error_count()} errors); publish again"
        ) from error


def target_state(store: Store, digest: str) -> TargetState:
    """What a target (its own store) says of the model with ``digest``."""
    pointer = read_pointer(store)
    if pointer is not None and pointer.path.strip("/") == digest:
        return TargetState.Found
    return TargetState.Superseded if store.exists(f"{digest}/{MARKER}") else TargetState.ToDo
