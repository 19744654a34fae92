"""Scores of held-out rows on a tiny model, against plain float64 arithmetic over whole distributions; greedy answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd_runtime.api.failures import SettingsError
from kd_runtime.artifacts.rows import Row
from kd_runtime.logits.targets import RowTargets, normalise

pytestmark = pytest.mark.runtime
torch = pytest.importorskip("torch")

VOCABULARY, K = 512, 8


def load(folder: Path) -> Any:
    from kd_runtime.models.loading import load_causal_lm

    return load_causal_lm(folder, torch.float32)


@pytest.fixture(scope="module")
def teacher(tiny_models: Path) -> Any:
    return load(tiny_models / "teacher")


@pytest.fixture(scope="module")
def student(tiny_models: Path) -> Any:
    return load(tiny_models / "student")


def made_rows(lengths: tuple[int, ...] = (9, 30, 4, 17)) -> list[Row]:
    draw = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(lengths):
        ids = draw.integers(4, 400, length).astype(np.uint32)
        scored = np.arange(length) >= length // 2
        rows.append(
            Row(
                f"{number:032x}",
                "heldOut",
                [{"role": "user", "content": str(number)}],
                "x",
                None,
                None,
                ids,
                scored,
                length // 2,
            )
        )
    return rows


def whole(model: Any, row: Row) -> np.ndarray:
    """log p [P, V] at the scored positions, float64, one row at a time."""
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0].double()
    positions = np.flatnonzero(row.scored)
    return torch.log_softmax(logits[positions - 1, :VOCABULARY], -1).numpy()


def targets_of(model: Any, row: Row) -> RowTargets:
    lp = whole(model, row)
    positions = np.flatnonzero(row.scored)
    ids = np.argsort(-lp, axis=1)[:, :K]
    head = np.take_along_axis(lp, ids, 1)
    top, tail = normalise(head, np.log(1 - np.exp(head).sum(1)))
    labels = row.input_ids[positions].astype(np.int64)
    label_lp = np.take_along_axis(lp, labels[:, None], 1)[:, 0].astype(np.float32)
    rank = np.ones(len(positions), np.uint16)
    return RowTargets(b"", row.input_ids, positions, ids.astype(np.int32), top, tail, label_lp, rank)


def examined(model: Any, rows: list[Row], lookup: Any) -> list[Any]:
    from kd_runtime.evaluation.heldout import Examiner

    return Examiner(model, VOCABULARY).score(rows, lookup, lambda tokens: None)


def test_divergence_likelihood_and_agreement_are_those_of_whole_distributions(teacher: Any, student: Any):
    rows = made_rows()
    for row, got in zip(rows, examined(student, rows, lambda r: targets_of(teacher, r)), strict=True):
        p, q = whole(teacher, row), whole(student, row)
        ids = np.argsort(-p, axis=1)[:, :K]
        head_p, head_q = (np.exp(np.take_along_axis(x, ids, 1)) for x in (p, q))
        tail_p, tail_q = 1 - head_p.sum(1), 1 - head_q.sum(1)
        kl = (head_p * np.log(head_p / head_q)).sum(1) + tail_p * np.log(tail_p / tail_q)
        labels = row.input_ids[np.flatnonzero(row.scored)].astype(np.int64)
        np.testing.assert_allclose(got.kl, kl, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(got.ce, -np.take_along_axis(q, labels[:, None], 1)[:, 0], rtol=1e-4)
        np.testing.assert_allclose(got.head_mass, head_q.sum(1), rtol=1e-4)
        np.testing.assert_array_equal(got.agree, p.argmax(1) == q.argmax(1))


def test_a_model_has_no_divergence_from_itself(teacher: Any):
    rows = made_rows()
    for got in examined(teacher, rows, lambda r: targets_of(teacher, r)):
        assert np.abs(got.kl).max() < 1e-6
        assert got.agree.all()


def test_a_rows_scores_do_not_depend_on_its_neighbours(teacher: Any, student: Any):
    rows = made_rows()
    together = examined(student, rows, lambda r: targets_of(teacher, r))
    for row, got in zip(rows, together, strict=True):
        (alone,) = examined(student, [row], lambda r: targets_of(teacher, r))
        np.testing.assert_allclose(alone.kl, got.kl, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(alone.ce, got.ce, rtol=1e-5)


def test_rows_without_logits_have_likelihood_alone(student: Any):
    (got,) = examined(student, made_rows((12,)), lambda r: None)
    assert got.kl is None
    assert got.ce.shape == (6,)


def test_rows_without_scored_tokens_have_no_values(student: Any):
    (row,) = made_rows((5,))
    from dataclasses import replace

    (got,) = examined(student, [replace(row, scored=np.zeros(5, bool))], lambda r: None)
    assert got.ce.shape == (0,)


def test_a_vocabulary_beyond_the_output_head_is_refused(student: Any):
    from kd_runtime.evaluation.heldout import Examiner

    with pytest.raises(SettingsError, match="output head has"):
        Examiner(student, 100_000)


def test_a_model_whose_logits_are_not_those_that_are_scored_is_refused(student: Any, monkeypatch: pytest.MonkeyPatch):
    from kd_runtime.evaluation.heldout import Examiner

    monkeypatch.setattr(student.config, "logit_scale", 2.0, raising=False)
    with pytest.raises(SettingsError, match=r"^model: the logits of \w+ForCausalLM .*scale 2"):
        Examiner(student, VOCABULARY)


def test_batches_hold_similar_lengths_within_the_limit():
    from kd_runtime.evaluation.heldout import batches

    lengths = [3, 10, 4, 9, 50, 1]
    made = list(batches(lengths, 20))
    assert made == [[4], [1, 3], [2, 0, 5]]
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 20 for b in made)


def answers(folder: Path, questions: list[str], max_tokens: int = 24) -> list[Any]:
    from kd_runtime.evaluation.answering import Answerer
    from kd_runtime.models.loading import load_tokenizer
    from kd_runtime.models.templates import Template

    template = Template(folder)
    prompts = [template.prompt([{"role": "user", "content": q}]).ids for q in questions]
    ticks: list[int] = []
    said = Answerer(load(folder), load_tokenizer(folder)).answer(prompts, max_tokens, ticks.append)
    assert ticks
    return said


def test_answers_are_greedy_and_do_not_depend_on_the_batch(tiny_models: Path):
    questions = ["What colour is the sky?", "Name a fruit.", "Is the sun near or far?"]
    together = answers(tiny_models / "teacher", questions)
    assert [answers(tiny_models / "teacher", [q])[0] for q in questions] == together
    assert together[0].text == "The sky is blue."
    assert all(a.ended for a in together)


def test_a_models_own_sampling_defaults_have_no_say(tiny_models: Path, tmp_path: Path):
    import json
    import shutil

    folder = tmp_path / "teacher"
    shutil.copytree(tiny_models / "teacher", folder)
    config = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "min_new_tokens": 20, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(config))
    assert answers(folder, ["Name a fruit."]) == answers(tiny_models / "teacher", ["Name a fruit."])


def test_an_answer_that_is_cut_off_did_not_end(tiny_models: Path):
    (answer,) = answers(tiny_models / "teacher", ["What colour is the sky?"], max_tokens=2)
    assert not answer.ended
    assert answer.tokens == 2
