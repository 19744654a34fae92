"""evaluate: how close the student came to its teacher on held-out rows, against its baseline; asks no teacher (contract 10)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_runtime.api.failures import DataError, SettingsError, TransientError
from kd_runtime.api.job import Gate, Suite
from kd_runtime.artifacts.rows import Row, rows_of
from kd_runtime.evaluation.answering import Answer, Answerer, measured
from kd_runtime.evaluation.document import SuiteFacts, evaluation_document, headline_metrics
from kd_runtime.evaluation.examination import HeldOut, answer_lines, collect, items_of, positions_of
from kd_runtime.evaluation.gates import ITEMS, Judged, judge
from kd_runtime.evaluation.heldout import Examiner, RowScores
from kd_runtime.evaluation.scores import SCORES, Items, Score, Who, write_items
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.logits.targets import RowTargets
from kd_runtime.models.loading import load_causal_lm, load_tokenizer
from kd_runtime.planning.plan import StageType
from kd_runtime.planning.tokenizers import vocabulary_size
from kd_runtime.stages.context import StageContext, StageOutcome

DOCUMENT, ANSWERS = "evaluation.json", "answers.jsonl"
ROLES = {Who.Student: "model", Who.Baseline: "baseline"}


def run(ctx: StageContext) -> StageOutcome:
    """Score the model (and its baseline) on the held-out rows, let both answer, and commit all values.

    Gates are judged and reported; one that is unmet does not fail this stage.

    Raises:
        SettingsError: a suite that this version does not know; a gate whose score was not measured.
        DataError: no row is held out.
        TransientError: the logits do not record these rows (the store changed).
    """
    started = time.monotonic()
    suite = _suite(ctx)
    held_out = _held_out(ctx)
    teacher = _Teacher.of(ctx)
    work = _Work(ctx, held_out, suite, teacher)
    for who in (Who.Student, Who.Baseline):
        if ctx.has(ROLES[who]):
            work.examine(who)
    positions = positions_of(held_out, work.scores, teacher.lookup)
    items = items_of(held_out, positions, work.answers)
    document = evaluation_document(
        items,
        positions,
        suites=[SuiteFacts(suite.name, suite.max_tokens, len(held_out.prompts), len(held_out.rows), held_out.scored)],
        logits=teacher.facts(),
        models=_models(ctx),
        missing=_missing(ctx, items, teacher),
    )
    judged = judge(_gates(ctx), items)
    return _commit(ctx, work, items, document, judged, time.monotonic() - started)


def _suite(ctx: StageContext) -> Suite:
    body = ctx.settings.evaluate
    assert body is not None
    if len(body.suites) != 1 or body.suites[0].name != "HeldOut":
        names = ", ".join(suite.name for suite in body.suites)
        raise SettingsError(
            f"stage {ctx.stage.name!r}: evaluate.suites: {names}: this version runs HeldOut, once; leave the others out"
        )
    return body.suites[0]


def _gates(ctx: StageContext) -> tuple[Gate, ...]:
    body = ctx.settings.evaluate
    return body.gates if body is not None else ()


def _held_out(ctx: StageContext) -> HeldOut:
    maker = ctx.plan.stage(ctx.stage.inputs["rows"])
    held_out = collect(rows_of(ctx.cache, ctx.store, ctx.input("rows")), generated=maker.type is StageType.Generate)
    if not held_out.rows:
        raise DataError(
            f"rows of stage {maker.name!r}: none is held out for evaluation; raise spec.dataset.holdout.fraction "
            f"(now {ctx.plan.spec.dataset.holdout.fraction:g}), or give more rows"
        )
    return held_out


@dataclass(frozen=True)
class _Teacher:
    """The teacher's logits, if the stage has any, by row."""

    reader: LogitsReader | None = None
    spec: ShardSpec | None = None
    why_not: str = "the stage has no logits among its inputs"

    @classmethod
    def of(cls, ctx: StageContext) -> _Teacher:
        if not ctx.has("logits"):
            return cls()
        rows, logits = ctx.input("rows"), ctx.input("logits")
        found = (logits.extra.get("rows_key"), logits.extra.get("rows_content"))
        if found[0] != rows.key:
            return cls(
                why_not=f"its logits were captured from other rows ({str(found[0])[:12]}) than it evaluates on ({rows.key[:12]})"
            )
        if found[1] != rows.content_digest:
            raise TransientError(
                f"input 'logits' (key {logits.key[:12]}) was made from other content of rows {rows.key[:12]}: the store changed; plan again"
            )
        spec = ShardSpec(
            **{**logits.extra["spec"], "temperatures": tuple(logits.extra["spec"].get("temperatures", ()))}
        )
        paths = [ctx.cache.file(ctx.store, ref) for ref in logits.select("logits/")]
        return cls(LogitsReader(paths, spec, folder=ctx.work), spec)

    def lookup(self, row: Row) -> RowTargets | None:
        """The teacher's targets of a row; None where it was rejected, or there are no logits."""
        if self.reader is None or not self.reader.has(row.key):
            return None
        return self.reader.get(row.key)

    def facts(self) -> dict[str, Any] | None:
        """What the document says of the logits."""
        return {"profile": self.spec.profile, "topK": self.spec.k, "vocabulary": self.spec.vocab} if self.spec else None


@dataclass
class _Work:
    """Runs one model after the other, and keeps what they made of the rows and prompts."""

    ctx: StageContext
    held_out: HeldOut
    suite: Suite
    teacher: _Teacher
    scores: dict[Who, list[RowScores]] = field(default_factory=dict)
    answers: dict[Who, list[Answer | None]] = field(default_factory=dict)
    tokens: int = 0
    done: int = 0

    def examine(self, who: Who) -> None:
        """Score every row, and answer every prompt."""
        import torch

        folder = self.ctx.model_dir(ROLES[who])
        trusted = self.ctx.plan.spec.student is not None and self.ctx.plan.spec.student.model.trust_remote_code
        model: Any = load_causal_lm(folder, torch.float32, trust_remote_code=trusted)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.ctx.stage.recorded.update({"dtype": "float32", "device": model.device.type})
        tokenizer = load_tokenizer(folder, trust_remote_code=trusted)
        examiner = Examiner(model, self.teacher.spec.vocab if self.teacher.spec else vocabulary_size(folder))
        self.scores[who] = examiner.score(self.held_out.rows, self.teacher.lookup, self._tick(f"{who}: scores"))
        self.done += len(self.held_out.rows)
        prompts = [prompt.ids for prompt in self.held_out.prompts]
        self.answers[who] = list(
            Answerer(model, tokenizer).answer(prompts, self.suite.max_tokens, self._tick(f"{who}: answers"))
        )
        self.done += len(prompts)
        if who is Who.Student:
            self._read_teacher(tokenizer)

    def _read_teacher(self, tokenizer: Any) -> None:
        """The teacher's own answers, measured with the student's tokenizer."""
        said: list[Answer | None] = []
        for prompt in self.held_out.prompts:
            row = prompt.teacher
            if row is None or row.response is None:
                said.append(None)
                continue
            ids = tokenizer(row.response, add_special_tokens=False)["input_ids"]
            said.append(measured(row.response, ids, ended=not row.truncated))
        if any(said):
            self.answers[Who.Teacher] = said

    def _tick(self, message: str) -> Any:
        models = sum(self.ctx.has(role) for role in ROLES.values())
        total = models * (len(self.held_out.rows) + len(self.held_out.prompts))

        def heard(tokens: int) -> None:
            self.tokens += tokens
            self.ctx.reporter.update(self.done, total, "rows", tokens=self.tokens, message=message)

        return heard


def _models(ctx: StageContext) -> dict[str, Any]:
    """Where each model came from: a stage with its key and content, or an address with its digest."""
    found: dict[str, Any] = {}
    for who, role in ROLES.items():
        if role in ctx.stage.inputs:
            manifest = ctx.input(role)
            found[who.value] = {
                "stage": ctx.stage.inputs[role],
                "key": manifest.key,
                "content": manifest.content_digest,
            }
        elif role in ctx.stage.externals:
            external = ctx.external(role)
            found[who.value] = {"uri": external.uri, "revision": external.revision, "digest": external.digest}
    return found


def _missing(ctx: StageContext, items: Items, teacher: _Teacher) -> dict[str, str]:
    """What was not measured, and why."""
    reasons: dict[str, str] = {}
    needs_head = (Score.KL, Score.Agreement, Score.HeadMass)
    for score in needs_head:
        if not items.has(score, Who.Student):
            label = "its logits have profile Label, which holds no teacher's head"
            reasons[SCORES[score].title] = label if teacher.reader is not None else teacher.why_not
    if teacher.reader is None:
        reasons["Teacher's perplexity"] = teacher.why_not
    if not items.has(Score.ExactMatch, Who.Student):
        reasons[SCORES[Score.ExactMatch].title] = "the held-out rows have no references"
    if not items.has(Score.CrossEntropy, Who.Student):
        reasons[SCORES[Score.Perplexity].title] = "the held-out rows have no responses"
    if not items.has(Score.Ended, Who.Teacher):
        reasons["Teacher's answers"] = "the rows were not generated by a teacher"
    if not ctx.has("baseline"):
        reasons["Untrained model"] = "no train stage made the evaluated model, so there is none to compare with"
    return reasons


def _commit(
    ctx: StageContext, work: _Work, items: Items, document: dict[str, Any], judged: Sequence[Judged], seconds: float
) -> StageOutcome:
    path = ctx.work / ITEMS
    write_items(items, path)
    artifact = ctx.new_artifact()
    artifact.add_bytes(json.dumps(document, indent=1, ensure_ascii=False).encode(), DOCUMENT)
    artifact.add_file(path, ITEMS)
    artifact.add_bytes(answer_lines(work.held_out, work.answers), ANSWERS)
    rows = work.held_out.rows
    counts = {
        "prompts": len(work.held_out.prompts),
        "rows": len(rows),
        "positions": work.held_out.scored,
        "withoutLogits": sum(work.teacher.lookup(row) is None for row in rows) if work.teacher.reader else 0,
        "tokens": work.tokens,
    }
    manifest = artifact.commit(counts=counts, metrics=headline_metrics(document), seconds=seconds)
    gates = tuple(j.outcome for j in judged)
    unmet = [j.sentence() for j in judged if not j.outcome.passed]
    return StageOutcome(
        manifest, manifest.counts, manifest.metrics, f"unmet: {'; '.join(unmet)}" if unmet else "", gates
    )
