"""Ingest: the dataset's records become rows, rendered and tokenised once, each on its side of the split (contract 3)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kd_runtime.api.dataset import Dataset
from kd_runtime.api.failures import DataError
from kd_runtime.artifacts.rejects import REJECTS, Reject, drop_failed_rejects, encode_rejects, keep_failed_rejects
from kd_runtime.artifacts.rows import MergingWriter, Parent, Row, prompt_split, row_key
from kd_runtime.models.templates import Rendered, Template
from kd_runtime.planning.probes import probe_held_out
from kd_runtime.planning.tokenizers import tokenizer_digest
from kd_runtime.stages.context import StageContext, StageOutcome
from kd_runtime.stages.conversations import Conversation, columns_of, conversation_of
from kd_runtime.stages.dataset_records import Malformed, Reason, Record, RejectedRow
from kd_runtime.stages.datasets import ChosenFiles, choose_files, read_file
from kd_runtime.stages.rendering import template_of

BATCH_ROWS = 256
BATCH_CHARACTERS = 4 << 20
SHOWN_REJECTS = 3


def run(ctx: StageContext) -> StageOutcome:
    """Read, check, render, split and store every record of ``spec.dataset``.

    Raises:
        DataError: a file cannot be read, no row is left, more than ``maxRejectedRatio`` were rejected, or a stage evaluates
            and no row is held out.
        SettingsError: the template cannot be trained on.
    """
    started = time.monotonic()
    dataset, external = ctx.plan.spec.dataset, ctx.external("dataset")
    sizes = {file.path: file.size for file in external.files}
    chosen = choose_files(list(sizes), dataset.format, dataset.split, external.uri)
    tokenizer = ctx.external_dir("tokenizer")
    template = template_of(ctx)
    ingest = Ingest(dataset, template, tokenizer_digest(tokenizer), ctx.work)
    total = sum(sizes[name] for name in chosen.read)
    for position in ingest.read(ctx.external_dir("dataset"), chosen, sizes):
        ctx.reporter.update(position, total, "bytes", tokens=ingest.tokens, message=f"{ingest.seen} rows")
    try:
        paths = ingest.finish()
        probe_held_out(ctx.plan, ingest.counts)
    except DataError:
        keep_failed_rejects(ctx.store, ctx.stage.key, ctx.writer, ingest.rejects_file)
        raise
    artifact = ctx.new_artifact()
    for path in paths:
        artifact.add_file(path, f"rows/{path.name}")
    artifact.add_file(ingest.rejects_file, REJECTS)
    manifest = artifact.commit(
        counts=ingest.counts,
        extra={
            "files": list(chosen.read),
            "ignored": list(chosen.ignored),
            "tokenizer": ingest.tokenizer,
            "template": template.digest(),
            "rejects": dict(ingest.reasons),
        },
        seconds=time.monotonic() - started,
    )
    drop_failed_rejects(ctx.store, ctx.stage.key)
    return StageOutcome(manifest, dict(manifest.counts), message=ingest.summary)


@dataclass
class Ingest:
    """One pass over a dataset; a batch of rows at a time is in memory."""

    dataset: Dataset
    template: Template
    tokenizer: str
    """The tokenizer's digest."""
    work: Path
    seen: int = 0
    done: int = 0
    tokens: int = 0
    """Of distinct rows."""
    splits: Counter[str] = field(default_factory=Counter)
    """Distinct rows by side."""
    reasons: Counter[str] = field(default_factory=Counter)
    first_rejects: list[Reject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._writer = MergingWriter(self.work / "rows")
        self._rejects = self.rejects_file.open("wb")
        self._batch: list[tuple[str, Conversation | RejectedRow]] = []
        self._characters = 0

    @property
    def rejects_file(self) -> Path:
        """Where rejects are collected."""
        return self.work / REJECTS

    @property
    def rejected(self) -> int:
        """Records that are left out."""
        return sum(self.reasons.values())

    @property
    def counts(self) -> dict[str, int]:
        """Records in = done + rejected; distinct rows out = train + heldOut, and their tokens."""
        return {
            "in": self.seen,
            "done": self.done,
            "rejected": self.rejected,
            "out": self._writer.count,
            "train": self.splits["train"],
            "heldOut": self.splits["heldOut"],
            "tokens": self.tokens,
        }

    @property
    def summary(self) -> str:
        """One sentence."""
        return f"{self._writer.count} distinct rows of {self.seen}, {self.rejected} rejected, {self.tokens} tokens"

    def read(self, folder: Path, chosen: ChosenFiles, sizes: dict[str, int]) -> Iterator[int]:
        """Take every record in; yields the bytes that were read, after each batch."""
        before, columns = 0, columns_of(self.dataset.fields)
        for name in chosen.read:
            for record in read_file(folder / name, name, self.dataset.format, columns):
                self._take(record)
                if len(self._batch) == BATCH_ROWS or self._characters > BATCH_CHARACTERS:
                    self._render()
                    yield before + record.position
            before += sizes[name]
        self._render()
        yield before

    def finish(self) -> list[Path]:
        """The rows' files.

        Raises:
            DataError: too many records were rejected, or none is left.
        """
        self._rejects.close()
        ratio = self.rejected / self.seen if self.seen else 0.0
        if not self.seen:
            raise DataError(f"spec.dataset.uri: {self.dataset.uri} holds no row")
        if not self.done or ratio > self.dataset.max_rejected_ratio:
            raise DataError(self._too_many(ratio))
        return self._writer.close()

    def _take(self, record: Record | Malformed) -> None:
        self.seen += 1
        if isinstance(record, Malformed):
            self._batch.append((record.source, RejectedRow(record.reason, record.detail)))
            return
        try:
            conversation = conversation_of(record.fields, self.dataset.fields, self.dataset.reasoning)
        except RejectedRow as error:
            self._batch.append((record.source, error))
            return
        self._batch.append((record.source, conversation))
        self._characters += conversation.characters

    def _render(self) -> None:
        """Render and tokenise the batch: with the response where there is one, else up to the generation prompt."""
        conversations = [c for _, c in self._batch if isinstance(c, Conversation)]
        asked = iter(self.template.prompts([c.messages for c in conversations if c.response is None]))
        answered = [c.whole for c in conversations if c.response is not None]
        told = iter(self.template.conversations(answered, self.dataset.loss_on))
        for source, entry in self._batch:
            if isinstance(entry, RejectedRow):
                self._reject(source, entry.reason, entry.detail)
            else:
                self._keep(source, entry, next(asked if entry.response is None else told))
        self._batch, self._characters = [], 0

    def _keep(self, source: str, conversation: Conversation, rendered: Rendered | DataError) -> None:
        if isinstance(rendered, DataError):
            self._reject(source, Reason.WrongField, str(rendered))
            return
        if len(rendered.ids) > self.dataset.max_tokens:
            limit = self.dataset.max_tokens
            self._reject(source, Reason.TooLong, f"has {len(rendered.ids)} tokens, dataset.maxTokens is {limit}")
            return
        row = self._row(source, conversation, rendered)
        self.done += 1
        if self._writer.append(row):
            self.tokens += len(row.input_ids)
            self.splits[row.split] += 1

    def _row(self, source: str, conversation: Conversation, rendered: Rendered) -> Row:
        holdout = self.dataset.holdout
        return Row(
            key=row_key(self.tokenizer, conversation.messages, rendered.ids, rendered.scored),
            split=prompt_split(conversation.messages, holdout.fraction, holdout.seed),
            messages=conversation.messages,
            response=conversation.response,
            reasoning=None,
            references=conversation.references,
            input_ids=rendered.ids,
            scored=rendered.scored,
            prompt_tokens=rendered.prompt_tokens,
            parents=(Parent(source, 0),),
            source=source,
        )

    def _reject(self, source: str, reason: Reason, detail: str) -> None:
        reject = Reject(source, 0, reason.value, detail, source)
        self.reasons[reason.value] += 1
        self._rejects.write(encode_rejects([reject]))
        if len(self.first_rejects) < SHOWN_REJECTS:
            self.first_rejects.append(reject)

    def _too_many(self, ratio: float) -> str:
        by_reason = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        first = "; ".join(f"{r.source} {r.reason}: {r.detail}" for r in self.first_rejects)
        return (
            f"spec.dataset.maxRejectedRatio: {self.rejected} of {self.seen} rows are rejected ({ratio:.1%}, "
            f"{self.dataset.max_rejected_ratio:.1%} allowed; {by_reason}); correct them or raise it; "
            f"`kd rejects list` shows all, first: {first}"
        )
