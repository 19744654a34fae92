"""The evaluation as one JSON document: every score with its interval, recovered gaps, curves, and what was not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kd_runtime.evaluation.bootstrap import RESAMPLES, SEED, Bootstrap
from kd_runtime.evaluation.curves import Positions, curves
from kd_runtime.evaluation.scores import SCORES, Items, Score, Who, change_bootstrap, gap_bootstrap, score_bootstrap

VERSION = 1
CONFIDENCE = 0.95
GAPS = (Score.KL, Score.Agreement, Score.CrossEntropy, Score.Perplexity, Score.ExactMatch)
"""Scores whose recovered gap is reported where baseline and teacher are known and the teacher is surely better."""


@dataclass(frozen=True)
class SuiteFacts:
    """What a suite asked of the student, and how much of it there was."""

    name: str
    maxTokens: int
    prompts: int
    rows: int
    positions: int


def evaluation_document(
    items: Items,
    positions: Positions | None,
    *,
    suites: Sequence[SuiteFacts],
    logits: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    missing: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The document; equal inputs give an equal one.

    ``logits`` names profile, topK and vocabulary of the teacher's logits, ``models`` where each model came from,
    ``missing`` what was not measured and why.
    """
    return {
        "version": VERSION,
        "suites": [asdict(suite) for suite in suites],
        "logits": dict(logits) if logits else None,
        "models": dict(models or {}),
        "bootstrap": {
            "unit": "prompt",
            "method": "BCa",
            "resamples": RESAMPLES,
            "seed": SEED,
            "confidence": CONFIDENCE,
        },
        "scores": _scores(items),
        "gaps": _gaps(items),
        "changes": _changes(items),
        "byPosition": curves(positions) if positions is not None else [],
        "missing": dict(missing or {}),
    }


def _scores(items: Items) -> list[dict[str, Any]]:
    return [
        {
            "score": score.value,
            "who": who.value,
            **_interval(score_bootstrap(items, score, who)),
            "count": items.count(score, who),
        }
        for score in Score
        for who in Who
        if items.has(score, who)
    ]


def _gaps(items: Items) -> list[dict[str, Any]]:
    measured = [score for score in GAPS if all(items.has(score, who) for who in Who)]
    found = {score: _interval(gap_bootstrap(items, score)) for score in measured}
    return [{"score": score.value, **gap} for score, gap in found.items() if math.isfinite(gap["low"])]


def _changes(items: Items) -> list[dict[str, Any]]:
    return [
        {"score": score.value, **_interval(change_bootstrap(items, score))}
        for score in Score
        if items.has(score, Who.Student) and items.has(score, Who.Baseline)
    ]


def _interval(drawn: Bootstrap) -> dict[str, float]:
    interval = drawn.interval(CONFIDENCE)
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def headline_metrics(document: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers that a manifest and a result file carry: the student's scores, their baselines, recovered gaps."""
    metrics = {
        _metric_name(entry["score"], entry["who"]): float(entry["value"])
        for entry in document["scores"]
        if entry["score"] != Score.CrossEntropy
        and not (entry["who"] == Who.Teacher and SCORES[Score(entry["score"])].ideal is not None)
    }
    metrics |= {f"recoveredGap.{entry['score']}": float(entry["value"]) for entry in document["gaps"]}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _metric_name(score: str, who: str) -> str:
    return score if who == Who.Student else f"{score}.{who}"
