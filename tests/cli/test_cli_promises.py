"""docs/promises.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_that_is_there() -> None:
    rows = [line for line in (ROOT / "docs/promises.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not re.match(r"\| (promise|\*\*)", row)]
    named = [re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.rpartition(" | ")[2]) for row in promises]
    assert len(promises) > 20 and all(named), [row for row, tests in zip(promises, named, strict=True) if not tests]
    for file, test in {test for tests in named for test in tests}:
        text = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}(" in text, f"{file} has no {test}"
