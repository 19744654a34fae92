"""Generate: every prompt is answered, each pair asked once, and the answers become rows."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_teacher import Asked, FaultyTeacher, answer_to, chat_answer, error
from stages.asking_runs import Questions, question
from starlette.responses import Response

from kd_runtime.api.failures import DataError, DeniedError, SettingsError
from kd_runtime.artifacts.rows import Parent
from kd_runtime.artifacts.units import Pair, UnitStore, request_seed
from kd_runtime.stages import asking, generate
from kd_runtime.stages.generate import prompted
from kd_runtime.teachers.answers import Answer


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path) -> Questions:
    return Questions(tmp_path, tiny_models)


def test_every_prompt_has_its_answer_as_a_row(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        outcome = questions.run("answers", teacher)
    rows = questions.rows(outcome)
    asked = questions.rows(questions.run("dataset"))
    assert [row.messages for row in rows] == [row.messages for row in asked]
    assert [row.parents for row in rows] == [(Parent(row.key, 0),) for row in asked]
    for row, prompt in zip(rows, asked, strict=True):
        assert row.response == answer_to(prompt.messages[-1]["content"], request_seed(7, prompt.key, 0))
        assert row.split == prompt.split and row.source == prompt.source
        assert list(row.input_ids[: row.prompt_tokens]) == list(prompt.input_ids)
        assert not row.scored[: row.prompt_tokens].any() and row.scored[row.prompt_tokens :].any()


def test_counts_are_of_pairs(questions: Questions) -> None:
    questions.samples = 3
    with FaultyTeacher(lambda asked: error(400) if asked.question == question(5) else None) as teacher:
        counts = questions.run("answers", teacher).counts
    assert {name: counts[name] for name in ("in", "done", "rejected", "out", "truncated")} == {
        "in": 36,
        "done": 33,
        "rejected": 3,
        "out": 33,
        "truncated": 0,
    }
    assert counts["promptTokens"] == 33 * 10 and counts["completionTokens"] == 33 * 5
    assert counts["train"] + counts["heldOut"] == 33


def test_each_sample_has_a_seed_of_its_own(questions: Questions) -> None:
    questions.samples = 4
    with FaultyTeacher() as teacher:
        questions.run("answers", teacher)
    assert len(teacher.pairs) == 48 and set(teacher.pairs.values()) == {1}


def test_equal_answers_are_one_row_with_all_parents(questions: Questions) -> None:
    questions.samples = 4
    with FaultyTeacher(lambda asked: chat_answer("Four.")) as teacher:
        outcome = questions.run("answers", teacher)
    assert outcome.counts["out"] == 12 and outcome.counts["done"] == 48
    assert [[parent.sample for parent in row.parents] for row in questions.rows(outcome)] == [[0, 1, 2, 3]] * 12


def test_a_second_run_asks_nothing_and_finds_the_same_content(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        first = questions.run("answers", teacher)
        second = questions.run("answers", teacher)
    assert len(teacher.chats) == 12
    assert first.manifest and second.manifest and first.manifest.content_digest == second.manifest.content_digest


@pytest.mark.parametrize(
    "more", [{"count": 15}, {"samples": 2}, {"generate": {"keepTruncated": True}}], ids=["rows", "samples", "unasked"]
)
def test_growing_asks_the_new_pairs_alone(questions: Questions, more: dict[str, Any]) -> None:
    with FaultyTeacher() as teacher:
        questions.run("answers", teacher)
        before = set(teacher.pairs)
        for name, value in more.items():
            setattr(questions, name, value)
        outcome = questions.run("answers", teacher)
    assert set(teacher.pairs.values()) == {1}
    assert outcome.counts["in"] == len(teacher.pairs) and before <= set(teacher.pairs)


def test_what_the_students_template_leaves_out_is_asked_all_the_same(questions: Questions, tmp_path: Path) -> None:
    """Also in a later run that edits it, though the student's own tokens stay the same."""
    template = tmp_path / "no-system.jinja"
    template.write_text(
        "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    questions.dataset = {
        "template": f"file://{template}",
        "fields": {"prompt": "instruction", "system": "system"},
    }
    with FaultyTeacher(lambda asked: chat_answer("Four.")) as teacher:
        for systems in (["Answer in French.", "Answer as strict JSON."], ["Answer in French.", "Answer as YAML."]):
            questions.asked = [{"system": system, "instruction": "What is 2+2?"} for system in systems]
            rows = questions.rows(questions.run("answers", teacher))
            assert [row.messages[0]["content"] for row in rows] == systems
            assert rows[0].input_ids.tolist() == rows[1].input_ids.tolist()
    seen = [asked.body["messages"][0]["content"] for asked in teacher.chats]
    assert sorted(seen) == ["Answer as YAML.", "Answer as strict JSON.", "Answer in French."]


def test_an_answer_keeps_the_references_of_every_row_that_it_answers(questions: Questions) -> None:
    """The dataset has the prompt twice, each time with another answer of its own."""
    questions.dataset = {"fields": {"prompt": "instruction", "response": "response"}}
    questions.asked = [{"instruction": "What is 2+2?", "response": answer} for answer in ("4", "four")]
    with FaultyTeacher(lambda asked: chat_answer("Four.")) as teacher:
        (row,) = questions.rows(questions.run("answers", teacher))
    assert row.references == ["4", "four"] and len(row.parents) == 2


def test_another_sampling_asks_everything_again(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        questions.run("answers", teacher)
        questions.generate = {"sampling": {"temperature": 0.7, "maxTokens": 24, "seed": 8}}
        questions.run("answers", teacher)
    assert len(teacher.chats) == 24


def test_a_killed_worker_loses_no_committed_answer(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Death between two commits, as SIGKILL brings it: nothing is said, nothing is tidied up."""
    monkeypatch.setattr(asking, "OPEN_UNITS", 1)
    monkeypatch.setattr(asking, "cut_units", lambda pairs: _units(pairs, 3))
    commit, commits = UnitStore.commit, []

    def killed(self: UnitStore, *arguments: Any, **more: Any) -> Any:
        if len(commits) == 3:
            raise KeyboardInterrupt
        commits.append(arguments[0])
        return commit(self, *arguments, **more)

    with FaultyTeacher() as teacher:
        monkeypatch.setattr(UnitStore, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            questions.run("answers", teacher)
        monkeypatch.setattr(UnitStore, "commit", commit)
        committed = {pair for unit in commits for pair in unit}
        before = len(teacher.chats)
        outcome = questions.run("answers", teacher)
    assert len(committed) == 4 + 3 + 3
    assert len(teacher.chats) - before == 12 - len(committed)
    assert outcome.counts["done"] == 12


def test_a_failure_names_the_unit_that_it_came_in(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "OPEN_UNITS", 1)
    monkeypatch.setattr(asking, "cut_units", lambda pairs: _units(pairs, 3))
    for answered, position in ((0, "smoke unit"), (4 + 3, "unit 1")):
        refuse = [None] * answered

        def fault(asked: Asked, refuse: list[None] = refuse) -> Response | None:
            return refuse.pop() if refuse else error(401)

        with FaultyTeacher(fault) as teacher, pytest.raises(DeniedError) as failed:
            questions.run("answers", teacher)
        assert failed.value.position == position


def _units(pairs: Any, size: int) -> Any:
    from kd_runtime.artifacts.units import cut_units

    return cut_units(pairs, size)


def test_sigterm_keeps_what_was_answered(questions: Questions) -> None:
    class Ended(Exception):
        pass

    def on_sigterm(number: int, frame: object) -> None:
        raise Ended

    def end_at_the_ninth(asked: Asked) -> Response | None:
        if asked.number == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return None

    questions.spec = {"teacher": _one_at_a_time(questions)}
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        with FaultyTeacher(end_at_the_ninth) as teacher:
            with pytest.raises(Ended):
                questions.run("answers", teacher)
            teacher.fault = lambda asked: None
            asked = len(teacher.chats)
            questions.run("answers", teacher)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked < 12
    assert sum(count - 1 for count in teacher.pairs.values()) <= 1  # the one that was under way


def _one_at_a_time(questions: Questions) -> dict[str, Any]:
    hosted = {
        "model": {"uri": f"file://{questions.models / 'teacher'}"},
        "engine": "VLLM",
        "dtype": "float32",
        "maxModelLen": 256,
        "serving": {"maxNumSeqs": 1},
    }
    return {"hosted": hosted}


def test_a_failing_smoke_test_asks_no_more_and_commits_no_rejection(questions: Questions) -> None:
    with FaultyTeacher(lambda asked: error(400, "no such parameter")) as teacher:
        with pytest.raises(DataError, match=r"answered 0 of 4 rows.*Refused 4.*no such parameter"):
            questions.run("answers", teacher)
        assert len(teacher.chats) == 4
        teacher.fault = lambda asked: None
        assert questions.run("answers", teacher).counts["done"] == 12


def test_without_preflight_there_is_no_smoke_test(questions: Questions) -> None:
    questions.smoke = None
    with FaultyTeacher(lambda asked: error(400) if asked.number < 4 else None) as teacher:
        assert questions.run("answers", teacher).counts["rejected"] == 4


def test_too_many_rejected_rows_end_the_stage_with_the_commonest_reasons(questions: Questions) -> None:
    def refuse_most(asked: Asked) -> Response | None:
        return error(422, "not today") if int(asked.question.split()[2].rstrip("?")) >= 4 else None

    with FaultyTeacher(refuse_most) as teacher, pytest.raises(DataError, match=r"8 of 12 rows are rejected.*not today"):
        questions.run("answers", teacher)


def test_rejected_pairs_are_listed_with_source_and_reason(questions: Questions) -> None:
    with FaultyTeacher(lambda asked: error(400, "never") if asked.question == question(6) else None) as teacher:
        outcome = questions.run("answers", teacher)
    (reject,) = questions.rejects(outcome)
    assert (reject.reason, reject.detail, reject.source) == ("Refused", "never", "data.jsonl:7")


def test_an_answer_that_is_no_text_is_rejected_alone_also_where_it_is_committed(
    questions: Questions, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Response(
        b'{"choices": [{"message": {"content": "ok \\ud83d"}}], "usage": {}}', media_type="application/json"
    )
    with FaultyTeacher(lambda asked: half if asked.question == question(3) else None) as teacher:
        with monkeypatch.context() as before, pytest.raises(RuntimeError, match="ends here"):
            before.setattr(Answer, "not_utf8", None)
            before.setattr(generate, "assemble", _end)
            questions.run("answers", teacher)
        outcome = questions.run("answers", teacher)
        assert len(teacher.chats) == 12
    (reject,) = questions.rejects(outcome)
    assert (reject.reason, reject.source) == ("NotUTF8", "data.jsonl:4") and outcome.counts["done"] == 11
    assert reject.detail == "the answer has no text in UTF-8 at character 3"


def _end(*_: Any) -> Any:
    raise RuntimeError("ends here")


def test_a_retry_asks_the_rejected_pairs_again(questions: Questions) -> None:
    with FaultyTeacher(lambda asked: error(400) if asked.question == question(6) else None) as teacher:
        outcome = questions.run("answers", teacher)
        plan = questions.plan()
        (reject,) = questions.rejects(outcome)
        units = UnitStore(questions.store, str(plan.stage("answers").asking_key), "f" * 32)
        units.request_retry([Pair(reject.row, reject.sample)], "again")
        questions.store.delete(f"artifacts/{plan.stage('answers').key}/manifest.json")
        teacher.fault = lambda asked: None
        outcome = questions.run("answers", teacher)
    assert outcome.counts["done"] == 12 and len(teacher.chats) == 13


def test_what_was_cut_off_is_flagged_and_teaches_no_end(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        whole = questions.rows(questions.run("answers", teacher))
    questions.generate = {"sampling": {"temperature": 0.7, "maxTokens": 5, "seed": 7}}
    with FaultyTeacher(finish_reason="length") as teacher:
        outcome = questions.run("answers", teacher)
    rows = questions.rows(outcome)
    assert outcome.counts["truncated"] == 12 and all(row.truncated for row in rows)
    assert [row.finish_reason for row in whole + rows] == ["stop"] * 12 + ["length"] * 12
    for ended, cut in zip(whole, rows, strict=True):
        assert list(ended.input_ids) == list(cut.input_ids)
        assert ended.scored.sum() == cut.scored.sum() + 1  # <|im_end|> is learnt only where the teacher said it


def test_workers_share_the_units_and_the_last_one_writes(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "cut_units", lambda pairs: _units(pairs, 2))
    questions.workers = 2
    with FaultyTeacher() as teacher:
        first = questions.run("answers", teacher)
        asked = len(teacher.chats)
        second = questions.run("answers", teacher, index=1)
    assert first.manifest is None and "worker 0: its units (0, 2) of 4" in first.message
    assert asked == 4 + 4 and len(teacher.chats) == 12
    assert second.manifest is not None and second.counts["done"] == 12


def test_other_workers_wait_for_the_smoke_unit(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "cut_units", lambda pairs: _units(pairs, 2))
    monkeypatch.setattr(asking, "SMOKE_POLL_SECONDS", 0.0)
    questions.workers = 2
    covered, looks = UnitStore.covered, []

    def look(self: UnitStore) -> Any:
        looks.append(len(teacher.chats))
        if len(looks) == 3:
            monkeypatch.setattr(UnitStore, "covered", covered)
            _other_thread(lambda: questions.run("answers", teacher))
            monkeypatch.setattr(UnitStore, "covered", look)
        return covered(self)

    with FaultyTeacher() as teacher:
        questions.run("dataset")
        monkeypatch.setattr(UnitStore, "covered", look)
        outcome = questions.run("answers", teacher, index=1)
    assert looks[:3] == [0, 0, 0]
    assert outcome.manifest is not None and len(teacher.chats) == 12


def _other_thread(work: Callable[[], Any]) -> None:
    import threading

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_wrong_key_ends_at_once(questions: Questions) -> None:
    with FaultyTeacher(lambda asked: error(401)) as teacher, pytest.raises(DeniedError, match="API key"):
        questions.run("answers", teacher)


def test_a_stage_without_the_teachers_address_says_so(questions: Questions) -> None:
    with pytest.raises(SettingsError, match="KD_TEACHER_URL"):
        questions.run("answers")


def test_the_system_prompt_is_seen_by_the_teacher_alone(questions: Questions) -> None:
    questions.generate = {"systemPrompt": "Be short."}
    with FaultyTeacher() as teacher:
        rows = questions.rows(questions.run("answers", teacher))
    assert teacher.chats[0].body["messages"][0] == {"role": "system", "content": "Be short."}
    assert all(row.messages[0]["role"] == "user" for row in rows)


def test_the_system_prompt_comes_before_a_rows_own() -> None:
    row = [{"role": "system", "content": "You are a cow."}, {"role": "user", "content": "Hello"}]
    assert prompted(row, "Be short.")[0] == {"role": "system", "content": "Be short.\n\nYou are a cow."}
    assert prompted(row, None) == row


def test_reasoning_goes_before_the_answer_where_the_template_has_no_place_for_it(questions: Questions) -> None:
    with FaultyTeacher(lambda asked: chat_answer("Blue.", reasoning_content="Rayleigh.")) as teacher:
        row = questions.rows(questions.run("answers", teacher))[0]
    assert row.response == "<think>\nRayleigh.\n</think>\n\nBlue." and row.reasoning == "Rayleigh."


def test_progress_counts_rows(questions: Questions) -> None:
    with FaultyTeacher() as teacher:
        questions.run("dataset")
        plan = questions.plan()
        context = questions.context(plan, "answers", teacher)
        generate.run(context)
    said = context.reporter.said  # type: ignore[attr-defined]
    assert said[0] == (0, 12, "rows") and said[-1] == (12, 12, "rows")
