"""Panels from the evaluation: the headline, scores with intervals and gates, agreement by position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import GateOp
from kd_runtime.api.result import GateOutcome
from kd_runtime.evaluation.charts import Axis, Series, legend, line_chart
from kd_runtime.evaluation.gates import Judged, judge_manifest
from kd_runtime.evaluation.panels.panel import WHO_TITLES, Figure, Panel, Table, absent
from kd_runtime.evaluation.scales import percent, short
from kd_runtime.evaluation.scores import SCORES, Score
from kd_runtime.evaluation.sources import Sources
from kd_runtime.planning.plan import StageType

DOCUMENT = "evaluation.json"
SHOWN = (
    Score.KL,
    Score.Agreement,
    Score.CrossEntropy,
    Score.Perplexity,
    Score.HeadMass,
    Score.ExactMatch,
    Score.Ended,
    Score.AnswerTokens,
)


@dataclass(frozen=True)
class Exam:
    """One evaluate stage: its document, and its gates judged from its per-prompt values as the plan asks them now."""

    stage: str
    document: dict[str, Any]
    judged: tuple[Judged, ...]
    ungated: str = ""
    """Why gates could not be judged; '' where they could."""

    def score(self, score: Score, who: str) -> dict[str, Any] | None:
        """The record of one score of one model; None where it was not measured."""
        return next((s for s in self.document["scores"] if s["score"] == score and s["who"] == who), None)

    def gap(self, score: Score) -> dict[str, Any] | None:
        """The recovered gap of one score."""
        return next((g for g in self.document["gaps"] if g["score"] == score), None)


def exams(sources: Sources) -> list[Exam]:
    """Every evaluate stage that has an artifact, in the plan's order."""
    return [
        _exam(sources, stage.name, sources.document(m, DOCUMENT), m) for stage, m in sources.done(StageType.Evaluate)
    ]


def _exam(sources: Sources, name: str, document: dict[str, Any], manifest: Any) -> Exam:
    body = sources.plan.settings(name).evaluate
    try:
        gates = body.gates if body else ()
        return Exam(name, document, judge_manifest(sources.store, sources.cache, manifest, gates))
    except SettingsError as error:
        return Exam(name, document, (), str(error))


def number(score: Score, value: float) -> str:
    """A score's value as the report writes it."""
    return percent(value) if SCORES[score].unit == "share" else three_digits(value)


def three_digits(value: float) -> str:
    """Three significant digits, zeros at the end kept, so that a value and its bounds line up: 1.10, 0.509, 12.3, 0."""
    if value == 0 or not 1e-3 <= abs(value) < 1000:
        return short(value)
    return f"{value:#.3g}".removesuffix(".")


def summary_panel(sources: Sources, exams: Sequence[Exam]) -> Panel:
    """The headline: KL before and after, the gap recovered, agreement, perplexity, gates."""
    if not exams:
        return absent("summary", "Summary", sources.why_absent(StageType.Evaluate))
    exam = exams[-1]
    content = {
        "headline": _headline(exam),
        "cards": _cards(exam),
        "gates": [_gate_row(j) for e in exams for j in e.judged],
        "ungated": next((e.ungated for e in exams if e.ungated), ""),
        "gap": _gap_bar(exam),
    }
    return Panel("summary", "Summary", "summary", content)


def _headline(exam: Exam) -> str:
    student, baseline, gap = exam.score(Score.KL, "student"), exam.score(Score.KL, "baseline"), exam.gap(Score.KL)
    if student and baseline and gap:
        return (
            f"Training took the held-out KL to the teacher from {three_digits(baseline['value'])} to {three_digits(student['value'])} nats "
            f"a position: {percent(gap['value'])} of the gap is recovered."
        )
    if student:
        return f"The held-out KL to the teacher is {three_digits(student['value'])} nats a position; there is no baseline to compare with."
    ce, before = exam.score(Score.Perplexity, "student"), exam.score(Score.Perplexity, "baseline")
    if ce and before:
        return f"Training took the held-out perplexity from {three_digits(before['value'])} to {three_digits(ce['value'])}."
    return "The student was evaluated; the scores below are those that its inputs allow."


def _cards(exam: Exam) -> list[dict[str, str]]:
    cards = []
    gap = exam.gap(Score.KL)
    if gap:
        cards.append(
            {
                "title": "Gap recovered",
                "value": percent(gap["value"]),
                "note": f"95 % interval {percent(gap['low'])} to {percent(gap['high'])}",
                "kind": "student",
            }
        )
    for score in (Score.KL, Score.Agreement, Score.Perplexity, Score.Ended, Score.ExactMatch):
        student = exam.score(score, "student")
        if student:
            cards.append(_card(exam, score, student))
    return cards[:5]


def _card(exam: Exam, score: Score, student: dict[str, Any]) -> dict[str, str]:
    baseline, teacher = exam.score(score, "baseline"), exam.score(score, "teacher")
    before = f"before training {number(score, baseline['value'])}" if baseline else "no baseline"
    above = f" · teacher {number(score, teacher['value'])}" if teacher and SCORES[score].ideal is None else ""
    return {"title": SCORES[score].title, "value": number(score, student["value"]), "note": before + above, "kind": ""}


def _gap_bar(exam: Exam) -> dict[str, Any] | None:
    """The way from the untrained model's KL to the teacher's zero, and how far the student went."""
    student, baseline, gap = exam.score(Score.KL, "student"), exam.score(Score.KL, "baseline"), exam.gap(Score.KL)
    if not (student and baseline and gap):
        return None
    return {
        "share": min(max(gap["value"], 0.0), 1.0),
        "low": min(max(gap["low"], 0.0), 1.0),
        "high": min(max(gap["high"], 0.0), 1.0),
        "before": three_digits(baseline["value"]),
        "after": three_digits(student["value"]),
        "percent": percent(gap["value"]),
    }


def _gate_row(judged: Judged) -> dict[str, Any]:
    gate, outcome = judged.gate, judged.outcome
    least = gate.op is GateOp.AtLeast
    score = Score(gate.of)
    write = percent if gate.metric == "recoveredGap" else lambda v: number(score, v)
    names = {"recoveredGap": "Recovered gap of", "value": "", "change": "Change of"}
    return {
        "passed": outcome.passed,
        "name": f"{names[gate.metric]} {SCORES[score].title}".strip(),
        "asked": f"{'at least' if least else 'at most'} {write(gate.value)}, {100 * gate.confidence:g} % confidence",
        "measured": _measured(outcome, "lower bound" if least else "upper bound", write),
        "sentence": judged.sentence(),
    }


def _measured(outcome: GateOutcome, bound: str, write: Callable[[float], str]) -> str:
    if outcome.value is None or outcome.bound is None:
        return outcome.measured(bound)
    return f"is {write(outcome.value)}, {bound} {write(outcome.bound)}"


def scores_panel(sources: Sources, exams: Sequence[Exam]) -> Panel:
    """All scores with intervals, and gates, of every evaluate stage."""
    if not exams:
        return absent("scores", "Scores and gates", sources.why_absent(StageType.Evaluate))
    blocks = [
        {
            "stage": exam.stage,
            "table": _score_table(exam, len(exams) > 1),
            "gates": [_gate_row(j) for j in exam.judged],
            "ungated": exam.ungated,
            "missing": [{"what": what, "why": why} for what, why in sorted(exam.document.get("missing", {}).items())],
        }
        for exam in exams
    ]
    suite = exams[-1].document["suites"][0]
    lead = (
        f"On {suite['prompts']} held-out prompts ({suite['rows']} rows, {suite['positions']} positions), which training never saw. "
        "Below each value: its 95 % bootstrap interval over prompts. A gate passes if its one-sided bound does."
        f"{logits_said(exams[-1].document)}"
    )
    return Panel("scores", "Scores and gates", "scores", {"blocks": blocks}, lead=lead)


def logits_said(document: dict[str, Any]) -> str:
    """Which logits KL and agreement were measured against: profile and size of the head; '' without logits."""
    logits = document.get("logits")
    if not logits or not logits["topK"]:
        return ""
    return f" KL is over the teacher's {logits['topK']} most likely tokens and one bucket for the rest (profile {logits['profile']})."


def _score_table(exam: Exam, several: bool) -> Table:
    rows: list[list[str | Markup]] = []
    for score in SHOWN:
        cells = [_cell(exam, score, who) for who in ("student", "baseline", "teacher")]
        if any(cells):
            gap = exam.gap(score)
            rows.append([_named(score), *(c or Markup('<span class="none">–</span>') for c in cells), _gap_cell(gap)])
    caption = f"Scores of stage {exam.stage}" if several else "Scores"
    heads = ("Score", "Trained", "Untrained", "Teacher", "Gap recovered")
    return Table(caption, heads, rows, frozenset({1, 2, 3, 4}), caption_shown=several)


def _named(score: Score) -> Markup:
    info = SCORES[score]
    better = {True: "higher is better", False: "lower is better", None: ""}[info.higher_is_better]
    unit = "" if info.unit in ("share", "") else info.unit
    small = ", ".join(part for part in (unit, better) if part)
    return Markup('<span title="{}">{}</span> <small>{}</small>').format(info.meaning, info.title, small)


def _cell(exam: Exam, score: Score, who: str) -> Markup | None:
    record = exam.score(score, who)
    if record is None:
        return None
    if who == "teacher" and SCORES[score].ideal is not None:
        return Markup('{} <small class="range">by definition</small>').format(number(score, record["value"]))
    return Markup('{} <small class="range">{} – {}</small>').format(
        number(score, record["value"]), number(score, record["low"]), number(score, record["high"])
    )


def _gap_cell(gap: dict[str, Any] | None) -> Markup:
    if gap is None:
        return Markup('<span class="none">–</span>')
    return Markup('{} <small class="range">{} – {}</small>').format(
        percent(gap["value"]), percent(gap["low"]), percent(gap["high"])
    )


def position_panel(sources: Sources, exams: Sequence[Exam]) -> Panel:
    """Agreement (and KL) by position in the answer, of the trained and the untrained model."""
    if not exams:
        return absent("positions", "Agreement by position", sources.why_absent(StageType.Evaluate))
    exam = exams[-1]
    figures = [
        figure
        for score, title in ((Score.Agreement, "Top-1 agreement by position"), (Score.KL, "KL by position"))
        if (figure := _by_position(exam, score, title)) is not None
    ]
    if not figures:
        why = exam.document.get("missing", {}).get("Agreement", "the evaluation had no teacher logits with a head")
        return absent("positions", "Agreement by position", str(why))
    lead = "Position counts the answer's tokens from 1, in bins of growing width. Shaded: 95 % intervals over prompts."
    return Panel("positions", "Agreement by position", "figures", {"figures": figures}, lead=lead)


def _by_position(exam: Exam, score: Score, title: str) -> Figure | None:
    bins = exam.document["byPosition"]
    series = []
    for who, dashed in (("baseline", True), ("student", False)):
        points = [(b, b[f"{score}.{who}"]) for b in bins if f"{score}.{who}" in b]
        if points:
            xs = [((b["first"] + 1) * (b["last"] + 1)) ** 0.5 for b, _ in points]
            columns = [[float(p[i]) for _, p in points] for i in range(3)]
            series.append(Series(WHO_TITLES[who], who, xs, columns[0], columns[1], columns[2], dashed))
    if not series:
        return None
    write = percent if score is Score.Agreement else short
    unit = "share of positions" if score is Score.Agreement else "nats a position"
    table = _position_table(
        title, bins, score, [w for w in ("student", "baseline") if any(f"{score}.{w}" in b for b in bins)]
    )
    first, last = series[-1].ys[0], series[-1].ys[-1]
    spoken = f"{title}: the trained model has {write(first)} at the first position and {write(last)} at the last ones."
    axis = Axis("position in the answer", lambda v: f"{v:.0f}", log=True)
    chart = line_chart(series, axis, Axis(unit, write, cover=(0.0,)), spoken)
    entries = [(s.label, s.color) for s in reversed(series)]
    return Figure(
        title,
        chart,
        legend(entries, [s.label for s in series if s.dashed]),
        spoken.partition(": ")[2].capitalize(),
        table,
    )


def _position_table(title: str, bins: Sequence[dict[str, Any]], score: Score, whos: Sequence[str]) -> Table:
    rows: list[list[str | Markup]] = []
    for entry in bins:
        first, last = entry["first"] + 1, entry["last"] + 1
        row: list[str | Markup] = [str(first) if first == last else f"{first}–{last}", str(entry["positions"])]
        for who in whos:
            value = entry.get(f"{score}.{who}")
            row.append(
                "–"
                if value is None
                else f"{number(score, value[0])} ({number(score, value[1])} – {number(score, value[2])})"
            )
        rows.append(row)
    return Table(
        f"{title}: values",
        ("Position", "Positions counted", *(WHO_TITLES[w] for w in whos)),
        rows,
        frozenset({1, 2, 3}),
    )
