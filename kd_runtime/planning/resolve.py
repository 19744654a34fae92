"""From a job to its plan: every URI to a content digest, every role to a stage, every stage to its key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kd_runtime.api.classes import keyed, recorded
from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.api.job import CacheMode, Dataset, DistillationJob, DistillationJobSpec, ModelSource, Stage, Teacher
from kd_runtime.api.runtime import ClusterDistillationRuntime, runtime_hash
from kd_runtime.api.wiring import DATASET, Wiring, wire
from kd_runtime.artifacts.store import Store
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.fetch import secret_token
from kd_runtime.planning.headers import ModelHeader, read_header
from kd_runtime.planning.keys import SEMANTICS, asking_key, digest, stage_key
from kd_runtime.planning.plan import External, ExternalFile, Plan, PlannedStage, StageType
from kd_runtime.planning.sources import (
    ADAPTER,
    ADAPTER_REFUSED,
    Source,
    SourceFile,
    StoreSource,
    content_digest,
    model_files,
    open_model,
    open_source,
    tokenizer_files,
)

ASKING = (StageType.Generate, StageType.Capture)
UNASKED = {
    StageType.Generate: ("samplesPerPrompt", "keepTruncated"),
    StageType.Capture: (),
}
"""Keyed settings of an asking stage that the teacher never sees: not part of its asking key."""


@dataclass
class Resolver:
    """Resolves externals once each, remembering headers for the estimate."""

    spec: DistillationJobSpec
    store: Store
    memory: DigestMemory
    headers: dict[str, ModelHeader] = field(default_factory=dict)
    _externals: dict[tuple[str, ModelSource], External] = field(default_factory=dict)

    def model(self, source: ModelSource, kind: str = "model") -> External:
        """A model's folder as an external; its files' digests make its digest.

        Raises:
            SettingsError, DataError, DeniedError, StorageError: as the source says; the message names the URI.
        """
        known = self._externals.get((kind, source))
        if known is None:
            known = self._model(source, kind)
            self._externals[kind, source] = known
        return known

    def _model(self, source: ModelSource, kind: str) -> External:
        secret = f"{source.secret_ref.name}/{source.secret_ref.key}" if source.secret_ref else None
        opened = open_model(source.uri, revision=source.revision, token=secret_token(secret), **self._s3())
        there = opened.files()
        if kind == "tokenizer":
            chosen = tokenizer_files(there)
            if not any(f.path in ("tokenizer.json", "tokenizer.model") for f in chosen):
                raise SettingsError(
                    f"{source.uri}: holds neither tokenizer.json nor tokenizer.model; save the tokenizer beside the weights"
                )
        else:
            if any(f.path == ADAPTER for f in there):
                raise SettingsError(f"{source.uri}: {ADAPTER_REFUSED}")
            chosen = model_files(there, remote_code=source.trust_remote_code)
            self.headers[source.uri] = read_header(opened, chosen)
        return self._external(kind, source.uri, opened, chosen, source.revision, secret)

    def _external(
        self, kind: str, uri: str, opened: Source, chosen: list[SourceFile], revision: str | None, secret: str | None
    ) -> External:
        named = isinstance(opened, StoreSource) and opened.one_file
        files = tuple(ExternalFile(path=f.path, size=f.size, sha256=self.memory.sha256(opened, f)) for f in chosen)
        return External(
            kind=kind,
            uri=uri,
            revision=revision,
            digest=content_digest([("" if named else f.path, f.sha256) for f in files]),
            size=sum(f.size for f in files),
            files=files,
            secret=secret,
        )

    def dataset(self, source: Dataset) -> External:
        """The dataset's files as an external: those with content, hidden ones and those in hidden folders left out.

        Raises:
            DataError: nothing is there.
        """
        secret = f"{source.secret_ref.name}/{source.secret_ref.key}" if source.secret_ref else None
        opened = open_source(source.uri, revision=source.revision, token=secret_token(secret), **self._s3())
        chosen = [f for f in opened.files() if f.size and not any(part.startswith(".") for part in f.path.split("/"))]
        if not chosen:
            raise DataError(f"spec.dataset.uri: {source.uri} holds no file with content; check the URI")
        return self._external("dataset", source.uri, opened, chosen, source.revision, secret)

    def template(self, uri: str) -> External:
        """A Jinja file as an external."""
        opened = open_source(uri, **self._s3())
        return self._external("template", uri, opened, opened.files(), None, None)

    def _s3(self) -> dict[str, str | None]:
        return {"endpoint": self.spec.artifacts.endpoint, "region": self.spec.artifacts.region}


def build_plan(
    job: DistillationJob, runtime: ClusterDistillationRuntime, store: Store, *, uncached: str | None = None
) -> tuple[Plan, Resolver]:
    """The plan of a job whose relative paths are already absolute, and the resolver with what it learned.

    ``uncached`` is the job's uid, or locally the run folder's id: it enters the keys of stages with ``cache: Never``.

    Raises:
        SettingsError, DataError, DeniedError, StorageError: what cannot be resolved, by name.
    """
    resolver = Resolver(job.spec, store, DigestMemory(store))
    wirings = wire(job.spec.stages).wirings
    builder = _Builder(job, runtime, resolver, uncached or job.metadata.uid)
    stages: dict[str, PlannedStage] = {DATASET: builder.ingest()}
    for stage in job.spec.stages:
        stages[stage.name] = builder.stage(stage, wirings[stage.name], stages)
    plan = Plan(
        job=job.metadata.name,
        namespace=job.metadata.namespace,
        runtime=runtime.metadata.name,
        runtime_hash=runtime_hash(runtime),
        serving=runtime.spec.serving,
        spec=job.spec,
        stages=tuple(stages.values()),
    )
    return plan, resolver


def teacher_named(spec: DistillationJobSpec, name: str | None) -> tuple[str, Teacher]:
    """The teacher called ``name``, or the only one; its name is `teacher` where the spec names none.

    Raises:
        SettingsError: there is none, or none of that name.
    """
    teachers = spec.named_teachers()
    if len(teachers) == 1 and (name is None or spec.teacher is not None):
        name = next(iter(teachers))
    if name is None or name not in teachers:
        raise SettingsError(
            f"spec.teachers: there is no teacher called {name!r}; name one of {', '.join(teachers) or '(none)'}"
        )
    return name, teachers[name]


class _Builder:
    def __init__(self, job: DistillationJob, runtime: ClusterDistillationRuntime, resolver: Resolver, uid: str | None):
        self.job, self.spec, self.runtime, self.resolver, self.uid = job, job.spec, runtime, resolver, uid

    def ingest(self) -> PlannedStage:
        externals = {"dataset": self.resolver.dataset(self.spec.dataset), **self.rendering()}
        settings = keyed(self.spec.dataset)
        return PlannedStage(
            name=DATASET,
            type=StageType.Ingest,
            key=stage_key(StageType.Ingest, settings, {}, _digests(externals)),
            semantics=SEMANTICS[StageType.Ingest],
            keyed=settings,
            externals=externals,
        )

    def rendering(self) -> dict[str, External]:
        """What rendering and tokenising a conversation reads: the student's tokenizer, and a template of the user's."""
        externals = {"tokenizer": self.resolver.model(self.spec.student.model, "tokenizer")}
        if self.spec.dataset.template:
            externals["template"] = self.resolver.template(self.spec.dataset.template)
        return externals

    def stage(self, stage: Stage, wiring: Wiring, done: dict[str, PlannedStage]) -> PlannedStage:
        kind = StageType(stage.type)
        externals = {role: self.resolver.model(self.spec.student.model) for role in wiring.from_spec}
        self.check_layers(stage, externals)
        if kind in (StageType.Generate, StageType.Train):
            externals |= self.rendering()
        settings, facts = keyed(stage.body), recorded(stage.body)
        teacher, asking = None, None
        uncached = self.uid if stage.cache == CacheMode.Never else None
        if kind in ASKING:
            teacher, described = self.teacher(stage, kind)
            externals["teacher"] = described[1]
            settings = {**settings, "teacher": described[0]}
            facts = {**facts, "teacher": described[2]}
            asking = self.asking(kind, settings, described, externals, uncached)
        return PlannedStage(
            name=stage.name,
            type=kind,
            key=stage_key(
                kind, settings, {r: done[s].key for r, s in wiring.inputs.items()}, _digests(externals), uncached
            ),
            semantics=SEMANTICS[kind],
            keyed=settings,
            recorded=facts,
            inputs=wiring.inputs,
            externals=externals,
            teacher=teacher,
            asking_key=asking,
        )

    def check_layers(self, stage: Stage, externals: dict[str, External]) -> None:
        """Pruning cannot keep more layers than the model has."""
        if stage.prepare is None or stage.prepare.prune is None or "model" not in externals:
            return
        layers = self.resolver.headers[externals["model"].uri].layers
        keep = stage.prepare.prune.keep_layers
        if keep > layers:
            raise SettingsError(
                f"stage {stage.name}: prepare.prune.keepLayers: {keep} exceeds the {layers} layers of {externals['model'].uri}; "
                f"keep {layers - 1} or fewer"
            )

    def teacher(self, stage: Stage, kind: StageType) -> tuple[str, tuple[dict[str, Any], External, dict[str, Any]]]:
        name, teacher = teacher_named(self.spec, stage.teacher)
        if teacher.hosted is not None:
            settings = {**keyed(teacher.hosted), **keyed(self.runtime.spec.serving)}
            return name, (settings, self.resolver.model(teacher.hosted.model, "teacher"), recorded(teacher.hosted))
        assert teacher.external is not None
        settings = keyed(teacher.external)
        declared = External(
            kind="teacher", uri=teacher.external.base_url, revision=teacher.external.revision, digest=digest(settings)
        )
        return name, (settings, declared, recorded(teacher.external))

    def asking(
        self,
        kind: StageType,
        settings: dict[str, Any],
        described: tuple[dict[str, Any], External, dict[str, Any]],
        externals: dict[str, External],
        uncached: str | None,
    ) -> str:
        asked = {k: v for k, v in settings.items() if k not in (*UNASKED[kind], "teacher")}
        rendering: dict[str, Any] = {r: externals[r].digest for r in ("tokenizer", "template") if r in externals}
        return asking_key(
            kind, {"settings": described[0], "model": described[1].digest}, {**asked, **rendering}, uncached
        )


def _digests(externals: dict[str, External]) -> dict[str, str]:
    return {role: external.digest for role, external in externals.items()}
