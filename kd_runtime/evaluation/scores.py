"""What is measured: the closed list of scores, and the per-prompt sums that each is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from kd_runtime.evaluation.bootstrap import RESAMPLES, Bootstrap, Floats, bootstrap


class Who(StrEnum):
    """Whose value a score is."""

    Student = "student"
    """The trained model."""
    Baseline = "baseline"
    """The same model before training."""
    Teacher = "teacher"


class Score(StrEnum):
    """The closed list of scores, as a gate's ``of`` names them."""

    KL = "KL"
    Agreement = "Agreement"
    CrossEntropy = "CrossEntropy"
    Perplexity = "Perplexity"
    HeadMass = "HeadMass"
    ExactMatch = "ExactMatch"
    Ended = "Ended"
    LongestRepeat = "LongestRepeat"
    AnswerTokens = "AnswerTokens"


@dataclass(frozen=True)
class ScoreInfo:
    """How a score is read: its unit, which way is better, what one entry of its count is, and one sentence."""

    title: str
    unit: str
    higher_is_better: bool | None
    per: str
    meaning: str
    ideal: float | None = None
    """The teacher's own value where it is so by definition."""


SCORES: dict[Score, ScoreInfo] = {
    Score.KL: ScoreInfo(
        "KL to the teacher",
        "nats",
        False,
        "positions",
        "Forward KL from the teacher's stored distribution (its head, and one bucket for the rest) to the model's, per position.",
        ideal=0.0,
    ),
    Score.Agreement: ScoreInfo(
        "Top-1 agreement",
        "share",
        True,
        "positions",
        "Share of positions where the model's most likely token is the teacher's; ties count as equal.",
        ideal=1.0,
    ),
    Score.CrossEntropy: ScoreInfo(
        "Cross-entropy", "nats", False, "positions", "Mean negative log-likelihood of the held-out answers' tokens."
    ),
    Score.Perplexity: ScoreInfo(
        "Perplexity", "", False, "positions", "exp of the mean negative log-likelihood of the held-out answers' tokens."
    ),
    Score.HeadMass: ScoreInfo(
        "Head mass", "share", None, "positions", "Mean probability on the teacher's stored top tokens."
    ),
    Score.ExactMatch: ScoreInfo(
        "Exact match",
        "share",
        True,
        "answers",
        "Share of answers equal to one of the dataset's references, reasoning and runs of white space aside.",
    ),
    Score.Ended: ScoreInfo(
        "Answers that end",
        "share",
        True,
        "answers",
        "Share of answers that end by themselves within the tokens allowed.",
    ),
    Score.LongestRepeat: ScoreInfo(
        "Longest repeat",
        "tokens",
        None,
        "answers",
        "Mean over answers of the longest stretch in which one unit follows itself back to back.",
    ),
    Score.AnswerTokens: ScoreInfo("Answer length", "tokens", None, "answers", "Mean number of tokens of an answer."),
}

SOURCE: dict[Score, Score] = {Score.Perplexity: Score.CrossEntropy}
"""Scores that are computed from another one's sums."""


@dataclass(frozen=True)
class Items:
    """Per-prompt sums of every score: ``sums[score, who]`` is [N, 2], the sum over the prompt and its count.

    Lines follow ``prompts``; a prompt that has no entry for a score has count 0 there.
    """

    prompts: tuple[str, ...]
    sums: Mapping[tuple[Score, Who], Floats]

    def has(self, score: Score, who: Who) -> bool:
        """True where the score was measured for ``who`` on at least one prompt (or is so by definition)."""
        if who is Who.Teacher and SCORES[score].ideal is not None:
            return self.has(score, Who.Student)
        sums = self.sums.get((SOURCE.get(score, score), who))
        return sums is not None and bool(sums[:, 1].any())

    def count(self, score: Score, who: Who) -> int:
        """Positions or answers that the score was measured on."""
        sums = self.sums.get((SOURCE.get(score, score), who))
        return 0 if sums is None else int(sums[:, 1].sum())

    def columns(self, score: Score, who: Who) -> Floats:
        """[N, 2]: sum and count; a teacher's ideal value is written as such a ratio over the student's counts."""
        ideal = SCORES[score].ideal
        if who is Who.Teacher and ideal is not None:
            count = self.sums[score, Who.Student][:, 1]
            return np.stack([ideal * count, count], axis=1)
        return self.sums[SOURCE.get(score, score), who]


def ratio(score: Score, sums: Floats) -> Floats:
    """The score's value from its summed columns [..., 2]."""
    value = sums[..., 0] / sums[..., 1]
    return np.exp(value) if score is Score.Perplexity else value


def score_bootstrap(items: Items, score: Score, who: Who, *, resamples: int = RESAMPLES) -> Bootstrap:
    """The bootstrap of one score of one model."""
    return bootstrap(items.columns(score, who), lambda sums: ratio(score, sums), resamples=resamples)


def gap_bootstrap(items: Items, score: Score, *, no_gap: float = -np.inf, resamples: int = RESAMPLES) -> Bootstrap:
    """Of the recovered gap, (baseline - student) / (baseline - teacher): 0 at the baseline, 1 at the teacher.

    ``no_gap`` is the value, of the whole or of a resample, where the teacher is not better than the baseline: the ratio
    would praise a student for getting worse. A score without a better side has its gap towards the teacher.
    """
    parts = np.concatenate([items.columns(score, who) for who in (Who.Baseline, Who.Student, Who.Teacher)], axis=1)
    higher = SCORES[score].higher_is_better
    whole = parts.sum(axis=0)
    towards = np.sign(ratio(score, whole[0:2]) - ratio(score, whole[4:6]))
    side = towards if higher is None else -1.0 if higher else 1.0

    def recovered(sums: Floats) -> Floats:
        baseline, student, teacher = (ratio(score, sums[..., i : i + 2]) for i in (0, 2, 4))
        gap = baseline - teacher
        return np.where(gap * side > 0, (baseline - student) / gap, np.where(np.isnan(gap), np.nan, no_gap))

    return bootstrap(parts, recovered, resamples=resamples)


def change_bootstrap(items: Items, score: Score, *, resamples: int = RESAMPLES) -> Bootstrap:
    """Of student - baseline, drawn together: the change that training made."""
    parts = np.concatenate([items.columns(score, who) for who in (Who.Student, Who.Baseline)], axis=1)
    return bootstrap(parts, lambda s: ratio(score, s[..., 0:2]) - ratio(score, s[..., 2:4]), resamples=resamples)


def write_items(items: Items, path: Path) -> None:
    """JSON lines, one a prompt: ``{"prompt": id, "KL.student": [sum, count], …}``; entries with count 0 are left out."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line, prompt in enumerate(items.prompts):
            record: dict[str, object] = {"prompt": prompt}
            for (score, who), sums in sorted(items.sums.items()):
                if sums[line, 1]:
                    record[f"{score}.{who}"] = [float(sums[line, 0]), float(sums[line, 1])]
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def read_items(lines: Iterable[str]) -> Items:
    """The inverse of write_items; scores that this version does not know are passed over."""
    records = [json.loads(line) for line in lines if line.strip()]
    sums: dict[tuple[Score, Who], Floats] = {}
    for at, record in enumerate(records):
        for name, pair in record.items():
            score, _, who = name.partition(".")
            if score in Score.__members__ and who:
                sums.setdefault((Score(score), Who(who)), np.zeros((len(records), 2)))[at] = pair
    return Items(tuple(str(r["prompt"]) for r in records), sums)
