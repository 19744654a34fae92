"""The report: one HTML file that shows what a plan made, rendered from its manifests alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache as once

from jinja2 import Environment, PackageLoader, StrictUndefined

from kd_runtime import __version__
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.store import Store
from kd_runtime.evaluation.panels.answers import answer_records, answers_panel, endings_panel
from kd_runtime.evaluation.panels.panel import Panel
from kd_runtime.evaluation.panels.provenance import costs_panel, lineage_panel, rows_panel, settings_panel
from kd_runtime.evaluation.panels.scores import exams, position_panel, scores_panel, summary_panel
from kd_runtime.evaluation.panels.training import training_panels
from kd_runtime.evaluation.sources import Sources, short_uri
from kd_runtime.planning.plan import Plan


def render_report(plan: Plan, manifests: Mapping[str, Manifest], store: Store, cache: Cache) -> str:
    """The report of ``plan`` as one self-contained HTML page: inline styles and SVG, no script, nothing from a network.

    ``manifests``: stage name -> manifest of the stages that have an artifact. A panel whose inputs are missing says why.
    The same manifests give the same bytes.

    Raises:
        StorageError: an artifact's file cannot be read.
    """
    sources = Sources(plan, manifests, store, cache)
    page = environment().get_template("report.html.j2")
    return page.render(head=_head(sources), panels=panels(sources))


def panels(sources: Sources) -> list[Panel]:
    """Every panel of the report, in order."""
    judged = exams(sources)
    records = answer_records(sources)
    return [
        summary_panel(sources, judged),
        scores_panel(sources, judged),
        *training_panels(sources),
        position_panel(sources, judged),
        answers_panel(sources, records),
        endings_panel(sources, judged, records),
        lineage_panel(sources),
        rows_panel(sources),
        costs_panel(sources),
        settings_panel(sources),
    ]


@once
def environment() -> Environment:
    """Jinja with everything escaped and every name checked."""
    return Environment(
        loader=PackageLoader("kd_runtime.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _head(sources: Sources) -> dict[str, object]:
    plan = sources.plan
    created = max((m.created for m in sources.manifests.values()), default="")
    student = plan.spec.student
    return {
        "job": plan.job,
        "digest": plan.digest,
        "runtime": plan.runtime,
        "student": short_uri(student.model.uri) if student else "",
        "teachers": ", ".join(
            sorted({short_uri(s.externals["teacher"].uri) for s in plan.stages if "teacher" in s.externals})
        ),
        "created": created[:16].replace("T", " "),
        "made": len(sources.manifests),
        "stages": len(plan.stages),
        "version": __version__,
    }
