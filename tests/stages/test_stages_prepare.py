"""prepare: the model that training starts from, as a plan makes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from manifests import job

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.api.parse import parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rows import prompt_split, rows_of
from kd_runtime.artifacts.store import open_store
from kd_runtime.artifacts.writer import new_writer_id
from kd_runtime.models.loading import load_causal_lm, load_tokenizer
from kd_runtime.models.pruning import block_influence, keep_layers
from kd_runtime.planning.resolve import build_plan
from kd_runtime.stages import ingest, prepare
from kd_runtime.stages.context import StageContext
from kd_runtime.telemetry.progress import Reporter

QUESTIONS = [
    "What colour is the sky?",
    "Who makes bread?",
    "Where do fish live?",
    "Is fire hot or cold?",
    "Name a fruit.",
]

ALL_HELD_OUT = next(
    seed
    for seed in range(100)
    if all(prompt_split([{"role": "user", "content": q}], 0.9, seed) == "heldOut" for q in QUESTIONS)
)


@dataclass(frozen=True)
class Prepared:
    """What a run of prepare made."""

    manifest: Manifest
    folder: Path
    """Its ``model/`` files."""
    rows: list[Any]
    """The dataset's rows, none where prepare reads none."""


def run(folder: Path, models: Path, body: dict[str, Any], *, seed: int | None = None) -> Prepared:
    """Run ingest and prepare with ``body``; the student is the tiny models' teacher, which has four layers.

    With ``seed``, nine in ten prompts are held out.
    """
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps({"instruction": question}) + "\n" for question in QUESTIONS))
    document = job([{"name": "small", "prepare": body}], models, data, f"file://{folder / 'store'}/")
    document["spec"]["student"]["model"]["uri"] = f"file://{models / 'teacher'}"
    document["spec"]["dataset"]["holdout"] = {"fraction": 0.0} if seed is None else {"fraction": 0.9, "seed": seed}
    del document["spec"]["teacher"]
    store, runtime = open_store(document["spec"]["artifacts"]["uri"]), shipped_runtime("cpu")
    plan, _ = build_plan(parse_job(document, runtime), runtime, store)
    cache = Cache(folder / "cache")
    made: dict[str, Manifest] = {}
    for name, stage in (("dataset", ingest), ("small", prepare)):
        work = folder / f"work-{name}"
        work.mkdir()
        planned = plan.stage(name)
        outcome = stage.run(StageContext(plan, planned, store, cache, new_writer_id(), Reporter(name, url=""), work))
        assert outcome.manifest is not None
        made[name] = outcome.manifest
    return Prepared(
        made["small"],
        cache.directory(store, made["small"], "model/"),
        list(rows_of(cache, store, made["dataset"])),
    )


def test_the_layers_with_the_least_influence_on_the_datasets_rows_go(tiny_models: Path, tmp_path: Path) -> None:
    made = run(tmp_path, tiny_models, {"prune": {"keepLayers": 2, "by": "BlockInfluence", "calibrationRows": 3}})
    whole = load_causal_lm(tiny_models / "teacher")
    influence = block_influence(whole, [row.input_ids for row in made.rows[:3]])
    said = made.manifest.extra["prune"]
    assert said["influence"] == pytest.approx(influence, rel=1e-6)
    assert said["removed"] == sorted(np.argsort(influence)[:2].tolist())
    assert sorted(said["kept"] + said["removed"]) == [0, 1, 2, 3]
    keep_layers(whole, said["kept"])
    for name, tensor in load_causal_lm(made.folder).state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    assert made.manifest.counts == {"layers": 2, "parameters": whole.num_parameters()}
    assert set(made.manifest.inputs) == {"rows"}


def test_a_uniformly_pruned_student_reads_no_rows(tiny_models: Path, tmp_path: Path) -> None:
    made = run(tmp_path, tiny_models, {"prune": {"keepLayers": 2, "by": "Uniform"}})
    assert made.manifest.extra["prune"] == {"by": "Uniform", "kept": [0, 3], "removed": [1, 2], "influence": None}
    assert not made.manifest.inputs


def test_the_prepared_model_brings_its_tokenizer_and_template(tiny_models: Path, tmp_path: Path) -> None:
    made = run(tmp_path, tiny_models, {"prune": {"keepLayers": 3, "by": "Uniform"}})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (made.folder / name).read_bytes() == (tiny_models / "teacher" / name).read_bytes()
    assert len(load_tokenizer(made.folder)) == 512


def test_a_random_student_has_the_sizes_that_were_asked_for(tiny_models: Path, tmp_path: Path) -> None:
    made = run(tmp_path, tiny_models, {"random": {"layers": 1, "hiddenSize": 32, "seed": 4}})
    config = load_causal_lm(made.folder).config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (1, 32, 192)
    assert made.manifest.extra["random"]["seed"] == 4


def test_running_again_makes_the_same_content(tiny_models: Path, tmp_path: Path) -> None:
    body = {"prune": {"keepLayers": 2, "by": "BlockInfluence", "calibrationRows": 4}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = run(tmp_path / "a", tiny_models, body), run(tmp_path / "b", tiny_models, body)
    assert one.manifest.content_digest == other.manifest.content_digest
    assert one.manifest.key == other.manifest.key


def test_keeping_all_layers_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"spec\.stages\[0\]\.prepare\.prune\.keepLayers: 4 leaves out none .* most 3"
    ):
        run(tmp_path, tiny_models, {"prune": {"keepLayers": 4, "by": "Uniform"}})


def test_influence_is_measured_on_train_rows_alone(tiny_models: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of split train"):
        run(tmp_path, tiny_models, {"prune": {"keepLayers": 2}}, seed=ALL_HELD_OUT)
