"""`kd run` end to end on tiny models: every kind of job that this version knows, and typed again, nothing runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import FULL, job, tiny_train
from s3_server import S3Server

pytestmark = pytest.mark.runtime
KD = [sys.executable, "-m", "kd_runtime.cli.main"]


class Place:
    """A folder with a dataset, tiny models and a store, in which jobs are run."""

    def __init__(self, root: Path, models: Path):
        self.root, self.models = root, models
        self.questions = root / "questions.jsonl"
        self.questions.write_text("".join(json.dumps({"instruction": f"Say the word {w}."}) + "\n" for w in words(24)))
        self.answered = root / "answered.jsonl"
        rows = [{"q": f"Say the word {w}.", "a": f"The word is {w}."} for w in words(24)]
        self.answered.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(self, name: str, stages: list[dict[str, Any]], **spec: Any) -> Path:
        document = job(stages, self.models, self.questions, f"file://{self.root}/store/", **spec)
        document["metadata"]["name"] = name
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def given(self) -> dict[str, Any]:
        return {
            "uri": f"file://{self.answered}",
            "format": "JSONL",
            "fields": {"prompt": "q", "response": "a"},
            "holdout": {"fraction": 0.2},
        }

    def kd(self, *arguments: str, code: int = 0, **environment: str) -> str:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run([*KD, *arguments], capture_output=True, text=True, env=env, timeout=400, check=False)
        logs = (
            [f"{p.name}: {p.read_text()[-1500:]}" for p in self.root.glob(".kd/runs/*/logs/*.log")]
            if done.returncode != code
            else []
        )
        assert done.returncode == code, "\n".join([done.stdout[-3000:], done.stderr[-3000:], *logs])
        return done.stdout + done.stderr

    def run(self, manifest: Path, **environment: str) -> str:
        return self.kd("run", str(manifest), **environment)

    def model(self, manifest: Path, stage: str = "student", part: str = "model/") -> Path:
        """The folder of a trained model (or another part of its artifact), in the run's cache."""
        from kd_runtime.artifacts.cache import Cache
        from kd_runtime.artifacts.manifest import read_manifest
        from kd_runtime.local.run import open_run

        plan, store, cache = open_run(manifest)
        found = read_manifest(store, plan.stage(stage).key)
        assert found is not None
        return Cache(cache).directory(store, found, part)


def words(count: int) -> list[str]:
    return [
        f"{a}{b}" for a in ("red", "blue", "green", "black") for b in ("bird", "fish", "tree", "stone", "cloud", "boat")
    ][:count]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Place:
    return Place(tmp_path_factory.mktemp("runs"), tiny_models)


def test_a_whole_job_runs_and_is_found_the_second_time(place: Place) -> None:
    stages = [dict(stage) for stage in FULL]
    stages[-1] = {
        "name": "release",
        "publish": {"targets": [{"uri": f"file://{place.root}/out/"}], "requireGates": False},
    }
    manifest = place.write("whole", stages)
    first = place.run(manifest)
    assert first.count(" done ") >= 6
    report = place.root / ".kd" / "runs" / "whole" / "report.html"
    assert "<svg" in report.read_text()
    pointer = json.loads((place.root / "out" / "kd.json").read_text())
    assert (place.root / "out" / pointer["path"] / "model.safetensors").exists()
    second = place.run(manifest)
    assert " done " not in second
    assert second.count("found") >= 6


def test_a_dataset_with_answers_is_learned_without_a_teacher(place: Place) -> None:
    manifest = place.write(
        "sft",
        [{"name": "student", "train": tiny_train(method="SFT")}, {"name": "exam", "evaluate": {}}],
        dataset=place.given(),
        teacher=None,
    )
    assert "teacher" not in place.run(manifest)
    assert (place.model(manifest) / "model.safetensors").exists()


def test_a_dataset_with_answers_is_scored_and_learned_by_kd_alone(place: Place) -> None:
    train = tiny_train(objective={"divergence": "ReverseKL", "alpha": 1.0})
    manifest = place.write(
        "kd", [{"name": "logits", "capture": {"topK": 8}}, {"name": "student", "train": train}], dataset=place.given()
    )
    assert "teacher" in place.run(manifest)


@pytest.mark.parametrize("stage", [*(pytest.param(n, marks=pytest.mark.further) for n in (0, 1, 2)), 3])
def test_two_ranks_train_at_every_zero_stage(place: Place, stage: int) -> None:
    train = tiny_train(deepspeed={"zeroStage": stage}, seed=stage)
    stages = [
        {"name": "logits", "capture": {"topK": 8}},
        {"name": "student", "resources": {"nodes": 2}, "train": train},
    ]
    manifest = place.write(f"zero{stage}", stages, dataset=place.given())
    place.run(manifest)
    assert (place.model(manifest) / "model.safetensors").stat().st_size > 1000


@pytest.fixture
def external(place: Place) -> Iterator[str]:
    """An OpenAI-compatible server with a key, run by somebody else."""
    ready = place.root / "external.json"
    command = [
        *KD,
        "teacher",
        "serve",
        "--model",
        str(place.models / "teacher"),
        "--engine",
        "Transformers",
        "--port",
        "0",
    ]
    with (place.root / "external.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--ready-file", str(ready)],
            env={**os.environ, "KD_TEACHER_KEY": "right"},
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(600):
            if ready.exists() or server.poll() is not None:
                break
            time.sleep(0.1)
        yield json.loads(ready.read_text())["url"]
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_an_external_teacher_is_asked_over_the_openai_protocol(place: Place, external: str) -> None:
    teacher = {
        "external": {
            "baseURL": f"{external}/v1",
            "model": "teacher",
            "apiKeySecretRef": {"name": "other", "key": "key"},
        }
    }
    stages = [
        {
            "name": "answers",
            "generate": {
                "samplesPerPrompt": 2,
                "keepTruncated": True,
                "sampling": {"maxTokens": 12, "temperature": 1.0},
            },
        },
        {"name": "student", "train": tiny_train(method="SFT")},
        {"name": "exam", "evaluate": {}},
        {
            "name": "release",
            "publish": {"targets": [{"uri": f"file://{place.root}/out-external/"}], "requireGates": False},
        },
    ]
    manifest = place.write("external", stages, teacher=teacher)
    assert "KD_SECRET_OTHER_KEY is not set" in place.kd("plan", str(manifest), code=64)
    assert "apiKeySecretRef" in place.kd("plan", str(manifest), code=77, KD_SECRET_OTHER_KEY="wrong")
    place.run(manifest, KD_SECRET_OTHER_KEY="right")
    assert (place.root / "out-external" / "kd.json").exists()


def test_a_job_runs_on_a_bucket(place: Place, s3_server: S3Server) -> None:
    artifacts = {"uri": f"s3://{s3_server.bucket}/kd/", "endpoint": s3_server.url, "region": "us-east-1"}
    stages = [
        {"name": "logits", "capture": {"topK": 16}},  # its teacher reads the bucket as well
        {"name": "student", "train": tiny_train()},
        {"name": "exam", "evaluate": {}},
        {
            "name": "release",
            "publish": {"targets": [{"uri": f"s3://{s3_server.bucket}/models/tiny/"}], "requireGates": False},
        },
    ]
    manifest = place.write("bucket", stages, dataset=place.given(), artifacts=artifacts)
    place.run(manifest, **s3_server.environment())
    names = [o["Key"] for o in s3_server.client.list_objects_v2(Bucket=s3_server.bucket)["Contents"]]
    assert "models/tiny/kd.json" in names
    assert any(name.startswith("kd/reports/") for name in names)
    assert not any(name.startswith("kd/work/") for name in names), "checkpoints go once the student is committed"
    assert " done " not in place.run(manifest, **s3_server.environment())
