"""evaluate on tiny models: the trained model is the teacher itself, so its divergence is nil and the gap is recovered whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_runtime.api.failures import DataError, SettingsError, TransientError
from kd_runtime.api.job import DistillationJobSpec
from kd_runtime.api.runtime import RuntimeServing
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rows import Parent, Row, RowsWriter, row_key
from kd_runtime.artifacts.store import body_sha256, open_store
from kd_runtime.artifacts.writer import ArtifactWriter
from kd_runtime.planning.plan import External, ExternalFile, Plan, PlannedStage, StageType
from kd_runtime.planning.sources import content_digest
from kd_runtime.stages.context import StageContext, StageOutcome
from kd_runtime.telemetry.progress import Reporter

pytestmark = pytest.mark.runtime

HELD_OUT = (
    ("What colour is the sky?", "The sky is blue."),
    ("Is ice hot or cold?", "Ice is cold."),
    ("Who makes honey?", "Bees make honey."),
    ("Name a fruit.", "An apple is a fruit."),
    ("What does a dog say?", "A dog says woof."),
    ("Where do fish live?", "Fish live in water."),
)
VOCABULARY, K = 512, 16
GATES = [
    {"metric": "recoveredGap", "of": "KL", "op": "AtLeast", "value": 0.9},
    {"metric": "value", "of": "Agreement", "op": "AtMost", "value": 0.5},
]


class Examination:
    """Artifacts of rows, logits and models in a store, and an evaluate stage over them."""

    def __init__(self, folder: Path, models: Path):
        self.folder, self.models = folder, models
        self.store = open_store(f"file://{folder}/store")
        self.cache = Cache(folder / "cache")
        self.runs = 0
        self.rows = self._rows()
        self.answers = self._commit("answers", "generate", {p.name: p for p in self._written()}, "rows/")
        self.logits = self._logits(self.answers)
        trained = {p.name: p for p in sorted((models / "teacher").iterdir()) if p.is_file()}
        self._commit("student", "train", trained, "model/")

    def _rows(self) -> list[Row]:
        from kd_runtime.api.job import LossOn
        from kd_runtime.models.templates import Template

        template = Template(self.models / "student")
        rows = []
        for number, (question, answer) in enumerate(HELD_OUT):
            asked = [{"role": "user", "content": question}]
            seen = template.conversation([*asked, {"role": "assistant", "content": answer}], LossOn.Response)
            rows.append(
                Row(
                    key=row_key("00" * 32, asked, seen.ids, seen.scored),
                    split="heldOut",
                    messages=asked,
                    response=answer,
                    reasoning=None,
                    references=[answer] if number % 2 else None,
                    input_ids=seen.ids,
                    scored=seen.scored,
                    prompt_tokens=seen.prompt_tokens,
                    truncated=number == 5,
                    parents=(Parent(f"{number:032x}", 0),),
                    source=f"questions.jsonl:{number + 1}",
                )
            )
        return [*rows, replace(rows[0], key="f" * 32, split="train")]

    def _written(self) -> list[Path]:
        writer = RowsWriter(self.folder / "rows")
        for row in self.rows:
            writer.append(row)
        return writer.close()

    def _commit(self, name: str, kind: str, files: dict[str, Path], prefix: str, **extra: Any) -> Manifest:
        writer = ArtifactWriter(self.store, key=key(name), stage_type=kind, writer=f"{name:0<32}")
        for path, local in files.items():
            writer.add_file(local, prefix + path)
        return writer.commit(extra=extra)

    def _logits(self, rows: Manifest) -> Manifest:
        from kd_runtime.logits.build import TeacherRow, build_planes
        from kd_runtime.logits.shard import write_shard
        from kd_runtime.logits.spec import ShardSpec

        spec = ShardSpec("Exact", K, vocab=VOCABULARY)
        planes = build_planes(spec, [TeacherRow(**scored_by(self.models / "teacher", row)) for row in self.rows[:5]])
        path = self.folder / "0.safetensors"
        write_shard(path, planes, spec)
        facts = {"profile": "Exact", "k": K, "vocab": VOCABULARY}
        return self._commit(
            "logits",
            "capture",
            {path.name: path},
            "logits/",
            spec=facts,
            rows_key=rows.key,
            rows_content=rows.content_digest,
        )

    def context(
        self, *, gates: list[dict[str, Any]] | None = None, suites: Any = None, without: tuple[str, ...] = ()
    ) -> StageContext:
        body = {"suites": suites or [{"name": "HeldOut", "maxTokens": 24}], "gates": gates or []}
        plan = made_plan(self.models, body)
        stage = plan.stage("exam")
        kept = {role: name for role, name in stage.inputs.items() if role not in without}
        outside = {role: external for role, external in stage.externals.items() if role not in without}
        self.runs += 1
        work = self.folder / f"work-{self.runs}"
        work.mkdir()
        return StageContext(
            plan=plan,
            stage=stage.model_copy(update={"inputs": kept, "externals": outside, "key": key(f"exam {self.runs}")}),
            store=self.store,
            cache=self.cache,
            writer=f"{self.runs:032x}",
            reporter=Reporter("exam", url=""),
            work=work,
        )

    def run(self, **changes: Any) -> StageOutcome:
        from kd_runtime.stages.evaluate import run

        return run(self.context(**changes))

    def document(self, outcome: StageOutcome) -> dict[str, Any]:
        assert outcome.manifest is not None
        return json.loads(self.read(outcome, "evaluation.json"))

    def read(self, outcome: StageOutcome, path: str) -> str:
        assert outcome.manifest is not None
        return self.cache.file(self.store, outcome.manifest.object(path)).read_text()


def key(name: str) -> str:
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()


def scored_by(folder: Path, row: Row) -> dict[str, Any]:
    """What a teacher says of a row, from its whole distributions."""
    import torch

    from kd_runtime.models.loading import load_causal_lm

    positions = np.flatnonzero(row.scored)
    with torch.inference_mode():
        logits = load_causal_lm(folder, torch.float32)(torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0]
    lp = torch.log_softmax(logits[positions - 1, :VOCABULARY].double(), -1)
    top = lp.topk(K)
    labels = lp.gather(1, torch.from_numpy(row.input_ids[positions].astype(np.int64))[:, None])
    return {
        "key": bytes.fromhex(row.key),
        "input_ids": row.input_ids,
        "scored": row.scored,
        "lab_lp": labels[:, 0].numpy(),
        "lab_rank": 1 + (lp > labels).sum(1).numpy(),
        "top_ids": top.indices.numpy(),
        "top_lp": top.values.numpy(),
    }


def made_plan(models: Path, body: dict[str, Any]) -> Plan:
    files = tuple(
        ExternalFile(path=p.name, size=p.stat().st_size, sha256=body_sha256(p))
        for p in sorted((models / "student").iterdir())
        if p.is_file()
    )
    digest = content_digest([(f.path, f.sha256) for f in files])
    untrained = External(kind="model", uri=f"file://{models}/student/", digest=digest, files=files)

    def stage(name: str, kind: StageType, inputs: dict[str, str] | None = None, **externals: External) -> PlannedStage:
        return PlannedStage(name=name, type=kind, key=key(name), semantics=1, inputs=inputs or {}, externals=externals)

    wired = {"model": "student", "rows": "answers", "logits": "logits", "answers": "answers"}
    spec = {
        "teacher": {
            "hosted": {"model": {"uri": f"file://{models}/teacher/"}, "engine": "Transformers", "dtype": "float32"}
        },
        "student": {"model": {"uri": untrained.uri}},
        "dataset": {"uri": "file:///questions.jsonl", "format": "JSONL", "fields": {"prompt": "question"}},
        "artifacts": {"uri": "file:///store/"},
        "stages": [
            {"name": "answers", "generate": {}},
            {"name": "logits", "capture": {"profile": "Exact", "topK": K}},
            {"name": "student", "train": {"method": "KD"}},
            {"name": "exam", "evaluate": body},
        ],
    }
    return Plan(
        job="tiny",
        runtime="cpu",
        runtime_hash="0",
        serving=RuntimeServing(),
        spec=DistillationJobSpec.model_validate(spec),
        stages=(
            stage("dataset", StageType.Ingest),
            stage("answers", StageType.Generate, {"rows": "dataset"}),
            stage("logits", StageType.Capture, {"rows": "answers"}),
            stage("student", StageType.Train, {"rows": "answers", "logits": "logits"}, model=untrained),
            stage("exam", StageType.Evaluate, wired, baseline=untrained),
        ),
    )


@pytest.fixture(scope="module")
def examination(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Examination:
    return Examination(tmp_path_factory.mktemp("exam"), tiny_models)


@pytest.fixture(scope="module")
def outcome(examination: Examination) -> StageOutcome:
    return examination.run(gates=GATES)


def values(document: dict[str, Any]) -> dict[str, float]:
    return {f"{s['score']}.{s['who']}": s["value"] for s in document["scores"]}


def test_a_student_that_is_its_teacher_recovers_the_whole_gap(examination: Examination, outcome: StageOutcome):
    found = values(examination.document(outcome))
    assert found["KL.student"] < 1e-3
    assert found["KL.baseline"] > 0.5
    assert found["Agreement.student"] == 1.0
    assert found["Agreement.baseline"] < 0.9
    assert outcome.metrics["recoveredGap.KL"] == pytest.approx(1.0, abs=1e-3)
    assert found["CrossEntropy.teacher"] == pytest.approx(found["CrossEntropy.student"], abs=0.02)


def test_intervals_enclose_their_values(examination: Examination, outcome: StageOutcome):
    for score in examination.document(outcome)["scores"]:
        assert score["low"] - 1e-9 <= score["value"] <= score["high"] + 1e-9, score


def test_gates_are_reported_and_unmet_ones_do_not_fail_the_stage(outcome: StageOutcome):
    assert [(g.of, g.passed) for g in outcome.gates] == [("KL", True), ("Agreement", False)]
    assert outcome.message.startswith("unmet: value of Agreement: at most 0.5")


def test_the_train_split_and_rows_without_logits_are_told_apart(outcome: StageOutcome):
    assert outcome.counts["rows"] == outcome.counts["prompts"] == 6
    assert outcome.counts["withoutLogits"] == 1


def test_all_three_answer_side_by_side(examination: Examination, outcome: StageOutcome):
    lines = [json.loads(line) for line in examination.read(outcome, "answers.jsonl").splitlines()]
    assert [line["source"] for line in lines] == [f"questions.jsonl:{n}" for n in range(1, 7)]
    sky = lines[0]
    assert sky["messages"] == [{"role": "user", "content": "What colour is the sky?"}]
    assert sky["teacher"]["text"] == sky["student"]["text"] == "The sky is blue."
    assert sky["student"]["ended"] is True
    assert sky["baseline"]["text"] != sky["student"]["text"]
    assert lines[5]["teacher"]["ended"] is False


def test_exact_match_is_measured_where_references_are(examination: Examination, outcome: StageOutcome):
    matches = next(
        s for s in examination.document(outcome)["scores"] if s["score"] == "ExactMatch" and s["who"] == "student"
    )
    assert (matches["value"], matches["count"]) == (1.0, 3)


def test_the_curve_covers_every_position_of_the_answers(examination: Examination, outcome: StageOutcome):
    curve = examination.document(outcome)["byPosition"]
    assert sum(entry["positions"] for entry in curve) == outcome.counts["positions"]
    assert all(entry["Agreement.student"][0] == 1.0 for entry in curve)


def test_evaluating_again_gives_the_same_bytes(examination: Examination, outcome: StageOutcome):
    again = examination.run(gates=GATES)
    assert again.manifest is not None
    assert outcome.manifest is not None
    assert [r.sha256 for r in again.manifest.objects] == [r.sha256 for r in outcome.manifest.objects]
    assert again.manifest.content_digest == outcome.manifest.content_digest


def test_without_logits_there_is_likelihood_and_no_divergence(examination: Examination):
    outcome = examination.run(without=("logits", "baseline"))
    document = examination.document(outcome)
    assert "KL.student" not in values(document)
    assert values(document)["Perplexity.student"] > 1
    assert document["missing"]["KL to the teacher"] == "the stage has no logits among its inputs"
    assert document["missing"]["Untrained model"].startswith("no train stage made the evaluated model")
    assert document["gaps"] == []


def test_a_gate_on_what_its_inputs_do_not_allow_is_refused(examination: Examination):
    with pytest.raises(SettingsError, match="gate recoveredGap of KL: KL of the baseline was not measured"):
        examination.run(without=("baseline",), gates=GATES[:1])


def test_a_suite_that_does_not_exist_is_refused(examination: Examination):
    with pytest.raises(SettingsError, match="this version runs HeldOut"):
        examination.run(suites=[{"name": "MMLU"}])


def test_logits_of_rows_that_changed_since_are_not_read(examination: Examination, monkeypatch: pytest.MonkeyPatch):
    from kd_runtime.stages.evaluate import run

    context = examination.context()
    stale = examination.logits.model_copy(update={"extra": {**examination.logits.extra, "rows_content": "0" * 64}})
    context._manifests["logits"] = stale
    with pytest.raises(TransientError, match="plan again"):
        run(context)


def test_rows_without_any_held_out_are_refused(examination: Examination):
    from kd_runtime.stages.evaluate import run

    context = examination.context()
    writer = RowsWriter(examination.folder / "train-only")
    writer.append(examination.rows[-1])
    (path,) = writer.close()
    context._manifests["rows"] = examination._commit("train only", "generate", {path.name: path}, "rows/")
    with pytest.raises(DataError, match=r"none is held out for evaluation; raise spec\.dataset\.holdout\.fraction"):
        run(context)
