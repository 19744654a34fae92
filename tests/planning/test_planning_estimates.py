"""Rows, tokens and bytes that a plan expects, against what the quickstart's run counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import fake_model

from kd_runtime.artifacts.store import open_store
from kd_runtime.local.manifest import load_job
from kd_runtime.planning.estimates import RowSample, estimate, rows_bytes, sample_dataset
from kd_runtime.planning.resolve import build_plan

EXAMPLES = Path(__file__).parents[2] / "examples"
TOLERANCE = 0.2
PROMPT_TOKENS = 17.4 + 30
"""Mean of the quickstart's instructions by SmolLM2's tokenizer, and its template."""


MEASURED = {
    "dataset": (17_639, 40_883),
    "answers": (31_713, 98_821),
    "logits": (31_713, 1_978_108),
    "student": (52_592, None),  # the weights of the test's own model are no larger than its header
    "exam": (19_866, 106_611),
}
"""Tokens and bytes by the manifests of `make demo`."""


def test_the_quickstarts_tokens_and_bytes_are_those_of_its_run(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".models", ".kd"))
    fake_model(tmp_path / ".models" / "smollm2-135m-instruct", num_hidden_layers=30)
    local = load_job(tmp_path / "quickstart.yaml")
    plan, resolver = build_plan(local.job, local.runtime, open_store(f"file://{tmp_path}/store/"))
    expected = estimate(plan, resolver.headers, {}, RowSample(372, PROMPT_TOKENS, 0.0, 45 / 372))
    for stage, (tokens, size) in MEASURED.items():
        assert expected[stage].tokens == pytest.approx(tokens, rel=TOLERANCE), stage
        assert size is None or expected[stage].bytes == pytest.approx(size, rel=TOLERANCE), stage


def test_a_sample_says_which_share_is_held_out(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".models", ".kd"))
    fake_model(tmp_path / ".models" / "smollm2-135m-instruct", num_hidden_layers=30)
    local = load_job(tmp_path / "quickstart.yaml")
    plan, _ = build_plan(local.job, local.runtime, open_store(f"file://{tmp_path}/store/"))
    sample = sample_dataset(plan)
    assert (sample.rows, round(sample.rows * sample.held_share)) == (372, 45)  # as ingest counted


@pytest.mark.parametrize(
    ("rows", "tokens", "references", "measured"),
    [
        (372, 17_639, 0, 40_883),  # examples/data/instructions.jsonl
        (44, 2_278, 500, 10_188),  # examples/data/qa_with_answers.jsonl
        (400, 89_319, 46_000, 263_179),  # the first of GSM8K
        (400, 89_319, 0, 211_430),  # the same without references
        (3000, 641_213, 345_000, 1_834_232),
    ],
)
def test_rows_take_the_bytes_that_real_ones_took(rows: int, tokens: int, references: int, measured: int) -> None:
    assert rows_bytes(rows, tokens, references) == pytest.approx(measured, rel=TOLERANCE)
