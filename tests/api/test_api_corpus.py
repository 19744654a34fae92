"""Good manifests pass `kd lint`; each bad one fails at the field and with the message that its header names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kd_runtime.api.lint import lint

CORPUS = Path(__file__).parent / "corpus"
GOOD = sorted((CORPUS / "good").glob("*.yaml"))
BAD = sorted((CORPUS / "bad").glob("*.yaml"))


def expected(path: Path) -> dict[str, object]:
    """What a bad manifest's header says of it: path, message, server, and `also`, the paths of what follows from it."""
    comment = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    return yaml.safe_load("\n".join(comment))["expect"]


def named(path: Path) -> str:
    return path.stem


def test_the_corpus_is_large_enough() -> None:
    assert len(GOOD) >= 12
    assert len(BAD) >= 60


@pytest.mark.parametrize("path", GOOD, ids=named)
def test_a_good_manifest_has_neither_errors_nor_warnings(path: Path) -> None:
    report = lint(path)
    assert [str(found) for found in (*report.errors, *report.warnings)] == []


@pytest.mark.parametrize("path", BAD, ids=named)
def test_a_bad_manifest_fails_at_its_field_with_its_message(path: Path) -> None:
    wanted = expected(path)
    errors = lint(path).errors
    assert any(error.path == wanted["path"] and wanted["message"] in str(error) for error in errors), [
        *map(str, errors)
    ]
    assert {error.path for error in errors} == {wanted["path"], *wanted.get("also", ())}, [*map(str, errors)]
    assert all(error.remedy for error in errors)
