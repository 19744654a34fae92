"""`kd stage plan`: a plan in the store, and a result that says what is found, what is to do, and what is wrong (contract 12)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_model
from manifests import FULL, job

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.result import PlanResult
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.store import open_store
from kd_runtime.stages.plan import PlanOptions, quantity_bytes, run_plan

UID = "5bd0a2b4-0000-4000-8000-000000000001"


class Pod:
    """A plan pod with its two documents mounted."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root = root
        fake_model(root / "teacher", 1)
        fake_model(root / "student", 2)
        self.data = root / "data.jsonl"
        self.data.write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
        self.store = open_store(f"file://{root}/store/")
        self.document: dict[str, Any] = job(FULL, root, self.data, self.store.uri)
        self.document["metadata"] |= {"uid": UID, "namespace": "team-a"}
        runtime = shipped_runtime("cpu").model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        (root / "runtime.json").write_text(json.dumps(runtime))
        monkeypatch.setenv("KD_RESULT_FILE", str(root / "result.json"))

    def plan(self, plan: str | None = None, retry: str | None = None) -> tuple[int, PlanResult]:
        (self.root / "job.json").write_text(json.dumps(self.document))
        options = PlanOptions(
            self.root / "job.json", self.root / "runtime.json", plan, retry, cache=self.root / "cache"
        )
        code = run_plan(options)
        result = PlanResult.parse((self.root / "result.json").read_text())
        assert result is not None
        return code, result


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(tmp_path, monkeypatch)


def test_a_first_plan_is_written_and_everything_is_to_do(pod: Pod) -> None:
    code, result = pod.plan()
    assert (code, result.exit_class) == (0, ExitClass.Done)
    assert {stage.state for stage in result.stages} == {"ToDo"}
    assert [stage.name for stage in result.stages][0] == "dataset"
    assert pod.store.get(f"plans/{result.digest}.json")
    assert "to run" in result.estimate


def test_planned_again_by_its_digest_it_says_the_same(pod: Pod) -> None:
    _, first = pod.plan()
    code, again = pod.plan(plan=first.digest)
    assert code == 0
    assert (again.digest, again.stages) == (first.digest, first.stages)


def test_an_input_that_changed_since_is_bad_data_and_named(pod: Pod) -> None:
    _, first = pod.plan()
    pod.data.write_text('{"instruction": "something else"}\n')
    code, result = pod.plan(plan=first.digest)
    assert (code, result.exit_class) == (65, ExitClass.BadData)
    assert "dataset" in result.message
    assert "other content" in result.message


def test_a_wrong_manifest_ends_with_its_class_and_sentence(pod: Pod) -> None:
    pod.document["spec"]["dataset"]["uri"] = f"file://{pod.root}/nothing.jsonl"
    code, result = pod.plan()
    assert code == int(result.exit_class) != 0
    assert "nothing.jsonl" in result.message


def test_a_retry_of_a_stage_that_asks_no_teacher_just_looks_up(pod: Pod) -> None:
    code, result = pod.plan(retry="student/n1")
    assert code == 0
    assert result.digest


def test_a_retry_of_no_stage_is_a_wrong_setting(pod: Pod) -> None:
    code, result = pod.plan(retry="nosuch/n1")
    assert (code, result.exit_class) == (64, ExitClass.BadSettings)
    assert "nosuch" in result.message


def test_a_stage_that_needs_more_memory_than_its_pods_get_is_refused(pod: Pod) -> None:
    train = next(stage for stage in pod.document["spec"]["stages"] if "train" in stage)
    train["resources"] = {"memory": "1Mi"}
    code, result = pod.plan()
    assert (code, result.exit_class) == (64, ExitClass.BadSettings)
    assert train["name"] in result.message


@pytest.mark.parametrize(
    ("text", "size"), [("1Gi", 2**30), ("500M", 5 * 10**8), ("1024", 1024), ("1.5Ki", 1536), ("10m", None)]
)
def test_quantities_of_memory(text: str, size: int | None) -> None:
    assert quantity_bytes(text) == size
