"""Which artifact plays which role: the newest earlier stage that makes it, unless the manifest says another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from manifests import job, tiny_train

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.parse import parse_job
from kd_runtime.api.wiring import Wiring, wire
from kd_runtime.planning.lookup import consumers

PRUNE = {"name": "small", "prepare": {"prune": {"keepLayers": 1, "by": "BlockInfluence"}}}
ANSWERS = {"name": "answers", "generate": {}}
LOGITS = {"name": "logits", "capture": {}}
STUDENT = {"name": "student", "train": tiny_train()}


def wired(*stages: dict[str, Any]) -> dict[str, Wiring]:
    document = job(list(stages), Path("/models"), Path("/data.jsonl"), "file:///store/")
    document["spec"]["dataset"]["fields"]["response"] = "answer"
    return wire(parse_job(document).spec.stages).wirings


def test_a_white_box_job_wires_itself() -> None:
    found = wired(PRUNE, ANSWERS, LOGITS, STUDENT, {"name": "exam", "inputs": {"model": "student"}, "evaluate": {}})
    assert found["small"] == Wiring({"rows": "dataset"}, ("model",))
    assert found["answers"].inputs == {"rows": "dataset"}
    assert found["logits"].inputs == {"rows": "answers"}
    assert found["student"].inputs == {"model": "small", "logits": "logits", "rows": "answers"}
    assert found["exam"].inputs == {
        "model": "student",
        "logits": "logits",
        "rows": "answers",
        "answers": "answers",
        "baseline": "small",
    }


def test_rows_of_the_logits_are_read_where_logits_are() -> None:
    later = {"name": "more", "generate": {"sampling": {"seed": 2}}}
    assert wired(ANSWERS, LOGITS, later, STUDENT)["student"].inputs["rows"] == "answers"


def test_sft_without_generation_reads_the_dataset_and_the_specs_model() -> None:
    found = wired({"name": "student", "train": tiny_train(method="SFT")})
    assert found["student"] == Wiring({"rows": "dataset"}, ("model",))


def test_the_baseline_of_a_model_trained_from_the_spec_is_the_specs() -> None:
    found = wired(ANSWERS, {"name": "student", "train": tiny_train(method="SFT")}, {"name": "exam", "evaluate": {}})
    assert found["exam"].from_spec == ("baseline",)


def test_publish_reads_every_examination_of_its_own_model_alone() -> None:
    found = wired(
        PRUNE,
        LOGITS_OF_GIVEN,
        STUDENT,
        {"name": "before", "inputs": {"model": "small"}, "evaluate": {}},
        {"name": "after", "inputs": {"model": "student"}, "evaluate": {}},
        {
            "name": "release",
            "inputs": {"model": "student"},
            "publish": {"targets": [{"uri": "/out/"}], "requireGates": False},
        },
    )
    assert found["release"].inputs == {"model": "student", "evaluation.after": "after"}


LOGITS_OF_GIVEN = {"name": "logits", "inputs": {"rows": "dataset"}, "capture": {}}


def test_two_models_without_a_word_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"inputs\.model.*say which one"):
        wired(PRUNE, {"name": "student", "train": tiny_train(method="SFT")}, {"name": "exam", "evaluate": {}})


def test_an_input_that_makes_something_else_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"inputs\.logits"):
        wired(ANSWERS, LOGITS, {**STUDENT, "inputs": {"logits": "answers"}})


def test_kd_without_logits_is_refused() -> None:
    with pytest.raises(SettingsError, match="no earlier stage makes logits"):
        wired(STUDENT)


def test_consumers_are_the_wirings_turned_round() -> None:
    assert consumers({"a": {}, "b": {"rows": "a"}, "c": {"rows": "a", "model": "b"}}) == {
        "a": ["b", "c"],
        "b": ["c"],
        "c": [],
    }
