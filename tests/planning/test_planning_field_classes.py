"""Contract 1, leaf by leaf: change it, plan again; a key changes if and only if the leaf is keyed (or structural)."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_model

from kd_runtime.api.classes import KeyClass, leaves
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.store import open_store
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.resolve import build_plan

OTHER = {
    "engine": "Transformers", "dtype": "float16", "quantization": "GPTQ", "protocol": "KD", "format": "JSON", "lossOn": "All",
    "reasoning": "Strip", "mode": "Off", "by": "Uniform", "profile": "Label", "method": "SFT", "divergence": "JSD",
    "missingLogits": "CrossEntropy", "precision": "fp32", "offloadOptimizer": "CPU", "offloadParameters": "CPU",
    "entropyWeighting": "Uncertain",
    "metric": "value", "of": "Agreement", "op": "AtMost", "onExceeded": "Fail", "operator": "Exists", "effect": "NoExecute",
    "microBatchSize": 2, "maxGPUHours": "7", "cpu": "2", "memory": "2Gi", "config": {"zero_allow_untested_optimizer": True},
    "stop": ["x", "y"], "betas": [0.8, 0.9], "targetModules": ["k_proj"], "temperatures": [2.0], "reportTo": ["WandB"],
    "nodeSelector": {"a": "c"}, "schedule.name": "Linear", "confidence": 0.8, "recipe": None, "baseURL": "http://other.example/v1",
}  # fmt: skip
"""Another valid value of leaves whose type does not suggest one, by the end of their path."""
OBJECTIVE = {
    "function": "mine", "entropyWeighting": "Confident", "alphaSchedule": {"start": 1.0, "end": 0.5},
    "betaSchedule": {"start": 0.25, "end": 0.5}, "temperatureSchedule": {"start": 4.0, "end": 1.0},
}  # fmt: skip
"""What an objective may hold; not all at once, which the plan does not mind."""
SKIPPED = {
    "optimizer.name": "has one value",
    "runtimeRef.name": "the runtime's own settings are what is keyed",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("field-classes")
    for name in ("student", "teacher"):
        fake_model(root / name, fill=len(name))
        shutil.copytree(root / name, root / f"{name}-elsewhere")
    rows = "".join(json.dumps({"q": f"question {n}", "a": "answer"}) + "\n" for n in range(8))
    for name in ("data.jsonl", "data.jsonl-elsewhere"):
        (root / name).write_text(rows)
    for name in ("template.jinja", "template.jinja-elsewhere"):
        (root / name).write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    return root


def document(root: Path, teacher: dict[str, Any]) -> dict[str, Any]:
    """A job in which every leaf that this version acts on is set."""
    secret = {"name": "hub", "key": "token"}
    resources = {"nodes": 2, "gpusPerNode": 1, "cpu": "1", "memory": "1Gi"}
    common = {"resources": resources, "timeoutSeconds": 60, "stallTimeoutSeconds": 60, "cache": "Auto"}
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": "every-leaf", "uid": "u-1"},
        "spec": {
            "suspend": False,
            "runtimeRef": {"name": "cpu"},
            "teachers": [{"name": "one", **teacher}],
            "student": {"model": {"uri": f"file://{root}/student", "revision": "r", "secretRef": secret}},
            "dataset": {
                "uri": f"file://{root}/data.jsonl", "format": "JSONL", "revision": "r", "secretRef": secret, "split": "train",
                "fields": {"prompt": "q", "response": "a", "system": "s"}, "template": f"file://{root}/template.jinja",
                "holdout": {"fraction": 0.25, "seed": 0},
            },
            "artifacts": {
                "uri": f"file://{root}/store/", "endpoint": "http://s3.example", "region": "eu-1",
                "credentialsSecretRef": {"name": "store"}, "serviceAccountName": "reader",
            },
            "stages": [
                {"name": "small", "prepare": {"prune": {"keepLayers": 1, "by": "BlockInfluence", "calibrationRows": 4}}, **common},
                {
                    "name": "fresh", "inputs": {"model": "small"},
                    "prepare": {"random": {"layers": 1, "hiddenSize": 8, "intermediateSize": 8, "attentionHeads": 1, "keyValueHeads": 1}},
                },
                {
                    "name": "answers", "teacher": "one", "workers": 2, **common,
                    "generate": {"systemPrompt": "be brief", "sampling": {"stop": ["x"]}},
                },
                {"name": "logits", "inputs": {"rows": "answers"}, "teacher": "one", "workers": 2, "capture": {"entropy": True}, **common},
                {
                    "name": "student", "inputs": {"rows": "answers", "logits": "logits", "model": "small"}, **common,
                    "train": {
                        "method": "KD", "objective": OBJECTIVE, "maxSteps": 5, "microBatchSize": "Auto", "reportTo": ["TensorBoard"],
                        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1, "targetModules": ["q_proj"]},
                        "deepspeed": {"config": {"prescale_gradients": True}},
                    },
                },
                {
                    "name": "exam", "inputs": {"model": "student"}, **common,
                    "evaluate": {"gates": [{"metric": "recoveredGap", "of": "KL", "op": "AtLeast", "value": 0.5, "confidence": 0.99}]},
                },
                {"name": "release", "inputs": {"model": "student"}, "publish": {"targets": [{"uri": f"file://{root}/out/"}]}, **common},
            ],
            "scheduling": {
                "queueName": "q", "priorityClassName": "p", "nodeSelector": {"a": "b"},
                "tolerations": [{"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule", "tolerationSeconds": 5}],
            },
            "budget": {"maxGPUHours": "5", "onExceeded": "Suspend"},
            "activeDeadlineSeconds": 100,
            "pendingDeadlineSeconds": 100,
            "retention": {"ttlSecondsAfterFinished": 100},
        },
    }  # fmt: skip


def hosted(root: Path) -> dict[str, Any]:
    model = {"uri": f"file://{root}/teacher", "revision": "r", "secretRef": {"name": "hub", "key": "token"}}
    return {"hosted": {"model": model, "quantization": "AWQ", "maxModelLen": 64}}


EXTERNAL: dict[str, Any] = {
    "external": {
        "baseURL": "http://one.example/v1", "model": "m", "revision": "1", "apiKeySecretRef": {"name": "t", "key": "k"},
        "limits": {"requestsPerMinute": 60, "tokensPerMinute": 1000, "maxInFlight": 4},
    }
}  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    path: str
    value: Any
    found: KeyClass


def plan_of(doc: dict[str, Any], uncached: str = "u-1") -> Plan:
    job = DistillationJob.model_validate(doc)
    runtime = shipped_runtime("cpu")
    return build_plan(job, runtime, open_store(doc["spec"]["artifacts"]["uri"]), uncached=uncached)[0]


def keys(plan: Plan) -> dict[str, str]:
    return {
        f"{s.name} {which}": key for s in plan.stages for which, key in (("key", s.key), ("asking", s.asking_key or ""))
    }


def every_leaf(doc: dict[str, Any]) -> Iterator[Leaf]:
    for path, value, found in leaves(DistillationJob.model_validate(doc).spec):
        if not any(path.endswith(end) for end in SKIPPED):
            yield Leaf(path, value, found)


def another(leaf: Leaf) -> Any:
    """A value of the same type that is not the leaf's."""
    for end, value in OTHER.items():
        if leaf.path == end or leaf.path.endswith(f".{end}"):
            if value is not None and value != leaf.value:
                return value
            break
    if isinstance(leaf.value, bool):
        return not leaf.value
    if isinstance(leaf.value, int):
        return leaf.value + 1 if not leaf.path.endswith(("zeroStage", "nodes")) else 1
    if isinstance(leaf.value, float):
        return leaf.value / 2 or 0.25
    if isinstance(leaf.value, str) and leaf.path.endswith(("uri", "template")):
        return leaf.value.rstrip("/") + "-elsewhere" + ("/" if leaf.value.endswith("/") else "")
    if isinstance(leaf.value, str):
        return leaf.value + "x"
    raise AssertionError(f"no other value known for {leaf.path} = {leaf.value!r}")


def put(doc: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(doc)
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", path)]
    place: Any = changed["spec"]
    for step, following in itertools.pairwise(steps):
        if isinstance(step, str) and step not in place:
            place[step] = [] if isinstance(following, int) else {}
        if isinstance(step, int) and step >= len(place):
            place.append({"name": "HeldOut"})
        place = place[step]
    place[steps[-1]] = value
    return changed


def wrong_leaves(doc: dict[str, Any]) -> tuple[list[str], int]:
    """Leaves whose change did not do to the keys what their class says, and how many were tried."""
    before, wrong, tried = keys(plan_of(doc)), [], 0
    for leaf in every_leaf(doc):
        if leaf.found is KeyClass.Structural or leaf.path.endswith("artifacts.uri"):
            continue
        tried += 1
        changed = keys(plan_of(put(doc, leaf.path, another(leaf)))) != before
        if changed != (leaf.found is KeyClass.Keyed):
            wrong.append(f"{leaf.path} is {leaf.found} but its change {'changes' if changed else 'leaves'} the keys")
    return wrong, tried


def test_a_key_changes_if_and_only_if_a_keyed_leaf_does(files: Path) -> None:
    wrong, tried = wrong_leaves(document(files, hosted(files)))
    assert wrong == []
    assert tried > 120


def test_the_same_holds_for_an_external_teacher(files: Path) -> None:
    wrong, _ = wrong_leaves(document(files, EXTERNAL))
    assert wrong == []


def test_contents_are_keyed_and_addresses_are_not(files: Path) -> None:
    doc = document(files, hosted(files))
    before = keys(plan_of(doc))
    fake_model(files / "teacher-new", fill=99)
    changed = keys(plan_of(put(doc, "teachers[0].hosted.model.uri", f"file://{files}/teacher-new")))
    different = {name for name in before if before[name] != changed[name]}
    assert {"answers key", "answers asking", "logits key", "logits asking", "student key"} <= different
    assert "dataset key" not in different
    assert "small key" not in different


def test_neither_the_dataset_nor_the_number_of_samples_is_in_the_asking_key(files: Path) -> None:
    doc = document(files, hosted(files))
    more = plan_of(put(doc, "stages[2].generate.samplesPerPrompt", 8))
    assert more.stage("answers").asking_key == plan_of(doc).stage("answers").asking_key
    assert more.stage("answers").key != plan_of(doc).stage("answers").key


def test_cache_never_adds_the_jobs_uid(files: Path) -> None:
    doc = put(document(files, hosted(files)), "stages[2].cache", "Never")
    one, two = plan_of(doc, uncached="u-1"), plan_of(doc, uncached="u-2")
    assert one.stage("answers").key != two.stage("answers").key
    assert one.stage("answers").asking_key != two.stage("answers").asking_key
    assert one.stage("small").key == two.stage("small").key


def test_a_plan_read_back_from_its_bytes_is_the_same_plan(files: Path) -> None:
    plan = plan_of(document(files, hosted(files)))
    assert Plan.model_validate_json(plan.encoded()).digest == plan.digest
