"""CEL rules use only what means the same here and in Kubernetes, and each is broken by a manifest of the corpus."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kd_runtime.api.cel_rules import ALLOWED_FUNCTIONS, compiled, update_violations, violations
from kd_runtime.api.crd import kinds
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.lint import lint
from kd_runtime.api.parse import load_documents
from kd_runtime.api.structural import schema_of

CORPUS = Path(__file__).parent / "corpus"


def rules_of(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield from schema.get("x-kubernetes-validations", ())
        for value in schema.values():
            yield from rules_of(value)


RULES = {(rule["rule"], rule["message"]): rule for kind in kinds().values() for rule in rules_of(schema_of(kind))}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule["message"][:50])
def test_a_rule_uses_only_functions_that_both_sides_have(rule: dict[str, Any]) -> None:
    program = compiled(rule["rule"])
    assert set(program.functions()) <= ALLOWED_FUNCTIONS
    assert set(program.variables()) & {"self", "oldSelf"}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule["message"][:50])
def test_a_rule_names_problem_and_remedy(rule: dict[str, Any]) -> None:
    problem, _, remedy = rule["message"].partition("; ")
    assert problem
    assert remedy


def test_size_is_asked_of_lists_alone() -> None:
    """The two sides count a string differently: bytes here, characters there."""
    sizes = [rule for rule, _ in RULES if "size(" in rule]
    assert sizes
    assert all("size(self.temperatures)" in rule or "size(self.reportTo)" in rule for rule in sizes)


def test_every_rule_is_broken_by_a_manifest_of_the_corpus() -> None:
    said = {f"{e.message}; {e.remedy}" for path in (CORPUS / "bad").glob("*.yaml") for e in lint(path).errors}
    unbroken = {message for rule, message in RULES if "oldSelf" not in rule and message not in said}
    assert unbroken == set()


def test_a_stage_or_teacher_name_of_yaml_is_reserved() -> None:
    schema = schema_of(DistillationJob)
    (document,) = load_documents(CORPUS / "good" / "smallest.yaml")
    for word in ("y", "n", "on", "off", "yes", "no", "teacher", "plan", "dataset"):
        document["spec"]["stages"][0]["name"] = word
        assert [error.path for error in violations(schema, document)] == ["spec.stages[0].name"]


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({}, {"scheduling": {"nodeSelector": {"a": "b"}}}, ["spec.scheduling.nodeSelector"]),
        ({"scheduling": {"nodeSelector": {"a": "b"}}}, {}, ["spec.scheduling.nodeSelector"]),
        ({}, {"scheduling": {"priorityClassName": "high"}}, []),
        ({}, {"failurePolicy": {"backoffLimit": 1}}, ["spec.failurePolicy"]),
        ({"runtimeRef": {"name": "a"}}, {"runtimeRef": {"name": "b"}}, ["spec.runtimeRef"]),
        ({"suspend": False}, {"suspend": True, "budget": {"maxGPUHours": "1"}}, []),
    ],
)
def test_updates_are_judged_as_the_server_judges_them(
    before: dict[str, Any], after: dict[str, Any], paths: list[str]
) -> None:
    (old,) = load_documents(CORPUS / "good" / "smallest.yaml")
    new = copy.deepcopy(old)
    old["spec"] |= before
    new["spec"] |= after
    assert [error.path for error in update_violations(schema_of(DistillationJob), old, new)] == paths


@pytest.mark.parametrize(
    ("status", "paths"), [({}, []), ({"admittedTime": "2025-01-01T00:00:00Z"}, ["spec.scheduling.queueName"])]
)
def test_the_queue_may_change_until_the_job_is_admitted(status: dict[str, Any], paths: list[str]) -> None:
    (old,) = load_documents(CORPUS / "good" / "smallest.yaml")
    old |= {"status": status}
    new = copy.deepcopy(old)
    new["spec"]["scheduling"] = {"queueName": "team-a"}
    assert [error.path for error in update_violations(schema_of(DistillationJob), old, new)] == paths
