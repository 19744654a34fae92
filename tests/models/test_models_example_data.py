"""The data that the examples learn from are what the documentation says of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / "examples" / "data"


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_instructions_are_many_distinct_and_of_many_kinds() -> None:
    rows = records("instructions.jsonl")
    kinds = Counter(row["kind"] for row in rows)
    assert len(rows) >= 320
    assert len({row["instruction"].casefold() for row in rows}) == len(rows)
    assert len(kinds) >= 14
    assert min(kinds.values()) >= 8


def test_given_answers_are_distinct_and_whole() -> None:
    rows = records("qa_with_answers.jsonl")
    assert len(rows) >= 40
    assert len({row["question"] for row in rows}) == len(rows)
    assert all(row["answer"].endswith(".") for row in rows)
