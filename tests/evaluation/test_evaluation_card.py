"""The model card: front matter that a hub reads, and the whole lineage of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from evaluation.made_run import SPEC, MadeRun, made_plan, made_run

from kd_runtime.evaluation.card import cell, render_card
from kd_runtime.evaluation.sources import Sources


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return made_run(tmp_path_factory.mktemp("run"))


def card(run: MadeRun, stage: str | None = "student") -> str:
    return render_card(Sources(run.plan, run.manifests, run.store, run.cache), stage, "ab" * 32)


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_the_front_matter_is_what_a_hub_reads(run: MadeRun):
    matter = front(card(run))
    assert matter["pipeline_tag"] == "text-generation"
    assert matter["library_name"] == "transformers"
    assert matter["license"] == "other"
    metrics = {m["type"]: m["value"] for m in matter["model-index"][0]["results"][0]["metrics"]}
    assert 0.4 < metrics["kl_divergence"] < 0.6
    assert set(metrics) == {"kl_divergence", "top1_agreement", "perplexity", "answers_ended"}


def test_a_base_model_and_dataset_of_a_hub_are_linked(run: MadeRun):
    spec = {
        **SPEC,
        "student": {"model": {"uri": "hf://org/base", "revision": "main"}},
        "dataset": {**SPEC["dataset"], "uri": "hf://datasets/org/data", "revision": "v1"},
    }
    matter = front(card(MadeRun(made_plan(spec), run.manifests, run.store, run.cache)))
    assert matter["base_model"] == "org/base"
    assert matter["datasets"] == ["org/data"]


def test_it_tells_scores_with_intervals_and_gates(run: MadeRun):
    text = card(run)
    assert "| KL to the teacher | 0.509 (0.491 – 0.526) | 1.14 (1.10 – 1.17) | 0 | 55 % |" in text
    assert "| exam | recoveredGap of KL at least 0.5 (95 % confidence) | 0.5519 | 0.5332 | passed |" in text


def test_it_tells_the_stages_that_made_the_model_and_no_others(run: MadeRun):
    text = card(run)
    for name in ("dataset", "small", "answers", "logits", "student"):
        assert f"`{run.manifests[name].key[:16]}`" in text
    assert f"`{run.manifests['exam'].key[:16]}`" not in text


def test_it_tells_settings_rows_lost_and_the_models_digest(run: MadeRun):
    text = card(run)
    assert "| optimizer.learningRate | 0.0002 |" in text
    assert "| dataset | 322 | 320 | 2 | 1 BadJSON, 1 Empty, 2 equal to an earlier row" in text
    assert "ab" * 32 in text


def test_a_model_that_was_not_evaluated_says_so(tmp_path: Path):
    text = card(made_run(tmp_path, until="student"))
    assert "published without an evaluation" in text
    assert "model-index" not in front(text)


def test_a_model_from_outside_has_a_card_too(run: MadeRun):
    assert "published without an evaluation" in card(run, None)


def test_cells_of_tables_stay_cells():
    assert cell("a | b\nc <script>") == "a \\| b c &lt;script&gt;"
