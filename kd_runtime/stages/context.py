"""What every stage is handed: the plan, the store, a cache, its teacher's address, and the ways to read inputs and commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_runtime.api.failures import TransientError
from kd_runtime.api.job import Stage
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import InputRef, Manifest, read_manifest
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.writer import ArtifactWriter
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.fetch import fetch_external
from kd_runtime.planning.plan import External, Plan, PlannedStage
from kd_runtime.telemetry.progress import Reporter


@dataclass(frozen=True)
class TeacherAddress:
    """Where the stage's teacher answers (``KD_TEACHER_URL``, ``KD_TEACHER_KEY``)."""

    url: str
    key: str | None = None


@dataclass
class StageContext:
    """One run of one stage by one process."""

    plan: Plan
    stage: PlannedStage
    store: Store
    cache: Cache
    writer: str
    """32 hex digits, drawn at process start: the prefix of all that this process writes."""
    reporter: Reporter
    work: Path
    """A scratch folder of this process, emptied at its end."""
    attempt: int = 1
    index: int = 0
    workers: int = 1
    teacher: TeacherAddress | None = None
    _manifests: dict[str, Manifest] = field(default_factory=dict)

    @property
    def settings(self) -> Stage:
        """The API model of this stage, with defaults (not for ingest, which reads ``plan.spec.dataset``)."""
        return self.plan.settings(self.stage.name)

    def input(self, role: str) -> Manifest:
        """The manifest of the artifact that plays ``role``.

        Raises:
            KeyError: the stage has no such input.
            TransientError: the artifact is not in the store (any more): plan again.
        """
        name = self.stage.inputs[role]
        if role not in self._manifests:
            key = self.plan.stage(name).key
            manifest = read_manifest(self.store, key)
            if manifest is None:
                raise TransientError(
                    f"input {role!r} (stage {name!r}, key {key[:12]}) is not in {self.store.uri}; plan again"
                )
            self._manifests[role] = manifest
        return self._manifests[role]

    @property
    def inputs_read(self) -> dict[str, InputRef]:
        """Every input that ``input`` has handed out, by role: its key, and its content as it was read."""
        return {role: InputRef(key=m.key, content_digest=m.content_digest) for role, m in self._manifests.items()}

    def has(self, role: str) -> bool:
        """True where the stage has this input, from another stage or from outside."""
        return role in self.stage.inputs or role in self.stage.externals

    def external(self, role: str) -> External:
        """The external that plays ``role``; KeyError where there is none."""
        return self.stage.externals[role]

    def model_dir(self, role: str) -> Path:
        """A local Hugging Face directory of the model that plays ``role``: an artifact's ``model/`` files, or an external's.

        Every file is verified against its digest. Raises StorageError, DeniedError, TransientError.
        """
        if role in self.stage.inputs:
            return self.cache.directory(self.store, self.input(role), "model/")
        return self.external_dir(role)

    def external_dir(self, role: str) -> Path:
        """A local folder with the files of the external that plays ``role`` (cached, verified)."""
        s3 = self.plan.spec.artifacts
        memory = DigestMemory(self.store)
        return fetch_external(self.external(role), self.cache, memory, endpoint=s3.endpoint, region=s3.region)

    def new_artifact(self) -> ArtifactWriter:
        """A writer for this stage's artifact; its ``commit`` records every input that ``input`` has handed out."""
        inputs = {role: (ref.key, ref.content_digest) for role, ref in self.inputs_read.items()}
        externals = {role: e.digest for role, e in self.stage.externals.items()}
        return ArtifactWriter(
            self.store,
            key=self.stage.key,
            stage_type=self.stage.type.value,
            writer=self.writer,
            inputs=inputs,
            externals=externals,
            settings=self.stage.keyed,
            recorded=dict(self.stage.recorded),
        )


@dataclass(frozen=True)
class StageOutcome:
    """What a stage's ``run`` returns: its manifest (None for a worker that found no units left), and what to say."""

    manifest: Manifest | None
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""
    gates: tuple[Any, ...] = ()
