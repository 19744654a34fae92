"""A runtime's `allowed` and `limits` bind the jobs that name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_runtime.api.allowed import runtime_errors, within
from kd_runtime.api.parse import load_documents, parse_job, parse_runtime

EVERYTHING = Path(__file__).parent / "corpus" / "good" / "everything.yaml"


def refused(**changes: dict[str, Any]) -> list[str]:
    """Paths of the job of everything.yaml that its runtime refuses once ``changes`` are made to the runtime's spec."""
    job, runtime = load_documents(EVERYTHING)
    for name, value in changes.items():
        runtime["spec"][name] |= value
    return [error.path for error in runtime_errors(parse_job(job), parse_runtime(runtime))]


@pytest.mark.parametrize(
    ("uri", "prefix", "inside"),
    [
        ("s3://models/a/b", "s3://models/", True),
        ("s3://models/a/b", "s3://models/a", True),
        ("s3://models/ab", "s3://models/a", False),
        ("s3://models-other/a", "s3://models", False),
        ("hf://models/a", "s3://models", False),
        ("hf://Qwen/Q", "hf://", True),
        ("s3://models/a/../b", "s3://models/a", False),
        ("https://api.example.com/a/v1", "https://api.example.com/a", True),
        ("https://api.example.com/a/%2e%2E/b", "https://api.example.com/a", False),
        ("https://api.example.com:444/v1", "https://api.example.com", False),
        ("https://api.example.com.evil.org/v1", "https://api.example.com", False),
        ("file:///data/x", "file:///data", True),
        ("S3://models/x", "s3://models/", True),
    ],
)
def test_prefixes_compare_parts_never_strings(uri: str, prefix: str, inside: bool) -> None:
    assert within(uri, prefix) is inside


def test_what_the_runtime_allows_passes() -> None:
    assert refused() == []


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"allowed": {"uris": ["s3://models/", "hf://", "s3://data/", "https://"]}}, ["spec.artifacts.uri"]),
        (
            {"allowed": {"uris": ["s3://", "hf://", "https://s3.example.org", "http://s3.example.com"]}},
            ["spec.artifacts.endpoint"],
        ),
        ({"allowed": {"secrets": ["h*"]}}, ["spec.artifacts.credentialsSecretRef.name"]),
        (
            {"allowed": {"secrets": []}},
            [
                "spec.teacher.hosted.model.secretRef.name",
                "spec.dataset.secretRef.name",
                "spec.artifacts.credentialsSecretRef.name",
            ],
        ),
        ({"allowed": {"serviceAccounts": []}}, ["spec.artifacts.serviceAccountName"]),
        ({"allowed": {"priorityClasses": ["high"]}}, ["spec.scheduling.priorityClassName"]),
        ({"allowed": {"nodeSelector": {"zone": "b"}}}, ["spec.scheduling.nodeSelector.zone"]),
        ({"allowed": {"tolerations": []}}, ["spec.scheduling.tolerations[0]"]),
        ({"limits": {"replicas": 1}}, ["spec.teacher.hosted.replicas"]),
        ({"limits": {"nodes": 1}}, ["spec.stages[3].resources.nodes"]),
        (
            {"limits": {"gpusPerJob": 15}},
            ["spec.stages[1].resources", "spec.stages[2].resources", "spec.stages[3].resources"],
        ),
        ({"limits": {"activeDeadlineSeconds": 60}}, ["spec.activeDeadlineSeconds"]),
    ],
    ids=str,
)
def test_what_it_does_not_allow_is_refused_by_path(changes: dict[str, Any], paths: list[str]) -> None:
    assert refused(**changes) == paths


def test_the_namespace_stands_in_for_its_placeholder() -> None:
    uris = ["s3://models/", "hf://", "s3://data/", "s3://{namespace}/kd/", "https://s3.example.com"]
    job, runtime = load_documents(EVERYTHING)
    runtime["spec"]["allowed"]["uris"] = uris
    for namespace, paths in (("team-a", []), ("team-b", ["spec.artifacts.uri"])):
        job["metadata"]["namespace"] = namespace
        assert [e.path for e in runtime_errors(parse_job(job), parse_runtime(runtime))] == paths


def external(base_url: str) -> dict[str, Any]:
    return {"external": {"baseURL": base_url, "model": "some-large-model"}}


def refused_teacher(base_url: str) -> list[str]:
    """Paths that a runtime refuses which gives ``https://llm.example.com/v1`` by default and allows buckets alone."""
    job, runtime = load_documents(EVERYTHING)
    job["spec"]["teacher"] = external(base_url)
    del job["spec"]["artifacts"]["endpoint"]
    job["spec"]["stages"] = [{"name": "answers", "generate": {}}, {"name": "student", "train": {"method": "SFT"}}]
    runtime["spec"]["defaults"] = {"teacher": external("https://llm.example.com/v1")}
    runtime["spec"]["allowed"]["uris"] = ["s3://", "hf://", "https://other.example.com/team-{namespace}"]
    return [error.path for error in runtime_errors(parse_job(job), parse_runtime(runtime))]


def test_the_address_of_a_teacher_is_one_that_the_runtime_gives_or_allows() -> None:
    assert refused_teacher("https://llm.example.com/v1") == []
    assert refused_teacher("https://other.example.com/team-default/v1") == []
    assert refused_teacher("https://exfil.example.com/v1") == ["spec.teacher.external.baseURL"]
    assert refused_teacher("https://llm.example.com/other") == ["spec.teacher.external.baseURL"]
