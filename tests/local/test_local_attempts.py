"""Further attempts of a stage: what it reads is looked up again first."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import fake_model
from manifests import job
from rich.console import Console

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.parse import parse_job
from kd_runtime.api.result import StageResult
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.manifest import delete_artifact, read_manifest
from kd_runtime.artifacts.store import open_store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id
from kd_runtime.local.display import Display
from kd_runtime.local.executor import Executor
from kd_runtime.local.folder import RunFolder
from kd_runtime.planning.plan import PlannedStage
from kd_runtime.planning.resolve import build_plan


class Scripted(Executor):
    """An executor whose stages make an empty artifact at once, or fail as ``failures`` (stage -> how often) says."""

    attempts: list[str]
    failures: dict[str, int]
    vanishes: bool
    """Whether the dataset's artifact is deleted meanwhile: by a sweep, or a hand."""
    position: str = ""
    """Where they fail."""

    def _attempt(self, stage: PlannedStage, attempt: int, progress_url: str) -> StageResult:
        self.attempts.append(stage.name)
        if self.failures.get(stage.name):
            self.failures[stage.name] -= 1
            if self.vanishes:
                delete_artifact(self.store, self.plan.stage("dataset").key)
            said = "input [/rows] is not in the store; plan again"
            return StageResult(exit_class=ExitClass.Transient, message=said, position=self.position)
        inputs = {}
        for role, source in stage.inputs.items():
            found = read_manifest(self.store, self.plan.stage(source).key)
            assert found is not None, f"{stage.name} has no {role}"
            inputs[role] = (found.key, found.content_digest)
        ArtifactWriter(
            self.store, key=stage.key, stage_type=stage.type.value, writer=new_writer_id(), inputs=inputs
        ).commit(counts={"in": 1})
        return StageResult(exit_class=ExitClass.Done)

    def _sleep(self, seconds: float) -> None:
        self.attempts.append("wait")


@pytest.fixture
def executor(tmp_path: Path) -> Scripted:
    fake_model(tmp_path / "teacher", 1)
    fake_model(tmp_path / "student", 2)
    (tmp_path / "data.jsonl").write_text('{"instruction": "a"}\n')
    uri = f"file://{tmp_path}/store/"
    teacher = {"external": {"baseURL": "http://127.0.0.1:1/v1", "model": "m"}}
    document = job([{"name": "answers", "generate": {}}], tmp_path, tmp_path / "data.jsonl", uri, teacher=teacher)
    store = open_store(uri)
    plan, _ = build_plan(parse_job(document), shipped_runtime("cpu"), store)
    made = Scripted(plan, store, RunFolder(tmp_path / "run"), tmp_path / "cache", Display(Console(quiet=True)))
    made.attempts, made.failures, made.vanishes = [], {}, True
    return made


def test_an_input_that_vanished_is_made_again_before_the_next_attempt(executor: Scripted) -> None:
    executor.failures = {"answers": 2}
    executor.run()
    assert executor.attempts == ["dataset", "answers", "wait", "dataset", "answers", "wait", "dataset", "answers"]
    assert read_manifest(executor.store, executor.plan.stages[-1].key) is not None


def test_an_input_that_is_there_is_left_alone(executor: Scripted) -> None:
    executor.failures, executor.vanishes = {"answers": 1}, False
    executor.run()
    assert executor.attempts == ["dataset", "answers", "wait", "answers"]
