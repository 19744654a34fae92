"""publish: copy a model to where it is used, then move the pointer there (contract 10). Idempotent."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_runtime.api.failures import GateError, SettingsError, TransientError
from kd_runtime.api.job import Publish
from kd_runtime.api.result import GateOutcome
from kd_runtime.artifacts.manifest import Manifest, read_manifest
from kd_runtime.artifacts.store import Store, body_sha256, open_store
from kd_runtime.evaluation.card import render_card
from kd_runtime.evaluation.gates import Judged, judge_manifest
from kd_runtime.evaluation.sources import Sources
from kd_runtime.planning.sources import POINTER, SourceFile, content_digest, model_files
from kd_runtime.planning.targets import MARKER, Pointer, TargetState, target_state
from kd_runtime.stages.context import StageContext, StageOutcome

CARD = "README.md"
PUBLICATION = "publication.json"


@dataclass(frozen=True)
class ModelFile:
    """One file of the model that is published."""

    path: str
    local: Path
    size: int
    sha256: str


def run(ctx: StageContext) -> StageOutcome:
    """Publish the model to every target, and commit what was published.

    Raises:
        GateError: ``requireGates``, and a gate of this very model is unmet.
        SettingsError: ``requireGates``, and no stage evaluates this model.
        StorageError, DeniedError: a target cannot be written.
    """
    started = time.monotonic()
    body = ctx.settings.publish
    assert body is not None
    judged = _judgements(ctx)
    if body.require_gates:
        check_gates(ctx, judged)
    files, digest = _model(ctx)
    card = _card(ctx, digest).encode() if body.model_card else None
    pointer = Pointer(path=digest, manifest=_made_from(ctx), job=ctx.plan.job)
    states = {target.uri: _publish(ctx, target.uri, files, card, pointer) for target in body.targets}
    return _commit(
        ctx, body, files, card, pointer, states, tuple(j.outcome for _, j in judged), time.monotonic() - started
    )


def check_gates(ctx: StageContext, judged: Sequence[tuple[str, Judged]]) -> None:
    """GateError where a gate is unmet; SettingsError where no stage evaluates the model."""
    if not _evaluations(ctx):
        raise SettingsError(
            f"stage {ctx.stage.name!r}: publish.requireGates: no earlier stage evaluates the model that is published; "
            "add an evaluate stage with gates, or set requireGates to false"
        )
    unmet = [f"{name}: {j.sentence()}" for name, j in judged if not j.outcome.passed]
    if unmet:
        raise GateError(
            f"not published: {'; '.join(unmet)}; train longer or on more data, change the gate, or set publish.requireGates to false"
        )


def _evaluations(ctx: StageContext) -> dict[str, str]:
    """Role -> stage name of every evaluation of this model."""
    return {role: name for role, name in ctx.stage.inputs.items() if role.startswith("evaluation.")}


def _judgements(ctx: StageContext) -> list[tuple[str, Judged]]:
    """Every gate of this very model with its outcome, by the evaluate stage's name."""
    judged: list[tuple[str, Judged]] = []
    for role, name in _evaluations(ctx).items():
        manifest = ctx.input(role)
        _check_subject(ctx, name, manifest)
        body = ctx.plan.settings(name).evaluate
        gates = body.gates if body else ()
        judged += [(name, j) for j in judge_manifest(ctx.store, ctx.cache, manifest, gates)]
    return judged


def _check_subject(ctx: StageContext, name: str, evaluation: Manifest) -> None:
    """TransientError where the evaluation was made of another model than the one that is published."""
    if "model" in ctx.stage.inputs:
        recorded = evaluation.inputs.get("model")
        fits = recorded is not None and recorded.content_digest == ctx.input("model").content_digest
    else:
        fits = evaluation.externals.get("model") == ctx.external("model").digest
    if not fits:
        raise TransientError(
            f"stage {name!r} evaluated another model than the one that is published: the store changed; plan again"
        )


def _model(ctx: StageContext) -> tuple[list[ModelFile], str]:
    """The model's files on this machine, verified, and the digest of those that loading reads."""
    folder = ctx.model_dir("model")
    if "model" in ctx.stage.inputs:
        refs = ctx.input("model").select("model/")
        files = [
            ModelFile(r.path.removeprefix("model/"), folder / r.path.removeprefix("model/"), r.size, r.sha256)
            for r in refs
        ]
    else:
        files = [ModelFile(f.path, folder / f.path, f.size, f.sha256) for f in ctx.external("model").files]
    student = ctx.plan.spec.student
    trusted = student is not None and student.model.trust_remote_code
    read = model_files([SourceFile(f.path, f.size, f.sha256, "") for f in files], remote_code=trusted)
    return files, content_digest([(f.path, f.sha256 or "") for f in read])


def _made_from(ctx: StageContext) -> dict[str, str]:
    if "model" in ctx.stage.inputs:
        manifest = ctx.input("model")
        return {"key": manifest.key, "contentDigest": manifest.content_digest}
    external = ctx.external("model")
    return {"uri": external.uri, "contentDigest": external.digest}


def _card(ctx: StageContext, digest: str) -> str:
    manifests = {
        stage.name: read_manifest(ctx.store, stage.key) for stage in ctx.plan.stages if stage.name != ctx.stage.name
    }
    sources = Sources(ctx.plan, {name: m for name, m in manifests.items() if m is not None}, ctx.store, ctx.cache)
    return render_card(sources, ctx.stage.inputs.get("model"), digest)


def _publish(
    ctx: StageContext, uri: str, files: Sequence[ModelFile], card: bytes | None, pointer: Pointer
) -> TargetState:
    """Bring one target to name the model; what it says afterwards. A target that has moved on is left alone."""
    artifacts = ctx.plan.spec.artifacts
    store = open_store(uri.rstrip("/") + "/", endpoint=artifacts.endpoint, region=artifacts.region)
    digest = pointer.path
    state = target_state(store, digest)
    if state is TargetState.ToDo:
        total = sum(file.size for file in files)
        done = 0
        for file in files:
            _put(store, f"{digest}/{file.path}", file.local, file.size, file.sha256)
            done += file.size
            ctx.reporter.update(done, total, "bytes", message=uri)
        if card is not None:
            _put(store, f"{digest}/{CARD}", card, len(card), body_sha256(card))
        store.put(POINTER, pointer.encoded())
    if state is not TargetState.Superseded and not store.exists(f"{digest}/{MARKER}"):
        store.put(f"{digest}/{MARKER}", pointer.encoded())
    return TargetState.Superseded if state is TargetState.Superseded else TargetState.Found


def _put(store: Store, name: str, body: Path | bytes, size: int, sha256: str) -> None:
    """Write one object unless the store knows that these very bytes are there."""
    there = store.stat(name)
    if there is None or there.size != size or there.sha256 != sha256:
        store.put(name, body, sha256=sha256)


def _commit(
    ctx: StageContext,
    body: Publish,
    files: Sequence[ModelFile],
    card: bytes | None,
    pointer: Pointer,
    states: dict[str, TargetState],
    gates: tuple[GateOutcome, ...],
    seconds: float,
) -> StageOutcome:
    listing = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files]
    artifact = ctx.new_artifact()
    artifact.add_bytes(
        json.dumps({**pointer.model_dump(), "files": listing}, indent=1, sort_keys=True).encode(), PUBLICATION
    )
    if card is not None:
        artifact.add_bytes(card, CARD)
    superseded = [uri for uri, state in states.items() if state is TargetState.Superseded]
    counts = {"files": len(files), "bytes": sum(f.size for f in files)}
    extra = {"targets": [target.uri for target in body.targets], "superseded": superseded, "model": pointer.path}
    manifest = artifact.commit(counts=counts, extra=extra, seconds=seconds)
    message = f"superseded at {', '.join(superseded)}: another model is current there" if superseded else ""
    return StageOutcome(manifest, manifest.counts, manifest.metrics, message, gates)
