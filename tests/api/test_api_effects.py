"""A setting that has no effect where it stands is a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_runtime.api.parse import load_documents, parse_job, warnings
from kd_runtime.api.runtime import shipped_runtime

GOOD = Path(__file__).parent / "corpus" / "good"


def job_document(name: str) -> dict[str, Any]:
    return next(d for d in load_documents(GOOD / f"{name}.yaml") if d["kind"] == "DistillationJob")


def changed(name: str, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = job_document(name)
    node = document["spec"]
    for step in path[:-1]:
        node = node[step] if isinstance(step, int) else node.setdefault(step, {})
    node[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("name", "path", "value", "where"),
    [
        ("smallest", ("student", "model", "revision"), "abc", "spec.student.model.revision"),
        ("smallest", ("dataset", "secretRef"), {"name": "hub", "key": "k"}, "spec.dataset.secretRef"),
        ("smallest", ("dataset", "split"), "train", "spec.dataset.split"),
        ("smallest", ("dataset", "holdout"), {"fraction": 0, "seed": 3}, "spec.dataset.holdout.seed"),
        ("smallest", ("preflight",), {"mode": "Off", "smokeRows": 3}, "spec.preflight.smokeRows"),
        ("smallest", ("teacher",), {"hosted": {"model": {"uri": "s3://m/"}}}, "spec.teacher"),
        ("smallest", ("stages", 0, "train", "objective"), {"alpha": 0.5}, "spec.stages[0].train.objective"),
        (
            "two-teachers",
            ("teachers", 1, "hosted", "parallelism"),
            {"tensor": 1},
            "spec.teachers[1].hosted.parallelism.tensor",
        ),
        ("label-profile", ("stages", 0, "capture", "topK"), 8, "spec.stages[0].capture.topK"),
        ("label-profile", ("stages", 1, "inputs"), {"logits": "labels"}, "spec.stages[1].inputs.logits"),
        (
            "prune-uniformly",
            ("stages", 0, "prepare", "prune", "calibrationRows"),
            8,
            "spec.stages[0].prepare.prune.calibrationRows",
        ),
        (
            "distil-with-answers",
            ("stages", 0, "generate"),
            {"sampling": {"temperature": 0, "topP": 0.5}},
            "spec.stages[0].generate.sampling.topP",
        ),
        (
            "distil-with-answers",
            ("stages", 2, "train", "objective"),
            {"beta": 0.5},
            "spec.stages[2].train.objective.beta",
        ),
        (
            "distil-with-answers",
            ("stages", 2, "train", "objective"),
            {"mass": 0.5},
            "spec.stages[2].train.objective.mass",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_without_effect_is_named(name: str, path: tuple[Any, ...], value: Any, where: str) -> None:
    found = warnings(parse_job(changed(name, path, value)))
    assert [warning.path for warning in found] == [where]
    assert "has no effect" in str(found[0])


@pytest.mark.parametrize(
    "name", [path.stem for path in GOOD.glob("*.yaml") if path.stem not in ("everything", "gpu-runtime")]
)
def test_a_runtimes_defaults_bring_no_warnings(name: str) -> None:
    job = parse_job(job_document(name), shipped_runtime("cpu"))
    assert [str(warning) for warning in warnings(job, local=True)] == []


def test_on_a_laptop_what_only_a_cluster_acts_on_is_named() -> None:
    job = parse_job(job_document("everything"))
    found = {warning.path for warning in warnings(job, local=True)}
    assert not found & {"spec.stages[1].timeoutSeconds", "spec.stages[3].resources.nodes"}
    assert found >= {
        "spec.scheduling",
        "spec.budget",
        "spec.activeDeadlineSeconds",
        "spec.pendingDeadlineSeconds",
        "spec.retention",
        "spec.artifacts.credentialsSecretRef",
        "spec.artifacts.serviceAccountName",
        "spec.teacher.hosted.replicas",
        "spec.teacher.hosted.gpusPerReplica",
        "spec.stages[3].resources.memory",
    }
    assert warnings(job) == []
