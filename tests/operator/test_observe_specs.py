"""Which spec and runtime a job has, or why it has none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from kd_operator.observe import job_seen, needs_peers, needs_services
from kd_operator.specs import LiveRuntime, Parsed, Remembered, Specs, is_default, selects

from kd_runtime.api.parse import load_documents, parse_runtime
from kd_runtime.api.runtime import runtime_hash
from kd_runtime.api.runtime_pods import LabelSelector
from kd_runtime.api.status import JobStatus, StageStatus, TeacherStatus

SMALLEST = Path(__file__).parents[1] / "api" / "corpus" / "good" / "smallest.yaml"


def raw_job(**spec: Any) -> dict[str, Any]:
    """A job as an API server tells it, with what only the server writes."""
    document = copy.deepcopy(load_documents(SMALLEST)[0])
    document["metadata"] = {
        "name": "tutor",
        "namespace": "team-a",
        "uid": "5e4d8a5c",
        "generation": 1,
        "resourceVersion": "17",
        "creationTimestamp": "2026-03-01T10:00:00Z",
        "managedFields": [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
    }
    document["spec"].update(spec)
    return document


def raw_runtime(name: str = "cpu", default: bool = False, generation: int = 1, **spec: Any) -> dict[str, Any]:
    annotations = {"annotations": {"kubedistill.io/is-default-runtime": "true"}} if default else {}
    return {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "ClusterDistillationRuntime",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "generation": generation,
            "resourceVersion": "3",
            **annotations,
        },
        "spec": spec,
    }


def pinned(runtime: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "tutor-config-5e4d8"}, "data": {"runtime.json": json.dumps(runtime)}}


def parsed(job: dict[str, Any], runtime: dict[str, Any], labels: dict[str, str] | None = None) -> Parsed:
    specs = Specs()
    seen, _ = specs.runtime(None, LiveRuntime(runtime["metadata"]["name"], [runtime]))
    assert seen is not None
    return specs.job(job, seen, labels)


def test_a_job_without_a_pinned_runtime_takes_the_live_one() -> None:
    live = raw_runtime("cuda", images={"runtime": "kd:1"})
    seen, _ = Specs().runtime(None, LiveRuntime("cuda", [live]))
    assert seen is not None
    assert (seen.pinned, seen.runtime.metadata.name) == (False, "cuda")
    assert seen.hash == seen.live_hash == runtime_hash(seen.runtime)


def test_a_pinned_runtime_stays_and_the_live_ones_drift_is_seen() -> None:
    before, after = raw_runtime(images={"runtime": "kd:1"}), raw_runtime(generation=2, images={"runtime": "kd:2"})
    specs = Specs()
    seen, _ = specs.runtime(pinned(before), LiveRuntime("cpu", [before]))
    assert seen is not None
    assert seen.pinned
    assert seen.hash == seen.live_hash
    seen, _ = specs.runtime(pinned(before), LiveRuntime("cpu", [after]))
    assert seen is not None
    assert seen.runtime.spec.images.runtime == "kd:1"
    assert seen.live_hash not in (None, seen.hash)


def test_a_pinned_runtime_whose_live_one_is_gone_or_broken_stays() -> None:
    for live in (LiveRuntime("cpu"), LiveRuntime("cpu", [raw_runtime(imagePullSecrets="no list")])):
        seen, _ = Specs().runtime(pinned(raw_runtime()), live)
        assert seen is not None
        assert (seen.pinned, seen.live_hash) == (True, None)


def test_the_hash_is_of_the_spec_alone() -> None:
    """A new annotation, a new resourceVersion or another way to write the defaults is no drift."""
    specs = Specs()
    seen, _ = specs.runtime(pinned(raw_runtime()), LiveRuntime("cpu", [raw_runtime(default=True, generation=4)]))
    assert seen is not None
    assert seen.hash == seen.live_hash == runtime_hash(parse_runtime(raw_runtime()))


@pytest.mark.parametrize(
    ("live", "said"),
    [
        (LiveRuntime("cuda"), "spec.runtimeRef.name: cuda names no ClusterDistillationRuntime; create it"),
        (LiveRuntime(None), "spec.runtimeRef: is missing, and no runtime is annotated as the default; name a runtime"),
        (LiveRuntime(None, [raw_runtime("b"), raw_runtime("a")]), "a, b are all annotated as the default"),
        (
            LiveRuntime("cpu", [raw_runtime(nonsense=1)]),
            "the ClusterDistillationRuntime cpu is not valid: spec.nonsense",
        ),
    ],
)
def test_a_job_without_a_runtime_says_what_is_missing(live: LiveRuntime, said: str) -> None:
    seen, refused = Specs().runtime(None, live)
    assert seen is None
    assert (refused.spec, refused.refusal) == (None, "RuntimeMissing")
    assert said in refused.errors[0]


LATER = [{"gpuResourceName": "a/b", "later": 1}, {"images": {"plan": "p", "later": {"x": [1]}}, "limits": {"later": 2}}]


@pytest.mark.parametrize("spec", LATER)
def test_a_pinned_runtime_that_a_later_version_wrote_is_read_without_what_this_one_does_not_know(
    spec: dict[str, Any],
) -> None:
    seen, problem = Specs().runtime(pinned(raw_runtime(**spec)), LiveRuntime("cpu", [raw_runtime()]))
    assert seen is not None
    assert (seen.pinned, problem.refusal) == (True, None)
    assert spec.get("gpuResourceName", "nvidia.com/gpu") == seen.runtime.spec.gpu_resource_name
    assert spec.get("images", {}).get("plan", seen.runtime.spec.images.plan) == seen.runtime.spec.images.plan


def test_a_free_form_map_of_a_pinned_runtime_is_read_whole() -> None:
    pods = {"trainer": {"annotations": {"a": "1"}, "nodeSelector": {"b": "2"}, "later": 1}}
    seen, _ = Specs().runtime(pinned(raw_runtime(pod=pods)), LiveRuntime("cpu"))
    assert seen is not None
    trainer = seen.runtime.spec.pod.trainer
    assert trainer is not None
    assert (dict(trainer.annotations), dict(trainer.node_selector)) == ({"a": "1"}, {"b": "2"})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"metadata": {"name": "cpu"}, "spec": {"imagePullSecrets": "in another form"}}']
)
def test_a_pinned_runtime_that_cannot_be_read_is_no_runtime(text: str) -> None:
    config = {"metadata": {"name": "tutor-config-5e4d8"}, "data": {"runtime.json": text}}
    seen, refused = Specs().runtime(config, LiveRuntime("cpu", [raw_runtime()]))
    assert seen is None
    assert refused.refusal == "RuntimeMissing"
    assert refused.errors[0].startswith("ConfigMap tutor-config-5e4d8: runtime.json cannot be read")


def test_a_spec_has_the_runtimes_defaults() -> None:
    found = parsed(raw_job(), raw_runtime(defaults={"failurePolicy": {"backoffLimit": 9}}))
    assert (found.errors, found.refusal) == ((), None)
    assert found.spec is not None
    assert found.spec.spec.failure_policy.backoff_limit == 9
    assert found.spec.metadata.namespace == "team-a"


def test_a_spec_that_breaks_a_rule_is_invalid_and_every_field_is_named() -> None:
    found = parsed(raw_job(stages=[{"name": "student", "train": {"method": "KD", "epochs": -1}}]), raw_runtime())
    assert (found.spec, found.refusal) == (None, "InvalidSpec")
    assert any(error.startswith("spec.stages[0].train.epochs") for error in found.errors)


def test_a_valid_spec_that_the_runtime_forbids_is_not_allowed() -> None:
    found = parsed(raw_job(), raw_runtime(allowed={"uris": ["s3://elsewhere/"]}))
    assert found.spec is not None
    assert found.refusal == "NotAllowed"
    assert "is not allowed by the runtime cpu; use one of: s3://elsewhere/" in found.errors[0]


def test_an_invalid_spec_is_invalid_whatever_the_runtime_forbids() -> None:
    job = raw_job(stages=[{"name": "student", "train": {"method": "KD", "epochs": -1}}])
    assert parsed(job, raw_runtime(allowed={"uris": []})).refusal == "InvalidSpec"


def test_a_namespace_that_the_runtime_does_not_select_is_not_allowed() -> None:
    runtime = raw_runtime(allowed={"namespaces": {"matchLabels": {"team": "a"}}})
    assert parsed(raw_job(), runtime, {"team": "a"}).refusal is None
    found = parsed(raw_job(), runtime, {"team": "b"})
    assert found.refusal == "NotAllowed"
    assert found.errors[0].startswith("metadata.namespace: team-a is not allowed by the runtime cpu")
    assert parsed(raw_job(), runtime, {}).refusal == "NotAllowed"


def test_a_spec_is_parsed_once_a_generation_and_runtime() -> None:
    specs = Specs()
    first, _ = specs.runtime(None, LiveRuntime("cpu", [raw_runtime()]))
    second, _ = specs.runtime(None, LiveRuntime("cpu", [raw_runtime(generation=2, images={"plan": "p"})]))
    assert first is not None
    assert second is not None
    one = specs.job(raw_job(), first, None).spec
    again = copy.deepcopy(raw_job())
    again["metadata"]["resourceVersion"] = "99"
    assert specs.job(again, first, None).spec is one
    assert specs.job(again, second, None).spec is not one
    again["metadata"]["generation"] = 2
    again["spec"]["suspend"] = True
    changed = specs.job(again, first, None).spec
    assert changed is not None
    assert changed.spec.suspend


def test_what_is_remembered_is_bounded_and_an_error_is_not_remembered() -> None:
    held: Remembered[int] = Remembered(2)
    made: list[str] = []

    def make(key: str) -> int:
        return held.get(key, lambda: made.append(key) or len(made))

    for key in ("a", "b", "a", "c", "a", "b"):
        make(key)
    assert made == ["a", "b", "c", "b"]
    with pytest.raises(ZeroDivisionError):
        held.get("d", lambda: 1 // 0)
    assert held.get("d", lambda: 4) == 4
    assert len(held.held) == 2


@pytest.mark.parametrize(
    ("selector", "labels", "chosen"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": "x"}, False),
        (
            {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]},
            {"a": "1"},
            False,
        ),
    ],
)
def test_a_selector_chooses_as_kubernetes_does(selector: dict[str, Any], labels: dict[str, str], chosen: bool) -> None:
    assert selects(LabelSelector.model_validate(selector), labels) is chosen


def test_only_an_annotation_that_says_true_makes_a_default() -> None:
    assert is_default(raw_runtime(default=True))
    assert not is_default(raw_runtime())
    no = raw_runtime(default=True)
    no["metadata"]["annotations"]["kubedistill.io/is-default-runtime"] = "false"
    assert not is_default(no)


def test_a_job_is_seen_with_its_metadata_and_what_was_parsed() -> None:
    raw = raw_job(suspend=True)
    raw["metadata"] |= {"deletionTimestamp": "2026-03-01T11:00:00Z", "annotations": {"kubedistill.io/retry": "a/1"}}
    status = JobStatus(phase="Running")
    seen = job_seen(raw, status, Parsed(None, ("why",), "InvalidSpec"))
    assert (seen.name, seen.namespace, seen.uid, seen.generation) == ("tutor", "team-a", "5e4d8a5c", 1)
    assert (seen.resource_version, seen.deleting, seen.suspend) == ("17", True, True)
    assert seen.annotations == {"kubedistill.io/retry": "a/1"}
    assert (seen.status, seen.spec, seen.errors, seen.refusal) == (status, None, ("why",), "InvalidSpec")


def stages(*states: tuple[str | None, str | None]) -> JobStatus:
    found = tuple(
        StageStatus(name=f"s{n}", state=state, child_uid=uid, key=f"k{n}") for n, (state, uid) in enumerate(states)
    )
    return JobStatus(stages=found)


@pytest.mark.parametrize(
    ("status", "needed"),
    [
        (JobStatus(), False),
        (JobStatus(stages=(StageStatus(name="unplanned", state="Waiting"),)), False),
        (stages(("Waiting", None)), True),
        (stages((None, None)), True),
        (stages(("Succeeded", "u"), ("Queued", None), ("Waiting", None)), True),
        (stages(("Succeeded", "u"), ("Starting", None)), True),
        (stages(("Succeeded", "u"), ("Starting", "u"), ("Waiting", None)), False),
        (stages(("Skipped", None), ("Running", "u"), ("Waiting", None)), False),
        (
            stages(
                ("Draining", "u"),
            ),
            False,
        ),
        (
            stages(
                ("Backoff", "u"),
            ),
            True,
        ),
        (
            stages(
                ("Waiting", "earlier"),
            ),
            True,
        ),
        (stages(("Succeeded", "u"), ("Skipped", None)), False),
    ],
)
def test_peers_are_read_only_where_a_stage_is_about_to_be_claimed_or_just_was(status: JobStatus, needed: bool) -> None:
    assert needs_peers(status) is needed
    assert needs_peers(status, suspended=True) is False


def test_services_are_read_only_of_jobs_that_have_had_a_teacher_or_a_trainer() -> None:
    assert not needs_services(JobStatus())
    assert not needs_services(JobStatus(teachers=(TeacherStatus(name="teacher"),)))
    assert needs_services(JobStatus(teachers=(TeacherStatus(name="teacher", attempt=1),)))
    assert needs_services(JobStatus(stages=(StageStatus(name="student", type="train", attempt=2),)))
    assert not needs_services(JobStatus(stages=(StageStatus(name="exam", type="evaluate", attempt=2),)))
