"""Panels from the training log: loss curves, learning rate, head mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kd_runtime.evaluation.charts import Axis, Series, legend, line_chart
from kd_runtime.evaluation.panels.panel import Figure, Panel, absent
from kd_runtime.evaluation.scales import percent, short
from kd_runtime.evaluation.sources import Sources
from kd_runtime.planning.plan import StageType

LOG = "log/train.jsonl"
POINTS = 300
"""A curve is thinned to this many points, each the mean of the steps that it stands for."""
SMOOTH_FROM = 60
"""From this many points on, a running mean is drawn over the curve."""

Log = list[dict[str, Any]]


def training_panels(sources: Sources) -> list[Panel]:
    """Loss, learning rate and head mass of every train stage of the plan."""
    logs = [(stage.name, sources.records(manifest, LOG)) for stage, manifest in sources.done(StageType.Train)]
    logs = [(name, log) for name, log in logs if log]
    if not logs:
        why = sources.why_absent(StageType.Train) if not sources.done(StageType.Train) else f"the artifact holds no {LOG}"
        titles = (("loss", "Loss"), ("rate", "Learning rate"), ("mass", "Head mass"))
        return [absent(id, title, why) for id, title in titles]
    several = len(logs) > 1
    return [_loss(logs, several), _rate(logs, several), _mass(logs, several)]


def _loss(logs: list[tuple[str, Log]], several: bool) -> Panel:
    figures = []
    for name, log in logs:
        prefix = f"{name}: " if several else ""
        for field, title, color, why in (
            ("kd", "distillation loss (KD)", "kd", "this stage trains without teacher logits"),
            ("ce", "cross-entropy (CE)", "ce", "the objective has no cross-entropy"),
        ):
            figures.append(_curve(log, field, prefix + title, color, "nats a position", why))
    lead = (
        "Means over each step's positions. KD is the divergence from the teacher's stored distribution, CE the negative "
        "log-likelihood of the answers' own tokens."
    )
    return Panel("loss", "Loss", "figures", {"figures": figures}, lead=lead)


def _rate(logs: list[tuple[str, Log]], several: bool) -> Panel:
    figures = []
    for name, log in logs:
        prefix = f"{name}: " if several else ""
        figures.append(_curve(log, "lr", prefix + "learning rate", "neutral", "learning rate", "the log has no learning rate", False))
        if _has(log, "grad_norm"):
            figures.append(_curve(log, "grad_norm", prefix + "gradient norm before clipping", "neutral", "norm", ""))
    return Panel("rate", "Learning rate", "figures", {"figures": figures})


def _mass(logs: list[tuple[str, Log]], several: bool) -> Panel:
    figures = [figure for name, log in logs for figure in _mass_figures(log, f"{name}: " if several else "")]
    if not figures:
        return absent("mass", "Head mass", "no train stage of this plan reads teacher logits")
    lead = (
        "Probability that falls on the teacher's stored top tokens, on the training rows. The teacher's shows how much of its "
        "distribution the logits hold; the student's rises towards it as the student learns where the teacher looks."
    )
    return Panel("mass", "Head mass", "figures", {"figures": figures}, lead=lead)


def _mass_figures(log: Log, prefix: str) -> list[Figure]:
    figures = []
    if _has(log, "head_mass_teacher"):
        teacher = _series(log, "head_mass_teacher", "Teacher", "teacher", dashed=True)
        student = _series(log, "head_mass_student", "Student", "student")
        last = f"At the end the teacher has {percent(_tail_mean(log, 'head_mass_teacher'))}, the student {percent(_tail_mean(log, 'head_mass_student'))}."
        chart = line_chart([teacher, student], Axis("step"), Axis("probability on the head", percent), f"Head mass by step. {last}")
        names = [("Teacher", "teacher"), ("Student", "student")]
        figures.append(Figure(f"{prefix}head mass of teacher and student", chart, legend(names, ["Teacher"]), last))
    if _has(log, "agreement"):
        parts = [_series(log, "agreement", "Top-1 agreement", "student")]
        names = [("Top-1 agreement", "student")]
        if _has(log, "overlap"):
            parts.append(_series(log, "overlap", "Top-k overlap", "kd"))
            names.append(("Top-k overlap", "kd"))
        last = f"Top-1 agreement at the end: {percent(_tail_mean(log, 'agreement'))}."
        chart = line_chart(parts, Axis("step"), Axis("share of positions", percent), f"Agreement by step. {last}")
        figures.append(Figure(f"{prefix}agreement while training", chart, legend(names), last))
    return figures


def _curve(log: Log, field: str, title: str, color: str, unit: str, why_not: str, smooth: bool = True) -> Figure:
    if not _has(log, field):
        return Figure(title, line_chart([], Axis("step"), Axis(unit), f"No data: {why_not}."), note=f"Not available: {why_not}.")
    raw = _series(log, field, title, color)
    first, last = _head_mean(log, field), _tail_mean(log, field)
    change = f"From {short(first)} (first steps) to {short(last)} (last steps)." if smooth else f"Highest {short(max(raw.ys))}."
    series = [raw]
    entries = [("each step" if len(log) <= POINTS else "mean of neighbouring steps", color)]
    if smooth and len(raw.xs) >= SMOOTH_FROM:
        window = max(5, len(raw.xs) // 15)
        series = [
            Series("step", f"{color} faint", raw.xs, raw.ys),
            Series(f"mean of {window}", color, raw.xs, running_mean(raw.ys, window)),
        ]
        entries = [(entries[0][0], f"{color} faint"), (f"running mean of {window}", color)]
    chart = line_chart(series, Axis("step"), Axis(unit), f"{title} over {len(log)} steps. {change}")
    return Figure(title, chart, legend(entries) if len(entries) > 1 else legend([]), change)


def _has(log: Log, field: str) -> bool:
    return any(_number(record.get(field)) is not None for record in log)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _series(log: Log, field: str, label: str, color: str, dashed: bool = False) -> Series:
    points = [(float(r["step"]), v) for r in log if (v := _number(r.get(field))) is not None]
    xs, ys = thin(points, POINTS)
    return Series(label, color, xs, ys, dashed=dashed)


def thin(points: Sequence[tuple[float, float]], limit: int) -> tuple[list[float], list[float]]:
    """At most ``limit`` points: each the mean of as many neighbours, at the last one's place."""
    stride = max(1, -(-len(points) // limit))
    groups = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [g[-1][0] for g in groups], [sum(y for _, y in g) / len(g) for g in groups]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of up to ``window`` values that end at each place."""
    means: list[float] = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _edge_mean(values: Sequence[float], last: bool) -> float:
    count = max(1, len(values) // 10)
    part = values[-count:] if last else values[:count]
    return sum(part) / len(part)


def _numbers(log: Log, field: str) -> list[float]:
    return [v for r in log if (v := _number(r.get(field))) is not None]


def _tail_mean(log: Log, field: str) -> float:
    values = _numbers(log, field)
    return _edge_mean(values, last=True) if values else math.nan


def _head_mean(log: Log, field: str) -> float:
    return _edge_mean(_numbers(log, field), last=False)
