"""The operations guide names every reason with its remedy, and no command that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kd_runtime.api.reasons import REMEDIES, ConditionType, Reason
from kd_runtime.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
OURS = ("operations.md", "concepts.md", "security.md", "gitops.md")
TABLE = re.compile(r"^\| `(?P<reason>\w+)` \| (?P<meaning>[^|]+) \| (?P<remedy>[^|]+) \|$", re.MULTILINE)
ROWS = {row["reason"]: row for row in TABLE.finditer((DOCS / "operations.md").read_text())}


def test_every_reason_is_listed_once_and_in_order() -> None:
    assert list(ROWS) == [reason.value for reason in Reason]


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_has_a_meaning_and_the_remedy_that_the_commands_print(reason: Reason) -> None:
    assert ROWS[reason]["remedy"] == REMEDIES[reason]
    assert ROWS[reason]["meaning"].endswith(".")
    assert ROWS[reason]["meaning"] != REMEDIES[reason]


def test_every_condition_is_named() -> None:
    text = (DOCS / "operations.md").read_text()
    assert [kind for kind in ConditionType if f"`{kind}`" not in text] == []


def commands() -> set[tuple[str, str]]:
    found = set()
    for name in OURS:
        for command in re.findall(r"(?:kubectl kd|\bkd) ([a-z_]+)", (DOCS / name).read_text()):
            found.add((name, command))
    return found


@pytest.mark.parametrize(("name", "command"), sorted(commands()))
def test_every_command_that_is_named_exists(name: str, command: str) -> None:
    words = {"stage": ["stage", "run"], "__complete": ["__complete"]}.get(command, [command, "--help"])
    assert "No such command" not in CliRunner().invoke(app, words).output, f"{name}: kd {command}"


@pytest.mark.parametrize("name", OURS)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / name).read_text()):
        path, _, anchor = target.partition("#")
        file = (DOCS / path).resolve() if path else DOCS / name
        assert file.exists(), target
        if anchor:
            heads = [
                re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
                for h in re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            ]
            assert anchor in heads, target
