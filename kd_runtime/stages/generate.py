"""Generate: the teacher answers every prompt, and the answers become rows of their own (contracts 3 and 4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_runtime.api.data_stages import Generate
from kd_runtime.artifacts.rejects import Reject
from kd_runtime.artifacts.rows import rows_of
from kd_runtime.artifacts.units import Pair, request_seed
from kd_runtime.stages.asking import Asking, IndexedRows, client_of
from kd_runtime.stages.context import StageContext, StageOutcome
from kd_runtime.stages.teacher_answers import SUFFIX, encode_answers
from kd_runtime.stages.teacher_rows import assemble
from kd_runtime.teachers.answers import Answer, Refused
from kd_runtime.teachers.client import TeacherClient


def run(ctx: StageContext) -> StageOutcome:
    """Ask what no commit covers; where all is covered then, make the rows.

    Raises:
        DataError: the smoke test failed, or too many answers are rejected.
        TeacherError, DeniedError, SettingsError, StorageError, TransientError.
    """
    started = time.monotonic()
    body = ctx.settings.generate
    assert body is not None
    rows = IndexedRows.of(rows_of(ctx.cache, ctx.store, ctx.input("rows")))
    pairs = tuple(Pair(key, sample) for key in rows.places for sample in range(body.samples_per_prompt))
    asking = Asking(ctx, pairs, Conversations(ctx, body, rows))
    covered = asking.run()
    if asking.missing(covered):
        return StageOutcome(None, message=asking.says())
    manifest = assemble(ctx, rows, pairs, covered, started)
    return StageOutcome(manifest, dict(manifest.counts), dict(manifest.metrics))


@dataclass
class Conversations:
    """Asks a teacher to answer, a request a pair."""

    ctx: StageContext
    body: Generate
    rows: IndexedRows
    _open: TeacherClient | None = None

    async def ask(self, pairs: Sequence[Pair], heard: Callable[[Pair, Answer | Reject], None]) -> None:
        """All at once: the client lets as many through as the teacher bears."""
        async with asyncio.TaskGroup() as group:
            for pair in pairs:
                group.create_task(self._one(pair, heard))

    def pack(self, done: Sequence[tuple[Pair, Answer]]) -> list[tuple[Path | bytes, str]]:
        """The raw answers, a JSON line each."""
        return [(encode_answers(done), SUFFIX)]

    def tokens(self, answer: Answer) -> int:
        """Of the answer alone."""
        return answer.completion_tokens

    async def _one(self, pair: Pair, heard: Callable[[Pair, Answer | Reject], None]) -> None:
        row = self.rows.get(pair.row)
        seed = request_seed(self.body.sampling.seed, pair.row, pair.sample)
        try:
            asked = prompted(row.messages, self.body.system_prompt)
            heard(pair, await self._client.chat(asked, self.body.sampling, seed))
        except Refused as refusal:
            heard(pair, Reject(pair.row, pair.sample, refusal.reason, refusal.detail, row.source))

    async def close(self) -> None:
        """Close the connections."""
        if self._open is not None:
            await self._open.aclose()

    @property
    def _client(self) -> TeacherClient:
        """Made in the event loop that uses it, on first use."""
        if self._open is None:
            self._open = client_of(self.ctx)
        return self._open


def prompted(messages: Sequence[dict[str, str]], system_prompt: str | None) -> list[dict[str, str]]:
    """What the teacher sees: with the system prompt first, before the row's own system turn where it has one."""
    if system_prompt is None:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        both = f"{system_prompt}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": both}, *messages[1:]]
    return [{"role": "system", "content": system_prompt}, *messages]
