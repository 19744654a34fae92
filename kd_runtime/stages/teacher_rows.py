"""From a teacher's raw answers to rows: rendered with the student's template and tokenised, once (contract 3)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kd_runtime.api.dataset import Dataset, Reasoning
from kd_runtime.api.failures import DataError
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rejects import REJECTS, Reject, encode_rejects, reasons
from kd_runtime.artifacts.rows import BLOCK_ROWS, MergingWriter, Parent, Row, row_key
from kd_runtime.artifacts.units import Pair, UnitStore
from kd_runtime.models.reasoning import END_THINK, THINK, without_reasoning
from kd_runtime.models.templates import Rendered, Template
from kd_runtime.planning.tokenizers import tokenizer_digest
from kd_runtime.stages.asking import Covered, IndexedRows, check_rejected
from kd_runtime.stages.context import StageContext
from kd_runtime.stages.rendering import template_of
from kd_runtime.stages.teacher_answers import AnswersReader
from kd_runtime.teachers.answers import Answer

CUT_OFF = "length"


def assemble(ctx: StageContext, rows: IndexedRows, pairs: Sequence[Pair], covered: Covered, started: float) -> Manifest:
    """Make and commit the rows artifact of answers that are all there.

    Raises:
        DataError: more than maxRejectedRatio are rejected, or no row is left.
    """
    assert ctx.stage.asking_key is not None
    reader = AnswersReader(UnitStore(ctx.store, ctx.stage.asking_key, ctx.writer))
    template, tokenizer = template_of(ctx), tokenizer_digest(ctx.external_dir("tokenizer"))
    work = Assembly(ctx.plan.spec.dataset, template, tokenizer, MergingWriter(ctx.work / "rows"))
    for start in range(0, len(pairs), BLOCK_ROWS):
        work.add(pairs[start : start + BLOCK_ROWS], rows, covered, reader)
        ctx.reporter.update(min(start + BLOCK_ROWS, len(pairs)), len(pairs), "rows", message="making rows")
    if not work.done:
        raise DataError(f"no answer is left: {reasons(work.rejects)}")
    counted = ", ".join(f"{reason} {count}" for reason, count in reasons(work.rejects).items())
    check_rejected(ctx, len(work.rejects), len(pairs), counted)
    artifact = ctx.new_artifact()
    for path in work.writer.close():
        artifact.add_file(path, f"rows/{path.name}")
    artifact.add_bytes(encode_rejects(work.rejects), REJECTS)
    return artifact.commit(
        counts=work.counts(len(pairs)),
        extra={"tokenizer": tokenizer, "template": template.digest(), "rejects": reasons(work.rejects)},
        seconds=time.monotonic() - started,
    )


@dataclass
class Assembly:
    """Turns answers into rows, a block at a time."""

    dataset: Dataset
    template: Template
    tokenizer: str
    """The tokenizer's digest."""
    writer: MergingWriter
    done: int = 0
    rejects: list[Reject] = field(default_factory=list)
    _sums: Counter[str] = field(default_factory=Counter)

    def counts(self, total: int) -> dict[str, int]:
        """Pairs in = done + rejected, truncated ones of the done; distinct rows out = train + heldOut, and their tokens."""
        names = ("truncated", "train", "heldOut", "tokens", "promptTokens", "completionTokens")
        return {
            "in": total,
            "done": self.done,
            "rejected": len(self.rejects),
            "out": self.writer.count,
            **{name: self._sums[name] for name in names},
        }

    def add(self, pairs: Sequence[Pair], rows: IndexedRows, covered: Covered, reader: AnswersReader) -> None:
        """Render one block of pairs and write its rows."""
        block: list[tuple[Pair, Row, Answer]] = []
        for pair in pairs:
            ref = covered[pair]
            if ref.reject is not None:
                self.rejects.append(ref.reject)
                continue
            answer = reader.get(pair, ref)
            self._sums["promptTokens"] += answer.prompt_tokens
            self._sums["completionTokens"] += answer.completion_tokens
            row = rows.get(pair.row)
            if wrong := answer.not_utf8:  # of a commit of before such answers were refused at the door
                self._reject(pair, row, "NotUTF8", wrong)
            else:
                block.append((pair, row, answer))
        turns = [self._turn(answer) for _, _, answer in block]
        rendered = self.template.conversations(
            [[*row.messages, turn] for (_, row, _), turn in zip(block, turns, strict=True)],
            self.dataset.loss_on,
            cut_off=[answer.finish_reason == CUT_OFF for _, _, answer in block],
        )
        for (pair, row, answer), turn, one in zip(block, turns, rendered, strict=True):
            if not turn["content"].strip():
                self._reject(pair, row, "Empty", "the answer is reasoning alone")
            elif isinstance(one, DataError):
                self._reject(pair, row, "WrongField", str(one))
            else:
                self._keep(pair, row, answer, turn["content"], one)

    def _turn(self, answer: Answer) -> dict[str, str]:
        """The assistant's turn: reasoning apart where the template has a place for it, else before the answer."""
        if self.dataset.reasoning is Reasoning.Strip:
            return {"role": "assistant", "content": without_reasoning(answer.text)}
        if answer.reasoning is None:
            return {"role": "assistant", "content": answer.text}
        if self.template.renders_reasoning:
            return {"role": "assistant", "content": answer.text, "reasoning_content": answer.reasoning}
        return {"role": "assistant", "content": f"{THINK}\n{answer.reasoning}\n{END_THINK}\n\n{answer.text}"}

    def _keep(self, pair: Pair, row: Row, answer: Answer, response: str, rendered: Rendered) -> None:
        """A prompt that the dataset holds twice was asked once: its answer's row has that parent twice, for training."""
        truncated = answer.finish_reason == CUT_OFF
        self.done += 1
        self._sums["truncated"] += truncated
        made = Row(
            key=row_key(self.tokenizer, row.messages, rendered.ids, rendered.scored),
            split=row.split,
            messages=row.messages,
            response=response,
            reasoning=answer.reasoning if self.dataset.reasoning is Reasoning.Keep else None,
            references=row.references,
            input_ids=rendered.ids,
            scored=rendered.scored,
            prompt_tokens=rendered.prompt_tokens,
            truncated=truncated,
            finish_reason=answer.finish_reason,
            parents=(Parent(pair.row, pair.sample),) * max(1, len(row.parents)),
            source=row.source,
        )
        if self.writer.append(made):
            self._sums[made.split] += 1
            self._sums["tokens"] += len(made.input_ids)

    def _reject(self, pair: Pair, row: Row, reason: str, detail: str) -> None:
        self.rejects.append(Reject(pair.row, pair.sample, reason, detail, row.source))
