"""Errors name field, value and remedy, and come all at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.failures import ExitClass, SettingsError
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.lint import lint
from kd_runtime.api.parse import load_documents, parse_job, parse_runtime
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.api.structural import schema_of

EVERYTHING = Path(__file__).parent / "corpus" / "good" / "everything.yaml"


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(load_documents(EVERYTHING)[0])


def sentences(document: dict[str, Any]) -> list[str]:
    with pytest.raises(ManifestErrors) as caught:
        parse_job(document)
    return [str(error) for error in caught.value.errors]


def test_an_error_is_one_sentence_of_field_value_problem_and_remedy(document: dict[str, Any]) -> None:
    document["spec"]["stages"][2]["capture"]["topK"] = 300
    assert sentences(document) == ["spec.stages[2].capture.topK: 300 exceeds 256; choose topK from 1 to 256"]


def test_all_errors_come_at_once(document: dict[str, Any]) -> None:
    document["metadata"]["name"] = "Upper"
    document["spec"]["dataset"]["format"] = "jsonl"
    document["spec"]["stages"][1]["generate"]["sampling"]["temprature"] = 1
    document["spec"]["stages"][3]["train"]["epochs"] = 0
    document["spec"]["stages"][4]["evaluate"]["gates"][0]["op"] = "Above"
    del document["spec"]["student"]
    assert {sentence.partition(":")[0] for sentence in sentences(document)} == {
        "metadata.name",
        "spec.student",
        "spec.dataset.format",
        "spec.stages[1].generate.sampling.temprature",
        "spec.stages[3].train.epochs",
        "spec.stages[4].evaluate.gates[0].op",
    }


def test_rules_and_python_checks_come_with_the_others(document: dict[str, Any]) -> None:
    document["spec"]["scheduling"]["queueName"] = "team"
    document["spec"]["stages"][3]["train"]["microBatchSize"] = 128
    document["spec"]["stages"][4]["workers"] = 3
    paths = {sentence.partition(":")[0] for sentence in sentences(document)}
    assert paths == {
        "spec.scheduling.queueName",
        "spec.stages[3].train.microBatchSize",
        "spec.stages[4].workers",
    }


def test_a_rule_says_nothing_of_an_object_whose_fields_are_misspelled(document: dict[str, Any]) -> None:
    teacher = document["spec"]["teacher"]
    teacher["hostd"] = teacher.pop("hosted")
    assert [error.partition(": ")[2] for error in sentences(document)] == ["is no field; did you mean hosted?"]


def test_errors_are_settings_errors_that_name_their_source(document: dict[str, Any]) -> None:
    document["spec"]["suspend"] = "no"
    with pytest.raises(SettingsError, match=r"^job.yaml: spec.suspend: no is a string, not true or false; ") as caught:
        parse_job(document, source="job.yaml")
    assert caught.value.exit_class is ExitClass.BadSettings


@pytest.mark.parametrize(
    ("document", "paths"),
    [
        ({}, {"apiVersion", "kind", "metadata", "spec"}),
        (
            {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": [], "spec": 3},
            {"metadata", "spec"},
        ),
    ],
    ids=["empty", "of other shapes"],
)
def test_a_document_of_any_shape_gives_errors_not_a_traceback(document: dict[str, Any], paths: set[str]) -> None:
    assert {sentence.partition(":")[0] for sentence in sentences(document)} == paths


def test_a_long_value_is_shortened_and_an_object_is_not_shown() -> None:
    assert str(FieldError("a", "x" * 500, "is long", "shorten it")) == f"a: {'x' * 59}… is long; shorten it"
    assert str(FieldError("a", {"b": 1}, "is a map", "write a number")) == "a: is a map; write a number"


def test_a_runtimes_errors_come_all_at_once() -> None:
    runtime = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "ClusterDistillationRuntime",
        "metadata": {"name": "team"},
        "spec": {"gpuResource": "x", "defaults": {"stages": {"train": {"epochs": 0}}}},
    }
    with pytest.raises(ManifestErrors) as caught:
        parse_runtime(runtime)
    assert [error.path for error in caught.value.errors] == ["spec.gpuResource", "spec.defaults.stages.train.epochs"]


def test_a_default_of_the_runtime_that_breaks_a_rule_is_said_of_the_job(document: dict[str, Any]) -> None:
    """The API server cannot see it; `kd lint` can."""
    runtime = parse_runtime(
        {
            "apiVersion": "kubedistill.io/v1alpha1",
            "kind": "ClusterDistillationRuntime",
            "metadata": {"name": "team"},
            "spec": {"defaults": {"stages": {"train": {"deepspeed": {"zeroStage": 1}}}}},
        }
    )
    document["spec"]["stages"][3]["train"]["deepspeed"] = {"offloadParameters": "CPU"}
    with pytest.raises(ManifestErrors) as caught:
        parse_job(document, runtime)
    assert "spec.stages[3].train.deepspeed.offloadParameters" in {error.path for error in caught.value.errors}


def test_lint_of_a_missing_or_empty_file_says_so(tmp_path: Path) -> None:
    assert "cannot be read" in str(lint(tmp_path / "absent.yaml").errors[0])
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert "holds no document" in str(lint(empty).errors[0])


def test_lint_takes_the_runtime_beside_the_job(tmp_path: Path) -> None:
    text = EVERYTHING.read_text().replace("replicas: 4", "replicas: 1")
    path = tmp_path / "job.yaml"
    path.write_text(text)
    (error,) = lint(path).errors
    assert str(error) == ("spec.teacher.hosted.replicas: 2 exceeds 1, the limit of the runtime team; ask for less")


def test_lint_warns_where_it_cannot_know_the_runtime(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(EVERYTHING.read_text().partition("---")[0])
    report = lint(path)
    assert not report.errors
    assert [warning.path for warning in report.warnings] == ["spec.runtimeRef.name"]


def test_lint_tells_what_each_stage_reads() -> None:
    assert lint(EVERYTHING).wiring == [
        "dataset reads the dataset",
        "small reads rows of dataset, model of the spec",
        "answers reads rows of dataset",
        "logits reads rows of answers",
        "student reads model of small, logits of logits, rows of answers",
        "exam reads model of student, logits of logits, rows of answers, answers of answers, baseline of small",
        "release reads model of student, evaluation.exam of exam",
    ]


def test_a_shipped_runtime_of_another_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        shipped_runtime("tpu")


@pytest.mark.parametrize("url", ["https://bob:hunter2@host/v1", "ftp://bob:hunter2@host/v1"])
def test_a_password_in_a_url_is_refused_and_not_repeated(document: dict[str, Any], url: str) -> None:
    document["spec"]["teacher"] = {"external": {"baseURL": url, "model": "m"}}
    (sentence,) = [text for text in sentences(document) if "baseURL" in text]
    assert "hunter2" not in sentence
    assert "***@host/v1" in sentence


def test_the_api_server_is_not_told_to_repeat_it() -> None:
    schema: Any = schema_of(DistillationJob)["properties"]["spec"]["properties"]
    for url in (
        schema["teacher"]["properties"]["external"]["properties"]["baseURL"],
        schema["artifacts"]["properties"]["endpoint"],
    ):
        (rule,) = url["x-kubernetes-validations"]
        assert "messageExpression" not in rule
