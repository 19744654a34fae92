"""A run that was stopped in training goes on with another number of ranks: the job is edited, the command typed again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local.test_local_runs import Place
from manifests import tiny_train

pytestmark = pytest.mark.runtime
STEPS = 300
START_SECONDS = 120


@pytest.mark.parametrize(("before", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.further)])
def test_training_goes_on_with_another_number_of_ranks(
    tmp_path: Path, tiny_models: Path, before: int, then: int
) -> None:
    place = Place(tmp_path, tiny_models)
    train = tiny_train(
        method="SFT", epochs=None, maxSteps=STEPS, deepspeed={"zeroStage": 2}, checkpoint={"everySteps": 5}
    )

    def write(nodes: int) -> Path:
        stages = [{"name": "student", "resources": {"nodes": nodes}, "train": train}]
        return place.write("sized", stages, dataset=place.given(), teacher=None)

    manifest = write(before)
    command = [sys.executable, "-m", "kd_runtime.cli.main", "run", str(manifest)]
    with (tmp_path / "run.log").open("wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    limit = time.monotonic() + START_SECONDS
    while not list(tmp_path.glob("store/work/*/*/step-*/manifest.json")):
        assert run.poll() is None and time.monotonic() < limit, (tmp_path / "run.log").read_text()
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=120) == 143

    place.run(write(then))
    said = next(tmp_path.glob(".kd/runs/sized/logs/student.log")).read_text()
    assert f"whose shards {before} ranks wrote, with {then}" in said
    records = [
        json.loads(line) for line in (place.model(manifest, part="log/") / "train.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert records[-1]["loss"] < records[0]["loss"]
