"""An operator installed by its extra has every package that it imports."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
OURS = {"kd_operator", "kd_runtime"}
PINNED_BY_OTHERS = {"pydantic-core"}
"""Pydantic needs exactly one version of it: the project must not name another."""


def imported() -> Iterator[str]:
    """Top-level modules that the operator's sources import, wherever they do."""
    for path in (REPOSITORY / "operator/kd_operator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_every_package_that_the_operator_imports_is_named() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["operator"]]
    named = {canonicalize_name(Requirement(line).name) for line in required}
    foreign = set(imported()) - OURS - set(sys.stdlib_module_names)
    assert "kopf" in foreign
    homes = packages_distributions()
    needed = {canonicalize_name(home) for module in foreign for home in homes[module]}
    assert needed - named - PINNED_BY_OTHERS == set()
