"""Manifests for tests: a small complete job that a test changes where it matters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any


def job(stages: list[dict[str, Any]], models: Path, data: Path, store: str, **spec: Any) -> dict[str, Any]:
    """A job document over tiny models (``models`` holds teacher/ and student/), with ``stages``."""
    document: dict[str, Any] = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "teacher": {
                "hosted": {
                    "model": {"uri": f"file://{models / 'teacher'}"},
                    "engine": "Transformers",
                    "dtype": "float32",
                    "maxModelLen": 256,
                }
            },
            "student": {"model": {"uri": f"file://{models / 'student'}"}},
            "dataset": {
                "uri": f"file://{data}",
                "format": "JSONL",
                "fields": {"prompt": "instruction"},
                "holdout": {"fraction": 0.2},
                "maxTokens": 128,
            },
            "artifacts": {"uri": store},
            "stages": copy.deepcopy(stages),
        },
    }
    document["spec"].update(spec)
    return document


def tiny_train(**changes: Any) -> dict[str, Any]:
    """A train body for tiny models."""
    body: dict[str, Any] = {
        "method": "KD",
        "objective": {"divergence": "ForwardKL", "alpha": 0.9},
        "epochs": 1,
        "globalBatchSize": 4,
        "maxLength": 128,
        "optimizer": {"learningRate": 1e-3},
        "precision": "fp32",
        "gradientCheckpointing": False,
        "deepspeed": {"zeroStage": 0},
    }
    return {**body, **changes}


FULL = [
    {
        "name": "answers",
        "generate": {"sampling": {"temperature": 0.7, "maxTokens": 24, "seed": 7}, "keepTruncated": True},
    },
    {"name": "logits", "capture": {"profile": "Exact", "topK": 16}},
    {"name": "student", "train": tiny_train()},
    {"name": "exam", "evaluate": {"suites": [{"name": "HeldOut", "maxTokens": 16}]}},
    {"name": "release", "publish": {"targets": [{"uri": "file:///tmp/kd-published/"}], "requireGates": False}},
]
"""Generate, capture, train, evaluate, publish."""
