"""What a plan is: an ordered list of stages, each with its key, its inputs and its resolved settings."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field

from kd_runtime.api.job import DistillationJobSpec, Stage
from kd_runtime.api.runtime_pods import RuntimeServing


class StageType(StrEnum):
    """The kinds of stage that a plan may hold; `ingest` is the implicit first one, called `dataset`."""

    Ingest = "ingest"
    Prepare = "prepare"
    Synthesize = "synthesize"
    Generate = "generate"
    Capture = "capture"
    Train = "train"
    Compress = "compress"
    Evaluate = "evaluate"
    Publish = "publish"


class ExternalFile(BaseModel):
    """One file of an external: its path below the external's URI, its bytes, and its content's digest."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str


class External(BaseModel):
    """Something outside the store that a stage reads: its address, and the digest of its content."""

    model_config = ConfigDict(frozen=True)

    kind: str
    """model | tokenizer | dataset | template | teacher"""
    uri: str
    revision: str | None = None
    digest: str
    """sha256 hex over what is read; for an external teacher, over its declared settings."""
    size: int = 0
    """Bytes."""
    files: tuple[ExternalFile, ...] = ()
    """The files below `uri` that are read, sorted by path."""
    secret: str | None = None
    """`name/key` of the Secret that holds the hub's token; never its value."""


class PlannedStage(BaseModel):
    """One stage, resolved: everything that `kd stage run` needs to know but the store's place and the teacher's address."""

    model_config = ConfigDict(frozen=True)

    name: str
    type: StageType
    key: str
    """64 hex digits (contract 1)."""
    semantics: int
    keyed: dict[str, Any] = Field(default_factory=dict)
    """Class (a) settings: exactly what went into the key."""
    recorded: dict[str, Any] = Field(default_factory=dict)
    """Class (b) settings, for the manifest."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Role -> name of the stage whose artifact is read. Roles: rows, logits, model, baseline, answers, evaluation.<stage>."""
    externals: dict[str, External] = Field(default_factory=dict)
    """Role -> external. Roles: dataset, tokenizer, template, model, baseline, teacher."""
    teacher: str | None = None
    """Name of the teacher that the stage asks (`teacher` where the spec has just one)."""
    asking_key: str | None = None
    """64 hex digits (contract 4): where units of generate and capture lie."""


class Plan(BaseModel):
    """A whole plan; stored at plans/<digest>.json."""

    model_config = ConfigDict(frozen=True)

    version: int = 1
    job: str
    namespace: str | None = None
    runtime: str
    """Name of the ClusterDistillationRuntime whose defaults were taken."""
    runtime_hash: str
    serving: RuntimeServing
    """The runtime's own flags and environment of the serving engine."""
    spec: DistillationJobSpec
    """With every default filled in."""
    stages: tuple[PlannedStage, ...]

    def stage(self, name: str) -> PlannedStage:
        """The stage called ``name``; KeyError where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def settings(self, name: str) -> Stage:
        """The API model of stage ``name`` with its defaults (not for the implicit `dataset` stage: KeyError)."""
        for stage in self.spec.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def encoded(self) -> bytes:
        """The plan's bytes in the store: canonical JSON (RFC 8785)."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    @property
    def digest(self) -> str:
        """sha256 hex of the encoded plan."""
        return hashlib.sha256(self.encoded()).hexdigest()
