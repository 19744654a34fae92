"""A teacher on a card: it answers alike each time, and scores as the same model does on a CPU; and a whole job there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from manifests import FULL, job, tiny_train
from training.tiny_runs import conversations, make_rows, teacher_rows

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import read_manifest
from kd_runtime.local.run import open_run
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers.transformers_engine import Ask, TransformersEngine
from kd_runtime.teachers.wire import ScoreRow

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here: a teacher on CUDA is not run"),
]


@pytest.fixture(scope="module")
def engine(tiny_models: Path) -> TransformersEngine:
    found = TransformersEngine.load(tiny_models / "teacher", "float32", 512)
    assert found._model.device.type == "cuda"
    return found


@pytest.mark.parametrize(
    ("profile", "more"),
    [
        ("Exact", {"k": 16}),
        ("Exact", {"k": 16, "entropy": True, "temperatures": (2.0,)}),
        ("Unbiased", {"k": 16, "m": 8, "entropy": True}),
        ("Label", {"k": 0}),
    ],
)
def test_it_scores_as_on_a_cpu(
    engine: TransformersEngine, tiny_models: Path, profile: str, more: dict[str, Any]
) -> None:
    spec = ShardSpec(profile=profile, vocab=512, **more)
    rows = make_rows(tiny_models, conversations(8))
    for row, expected in zip(rows, teacher_rows(tiny_models / "teacher", rows, spec), strict=True):
        found = engine.score(ScoreRow(bytes.fromhex(row.key), row.input_ids, row.scored), spec)
        np.testing.assert_allclose(found.lab_lp, expected.lab_lp, atol=2e-4)
        if spec.k:
            assert found.top_lp is not None and expected.top_lp is not None
            np.testing.assert_allclose(-np.sort(-found.top_lp, 1), -np.sort(-expected.top_lp, 1), atol=2e-4)
            np.testing.assert_allclose(found.tail_lp, expected.tail_lp, atol=2e-3)
        for name in ("entropy", "tail_tau"):
            if getattr(expected, name) is not None:
                np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-3)
        if spec.m:
            assert found.draws is not None and expected.draws is not None
            assert (found.draws == expected.draws).mean() > 0.99  # a draw at the very edge of two tokens may differ


def test_the_same_ask_gives_the_same_answer(engine: TransformersEngine) -> None:
    ids = engine.render([{"role": "user", "content": "What colour is the sky?"}])
    for temperature in (0.0, 1.0):
        ask = Ask(ids=ids, max_tokens=24, temperature=temperature, top_p=0.95, seed=5)
        assert engine.complete(ask) == engine.complete(ask)
    assert engine.complete(Ask(ids=ids, max_tokens=24, temperature=0.0)).text == "The sky is blue."


def test_a_whole_job_runs_on_the_card(tiny_models: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    asked = [
        f"What colour is {what}?" for what in ("the sky", "grass", "a lemon", "snow", "coal", "ink", "milk", "fire")
    ]
    questions.write_text("".join(json.dumps({"instruction": f"{q} {n}"}) + "\n" for n in range(4) for q in asked))
    prune = {"keepLayers": 1, "by": "BlockInfluence", "calibrationRows": 8}
    stages = [{"name": "small", "prepare": {"prune": prune}}, *(dict(stage) for stage in FULL)]
    stages[3] = {"name": "student", "train": tiny_train(precision="bf16", deepspeed={"zeroStage": 2})}
    stages[-1] = {
        "name": "release",
        "publish": {"targets": [{"uri": f"file://{tmp_path}/out/"}], "requireGates": False},
    }
    for stage in stages[4:]:
        stage["inputs"] = {"model": "student"}
    manifest = tmp_path / "job.yaml"
    manifest.write_text(yaml.safe_dump(job(stages, tiny_models, questions, f"file://{tmp_path}/store/")))
    command = [sys.executable, "-m", "kd_runtime.cli.main", "run", str(manifest)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ, check=False)
    logs = [f"{path.name}: {path.read_text()[-1500:]}" for path in tmp_path.glob(".kd/runs/*/logs/*.log")]
    assert ran.returncode == 0, "\n".join([ran.stdout[-3000:], ran.stderr[-3000:], *logs])
    plan, store, cache = open_run(manifest)
    student = read_manifest(store, plan.stage("student").key)
    assert student is not None
    timing = json.loads((Cache(cache).directory(store, student, "log/") / "timing.json").read_text())
    assert timing["memory"]["accelerator"] > 0
    pointer = json.loads((tmp_path / "out" / "kd.json").read_text())
    assert (tmp_path / "out" / pointer["path"] / "model.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ, check=False)
    assert again.returncode == 0 and " done " not in again.stdout + again.stderr
