"""From rows and what models made of them to per-prompt values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kd_runtime.artifacts.rows import Parent, Row
from kd_runtime.evaluation.answering import exact_match, measured
from kd_runtime.evaluation.examination import answer_lines, collect, items_of, positions_of
from kd_runtime.evaluation.heldout import RowScores
from kd_runtime.evaluation.scores import Score, Who, score_bootstrap
from kd_runtime.logits.targets import RowTargets


def row(
    key: str, question: str, response: str | None, *, split: str = "heldOut", samples: tuple[int, ...] = (0,), **more
) -> Row:
    """Five tokens of prompt and three of answer, all of these scored."""
    return Row(
        key=key * 32,
        split=split,
        messages=[{"role": "user", "content": question}],
        response=response,
        reasoning=None,
        references=more.pop("references", None),
        input_ids=np.arange(8, dtype=np.uint32),
        scored=np.arange(8) >= 5,
        prompt_tokens=5,
        parents=tuple(Parent(f"{question}", s) for s in samples),
        source="data.jsonl:1",
        **more,
    )


def scores(ce: float, kl: float | None = None, agree: float = 1.0) -> RowScores:
    full = lambda v: np.full(3, v, np.float32)  # noqa: E731
    return RowScores(full(ce)) if kl is None else RowScores(full(ce), full(kl), full(agree), full(0.9))


def targets(lab_lp: float = -0.5) -> RowTargets:
    three = np.full(3, lab_lp, np.float32)
    return RowTargets(
        key=b"",
        input_ids=np.arange(8, dtype=np.uint32),
        positions=np.arange(5, 8),
        top_ids=np.zeros((3, 1), np.int32),
        top_lp=np.full((3, 1), np.log(0.8), np.float32),
        tail_lp=np.full(3, np.log(0.2), np.float32),
        lab_lp=three,
        lab_rank=np.ones(3, np.uint16),
    )


def test_only_held_out_rows_are_kept_and_samples_of_a_prompt_are_one_unit():
    rows = [
        row("a", "x", "one"),
        row("b", "x", "two", samples=(1,)),
        row("c", "y", "three"),
        row("d", "z", "four", split="train"),
    ]
    held_out = collect(rows, generated=True)
    assert [r.key[0] for r in held_out.rows] == ["a", "b", "c"]
    assert held_out.prompt_of == (0, 0, 1)
    assert [p.first.key[0] for p in held_out.prompts] == ["a", "c"]
    assert held_out.scored == 9


def test_the_teachers_answer_is_sample_zero():
    held_out = collect([row("b", "x", "second", samples=(1,)), row("a", "x", "first", samples=(0, 3))], generated=True)
    teacher = held_out.prompts[0].teacher
    assert teacher is not None
    assert teacher.response == "first"


def test_a_prompt_whose_sample_zero_was_rejected_has_no_teachers_answer():
    assert collect([row("b", "x", "second", samples=(1,))], generated=True).prompts[0].teacher is None


def test_given_responses_are_references_and_no_teachers_answers():
    prompt = collect([row("a", "x", "given")], generated=False).prompts[0]
    assert prompt.references == ("given",)
    assert prompt.teacher is None


def test_generated_responses_are_no_references_but_the_datasets_own_are():
    assert collect([row("a", "x", "said")], generated=True).prompts[0].references == ()
    assert collect([row("a", "x", "said", references=["true"])], generated=True).prompts[0].references == ("true",)


def test_rows_count_as_often_as_they_have_parents():
    held_out = collect([row("a", "x", "one", samples=(0, 1, 2)), row("b", "y", "two")], generated=True)
    positions = positions_of(held_out, {Who.Student: [scores(1.0, kl=0.0), scores(1.0, kl=4.0)]}, lambda r: targets())
    items = items_of(held_out, positions, {})
    assert items.sums[Score.KL, Who.Student].tolist() == [[0.0, 9.0], [12.0, 3.0]]
    assert score_bootstrap(items, Score.KL, Who.Student).value == pytest.approx(1.0)


def test_rows_without_logits_count_for_likelihood_alone():
    held_out = collect([row("a", "x", "one"), row("b", "y", "two")], generated=True)
    lookup = lambda r: targets() if r.key[0] == "a" else None  # noqa: E731
    positions = positions_of(held_out, {Who.Student: [scores(1.0, kl=0.3), scores(2.0)]}, lookup)
    items = items_of(held_out, positions, {})
    assert items.count(Score.KL, Who.Student) == 3
    assert items.count(Score.CrossEntropy, Who.Student) == 6
    assert items.count(Score.CrossEntropy, Who.Teacher) == 3


def test_the_teachers_perplexity_and_head_mass_come_from_its_logits():
    held_out = collect([row("a", "x", "one")], generated=True)
    positions = positions_of(held_out, {Who.Student: [scores(1.0, kl=0.3)]}, lambda r: targets(-0.5))
    items = items_of(held_out, positions, {})
    assert score_bootstrap(items, Score.Perplexity, Who.Teacher).value == pytest.approx(np.exp(0.5))
    assert score_bootstrap(items, Score.HeadMass, Who.Teacher).value == pytest.approx(0.8)


def test_without_logits_nothing_is_said_of_the_teacher():
    held_out = collect([row("a", "x", "one")], generated=True)
    items = items_of(held_out, positions_of(held_out, {Who.Student: [scores(1.0)]}, lambda r: None), {})
    assert set(items.sums) == {(Score.CrossEntropy, Who.Student)}


def test_answers_give_ends_repeats_lengths_and_matches():
    held_out = collect([row("a", "x", "said", references=["Paris"]), row("b", "y", "said")], generated=True)
    positions = positions_of(held_out, {Who.Student: [scores(1.0), scores(1.0)]}, lambda r: None)
    said = [measured(" Paris \n", [1, 2], True), measured("no no no", [5, 5, 5], False)]
    items = items_of(held_out, positions, {Who.Student: said, Who.Teacher: [said[0], None]})
    assert items.sums[Score.Ended, Who.Student].tolist() == [[1, 1], [0, 1]]
    assert items.sums[Score.LongestRepeat, Who.Student].tolist() == [[0, 1], [3, 1]]
    assert items.sums[Score.ExactMatch, Who.Student].tolist() == [[1, 1], [0, 0]]
    assert items.sums[Score.Ended, Who.Teacher].tolist() == [[1, 1], [0, 0]]


def test_lines_of_answers_have_all_three_side_by_side():
    held_out = collect([row("a", "x", "said")], generated=True)
    line = json.loads(answer_lines(held_out, {Who.Student: [measured("well", [1], True)]}))
    assert line["messages"] == [{"role": "user", "content": "x"}]
    assert line["student"]["text"] == "well"
    assert line["student"]["exactMatch"] is None
    assert line["teacher"] is None
    assert line["baseline"] is None


@pytest.mark.parametrize(
    ("text", "references", "matches"),
    [("a  b\n", ["a b"], True), ("A b", ["a b"], False), ("café", ["café"], True), ("x", ["y", "x"], True)],
)
def test_exact_match_overlooks_white_space_alone(text: str, references: list[str], matches: bool):
    assert exact_match(text, references) is matches


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("<think>\n2 + 2 = 4\n</think>\n\n4", True),
        ("2 + 2 = 4\n</think>\n\n4", True),
        ("<think>\n4\n</think>\n\n5", False),
        ("<think>\n4", False),
    ],
)
def test_an_answer_is_compared_without_its_reasoning_as_references_are(text: str, matches: bool):
    assert exact_match(text, ["4"]) is matches
