"""The plan as a table: stage, inputs, key, found or to do, rows, tokens, bytes, memory, time."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from kd_runtime.planning.estimates import StageEstimate
from kd_runtime.planning.lookup import Lookup, StageLookup
from kd_runtime.planning.plan import Plan, PlannedStage

COLOURS = {Lookup.Found: "green", Lookup.ToDo: "yellow", Lookup.Stale: "red", Lookup.NotNeeded: "dim"}
WORDS = {Lookup.Found: "found", Lookup.ToDo: "to do", Lookup.Stale: "stale", Lookup.NotNeeded: "not needed"}


def plan_table(plan: Plan, states: Mapping[str, StageLookup], estimates: Mapping[str, StageEstimate]) -> Table:
    """A table with a row a stage, and a last row of sums over what is still to do."""
    table = Table(
        title=f"{plan.job}: plan {plan.digest[:12]}, runtime {plan.runtime} {plan.runtime_hash[:8]}",
        title_justify="left",
        box=SIMPLE,
    )
    table.add_column("stage", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("inputs", overflow="fold", max_width=34)
    for heading in ("key", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rows", "tokens", "bytes", "memory", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in plan.stages:
        state, cost = states[stage.name], estimates.get(stage.name, StageEstimate())
        table.add_row(
            stage.name,
            stage.type.value,
            inputs_text(stage),
            stage.key[:12],
            Text(WORDS[state.state], style=COLOURS[state.state]),
            number(cost.rows),
            number(cost.tokens),
            size(cost.bytes),
            size(cost.memory) if state.runs else "",
            duration(cost.seconds) if state.runs else "",
        )
    running = [estimates[s.name] for s in plan.stages if states[s.name].runs and s.name in estimates]
    table.add_section()
    table.add_row(
        "to do", "", "", "", f"{len(running)} of {len(plan.stages)}", "", number(sum(c.tokens for c in running)),
        size(sum(c.bytes for c in running)), size(max((c.memory for c in running), default=0)),
        duration(sum(c.seconds for c in running)), style="bold",
    )  # fmt: skip
    return table


def inputs_text(stage: PlannedStage) -> str:
    """What the stage reads: the stages by name, then what lies outside by its role."""
    return " ".join(dict.fromkeys([*stage.inputs.values(), *stage.externals]))


def number(value: int) -> str:
    """12,345; empty for 0."""
    return f"{value:,}" if value else ""


def size(value: float) -> str:
    """Bytes in a person's units; empty for 0."""
    if not value:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as 1 h 05 min, 3 min, 12 s."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"
