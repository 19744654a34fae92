"""The chart, rendered by the Helm of the cluster kit (KD_TEST_KIT)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_server import restricted, server  # noqa: F401 - fixtures

CHART = Path(__file__).parents[2] / "charts" / "kubedistill"
NAMESPACE = "kd-system"

Helm = Callable[..., "subprocess.CompletedProcess[str]"]
Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs helm with arguments; ``environment`` says which cluster."""
    kit = os.environ.get("KD_TEST_KIT")
    if kit is None:
        pytest.skip("KD_TEST_KIT is not set: there is no Helm to test with")
    said = subprocess.run([kit, "env"], check=True, capture_output=True, text=True).stdout
    words = dict(word.split("=", 1) for word in said.removeprefix("export ").split() if "=" in word)
    path = words["PATH"].replace("$PATH", os.environ["PATH"])

    def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["helm", *arguments],
            env={**(environment or os.environ), "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """The documents of the chart with ``values`` as in ``--set``; ``known``: the cluster has the CRDs already."""

    def documents(*values: str, known: bool = True) -> list[dict[str, Any]]:
        sets = [word for value in values for word in ("--set", value)]
        kinds = ("DistillationJob", "ClusterDistillationRuntime") if known else ()
        sets += [word for kind in kinds for word in ("--api-versions", f"kubedistill.io/v1alpha1/{kind}")]
        rendered = helm("template", "kubedistill", str(CHART), "--namespace", NAMESPACE, *sets)
        assert rendered.returncode == 0, rendered.stderr
        return [document for document in yaml.safe_load_all(rendered.stdout) if document]

    return documents
