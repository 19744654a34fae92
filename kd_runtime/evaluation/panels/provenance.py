"""Panels from the manifests: data lineage, rows lost and why, tokens, bytes and seconds by stage, settings."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from kd_runtime.evaluation.charts import inline_bar
from kd_runtime.evaluation.graph import draw
from kd_runtime.evaluation.lineage import (
    TOKENS,
    StageCost,
    StageRows,
    describe_inputs,
    lineage_graph,
    row_losses,
    stage_costs,
)
from kd_runtime.evaluation.panels.panel import Panel, Table, absent
from kd_runtime.evaluation.scales import byte_size, duration
from kd_runtime.evaluation.sources import Sources, short_digest

Cell = str | Markup


def lineage_panel(sources: Sources) -> Panel:
    """The graph of artifacts, and the same as tables with whole digests."""
    nodes, edges = lineage_graph(sources)
    said = "; ".join(f"{s.name} is made from {describe_inputs(s)}" for s in sources.plan.stages)
    content = {
        "graph": draw(nodes, edges, f"Graph of artifacts: {said}."),
        "stages": _stage_table(sources),
        "externals": _external_table(sources),
    }
    lead = (
        "An artifact's key is the digest of what makes it: the same settings and inputs give the same key, and what is there is "
        "not made again. Dashed boxes come from outside the store."
    )
    return Panel("lineage", "Data lineage", "lineage", content, lead=lead)


def _stage_table(sources: Sources) -> Table:
    rows: list[list[Cell]] = []
    for stage in sources.plan.stages:
        manifest = sources.manifests.get(stage.name)
        rows.append(
            [
                stage.name,
                str(stage.type),
                describe_inputs(stage),
                _digest(stage.key),
                _digest(manifest.content_digest) if manifest else "not made yet",
                manifest.created[:19].replace("T", " ") if manifest else "–",
            ]
        )
    return Table(
        "Artifacts", ("Stage", "Type", "Made from", "Key", "Content digest", "Made at (UTC)"), rows, wide=frozenset({2})
    )


def _external_table(sources: Sources) -> Table:
    rows: list[list[Cell]] = [
        [
            roles,
            external.uri,
            external.revision or "–",
            byte_size(external.size) if external.size else "–",
            _digest(external.digest),
        ]
        for roles, external in sources.externals()
    ]
    return Table(
        "From outside the store",
        ("Role", "Address", "Revision", "Size", "Digest"),
        rows,
        frozenset({3}),
        frozenset({1, 2}),
    )


def _digest(value: str) -> Markup:
    return Markup('<code title="{}">{}</code>').format(value, short_digest(value))


def rows_panel(sources: Sources) -> Panel:
    """Rows in, done, rejected and out by stage, and the reasons."""
    stages = row_losses(sources)
    if not stages:
        return absent("rows", "Rows lost and why", "no stage that counts rows has an artifact in the store yet")
    rows: list[list[Cell]] = [
        [s.stage, str(s.type), _count(s.came), _count(s.done), _rejected(s), _count(s.out)] for s in stages
    ]
    reasons: list[list[Cell]] = [
        [s.stage, loss.reason, _count(loss.rows), _examples(loss.examples)] for s in stages for loss in s.losses
    ]
    content = {
        "flow": Table(
            "Rows by stage (pairs of row and sample where a stage samples)",
            ("Stage", "Type", "In", "Done", "Rejected or left out", "Out"),
            rows,
            frozenset({2, 3, 4, 5}),
        ),
        "reasons": Table("Reasons", ("Stage", "Reason", "Rows", "For example"), reasons, frozenset({2}))
        if reasons
        else None,
        "lost": sum(loss.rows for s in stages for loss in s.losses),
    }
    return Panel("rows", "Rows lost and why", "rows", content)


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", " ")


def _rejected(stage: StageRows) -> Cell:
    if stage.rejected is None or not stage.came:
        return "–"
    share = stage.rejected / stage.came
    return Markup("{} <small>{}</small>").format(
        _count(stage.rejected), f"{100 * share:.1f} %" if stage.rejected else ""
    )


def _examples(examples: tuple[str, ...]) -> Cell:
    if not examples:
        return "–"
    return Markup("<br>").join(e if len(e) <= 160 else e[:160] + "…" for e in examples)


def costs_panel(sources: Sources) -> Panel:
    """Tokens, bytes and seconds by stage, with their shares as bars."""
    costs = stage_costs(sources)
    if not costs:
        return absent("costs", "Tokens, bytes and seconds by stage", "no stage has an artifact in the store yet")
    most = {
        "tokens": max((c.tokens or 0 for c in costs), default=0),
        "bytes": max(c.bytes for c in costs),
        "seconds": max(c.seconds for c in costs),
    }
    rows: list[list[Cell]] = [
        [
            c.stage,
            str(c.type),
            _with_bar(_tokens(c), c.tokens or 0, most["tokens"]),
            _with_bar(byte_size(c.bytes), c.bytes, most["bytes"]),
            _with_bar(duration(c.seconds), c.seconds, most["seconds"]),
            f"{c.tokens / c.seconds:,.0f}".replace(",", " ") if c.tokens and c.seconds >= 0.05 else "–",
        ]
        for c in costs
    ]
    rows.append(
        [
            Markup("<b>all</b>"),
            "",
            "",
            Markup("<b>{}</b>").format(byte_size(sum(c.bytes for c in costs))),
            Markup("<b>{}</b>").format(duration(sum(c.seconds for c in costs))),
            "",
        ]
    )
    table = Table(
        "Tokens worked on, bytes that the artifact holds, and seconds of the attempt that made it",
        ("Stage", "Type", "Tokens", "Bytes", "Seconds", "Tokens/s"),
        rows,
        frozenset({2, 3, 4, 5}),
    )
    return Panel("costs", "Tokens, bytes and seconds by stage", "table", {"table": table})


def _tokens(cost: StageCost) -> Cell:
    if cost.tokens is None:
        return "–"
    return Markup("<span>{} <small>{}</small></span>").format(_count(cost.tokens), TOKENS.get(cost.type, ("", ""))[1])


def _with_bar(text: Cell, value: float, most: float) -> Cell:
    return Markup('<span class="barred">{}{}</span>').format(text, inline_bar(value / most if most else 0.0))


def settings_panel(sources: Sources) -> Panel:
    """What every stage was set to: the settings that are part of its key, and those that are only recorded."""
    stages = [
        {
            "name": stage.name,
            "type": str(stage.type),
            "keyed": flat(stage.keyed),
            "recorded": flat(
                sources.manifests[stage.name].recorded if stage.name in sources.manifests else stage.recorded
            ),
        }
        for stage in sources.plan.stages
    ]
    lead = (
        "Settings on the left are part of a stage's key; those on the right are recorded, and change nothing but speed."
    )
    return Panel("settings", "Settings", "settings", {"stages": stages}, lead=lead)


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted path, value) pairs."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", _written(value)))
    return pairs


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_written, value)) or "–"
    return "–" if value in (None, {}, "") else str(value)
