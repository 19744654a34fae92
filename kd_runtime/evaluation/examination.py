"""From held-out rows and what models made of them to per-prompt values: the pure part of the evaluate stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_runtime.artifacts.rows import Row, prompt_digest
from kd_runtime.evaluation.answering import Answer
from kd_runtime.evaluation.bootstrap import Floats
from kd_runtime.evaluation.curves import Positions, prompt_sums
from kd_runtime.evaluation.heldout import Lookup, RowScores
from kd_runtime.evaluation.scores import Items, Score, Who


@dataclass(frozen=True)
class Prompt:
    """One held-out prompt: the unit of the bootstrap, and what is answered."""

    id: str
    """32 hex digits of its messages' digest."""
    first: Row
    """The first row that has it: messages, token ids of the prompt, source."""
    references: tuple[str, ...]
    teacher: Row | None
    """The row that holds the teacher's sample 0; None where no stage generated answers, or that one was rejected."""

    @property
    def ids(self) -> Any:
        """Token ids [N] of the prompt with the generation prompt, as the rows have them."""
        return self.first.input_ids[: self.first.prompt_tokens]


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows in the rows artifact's order, and their prompts in the order of their first rows."""

    rows: tuple[Row, ...]
    prompts: tuple[Prompt, ...]
    prompt_of: tuple[int, ...]
    """For each row, the number of its prompt."""

    @property
    def scored(self) -> int:
        """Scored positions of all rows."""
        return sum(int(row.scored.sum()) for row in self.rows)


def prompt_id(row: Row) -> str:
    """32 hex digits over a row's messages (every turn before the response)."""
    return prompt_digest(row.messages)[:32]


def collect(rows: Iterable[Row], *, generated: bool) -> HeldOut:
    """The held-out rows of a rows artifact; ``generated`` says that its responses are a teacher's.

    A given response is a reference where the row names none; a generated one never is.
    """
    kept: list[Row] = []
    number: dict[str, int] = {}
    members: list[list[Row]] = []
    prompt_of: list[int] = []
    for row in rows:
        if row.split != "heldOut":
            continue
        at = number.setdefault(prompt_id(row), len(members))
        if at == len(members):
            members.append([])
        members[at].append(row)
        kept.append(row)
        prompt_of.append(at)
    prompts = tuple(_prompt(name, group, generated) for name, group in zip(number, members, strict=True))
    return HeldOut(tuple(kept), prompts, tuple(prompt_of))


def _prompt(name: str, rows: Sequence[Row], generated: bool) -> Prompt:
    given = [text for row in rows for text in row.references or ()]
    if not given and not generated:
        given = [row.response for row in rows if row.response]
    teacher = next((row for row in rows if any(p.sample == 0 for p in row.parents) and row.response is not None), None)
    return Prompt(name, rows[0], tuple(dict.fromkeys(given)), teacher if generated else None)


def positions_of(held_out: HeldOut, scores: Mapping[Who, Sequence[RowScores]], lookup: Lookup) -> Positions:
    """Every scored position of the held-out rows with the models' values there, and the teacher's own."""
    counts = [int(row.scored.sum()) for row in held_out.rows]
    values: dict[tuple[Score, Who], Floats] = {}
    for who, results in scores.items():
        values[Score.CrossEntropy, who] = _joined([r.ce for r in results], counts)
        values[Score.KL, who] = _joined([r.kl for r in results], counts)
        values[Score.Agreement, who] = _joined([r.agree for r in results], counts)
        values[Score.HeadMass, who] = _joined([r.head_mass for r in results], counts)
    targets = [lookup(row) for row in held_out.rows]
    values[Score.CrossEntropy, Who.Teacher] = _joined([None if t is None else -t.lab_lp for t in targets], counts)
    masses = [None if t is None or t.tail_lp is None else 1 - np.exp(t.tail_lp) for t in targets]
    values[Score.HeadMass, Who.Teacher] = _joined(masses, counts)
    copies = [max(1, len(row.parents)) for row in held_out.rows]
    return Positions(
        prompt=np.repeat(np.asarray(held_out.prompt_of, np.int64), counts),
        offset=np.concatenate([np.arange(n) for n in counts] or [np.empty(0, np.int64)]).astype(np.int64),
        weight=np.repeat(np.asarray(copies, np.float64), counts),
        values={key: array for key, array in values.items() if np.isfinite(array).any()},
    )


def _joined(parts: Sequence[Any], counts: Sequence[int]) -> Floats:
    """All rows' values as one array [P]; NaN for the positions of a row that has none."""
    arrays = [
        np.full(n, np.nan) if part is None else np.asarray(part, np.float64)
        for part, n in zip(parts, counts, strict=True)
    ]
    return np.concatenate(arrays or [np.empty(0)])


def items_of(held_out: HeldOut, positions: Positions, answers: Mapping[Who, Sequence[Answer | None]]) -> Items:
    """Per-prompt sums of every score, from positions and from answers (one a prompt, None where there is none)."""
    prompts = held_out.prompts
    sums = {
        key: prompt_sums(positions.prompt, values, positions.weight, len(prompts))
        for key, values in positions.values.items()
    }
    for who, said in answers.items():
        for score in (Score.Ended, Score.LongestRepeat, Score.AnswerTokens, Score.ExactMatch):
            pairs = [_pair(score, answer, prompt) for answer, prompt in zip(said, prompts, strict=True)]
            sums[score, who] = np.asarray(pairs, np.float64).reshape(-1, 2)
    return Items(tuple(p.id for p in prompts), {key: array for key, array in sums.items() if array[:, 1].any()})


def _pair(score: Score, answer: Answer | None, prompt: Prompt) -> tuple[float, float]:
    if answer is None:
        return 0.0, 0.0
    record = answer.record(prompt.references)
    if score is Score.ExactMatch:
        return (0.0, 0.0) if record["exactMatch"] is None else (float(record["exactMatch"]), 1.0)
    value = {Score.Ended: answer.ended, Score.LongestRepeat: answer.repeat.length, Score.AnswerTokens: answer.tokens}[
        score
    ]
    return float(value), 1.0


def answer_lines(held_out: HeldOut, answers: Mapping[Who, Sequence[Answer | None]]) -> bytes:
    """answers.jsonl: one line a prompt, with the answers of teacher, untrained and trained model (null where absent)."""
    lines = []
    for number, prompt in enumerate(held_out.prompts):
        record: dict[str, Any] = {
            "prompt": prompt.id,
            "source": prompt.first.source,
            "messages": [{"role": m["role"], "content": m["content"]} for m in prompt.first.messages],
            "references": list(prompt.references),
        }
        for who in (Who.Teacher, Who.Baseline, Who.Student):
            answer = answers[who][number] if who in answers else None
            record[who.value] = answer.record(prompt.references) if answer else None
        lines.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    return "".join(lines).encode("utf-8", "surrogatepass")
