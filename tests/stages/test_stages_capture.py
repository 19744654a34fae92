"""Capture: every row is scored once, and the shards that its manifest names hold what the teacher said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_teacher import Asked, FaultyTeacher, error, made_planes, planes_with
from stages.asking_runs import Questions
from starlette.responses import Response

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.artifacts.cache import Cache
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.planning.tokenizers import tokenizer_digest
from kd_runtime.stages import asking
from kd_runtime.stages.capture import ROWS_A_REQUEST
from kd_runtime.stages.context import StageOutcome
from kd_runtime.teachers import client
from kd_runtime.teachers.wire import ScoreRequest, ScoreRow


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Questions:
    monkeypatch.setattr(client, "BACKOFF_SECONDS", (0.001, 0.01))
    return Questions(tmp_path, tiny_models)


def reader_of(questions: Questions, outcome: StageOutcome) -> LogitsReader:
    assert outcome.manifest is not None
    spec = dict(outcome.manifest.extra["spec"])
    cache = Cache(questions.folder / "cache")
    paths = [cache.file(questions.store, ref) for ref in outcome.manifest.select("logits/")]
    return LogitsReader(paths, ShardSpec(**{**spec, "temperatures": tuple(spec["temperatures"])}))


def test_the_shards_hold_what_the_teacher_said_of_every_row(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        rows = questions.rows(questions.run("answers", teacher))
        outcome = questions.run("logits", teacher)
    reader = reader_of(questions, outcome)
    for row in rows:
        asked = ScoreRow(bytes.fromhex(row.key), row.input_ids, row.scored)
        said = made_planes(ScoreRequest((asked,), ShardSpec("Exact", 8, vocab=512))).row(0)
        kept = reader.get(row.key)
        assert np.array_equal(kept.positions, np.flatnonzero(row.scored))
        assert np.array_equal(kept.top_ids, said.top_ids) and np.array_equal(kept.top_lp, said.top_lp)
    assert set(teacher.rows.values()) == {1}


def test_counts_and_what_the_logits_were_made_from(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        answers = questions.run("answers", teacher)
        outcome = questions.run("logits", teacher)
    rows = questions.rows(answers)
    assert answers.manifest and outcome.manifest
    assert outcome.counts == {
        "in": 12,
        "done": 12,
        "rejected": 0,
        "shards": 2,
        "tokens": sum(len(row.input_ids) for row in rows),
        "positions": sum(int(row.scored.sum()) for row in rows),
    }
    extra = outcome.manifest.extra
    assert (extra["rows_key"], extra["rows_content"]) == (answers.manifest.key, answers.manifest.content_digest)


def test_rows_with_responses_need_no_generate(questions: Questions) -> None:
    questions.given = [{"instruction": f"Say {n}.", "response": f"It is {n}."} for n in range(9)]
    with FaultyTeacher() as teacher:
        outcome = questions.run("logits", teacher)
    assert outcome.counts["done"] == 9 and not teacher.chats


def test_the_label_profile_keeps_the_label_alone(questions: Questions) -> None:
    questions.capture = {"profile": "Label"}
    with FaultyTeacher() as teacher:
        outcome = questions.run("logits", teacher)
        row = questions.rows(questions.run("answers", teacher))[0]
    kept = reader_of(questions, outcome).get(row.key)
    assert kept.top_ids is None and len(kept.lab_lp) == row.scored.sum()


def test_rows_that_the_teacher_cannot_hold_are_not_asked(questions: Questions) -> None:
    long = "black " * 30
    questions.given = [{"instruction": f"Say {n}.", "response": f"It is {n}." if n else long} for n in range(9)]
    questions.spec = {"teacher": _teacher(questions, maxModelLen=40)}
    questions.smoke = None
    with FaultyTeacher() as teacher:
        outcome = questions.run("logits", teacher)
    (reject,) = questions.rejects(outcome)
    assert reject.reason == "TooLong" and "the teacher scores 39" in reject.detail
    assert reject.row not in teacher.rows and outcome.counts["done"] == 8


def _teacher(questions: Questions, **more: Any) -> dict[str, Any]:
    uri = f"file://{questions.models / 'teacher'}"
    return {"hosted": {"model": {"uri": uri}, "engine": "Transformers", "dtype": "float32", **more}}


def test_of_a_request_that_is_refused_only_the_row_at_fault_is_rejected(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        bad = questions.rows(questions.run("answers", teacher))[7].key
        teacher.fault = lambda asked: error(400, "odd ids") if bad in asked.keys else None
        outcome = questions.run("logits", teacher)
    assert [reject.row for reject in questions.rejects(outcome)] == [bad]
    assert outcome.counts["done"] == 11
    reader = reader_of(questions, outcome)
    assert not reader.has(bad) and len(list(reader.keys())) == 11


def test_nan_logprobs_reject_their_row_alone(questions: Questions) -> None:
    def nan(asked: Asked) -> Response | None:
        if bad.key not in asked.keys:
            return None
        score = ScoreRow(bytes.fromhex(bad.key), bad.input_ids, bad.scored)
        request = ScoreRequest((score,), ShardSpec("Exact", 8, vocab=512))
        return Response(planes_with(request, lab_lp=np.full(int(bad.scored.sum()), np.nan, np.float16)))

    with FaultyTeacher() as teacher:
        bad = questions.rows(questions.run("answers", teacher))[5]
        teacher.fault = nan
        outcome = questions.run("logits", teacher)
    (reject,) = questions.rejects(outcome)
    assert (reject.row, reject.reason) == (bad.key, "BadAnswer")


def test_several_rows_are_asked_in_one_request(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        questions.run("logits", teacher)
    assert [len(asked.keys) for asked in teacher.scores] == [ROWS_A_REQUEST] * 3


def test_a_second_run_asks_nothing(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        first = questions.run("logits", teacher)
        second = questions.run("logits", teacher)
    assert len(teacher.scores) == 3
    assert first.manifest and second.manifest and first.manifest.content_digest == second.manifest.content_digest


def test_a_grown_dataset_has_its_new_rows_scored_alone(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        questions.run("logits", teacher)
        questions.count = 22
        outcome = questions.run("logits", teacher)
    assert set(teacher.rows.values()) == {1} and len(teacher.rows) == 22
    assert outcome.counts["done"] == 22


def test_another_width_asks_again(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        questions.run("logits", teacher)
        questions.capture = {"profile": "Exact", "topK": 9}
        questions.run("logits", teacher)
    assert set(teacher.rows.values()) == {2}


def test_another_teacher_at_the_address_is_noticed(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        plan = questions.plan()
        questions.run("answers", teacher)
        teacher.fault = lambda asked: error(409, "I am another")
        with pytest.raises(SettingsError, match="I am another"):
            questions.run("logits", teacher)
    assert teacher.scores[0].body["teacher"] == plan.stage("logits").externals["teacher"].digest


@pytest.mark.parametrize("hosted", [True, False])
def test_every_request_says_which_tokenizer_made_its_ids(questions: Questions, tiny_models: Path, hosted: bool) -> None:
    with FaultyTeacher() as teacher:
        if not hosted:
            external = {"protocol": "KD", "baseURL": teacher.url, "model": "teacher"}
            questions.spec = {"teacher": {"external": external}}
        questions.run("answers", teacher)
        questions.run("logits", teacher)
    assert {asked.body["tokenizer"] for asked in teacher.scores} == {tokenizer_digest(tiny_models / "student")}


def test_a_failing_smoke_test_ends_the_stage(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        questions.run("answers", teacher)
        teacher.fault = lambda asked: error(422, "no")
        with pytest.raises(DataError, match="smoke test"):
            questions.run("logits", teacher)
    assert len(teacher.rows) == 4


def test_two_workers_make_one_artifact(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_runtime.artifacts.units import cut_units

    monkeypatch.setattr(asking, "cut_units", lambda pairs: cut_units(pairs, 2))
    questions.workers = 2
    with FaultyTeacher() as teacher:
        for index in (0, 1):
            questions.run("answers", teacher, index=index)
        first = questions.run("logits", teacher)
        second = questions.run("logits", teacher, index=1)
    assert first.manifest is None and second.manifest is not None
    assert second.counts["done"] == 12 and second.counts["shards"] == 1 + 4
    assert set(teacher.rows.values()) == {1}
