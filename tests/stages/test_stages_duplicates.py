"""A row that a dataset holds several times is asked once, and trained on as often as it is there (contract 3)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from faulty_teacher import FaultyTeacher, chat_answer
from stages.asking_runs import Questions

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.rows import rows_of
from kd_runtime.training.selection import RowFacts, select

ASKED = ["red"] * 3 + ["blue"] + ["green"] * 2 + [f"shade {number}" for number in range(6)]
TIMES = Counter(ASKED)


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Questions:
    monkeypatch.setattr("stages.asking_runs.question", lambda number: ASKED[number])
    return Questions(tmp_path, tiny_models, count=len(ASKED))


def copies(questions: Questions, stage: str = "answers") -> Counter[str]:
    """How often an epoch shows the answer to each question, both splits together."""
    plan = questions.plan()
    manifest = questions.context(plan, "logits", None).input("rows")
    reader = rows_of(Cache(questions.folder / "cache"), questions.store, manifest)
    facts = RowFacts.read(reader.column)
    times: Counter[str] = Counter()
    for side in ("train", "heldOut"):
        chosen = select(
            RowFacts(**{**vars(facts), "splits": ["train" if s == side else "" for s in facts.splits]}),
            max_length=256, keep_truncated=True, has_logits=None,
        )  # fmt: skip
        for row, count in zip(reader, chosen.copies, strict=True):
            times[row.messages[-1]["content"]] += int(count)
    return times


def test_equal_prompts_are_asked_once_and_trained_on_as_often_as_the_dataset_has_them(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        counts = questions.run("answers", teacher).counts
    assert Counter(asked.question for asked in teacher.chats) == Counter(set(ASKED))
    assert (counts["in"], counts["done"], counts["out"]) == (9, 9, 9)  # of pairs: questions to the teacher
    assert copies(questions) == TIMES


def test_so_is_every_sample(questions: Questions) -> None:
    questions.samples = 2
    with FaultyTeacher() as teacher:
        questions.run("answers", teacher)
    assert set(teacher.pairs.values()) == {1} and len(teacher.chats) == 18
    assert copies(questions) == Counter({text: 2 * times for text, times in TIMES.items()})


def test_equal_answers_to_equal_prompts_count_all_their_parents(questions: Questions) -> None:
    questions.samples = 2
    with FaultyTeacher(lambda asked: chat_answer("The same.")) as teacher:
        counts = questions.run("answers", teacher).counts
    assert counts["out"] == 9 and counts["done"] == 18
    assert copies(questions) == Counter({text: 2 * times for text, times in TIMES.items()})


def test_equal_rows_with_answers_are_scored_once(questions: Questions) -> None:
    questions.given = [{"instruction": text, "response": f"It is {text}."} for text in ASKED]
    with FaultyTeacher() as teacher:
        counts = questions.run("logits", teacher).counts
    assert counts["in"] == 9 and set(teacher.rows.values()) == {1} and len(teacher.rows) == 9
    assert copies(questions) == TIMES
