"""Panels from the answers: teacher, untrained and trained side by side; who ends, and who repeats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from kd_runtime.evaluation.charts import Axis, Bar, Group, bar_chart, histogram_chart
from kd_runtime.evaluation.panels.panel import WHO_TITLES, Figure, Panel, Table, absent
from kd_runtime.evaluation.panels.scores import Exam
from kd_runtime.evaluation.scales import percent, short
from kd_runtime.evaluation.scores import Score
from kd_runtime.evaluation.sources import Sources
from kd_runtime.planning.plan import StageType

ANSWERS = "answers.jsonl"
SHOWN_FIRST, SHOWN_AT_MOST = 4, 40
CHARACTERS = 4000
"""An answer longer than this is cut in the report; the artifact holds all of it."""
LOOP_TOKENS = 24
"""From this length on a repeat is pointed out as a loop."""

Records = Sequence[dict[str, Any]]


def answer_records(sources: Sources) -> list[dict[str, Any]]:
    """The answers of the last evaluate stage that has an artifact."""
    done = sources.done(StageType.Evaluate)
    return sources.records(done[-1][1], ANSWERS) if done else []


def answers_panel(sources: Sources, records: Records) -> Panel:
    """Answers side by side: a few at once, the others folded."""
    if not records:
        why = (
            sources.why_absent(StageType.Evaluate)
            if not sources.done(StageType.Evaluate)
            else "no held-out prompt was answered"
        )
        return absent("answers", "Answers side by side", why)
    shown = [_example(number, record) for number, record in enumerate(records[:SHOWN_AT_MOST], 1)]
    names = [WHO_TITLES[who].lower() for who in WHO_TITLES if any(r.get(who) for r in records)]
    lead = f"Held-out prompts, answered greedily by the student before and after training. Shown: {', '.join(names)}."
    if "teacher" not in names:
        lead += " The teacher's answers are not among this evaluation's inputs."
    content = {
        "first": shown[:SHOWN_FIRST],
        "rest": shown[SHOWN_FIRST:],
        "left_out": max(0, len(records) - SHOWN_AT_MOST),
    }
    return Panel("answers", "Answers side by side", "answers", content, lead=lead)


def _example(number: int, record: dict[str, Any]) -> dict[str, Any]:
    messages = record["messages"]
    return {
        "number": number,
        "source": record.get("source", ""),
        "messages": [{"role": m["role"], "text": _cut(str(m["content"]))} for m in messages],
        "references": [_cut(str(r)) for r in record.get("references") or ()],
        "cells": [
            {"who": who, "title": title, **(_answer(record[who]) if record.get(who) else {"none": True})}
            for who, title in WHO_TITLES.items()
        ],
    }


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    repeat = answer.get("repeat", {})
    looping = repeat.get("length", 0) >= LOOP_TOKENS
    return {
        "none": False,
        "text": _said(str(answer["text"])),
        "ended": bool(answer["ended"]),
        "tokens": int(answer["tokens"]),
        "loop": f"repeats {repeat['length']} tokens" if looping else "",
        "match": answer.get("exactMatch"),
    }


def _said(text: str) -> str:
    """An answer as it is shown: no blank end, at most one blank line in a row; what is blank altogether is named."""
    shown = re.sub(r"\n\s*\n", "\n\n", text).strip("\n").rstrip()
    return _cut(shown) if shown else ("(white space alone)" if text else "(empty)")


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}… ({len(text) - CHARACTERS} more characters)"


def endings_panel(sources: Sources, exams: Sequence[Exam], records: Records) -> Panel:
    """Share of answers that end, and the longest repeat of each answer, for the three models."""
    if not exams or not records:
        why = "no held-out prompt was answered" if exams else sources.why_absent(StageType.Evaluate)
        return absent("endings", "Endings and repeats", why)
    figures = [_ended(exams[-1]), _repeats(records)]
    lead = (
        "An answer ends if the model itself stops it within the tokens allowed. A repeat is a stretch in which one unit of "
        "any number of tokens follows itself back to back; its length is in tokens of the student's tokenizer."
    )
    content = {"figures": figures, "table": _ending_table(exams[-1], records)}
    return Panel("endings", "Endings and repeats", "figures", content, lead=lead)


def _ended(exam: Exam) -> Figure:
    bars = [
        Bar(title, who, record["value"], record["low"], record["high"], f"{record['count']} answers")
        for who, title in WHO_TITLES.items()
        if (record := exam.score(Score.Ended, who)) is not None
    ]
    spoken = "Share of answers that end: " + ", ".join(f"{b.label} {percent(b.value)}" for b in bars)
    return Figure("Share of answers that end", bar_chart(bars, Axis("share of answers", percent, cover=(1.0,)), spoken))


def _repeats(records: Records) -> Figure:
    groups = {title: _lengths(records, who) for who, title in WHO_TITLES.items()}
    edges = repeat_bins(max((max(lengths) for lengths in groups.values() if lengths), default=0))
    names = ["none", *(f"{low}–{high}" for low, high in edges[1:])]
    bars = [
        Group(title, who, [sum(1 for n in groups[title] if low <= n <= high) for low, high in edges])
        for who, title in WHO_TITLES.items()
        if groups[title]
    ]
    spoken = "Longest repeat of each answer: " + ", ".join(f"{t} up to {max(n)} tokens" for t, n in groups.items() if n)
    chart = histogram_chart(bars, names, "longest repeat of an answer, tokens", spoken)
    return Figure("Longest repeat of each answer", chart, note="Numbers over the bars count answers.")


def repeat_bins(largest: int) -> list[tuple[int, int]]:
    """Bins 0 (nothing repeated), 2-3, 4-7, 8-15, … up to ``largest``; a repeat has at least two tokens."""
    edges, low = [(0, 1)], 2
    while low <= max(largest, 15):
        edges.append((low, 2 * low - 1))
        low *= 2
    return edges


def _lengths(records: Records, who: str) -> list[int]:
    """The longest repeat of each of a model's answers, ascending."""
    return sorted(int(r[who]["repeat"]["length"]) for r in records if r.get(who))


def _ending_table(exam: Exam, records: Records) -> Table:
    rows: list[list[str | Markup]] = []
    for who, title in WHO_TITLES.items():
        lengths = _lengths(records, who)
        ended, tokens = exam.score(Score.Ended, who), exam.score(Score.AnswerTokens, who)
        if not lengths or ended is None or tokens is None:
            rows.append([title, "–", "–", "–", "–", "–"])
            continue
        looping = sum(1 for n in lengths if n >= LOOP_TOKENS)
        rows.append(
            [
                title,
                f"{percent(ended['value'])} of {len(lengths)}",
                short(tokens["value"]),
                str(lengths[len(lengths) // 2]),
                str(lengths[-1]),
                str(looping),
            ]
        )
    heads = (
        "Model",
        "Answers that end",
        "Mean tokens",
        "Median longest repeat",
        "Largest repeat",
        f"Repeats of {LOOP_TOKENS}+ tokens",
    )
    return Table("Endings and repeats", heads, rows, frozenset({1, 2, 3, 4, 5}), caption_shown=False)
