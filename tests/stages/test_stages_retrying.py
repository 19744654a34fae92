"""`kd rejects retry`: what a teacher refused is asked once more, and nothing else (contract 4)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from faulty_teacher import Asked, FaultyTeacher, chat_answer, error
from stages.asking_runs import Questions, question
from starlette.responses import Response

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import delete_artifact, read_manifest
from kd_runtime.planning.lookup import look_up
from kd_runtime.stages.retrying import Retry, retry, stage_rejects

REFUSED = {question(5), question(6)}


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path) -> Questions:
    return Questions(tmp_path, tiny_models)


def refusing(asked: Asked) -> Response | None:
    return error(400, "not today") if asked.question in REFUSED else None


def ask_again(questions: Questions, stage: str = "answers") -> Retry:
    return retry(questions.plan(), questions.store, Cache(questions.folder / "cache"), stage)


def rejects(questions: Questions, stage: str = "answers") -> list[str]:
    return [
        r.reason for r in stage_rejects(questions.plan(), questions.store, Cache(questions.folder / "cache"), stage)
    ]


def test_the_rejected_pairs_are_asked_again_and_no_other(questions: Questions) -> None:
    questions.samples = 2
    with FaultyTeacher(refusing) as teacher:
        first = questions.run("answers", teacher)
        assert rejects(questions) == ["Refused"] * 4
        assert ask_again(questions) == Retry(asked=4, others=0)
        assert read_manifest(questions.store, questions.plan().stage("answers").key) is None
        teacher.fault = lambda asked: None
        before = len(teacher.chats)
        second = questions.run("answers", teacher)
    assert Counter(asked.question for asked in teacher.chats[before:]) == dict.fromkeys(REFUSED, 2)
    assert [(o.counts["done"], o.counts["rejected"]) for o in (first, second)] == [(20, 4), (24, 0)]
    assert rejects(questions) == []
    assert ask_again(questions) == Retry(asked=0, others=0)
    assert second.manifest == read_manifest(questions.store, questions.plan().stage("answers").key)  # left where it is


def test_the_stage_runs_again_though_its_reader_is_found_and_the_reader_is_stale_then(questions: Questions) -> None:
    def states() -> list[str]:
        found = look_up(questions.plan(), questions.store)
        return [found[name].state.value for name in ("dataset", "answers", "logits")]

    with FaultyTeacher(refusing) as teacher:
        questions.run("logits", teacher)
        assert states() == ["Found", "Found", "Found"]
        ask_again(questions)
        assert states() == ["Found", "ToDo", "Found"]
        teacher.fault = lambda asked: None
        questions.run("answers", teacher)
        assert states() == ["Found", "Found", "Stale"]
        delete_artifact(questions.store, questions.plan().stage("answers").key)
        assert states() == ["Found", "NotNeeded", "Found"]  # the retry is answered: nothing is open


def test_what_is_refused_again_is_rejected_again(questions: Questions) -> None:
    with FaultyTeacher(refusing) as teacher:
        questions.run("answers", teacher)
        for _ in range(2):
            ask_again(questions)
            assert questions.run("answers", teacher).counts["rejected"] == 2
    assert len(teacher.chats) == 12 + 2 + 2


def test_a_retry_that_is_typed_twice_asks_once(questions: Questions) -> None:
    with FaultyTeacher(refusing) as teacher:
        questions.run("answers", teacher)
        ask_again(questions)
        assert rejects(questions) == []  # they are open now
        assert ask_again(questions) == Retry(asked=0, others=0)
        teacher.fault = lambda asked: None
        assert questions.run("answers", teacher).counts["done"] == 12
    assert len(teacher.chats) == 14


def test_a_retry_that_was_killed_before_it_moved_the_manifest_is_gone_on_with(
    questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyTeacher(refusing) as teacher:
        questions.run("answers", teacher)
        with monkeypatch.context() as patch:
            patch.setattr("kd_runtime.stages.retrying.retire", lambda store, key: None)
            ask_again(questions)
        assert ask_again(questions) == Retry(asked=2, others=0)
        questions.run("answers", teacher)
    assert len(teacher.chats) == 14


def test_a_stage_that_failed_for_its_rejected_pairs_goes_on_after_a_retry(questions: Questions) -> None:
    with FaultyTeacher(lambda asked: error(400) if asked.number >= 4 else None) as teacher:
        for _ in range(2):
            with pytest.raises(DataError, match="8 of 12 rows are rejected"):
                questions.run("answers", teacher)
        assert len(teacher.chats) == 12 and rejects(questions) == ["Refused"] * 8
        teacher.fault = lambda asked: None
        assert ask_again(questions) == Retry(asked=8, others=0)
        assert questions.run("answers", teacher).counts["done"] == 12


def test_scores_are_retried_too(questions: Questions) -> None:
    questions.given = [{"instruction": question(n), "response": f"{n}."} for n in range(12)]

    def refuse(asked: Asked) -> Response | None:
        return (
            error(400, "odd")
            if (int(asked.keys[0][:2], 16) < 128 and len(asked.keys) == 1) or len(asked.keys) > 1
            else None
        )

    with FaultyTeacher(refuse) as teacher:
        questions.smoke = None
        questions.spec = {"dataset": {**questions_dataset(questions), "maxRejectedRatio": 0.99}}
        first = questions.run("logits", teacher)
        refused = {reject.row for reject in questions.rejects(first)}
        assert refused and ask_again(questions, "logits").asked == len(refused)
        teacher.fault = lambda asked: None
        before = sum(len(asked.keys) for asked in teacher.scores)
        second = questions.run("logits", teacher)
    asked_again = [key for asked in teacher.scores for key in asked.keys][before:]
    assert sorted(asked_again) == sorted(refused) and second.counts["done"] == 12


def questions_dataset(questions: Questions) -> dict[str, object]:
    return {
        "uri": f"file://{questions.folder / 'data.jsonl'}",
        "format": "JSONL",
        "fields": {"prompt": "instruction", "response": "response"},
        "holdout": {"fraction": 0.2},
        "maxTokens": 128,
    }


def test_an_answer_that_cannot_be_a_row_is_not_asked_again(questions: Questions) -> None:
    def reasoning(asked: Asked) -> Response | None:
        return chat_answer("<think>hm</think>") if asked.question == question(3) else None

    questions.spec = {
        "dataset": {**questions_dataset(questions), "fields": {"prompt": "instruction"}, "reasoning": "Strip"}
    }
    with FaultyTeacher(reasoning) as teacher:
        questions.run("answers", teacher)
    manifest = read_manifest(questions.store, questions.plan().stage("answers").key)
    assert rejects(questions) == ["Empty"]
    assert ask_again(questions) == Retry(asked=0, others=1)
    assert manifest and read_manifest(questions.store, questions.plan().stage("answers").key) == manifest


@pytest.mark.parametrize("stage", ["dataset", "nonsense"])
def test_a_stage_that_asks_no_teacher_is_refused(questions: Questions, stage: str) -> None:
    with pytest.raises(SettingsError, match=f"--stage {stage}: is no stage that asks a teacher; .* answers, logits"):
        ask_again(questions, stage)
