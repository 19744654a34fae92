"""Workers refuse a private address of an external teacher, and reach the job's own teacher wherever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty_teacher import FaultyTeacher
from stages.asking_runs import Questions

from kd_runtime.api.failures import SettingsError


@pytest.fixture
def questions(tmp_path: Path, tiny_models: Path) -> Questions:
    return Questions(tmp_path, tiny_models)


@pytest.mark.parametrize(("cidrs", "reached"), [("", False), ("10.0.0.0/8", False), ("127.0.0.0/8", True)])
def test_an_external_teacher_is_asked_at_a_listed_address_alone(
    questions: Questions, monkeypatch: pytest.MonkeyPatch, cidrs: str, reached: bool
) -> None:
    monkeypatch.setenv("KD_PRIVATE_CIDRS", cidrs)
    with FaultyTeacher() as teacher:
        external = {"protocol": "KD", "baseURL": teacher.url, "model": "teacher"}
        questions.spec = {"teacher": {"external": external}}
        if reached:
            questions.run("answers", teacher)
        else:
            with pytest.raises(SettingsError, match=r"teacher teacher, external\.baseURL: 127\.0\.0\.1 is at 127\.0"):
                questions.run("answers", teacher)
        assert len(teacher.chats) == (questions.count if reached else 0)


def test_the_jobs_own_teacher_is_no_users_url(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_PRIVATE_CIDRS", "")
    with FaultyTeacher() as teacher:
        questions.run("answers", teacher)
        assert len(teacher.chats) == questions.count
