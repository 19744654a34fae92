"""The model card: a README.md with Hugging Face front matter that says what a published model was made from, and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from kd_runtime import __version__
from kd_runtime.api.job import GateOp
from kd_runtime.evaluation.gates import Judged
from kd_runtime.evaluation.lineage import StageRows, describe_inputs, row_losses
from kd_runtime.evaluation.panels.provenance import flat
from kd_runtime.evaluation.panels.scores import Exam, exams, logits_said, number
from kd_runtime.evaluation.scores import SCORES, Score
from kd_runtime.evaluation.sources import Sources, short_digest, short_uri
from kd_runtime.planning.plan import PlannedStage, StageType

SCORED = (Score.KL, Score.Agreement, Score.Perplexity, Score.ExactMatch, Score.Ended)


def render_card(sources: Sources, stage: str | None, digest: str) -> str:
    """The card of the model that ``stage`` made (None: one from outside), whose files have ``digest``.

    The same manifests give the same text.

    Scores and gates are those of the plan's evaluate stages that have this very model as input.
    """
    plan = sources.plan
    chosen = [exam for exam in exams(sources) if plan.stage(exam.stage).inputs.get("model") == stage]
    trained = training_of(sources, stage)
    made = lineage_of(sources, stage) if stage else []
    page = _environment().get_template("card.md.j2")
    return page.render(
        front=_front_matter(sources, chosen),
        name=plan.job,
        digest=digest,
        facts=_facts(sources, trained),
        scores=[row for exam in chosen for row in _score_rows(exam)],
        logits=logits_said(chosen[-1].document) if chosen else "",
        held_out=chosen[-1].document["suites"][0] if chosen else None,
        gates=[_gate(exam.stage, judged) for exam in chosen for judged in exam.judged],
        stages=[_stage(sources, planned) for planned in made],
        externals=[(roles, _uri(e.uri, e.revision), e.digest) for roles, e in sources.externals()],
        settings=flat(trained.keyed) if trained else [],
        losses=[_loss(rows) for rows in row_losses(sources)],
        version=__version__,
    )


def training_of(sources: Sources, stage: str | None) -> PlannedStage | None:
    """The train stage that made the model of ``stage``, through compression; None where there is none."""
    while stage is not None:
        planned = sources.plan.stage(stage)
        if planned.type is StageType.Train:
            return planned
        stage = planned.inputs.get("model")
    return None


def lineage_of(sources: Sources, stage: str) -> list[PlannedStage]:
    """Every stage that the model of ``stage`` was made from, itself included, in the plan's order."""
    wanted, open_ = set(), [stage]
    while open_:
        name = open_.pop()
        if name not in wanted:
            wanted.add(name)
            open_ += sources.plan.stage(name).inputs.values()
    return [planned for planned in sources.plan.stages if planned.name in wanted]


def _environment() -> Environment:
    loader = PackageLoader("kd_runtime.evaluation", "templates")
    environment = Environment(
        loader=loader, autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = cell
    return environment


def cell(text: object) -> str:
    """Text for a cell of a Markdown table: on one line, bars escaped, no raw HTML."""
    plain = " ".join(str(text).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _uri(uri: str, revision: str | None) -> str:
    return f"{uri} at {revision}" if revision else uri


def _front_matter(sources: Sources, chosen: Sequence[Exam]) -> str:
    plan = sources.plan
    matter: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "as-base-model-and-teacher",
        "tags": ["kubedistill", "knowledge-distillation"],
    }
    student = plan.spec.student
    if student and student.model.uri.startswith("hf://"):
        matter["base_model"] = short_uri(student.model.uri)
        matter["base_model_relation"] = "finetune"
    if plan.spec.dataset.uri.startswith("hf://"):
        matter["datasets"] = [short_uri(plan.spec.dataset.uri)]
    metrics = [_metric(exam, score) for exam in chosen for score in SCORED if exam.score(score, "student")]
    if metrics:
        dataset = {"name": f"{short_uri(plan.spec.dataset.uri)} (held out)", "type": short_uri(plan.spec.dataset.uri)}
        result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
        matter["model-index"] = [{"name": plan.job, "results": [result]}]
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True).strip()


def _metric(exam: Exam, score: Score) -> dict[str, Any]:
    record = exam.score(score, "student")
    assert record is not None
    kinds = {
        Score.KL: "kl_divergence",
        Score.Agreement: "top1_agreement",
        Score.Perplexity: "perplexity",
        Score.ExactMatch: "exact_match",
        Score.Ended: "answers_ended",
    }
    return {"type": kinds[score], "name": SCORES[score].title, "value": round(float(record["value"]), 4)}


def _facts(sources: Sources, trained: PlannedStage | None) -> dict[str, str]:
    plan = sources.plan
    teachers = sorted(
        {_uri(e.uri, e.revision) for s in plan.stages for role, e in s.externals.items() if role == "teacher"}
    )
    student = plan.spec.student
    facts = {
        "Base model": _uri(student.model.uri, student.model.revision) if student else "",
        "Teacher": ", ".join(teachers),
        "Dataset": _uri(plan.spec.dataset.uri, plan.spec.dataset.revision),
        "Method": str(trained.keyed.get("method", "")) if trained else "",
    }
    return {name: value for name, value in facts.items() if value}


def _score_rows(exam: Exam) -> list[list[str]]:
    rows = []
    for score in SCORED:
        cells = [_score_cell(exam, score, who) for who in ("student", "baseline", "teacher")]
        if cells[0] != "–":
            gap = exam.gap(score)
            rows.append([SCORES[score].title, *cells, f"{100 * gap['value']:.0f} %" if gap else "–"])
    return rows


def _score_cell(exam: Exam, score: Score, who: str) -> str:
    record = exam.score(score, who)
    if record is None:
        return "–"
    if who == "teacher" and SCORES[score].ideal is not None:
        return number(score, record["value"])
    return f"{number(score, record['value'])} ({number(score, record['low'])} – {number(score, record['high'])})"


def _gate(stage: str, judged: Judged) -> dict[str, str]:
    gate, outcome = judged.gate, judged.outcome
    least = gate.op is GateOp.AtLeast
    return {
        "stage": stage,
        "gate": f"{gate.metric} of {gate.of} {'at least' if least else 'at most'} {gate.value:g} ({100 * gate.confidence:g} % confidence)",
        "value": "no gap" if outcome.value is None else f"{outcome.value:.4g}",
        "bound": "–" if outcome.bound is None else f"{outcome.bound:.4g}",
        "verdict": "passed" if outcome.passed else "unmet",
    }


def _stage(sources: Sources, stage: PlannedStage) -> list[str]:
    manifest = sources.manifests.get(stage.name)
    content = f"`{short_digest(manifest.content_digest, 16)}`" if manifest else "–"
    return [stage.name, str(stage.type), describe_inputs(stage), f"`{short_digest(stage.key, 16)}`", content]


def _loss(rows: StageRows) -> list[str]:
    why = ", ".join(f"{loss.rows} {loss.reason}" for loss in rows.losses) or "–"
    return [rows.stage, *("–" if n is None else str(n) for n in (rows.came, rows.done, rows.rejected)), why]
