"""prepare: the model that training starts from, made of the student by leaving out layers, or drawn at random."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from kd_runtime.api.data_stages import Prune, PruneBy, RandomInit
from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.artifacts.rows import rows_of
from kd_runtime.models.loading import load_causal_lm, save_causal_lm
from kd_runtime.models.pruning import block_influence, decoder_layers, evenly_spaced, keep_layers, most_influential
from kd_runtime.models.random_init import random_model
from kd_runtime.stages.context import StageContext, StageOutcome

CALIBRATION_TOKENS = 2048
"""Of each calibration row at most so many tokens are read: influence is a mean, and memory grows with length."""


def run(ctx: StageContext) -> StageOutcome:
    """Make the model and commit it as ``model/*``; the manifest's ``extra`` says what was left out and why.

    Raises:
        SettingsError: the settings do not fit the student.
        DataError: there are no rows to measure block influence on.
    """
    started = time.monotonic()
    body = ctx.settings.prepare
    assert body is not None
    source, target = ctx.model_dir("model"), ctx.work / "model"
    if body.prune is not None:
        model, extra = _pruned(ctx, body.prune, source)
    else:
        assert body.random is not None
        model, extra = _random(ctx, body.random, source)
    save_causal_lm(model, target, companions=source)
    layers = len(decoder_layers(model))
    parameters = int(model.num_parameters())
    artifact = ctx.new_artifact()
    artifact.add_tree(target, "model/")
    manifest = artifact.commit(
        counts={"layers": layers, "parameters": parameters},
        metrics={"parameters": float(parameters), "layers": float(layers)},
        extra=extra,
        seconds=time.monotonic() - started,
    )
    return StageOutcome(
        manifest, manifest.counts, manifest.metrics, f"{layers} layers, {parameters / 1e6:.1f} million parameters"
    )


def _pruned(ctx: StageContext, prune: Prune, source: Path) -> tuple[Any, dict[str, Any]]:
    model = load_causal_lm(source, trust_remote_code=_trusted(ctx))
    layers = len(decoder_layers(model))
    if prune.keep_layers >= layers:
        raise SettingsError(
            f"{_path(ctx)}.prune.keepLayers: {prune.keep_layers} leaves out none of the student's {layers} layers; "
            f"lower it to at most {layers - 1}, or leave the stage out"
        )
    influence: list[float] | None = None
    if prune.by is PruneBy.BlockInfluence:
        influence = _influence(ctx, model, prune)
        kept = most_influential(influence, prune.keep_layers)
    else:
        kept = evenly_spaced(layers, prune.keep_layers)
    keep_layers(model, kept)
    removed = [layer for layer in range(layers) if layer not in kept]
    return model, {"prune": {"by": prune.by.value, "kept": kept, "removed": removed, "influence": influence}}


def _random(ctx: StageContext, wanted: RandomInit, source: Path) -> tuple[Any, dict[str, Any]]:
    model = random_model(source, wanted, f"{_path(ctx)}.random")
    return model, {"random": wanted.model_dump(mode="json", by_alias=True)}


def _influence(ctx: StageContext, model: Any, prune: Prune) -> list[float]:
    import torch

    rows = list(islice(_train_rows(ctx), prune.calibration_rows))
    if not rows:
        raise DataError(f"{_path(ctx)}.prune: no row of split train has tokens to measure block influence on")
    reporter, done = ctx.reporter, 0

    def heard(tokens: int) -> None:
        nonlocal done
        done += 1
        reporter.update(done, len(rows), "rows", tokens=tokens)

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return block_influence(model, rows, heard)
    finally:
        model.to("cpu")


def _train_rows(ctx: StageContext) -> Iterator[Sequence[int]]:
    """Token ids of the train rows in order: whole conversations, or prompts where there is no answer yet."""
    for row in rows_of(ctx.cache, ctx.store, ctx.input("rows")):
        if row.split == "train" and len(row.input_ids):
            yield row.input_ids[:CALIBRATION_TOKENS]  # type: ignore[misc]


def _trusted(ctx: StageContext) -> bool:
    return ctx.plan.spec.student.model.trust_remote_code


def _path(ctx: StageContext) -> str:
    number = [stage.name for stage in ctx.plan.spec.stages].index(ctx.stage.name)
    return f"spec.stages[{number}].prepare"
