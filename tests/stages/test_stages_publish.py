"""publish: files, card and pointer at every target; idempotent; gates of the very model decide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation.made_run import SPEC, MadeRun, made_plan, made_run

from kd_runtime.api.failures import GateError, SettingsError, StorageError, TransientError
from kd_runtime.artifacts.manifest import retire
from kd_runtime.artifacts.store import open_store
from kd_runtime.planning.sources import POINTER, content_digest, model_files, open_model
from kd_runtime.planning.targets import TargetState, read_pointer, target_state
from kd_runtime.stages.context import StageContext, StageOutcome
from kd_runtime.stages.publish import run
from kd_runtime.telemetry.progress import Reporter


class Publishing:
    """A run that is done up to its evaluation, and a publish stage over it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: MadeRun = made_run(folder / "made", until="exam")
        self.writers = 0

    def target(self, name: str) -> str:
        return f"file://{self.folder}/{name}/"

    def context(self, *targets: str, gates: list[dict[str, Any]] | None = None, **publish: Any) -> StageContext:
        spec = json.loads(json.dumps(SPEC))
        spec["stages"][-1]["publish"] = {"targets": [{"uri": uri} for uri in targets], **publish}
        if gates is not None:
            spec["stages"][-2]["evaluate"]["gates"] = gates
        plan = made_plan(spec)
        self.writers += 1
        work = self.folder / f"work-{self.writers}"
        work.mkdir()
        return StageContext(
            plan=plan,
            stage=plan.stage("release"),
            store=self.made.store,
            cache=self.made.cache,
            writer=f"{self.writers:032x}",
            reporter=Reporter("release", url=""),
            work=work,
        )

    def publish(self, *targets: str, **more: Any) -> StageOutcome:
        return run(self.context(*targets, **{"requireGates": False, **more}))


PASSING = [{"metric": "recoveredGap", "of": "KL", "op": "AtLeast", "value": 0.5}]
UNMET = [*PASSING, {"metric": "value", "of": "Agreement", "op": "AtLeast", "value": 0.8, "confidence": 0.9}]


@pytest.fixture
def publishing(tmp_path: Path) -> Publishing:
    return Publishing(tmp_path)


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def another_model(publishing: Publishing, target: str, digest: str = "cd" * 32) -> None:
    """Somebody else's model becomes current at the target."""
    store = open_store(target)
    store.put(f"{digest}/model.safetensors", b"other")
    store.put(POINTER, json.dumps({"version": 1, "path": digest, "manifest": {}}).encode())


def test_files_card_and_pointer_lie_below_the_models_digest(publishing: Publishing, tmp_path: Path):
    outcome = publishing.publish(publishing.target("out"))
    there = files_below(tmp_path / "out")
    pointer = json.loads(there["kd.json"])
    assert pointer["manifest"]["key"] == publishing.made.manifests["student"].key
    assert there[f"{pointer['path']}/config.json"] == b'{"model_type": "llama"}'
    assert len(there[f"{pointer['path']}/model.safetensors"]) == 200_000
    assert there[f"{pointer['path']}/README.md"].startswith(b"---\nlibrary_name: transformers")
    assert outcome.counts["files"] == 2
    assert outcome.manifest is not None
    assert outcome.manifest.extra["targets"] == [publishing.target("out")]


def test_the_models_uri_is_read_through_its_pointer_and_has_its_digest(publishing: Publishing):
    publishing.publish(publishing.target("out"))
    source = open_model(publishing.target("out"))
    digest = content_digest([(f.path, f.sha256 or _sha256(source.read(f.path))) for f in model_files(source.files())])
    pointer = read_pointer(open_store(publishing.target("out")))
    assert pointer is not None
    assert pointer.path == digest


def _sha256(body: bytes) -> str:
    import hashlib

    return hashlib.sha256(body).hexdigest()


def test_publishing_again_changes_no_byte(publishing: Publishing, tmp_path: Path):
    first = publishing.publish(publishing.target("out"))
    before = files_below(tmp_path / "out")
    second = publishing.publish(publishing.target("out"))
    assert files_below(tmp_path / "out") == before
    assert second.manifest == first.manifest


def test_a_publish_that_was_killed_before_the_pointer_is_finished(publishing: Publishing, tmp_path: Path):
    publishing.publish(publishing.target("out"))
    before = files_below(tmp_path / "out")
    store = open_store(publishing.target("out"))
    pointer = read_pointer(store)
    assert pointer is not None
    for name in (POINTER, f"{pointer.path}/published.json", f"{pointer.path}/config.json"):
        store.delete(name)
    retire(publishing.made.store, publishing.made.plan.stage("release").key)
    publishing.publish(publishing.target("out"))
    assert files_below(tmp_path / "out") == before


def test_a_target_that_is_added_gets_the_model_and_the_others_are_left(publishing: Publishing, tmp_path: Path):
    publishing.publish(publishing.target("a"))
    before = files_below(tmp_path / "a")
    retire(publishing.made.store, publishing.made.plan.stage("release").key)
    outcome = publishing.publish(publishing.target("a"), publishing.target("b"))
    assert files_below(tmp_path / "a") == before == files_below(tmp_path / "b")
    assert outcome.manifest is not None
    assert outcome.manifest.extra["targets"] == [publishing.target("a"), publishing.target("b")]


def test_a_target_that_moved_on_is_left_alone_and_said(publishing: Publishing, tmp_path: Path):
    publishing.publish(publishing.target("out"))
    another_model(publishing, publishing.target("out"))
    before = files_below(tmp_path / "out")
    retire(publishing.made.store, publishing.made.plan.stage("release").key)
    outcome = publishing.publish(publishing.target("out"))
    assert files_below(tmp_path / "out") == before
    assert "superseded at" in outcome.message
    assert outcome.manifest is not None
    assert outcome.manifest.extra["superseded"] == [publishing.target("out")]


def test_a_target_with_another_model_is_moved_to_ours(publishing: Publishing):
    another_model(publishing, publishing.target("out"))
    publishing.publish(publishing.target("out"))
    pointer = read_pointer(open_store(publishing.target("out")))
    assert pointer is not None
    assert pointer.path != "cd" * 32


def test_each_state_of_a_target(publishing: Publishing):
    store = open_store(publishing.target("out"))
    publishing.publish(publishing.target("out"))
    pointer = read_pointer(store)
    assert pointer is not None
    assert target_state(store, pointer.path) is TargetState.Found
    assert target_state(store, "ef" * 32) is TargetState.ToDo
    another_model(publishing, publishing.target("out"))
    assert target_state(store, pointer.path) is TargetState.Superseded


def test_an_unmet_gate_keeps_the_model_back(publishing: Publishing, tmp_path: Path):
    with pytest.raises(GateError) as caught:
        publishing.publish(publishing.target("out"), requireGates=True, gates=UNMET)
    said = str(caught.value)
    assert "exam: value of Agreement: at least 0.8 with 90 % confidence is asked" in said
    assert "it is 0.7433, its lower bound 0.7292" in said
    assert "recoveredGap" not in said
    assert not (tmp_path / "out").exists()


def test_gates_that_pass_let_it_through_and_are_reported(publishing: Publishing):
    outcome = publishing.publish(publishing.target("out"), requireGates=True, gates=PASSING)
    assert [(g.of, g.passed) for g in outcome.gates] == [("KL", True)]


def test_unmet_gates_that_are_not_required_are_reported_alone(publishing: Publishing):
    outcome = publishing.publish(publishing.target("out"), requireGates=False, gates=UNMET)
    assert [(g.of, g.passed) for g in outcome.gates] == [("KL", True), ("Agreement", False)]


def test_required_gates_without_an_evaluation_are_refused(publishing: Publishing):
    context = publishing.context(publishing.target("out"), requireGates=True)
    alone = context.stage.model_copy(update={"inputs": {"model": "student"}})
    with pytest.raises(SettingsError, match=r"publish\.requireGates: no earlier stage evaluates the model"):
        run(replace(context, stage=alone))


def test_an_evaluation_of_another_model_is_refused(publishing: Publishing):
    context = publishing.context(publishing.target("out"))
    other = context.stage.model_copy(update={"inputs": {"model": "small", "evaluation.exam": "exam"}})
    with pytest.raises(TransientError, match="evaluated another model"):
        run(replace(context, stage=other))


def test_no_card_where_none_is_wanted(publishing: Publishing, tmp_path: Path):
    publishing.publish(publishing.target("out"), modelCard=False)
    assert not [name for name in files_below(tmp_path / "out") if name.endswith("README.md")]


def test_a_garbled_pointer_is_named(publishing: Publishing):
    store = open_store(publishing.target("out"))
    store.put("models/kd.json", b"{}")
    with pytest.raises(StorageError, match=r"out/models/kd\.json: is no pointer"):
        read_pointer(store, "models")
    assert read_pointer(store) is None
