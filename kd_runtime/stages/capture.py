"""Capture: the teacher scores every row, and its distributions become shards (contracts 3 and 4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kd_runtime.api.data_stages import Capture, Profile
from kd_runtime.api.failures import DataError
from kd_runtime.api.teacher import Engine
from kd_runtime.api.wiring import DATASET
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rejects import REJECTS, Reject, encode_rejects, reasons
from kd_runtime.artifacts.rows import Row, rows_of
from kd_runtime.artifacts.units import Pair
from kd_runtime.logits.planes import Planes, concatenate
from kd_runtime.logits.shard import write_shard
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.fetch import fetch_external
from kd_runtime.planning.resolve import teacher_named
from kd_runtime.planning.tokenizers import tokenizer_digest, vocabulary_size
from kd_runtime.stages.asking import Asking, Covered, IndexedRows, check_rejected, client_of
from kd_runtime.stages.context import StageContext, StageOutcome
from kd_runtime.teachers.answers import Refused
from kd_runtime.teachers.client import TeacherClient
from kd_runtime.teachers.wire import ScoreRequest, ScoreRow

SUFFIX = "safetensors"
ROWS_A_REQUEST = 4
TOKENS_A_REQUEST = 16_384
"""A request ends with the row that would exceed this, unless it is its first."""

RANK_RULES: dict[Engine | None, str] = {
    Engine.VLLM: "outside the head: count of at least the label's logprob; inside it: 1 + count strictly greater",
    Engine.Transformers: "1 + count strictly greater",
}
"""How lab_rank was counted."""


def run(ctx: StageContext) -> StageOutcome:
    """Have the rows scored that no commit covers; where all are covered then, name the shards.

    Raises:
        DataError: the smoke test failed, or too many rows are rejected.
        TeacherError, DeniedError, SettingsError, StorageError, TransientError.
    """
    started = time.monotonic()
    body = ctx.settings.capture
    assert body is not None
    rows = IndexedRows.of(rows_of(ctx.cache, ctx.store, ctx.input("rows")))
    pairs = tuple(Pair(key, 0) for key in rows.places)
    folder = tokenizer(ctx)
    spec = spec_of(body, vocabulary_size(folder))
    asking = Asking(ctx, pairs, Scores(ctx, rows, spec, tokenizer_digest(folder)))
    covered = asking.run()
    if asking.missing(covered):
        return StageOutcome(None, message=asking.says())
    manifest = assemble(ctx, rows, pairs, spec, covered, started)
    return StageOutcome(manifest, dict(manifest.counts), dict(manifest.metrics))


def spec_of(body: Capture, vocab: int) -> ShardSpec:
    """What is stored of each position. SettingsError for what no shard can be."""
    others = tuple(sorted({t for t in body.temperatures if t != 1}))
    entropy = body.entropy or body.profile is Profile.Unbiased
    k = 0 if body.profile is Profile.Label else min(body.top_k, vocab)
    return ShardSpec(body.profile.value, k, body.tail_draws, others, vocab, entropy)


def tokenizer(ctx: StageContext) -> Path:
    """The folder of the tokenizer that made the rows."""
    artifacts = ctx.plan.spec.artifacts
    return fetch_external(
        ctx.plan.stage(DATASET).externals["tokenizer"],
        ctx.cache,
        DigestMemory(ctx.store),
        endpoint=artifacts.endpoint,
        region=artifacts.region,
    )


def assemble(
    ctx: StageContext, rows: IndexedRows, pairs: Sequence[Pair], spec: ShardSpec, covered: Covered, started: float
) -> Manifest:
    """Commit the artifact: the shards that hold the rows, in the order in which the rows come upon them."""
    rejects = [ref.reject for pair in pairs if (ref := covered[pair]).reject is not None]
    counted = ", ".join(f"{reason} {count}" for reason, count in reasons(rejects).items())
    check_rejected(ctx, len(rejects), len(pairs), counted)
    if len(rejects) == len(pairs):
        raise DataError(f"no row is left: {counted}")
    source = ctx.input("rows")
    artifact = ctx.new_artifact()
    commits = {ref.commit.name: ref.commit for pair in pairs if (ref := covered[pair]).done}
    for number, commit in enumerate(commits.values()):
        artifact.refer(commit.object(SUFFIX).model_copy(update={"path": f"logits/{number:06d}.{SUFFIX}"}))
    artifact.add_bytes(encode_rejects(rejects), REJECTS)
    tokens, positions = sizes(rows, {pair.row for pair in pairs if covered[pair].done})
    return artifact.commit(
        counts={
            "in": len(pairs),
            "done": len(pairs) - len(rejects),
            "rejected": len(rejects),
            "shards": len(commits),
            "positions": positions,
            "tokens": tokens,
        },
        extra={
            "spec": asdict(spec),
            "rows_key": source.key,
            "rows_content": source.content_digest,
            "teacher": ctx.stage.keyed["teacher"],
            "rank": RANK_RULES.get(_engine(ctx)),
            "rejects": reasons(rejects),
        },
        seconds=time.monotonic() - started,
    )


def sizes(rows: IndexedRows, wanted: set[str]) -> tuple[int, int]:
    """Tokens, and scored positions, of the rows ``wanted``."""
    keys, lengths, bitmaps = rows.reader.keys, rows.reader.lengths, rows.reader.column("scored")
    chosen = [number for number, key in enumerate(keys) if key in wanted]
    bits = b"".join(bitmaps[number] for number in chosen)
    positions = int(np.unpackbits(np.frombuffer(bits, np.uint8)).sum())
    return sum(lengths[number] for number in chosen), positions


def _engine(ctx: StageContext) -> Engine | None:
    """Of a hosted teacher; nobody knows an external one's."""
    _, teacher = teacher_named(ctx.plan.spec, ctx.settings.teacher)
    return teacher.hosted.engine if teacher.hosted is not None else None


@dataclass
class Scores:
    """Asks a teacher to score rows, some in a request."""

    ctx: StageContext
    rows: IndexedRows
    spec: ShardSpec
    tokenizer: str
    """Digest of the one that made the rows' ids: nothing else shows that the teacher reads them as they were meant."""
    _open: TeacherClient | None = None

    def __post_init__(self) -> None:
        _, teacher = teacher_named(self.ctx.plan.spec, self.ctx.settings.teacher)
        hosted = teacher.hosted
        self._longest = hosted.max_model_len - 1 if hosted is not None and hosted.max_model_len else None
        self._teacher_key = self.ctx.external("teacher").digest if hosted is not None else None

    async def ask(self, pairs: Sequence[Pair], heard: Callable[[Pair, Planes | Reject], None]) -> None:
        """All at once: the client lets as many through as the teacher bears."""
        asked: list[Row] = []
        for pair in pairs:
            row = self.rows.get(pair.row)
            refusal = self._unfit(row)
            if refusal is None:
                asked.append(row)
            else:
                heard(pair, refusal)
        async with asyncio.TaskGroup() as group:
            for rows in batches(asked):
                group.create_task(self._some(rows, heard))

    def pack(self, done: Sequence[tuple[Pair, Planes]]) -> list[tuple[Path | bytes, str]]:
        """One shard."""
        path = self.ctx.work / f"unit-{done[0][0].row}.{SUFFIX}"
        write_shard(path, concatenate([planes for _, planes in done]), self.spec)
        return [(path, SUFFIX)]

    def tokens(self, answer: Planes) -> int:
        """Of the row."""
        return answer.tokens

    def _unfit(self, row: Row) -> Reject | None:
        """Why a row need not be asked, if so."""
        if not row.scored.any():
            return Reject(row.key, 0, "NoResponse", "no token of it is scored", row.source)
        if self._longest is not None and len(row.input_ids) > self._longest:
            detail = f"has {len(row.input_ids)} tokens, the teacher scores {self._longest} (maxModelLen - 1)"
            return Reject(row.key, 0, "TooLong", detail, row.source)
        return None

    async def _some(self, rows: Sequence[Row], heard: Callable[[Pair, Planes | Reject], None]) -> None:
        """One request; where it is refused, each of its rows alone, to learn which one is at fault."""
        asked = tuple(ScoreRow(bytes.fromhex(row.key), row.input_ids, row.scored) for row in rows)
        try:
            request = ScoreRequest(asked, self.spec, teacher_key=self._teacher_key, tokenizer=self.tokenizer)
            planes = await self._client.score(request)
        except Refused as refusal:
            if len(rows) == 1:
                heard(Pair(rows[0].key, 0), Reject(rows[0].key, 0, refusal.reason, refusal.detail, rows[0].source))
                return
            for row in rows:
                await self._some([row], heard)
            return
        for number, row in enumerate(rows):
            heard(Pair(row.key, 0), planes.select([number]))

    async def close(self) -> None:
        """Close the connections."""
        if self._open is not None:
            await self._open.aclose()

    @property
    def _client(self) -> TeacherClient:
        """Made in the event loop that uses it, on first use."""
        if self._open is None:
            self._open = client_of(self.ctx, rows_a_request=ROWS_A_REQUEST)
        return self._open


def batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Consecutive rows that are asked in one request."""
    batch: list[Row] = []
    tokens = 0
    for row in rows:
        if batch and (len(batch) == ROWS_A_REQUEST or tokens + len(row.input_ids) > TOKENS_A_REQUEST):
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += len(row.input_ids)
    if batch:
        yield batch
