"""Argo CD's health script calls a job Healthy, Progressing, Degraded or Suspended when it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from gitops_tools import SCRIPT, argo
from statuses import ARGO, CASES, GITOPS, Case, argo_tests

KEY = "resource.customizations.health.kubedistill.io_DistillationJob"


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_the_script_says_what_a_person_would(one: Case) -> None:
    assert argo(one.document()) == {"status": one.argo, "message": one.argo_message}


@pytest.mark.parametrize("test", yaml.safe_load((ARGO / "health_test.yaml").read_text())["tests"], ids=str)
def test_argo_s_own_test_files_pass(test: dict[str, Any]) -> None:
    document = yaml.safe_load((ARGO / test["inputPath"]).read_text())
    assert argo(document) == test["healthStatus"]


def test_its_test_files_are_the_table_s() -> None:
    written = {str(path.relative_to(ARGO)): path.read_text() for path in sorted(ARGO.rglob("*.yaml"))}
    assert written == argo_tests(), "write them anew with: python tests/statuses.py"


def test_a_condition_without_a_message_is_named_by_its_reason() -> None:
    document = next(one for one in CASES if one.name == "succeeded").document()
    for condition in document["status"]["conditions"]:
        del condition["message"]
    assert argo(document) == {"status": "Healthy", "message": "Succeeded"}


def test_every_status_of_argo_is_reached() -> None:
    assert {one.argo for one in CASES} == {"Healthy", "Progressing", "Degraded", "Suspended"}


def test_the_config_map_holds_the_script_word_for_word() -> None:
    patch = yaml.safe_load((GITOPS / "argocd" / "argocd-cm.yaml").read_text())
    assert patch["data"][KEY] == SCRIPT


def test_the_application_lets_people_suspend() -> None:
    application = yaml.safe_load(Path(GITOPS / "argocd" / "application.yaml").read_text())["spec"]
    (ignored,) = application["ignoreDifferences"]
    assert (ignored["group"], ignored["kind"]) == ("kubedistill.io", "DistillationJob")
    assert "/spec/suspend" in ignored["jsonPointers"]
    assert {"ServerSideApply=true", "RespectIgnoreDifferences=true"} <= set(application["syncPolicy"]["syncOptions"])
