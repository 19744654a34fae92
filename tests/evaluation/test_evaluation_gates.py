"""Gates: passed by their one-sided bound, judged on the metric that they name, refused where it was not measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import Gate
from kd_runtime.evaluation.gates import judge
from kd_runtime.evaluation.scores import Items, Score, Who, read_items, write_items

PROMPTS = 50


def gate(metric: str, of: str, op: str, value: float, confidence: float = 0.95) -> Gate:
    return Gate.model_validate({"metric": metric, "of": of, "op": op, "value": value, "confidence": confidence})


def constant(**means: float) -> Items:
    """Every prompt has the same means (``KL_student=0.5``), over ten positions: bounds equal values."""
    sums = {}
    for name, value in means.items():
        score, _, who = name.partition("_")
        sums[Score(score), Who(who)] = np.tile([10 * value, 10.0], (PROMPTS, 1))
    return Items(tuple(f"p{i}" for i in range(PROMPTS)), sums)


def noisy(seed: int = 0) -> Items:
    draw = np.random.default_rng(seed)
    count = np.full(PROMPTS, 20.0)
    ease = draw.normal(0, 0.2, PROMPTS)
    return Items(
        tuple(f"p{i}" for i in range(PROMPTS)),
        {
            (Score.KL, Who.Student): np.stack([(0.5 + 0.8 * ease + draw.normal(0, 0.05, PROMPTS)) * 20, count], 1),
            (Score.KL, Who.Baseline): np.stack([(1.0 + ease) * 20, count], 1),
        },
    )


@pytest.mark.parametrize(
    ("op", "value", "passed"),
    [("AtLeast", 0.5, True), ("AtLeast", 0.5001, False), ("AtMost", 0.5, True), ("AtMost", 0.4999, False)],
)
def test_a_gate_at_its_boundary_passes(op: str, value: float, passed: bool):
    items = constant(Agreement_student=0.5)
    (judged,) = judge([gate("value", "Agreement", op, value)], items)
    assert judged.outcome.passed is passed
    assert judged.outcome.value == judged.outcome.bound == 0.5


def test_the_recovered_gap_of_kl_takes_zero_for_the_teacher():
    (judged,) = judge([gate("recoveredGap", "KL", "AtLeast", 0.4)], constant(KL_student=0.6, KL_baseline=1.0))
    assert judged.outcome.value == pytest.approx(0.4)
    assert judged.outcome.bound == pytest.approx(0.4)


def test_the_recovered_gap_of_agreement_takes_one_for_the_teacher():
    (judged,) = judge(
        [gate("recoveredGap", "Agreement", "AtLeast", 0.1)], constant(Agreement_student=0.7, Agreement_baseline=0.6)
    )
    assert judged.outcome.value == pytest.approx(0.25)


def test_the_recovered_gap_of_perplexity_takes_the_teachers_own():
    items = constant(CrossEntropy_student=1.0, CrossEntropy_baseline=2.0, CrossEntropy_teacher=0.5)
    (judged,) = judge([gate("recoveredGap", "Perplexity", "AtLeast", 0.1)], items)
    expected = (np.exp(2) - np.exp(1)) / (np.exp(2) - np.exp(0.5))
    assert judged.outcome.value == pytest.approx(expected)


@pytest.mark.parametrize("op", ["AtLeast", "AtMost"])
@pytest.mark.parametrize(
    ("of", "baseline", "student", "teacher"),
    [
        ("Ended", 1.0, 0.6, 1.0),
        ("Ended", 0.0, 0.4, 0.0),
        ("Ended", 0.5, 0.2, 0.45),
        ("CrossEntropy", 1.0, 2.0, 1.2),
        ("AnswerTokens", 9.0, 12.0, 9.0),
    ],
)
def test_a_gate_on_a_gap_that_is_not_there_is_unmet_and_says_so(
    of: str, baseline: float, student: float, teacher: float, op: str
):
    items = constant(**{f"{of}_baseline": baseline, f"{of}_student": student, f"{of}_teacher": teacher})
    (judged,) = judge([gate("recoveredGap", of, op, 0.5)], items)
    assert (judged.outcome.value, judged.outcome.bound, judged.outcome.passed) == (None, None, False)
    assert judged.sentence().endswith(
        "is asked; it has no gap to recover: the untrained model is at the teacher's value or beyond it"
    )


def test_the_gap_of_a_score_without_a_better_side_is_the_way_to_the_teacher():
    items = constant(AnswerTokens_baseline=9.0, AnswerTokens_student=12.0, AnswerTokens_teacher=13.0)
    (judged,) = judge([gate("recoveredGap", "AnswerTokens", "AtLeast", 0.75)], items)
    assert judged.outcome.bound == judged.outcome.value == 0.75
    assert judged.outcome.passed


def ended(baseline: int, student: int, teacher: int) -> Items:
    """So many of 50 answers end, those of the teacher and the student first, the baseline's last."""
    number = np.arange(PROMPTS)
    each = {Who.Baseline: number >= PROMPTS - baseline, Who.Student: number < student, Who.Teacher: number < teacher}
    one = np.ones(PROMPTS)
    return Items(
        tuple(f"p{i}" for i in number), {(Score.Ended, who): np.stack([has * one, one], 1) for who, has in each.items()}
    )


@pytest.mark.parametrize("op", ["AtLeast", "AtMost"])
def test_a_gap_that_may_not_be_there_gives_a_gate_no_bound(op: str):
    """The teacher ends 26 of 50 answers and the baseline 24: other prompts may well have turned that round."""
    (judged,) = judge([gate("recoveredGap", "Ended", op, 0.5)], ended(24, 25, 26))
    assert judged.outcome.value == pytest.approx(0.5)
    assert judged.outcome.bound is None
    assert not judged.outcome.passed
    assert "it is 0.5, without a" in judged.sentence()
    assert "hold more prompts out" in judged.sentence()


def test_a_gap_that_is_surely_there_has_a_bound():
    (judged,) = judge([gate("recoveredGap", "Ended", "AtLeast", 0.5)], ended(10, 35, 40))
    assert judged.outcome.bound is not None
    assert 0.5 < judged.outcome.bound < judged.outcome.value
    assert judged.outcome.passed


def test_the_change_is_the_students_value_less_the_baselines():
    (judged,) = judge([gate("change", "KL", "AtMost", -0.39)], constant(KL_student=0.6, KL_baseline=1.0))
    assert judged.outcome.value == pytest.approx(-0.4)
    assert judged.outcome.passed


def test_more_confidence_asks_for_a_bound_further_from_the_value():
    judged = judge([gate("recoveredGap", "KL", "AtLeast", 0.4, c) for c in (0.5, 0.9, 0.99)], noisy())
    bounds = [j.outcome.bound for j in judged]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[2] < judged[0].outcome.value


def test_a_value_above_the_gate_with_a_bound_below_it_is_unmet():
    items = noisy()
    value = judge([gate("recoveredGap", "KL", "AtLeast", 0.0)], items)[0].outcome.value
    (judged,) = judge([gate("recoveredGap", "KL", "AtLeast", value - 0.001)], items)
    assert judged.outcome.value > judged.gate.value > judged.outcome.bound
    assert not judged.outcome.passed


def test_student_and_baseline_are_drawn_together():
    """Prompts that are hard for one model are hard for the other: the change is surer than either value."""
    items = noisy()
    at_least = [gate("value", "KL", "AtLeast", 0.0), gate("change", "KL", "AtLeast", -9.0)]
    value, change = judge(at_least, items)
    assert change.outcome.value - change.outcome.bound < value.outcome.value - value.outcome.bound


def test_the_sentence_names_metric_value_and_bound():
    (judged,) = judge([gate("recoveredGap", "KL", "AtLeast", 0.5)], constant(KL_student=0.6, KL_baseline=1.0))
    assert judged.sentence() == (
        "recoveredGap of KL: at least 0.5 with 95 % confidence is asked; it is 0.4, its lower bound 0.4"
    )


@pytest.mark.parametrize(
    ("asked", "items", "message"),
    [
        (gate("value", "KL", "AtMost", 1), constant(Agreement_student=0.5), "KL of the student was not measured"),
        (gate("recoveredGap", "KL", "AtLeast", 0.5), constant(KL_student=0.5), "KL of the baseline was not measured"),
        (
            gate("recoveredGap", "Perplexity", "AtLeast", 0.5),
            constant(CrossEntropy_student=1, CrossEntropy_baseline=2),
            "Perplexity of the teacher was not measured",
        ),
    ],
)
def test_a_gate_on_what_was_not_measured_is_refused_by_name(asked: Gate, items: Items, message: str):
    with pytest.raises(SettingsError, match=message):
        judge([asked], items)


def test_stored_values_give_the_same_outcomes(tmp_path: Path):
    items = noisy()
    write_items(items, tmp_path / "items.jsonl")
    again = read_items((tmp_path / "items.jsonl").read_text().splitlines())
    asked = [gate("recoveredGap", "KL", "AtLeast", 0.4), gate("value", "KL", "AtMost", 0.6)]
    assert [j.outcome for j in judge(asked, again)] == [j.outcome for j in judge(asked, items)]
    assert again.prompts == items.prompts
