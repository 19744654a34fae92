"""Panels from the training log: loss curves, learning rate, head mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from markupsafe import Markup

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
        why = (
            sources.why_absent(StageType.Train) if not sources.done(StageType.Train) else f"the artifact holds no {LOG}"
        )
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
        figures.append(
            _curve(
                log, "lr", prefix + "learning rate", "neutral", "learning rate", "the log has no learning rate", False
            )
        )
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
        teacher, student = (percent(_tail_mean(log, f"head_mass_{who}")) for who in ("teacher", "student"))
        lines = [
            _Line("head_mass_teacher", "Teacher", "teacher", dashed=True),
            _Line("head_mass_student", "Student", "student"),
        ]
        note = f"At the end the teacher has {teacher}, the student {student}."
        figures.append(
            _figure(
                log, f"{prefix}head mass of teacher and student", lines, Axis("probability on the head", percent), note
            )
        )
    if _has(log, "agreement"):
        lines = [_Line("agreement", "Top-1 agreement", "student")]
        if _has(log, "overlap"):
            lines.append(_Line("overlap", "Top-k overlap", "kd"))
        note = f"Top-1 agreement at the end: {percent(_tail_mean(log, 'agreement'))}."
        figures.append(
            _figure(log, f"{prefix}agreement while training", lines, Axis("share of positions", percent), note)
        )
    return figures


@dataclass(frozen=True)
class _Line:
    """One field of the log as a line."""

    field: str
    label: str
    color: str
    dashed: bool = False


def _curve(log: Log, field: str, title: str, color: str, unit: str, why_not: str, smooth: bool = True) -> Figure:
    if not _has(log, field):
        return Figure(title, Markup(), note=f"Not available: {why_not}.")
    numbers = _numbers(log, field)
    change = f"From {short(_head_mean(log, field))} (first steps) to {short(_tail_mean(log, field))} (last steps)."
    note = change if smooth else f"Highest {short(max(numbers))}, last {short(numbers[-1])}."
    return _figure(log, title, [_Line(field, "each step", color)], Axis(unit), note, smooth)


def _figure(log: Log, title: str, lines: Sequence[_Line], axis: Axis, note: str, smooth: bool = True) -> Figure:
    """Lines over the steps; long ones faint, with their running mean drawn over them."""
    faint, bold, entries = [], [], []
    for line in lines:
        raw = _series(log, line.field, line.label, line.color, line.dashed)
        if not (smooth and len(raw.xs) >= SMOOTH_FROM):
            bold.append(raw)
            entries.append((line.label, line.color))
            continue
        window = max(5, len(raw.xs) // 12)
        faint.append(replace(raw, color=f"{line.color} faint", dashed=False))
        name = f"running mean of {window}" if len(lines) == 1 else line.label
        bold.append(Series(name, line.color, raw.xs, running_mean(raw.ys, window), dashed=line.dashed))
        entries += (
            [("each step" if len(log) <= POINTS else "few steps", f"{line.color} faint")] if len(lines) == 1 else []
        )
        entries.append((name, line.color))
    spoken = f"{title} over {len(log)} steps. {note}"
    chart = line_chart([*faint, *bold], Axis("step"), axis, spoken)
    return Figure(title, chart, legend(entries, [line.label for line in lines if line.dashed]), note)


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
    """The mean of the values up to half a window away on either side; shorter at the ends."""
    half = window // 2
    total = [0.0, *accumulate(values)]
    edges = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(total[stop] - total[start]) / (stop - start) for start, stop in edges]


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
