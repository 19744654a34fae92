"""The train step before training (contract 9) leaves no trace in the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local.test_local_runs import Place
from manifests import tiny_train

from kd_runtime.artifacts.store import body_sha256

pytestmark = pytest.mark.runtime
SAID = "the train step, at "


@pytest.mark.parametrize(
    ("nodes", "changes"),
    [
        pytest.param(1, {"lora": {"rank": 4, "dropout": 0.1}}, marks=pytest.mark.further),
        (2, {"deepspeed": {"zeroStage": 2}, "epochs": 2}),
    ],
    ids=["one rank, LoRA with dropout", "two ranks, ZeRO-2"],
)
def test_the_student_is_the_same_with_and_without_it(
    tmp_path: Path, tiny_models: Path, nodes: int, changes: dict[str, Any]
) -> None:
    students = []
    for steps in (True, False):
        folder = tmp_path / f"step-{steps}"
        folder.mkdir()
        place = Place(folder, tiny_models)
        stages = [{"name": "student", "resources": {"nodes": nodes}, "train": tiny_train(method="SFT", **changes)}]
        manifest = place.write("stepped", stages, dataset=place.given(), teacher=None, preflight={"trainStep": steps})
        place.run(manifest)
        assert (SAID in next(folder.glob(".kd/runs/stepped/logs/student.log")).read_text()) == steps
        students.append(body_sha256(place.model(manifest) / "model.safetensors"))
    assert students[0] == students[1]
