"""A small job with a tiny Transformers teacher, for faults on a real node: what it is, and what must be true of its end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests import tiny_train
from real_node import BUCKET, NAMESPACE, REGION, Node

SEED = 3
STEPS = 120
SECONDS = 420.0
"""Within which a job, or what it is waited for, must come about."""
TRAIN = tiny_train(maxSteps=STEPS, checkpoint={"everySteps": 10, "drainSeconds": 30})
STAGES: list[dict[str, Any]] = [
    {
        "name": "answers",
        "workers": 2,
        "resources": {"cpu": "100m", "memory": "1Gi"},
        "generate": {"sampling": {"temperature": 0.8, "maxTokens": 16, "seed": SEED}, "keepTruncated": True},
    },
    {"name": "logits", "workers": 2, "resources": {"cpu": "100m", "memory": "1Gi"}, "capture": {"topK": 8}},
    {
        "name": "student",
        "resources": {"nodes": 2, "cpu": "250m", "memory": "3Gi"},
        "train": {k: v for k, v in TRAIN.items() if k != "epochs"},
    },
]


def upload_inputs(node: Node, models: Path, folder: Path, words: int = 20) -> None:
    """The tiny teacher and student, and questions: ``words`` squared of them."""
    node.upload(models, "tiny/")
    said = [f"word{number}" for number in range(words)]
    rows = [{"instruction": f"Say {a} and {b}."} for a in said for b in said]
    (folder / "tiny").mkdir()
    (folder / "tiny" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    node.upload(folder / "tiny", "questions/")


def tiny_job(node: Node, name: str, *, store: str | None = None, first: int = 3, **spec: Any) -> dict[str, Any]:
    """A job of the first stages, ``first`` of them, on a store of its own unless told otherwise."""
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": "cpu"},
            "teacher": {
                "hosted": {
                    "model": {"uri": f"s3://{BUCKET}/tiny/teacher/"},
                    "engine": "Transformers",
                    "dtype": "float32",
                    "maxModelLen": 256,
                    "outageTimeoutSeconds": 180,
                }
            },
            "student": {"model": {"uri": f"s3://{BUCKET}/tiny/student/"}},
            "dataset": {
                "uri": f"s3://{BUCKET}/questions/questions.jsonl",
                "format": "JSONL",
                "fields": {"prompt": "instruction"},
                "maxTokens": 128,
                "holdout": {"fraction": 0.1},
            },
            "artifacts": {
                "uri": f"s3://{BUCKET}/{store or name}/",
                "endpoint": node.endpoint,
                "region": REGION,
                "credentialsSecretRef": {"name": "store"},
            },
            "failurePolicy": {"backoffLimit": 3, "backoff": {"baseSeconds": 1, "maxSeconds": 2}},
            "stages": STAGES[:first],
            **spec,
        },
    }


def in_training(node: Node, name: str) -> None:
    """Wait until a checkpoint of the student is there, so that what follows is in the middle."""
    node.running(name, "student", SECONDS)
    limit = time.monotonic() + SECONDS
    while not any("/step-" in object_name for object_name in node.names(f"{name}/work/")):
        assert time.monotonic() < limit, node.told(name)
        time.sleep(0.3)


def copy_store(node: Node, source: str, target: str, *, without: str) -> None:
    """Copy a store's objects, but for the artifact with key ``without`` and what lies under work/."""
    client = node.s3()
    for name in node.names(f"{source}/"):
        rest = name.removeprefix(f"{source}/")
        if not rest.startswith((f"artifacts/{without}/", "work/", "plans/", "reports/")):
            client.copy_object(Bucket=BUCKET, Key=f"{target}/{rest}", CopySource={"Bucket": BUCKET, "Key": name})


def manifest_of(node: Node, store: str, key: str) -> dict[str, Any]:
    """A stage's manifest."""
    found: dict[str, Any] = json.loads(node.read(f"{store}/artifacts/{key}/manifest.json"))
    return found


def student_digest(node: Node, store: str, key: str) -> str:
    """sha256 of the student's model.safetensors, as its manifest says."""
    objects = manifest_of(node, store, key)["objects"]
    return next(str(o["sha256"]) for o in objects if o["path"] == "model/model.safetensors")


def training_steps(node: Node, store: str, key: str) -> list[int]:
    """The optimizer steps that the student's log tells of, in order."""
    objects = manifest_of(node, store, key)["objects"]
    log = next(o for o in objects if o["path"] == "log/train.jsonl")
    return [json.loads(line)["step"] for line in node.read(f"{store}/{log['name']}").splitlines()]


@contextmanager
def pods_watched(node: Node, name: str, path: Path) -> Iterator[list[dict[str, Any]]]:
    """Every event of the pods of a job's student, in the list once the block is left."""
    events: list[dict[str, Any]] = []
    chosen = f"kubedistill.io/job={name},kubedistill.io/stage=student"
    words = ["get", "pods", "-n", NAMESPACE, "-l", chosen, "--watch", "--output-watch-events", "-o", "json"]
    with path.open("wb") as out, subprocess.Popen(["kubectl", *words], env=node.environment, stdout=out) as watch:
        try:
            yield events
        finally:
            assert watch.poll() is None, f"the watch of pods ended with {watch.returncode}"
            watch.terminate()
    text, decoder = path.read_text().strip(), json.JSONDecoder()
    while text:
        try:
            event, end = decoder.raw_decode(text)
        except json.JSONDecodeError:  # cut off at its end
            break
        events.append(event)
        text = text[end:].lstrip()
