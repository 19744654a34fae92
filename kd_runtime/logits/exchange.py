"""Shards of what other tools captured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_runtime.api.failures import DataError
from kd_runtime.artifacts.rows import Row, RowsReader, row_key
from kd_runtime.logits import distillkit, easydistill
from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.shard import write_shard
from kd_runtime.logits.spec import MAX_K, ShardSpec
from kd_runtime.planning.tokenizers import tokenizer_digest, vocabulary_size

ROWS_A_SHARD = 256
OUTSIDE = "a bound: the least of head and tail"
"""What imported shards say of the logprob of labels outside the head, which no other tool keeps."""


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    shards: tuple[Path, ...]
    rows: int
    positions: int
    skipped: int
    """Captured rows that are not among the rows given, or have nothing to score."""


def import_distillkit(folder: Path, tokenizer: Path, target: Path, rows: Sequence[Path] = ()) -> Imported:
    """DistillKit's parquet and compression_config.yaml in ``folder`` as Exact shards in ``target``.

    With ``rows`` (Parquet files of a rows artifact), their captured rows alone are taken, under their key and mask;
    otherwise every row, all tokens but the first scored, under a key that says nothing of what was asked.
    """
    config = distillkit.Compression.read(folder)
    spec = ShardSpec("Exact", min(config.k, MAX_K), vocab=vocabulary_size(tokenizer))
    known = _by_ids(rows) if rows else None
    digest = tokenizer_digest(tokenizer)
    skipped = itertools.count()

    def converted() -> Iterator[TeacherRow]:
        for captured in distillkit.captured(folder):
            ids = captured.input_ids
            if known is None:
                scored = np.arange(len(ids)) > 0
                taken = [(row_key(digest, (), ids.astype(np.uint32), scored), ids, scored)]
            else:
                # a padding token is added at the end there
                ours = known.get(_raw(ids)) or known.get(_raw(ids[:-1]), [])
                taken = [(row.key, row.input_ids.astype(np.int64), row.scored) for row in ours if row.scored.any()]
            if not taken:
                next(skipped)
            for key, of_row, scored in taken:
                at = np.flatnonzero(scored) - 1
                top_ids, top_lp = captured.top_ids[at], captured.top_lp[at]
                yield _teacher_row(bytes.fromhex(key), of_row, scored, top_ids, top_lp, spec, captured.where)

    return _write(converted(), spec, target, {"source": "DistillKit", "labels": OUTSIDE}, skipped)


def import_easydistill(
    path: Path, tokenizer: Path, target: Path, rows: Sequence[Path], top_k: int | None = None
) -> Imported:
    """EasyDistill 1.0's JSON lines as Exact shards, joined with ``rows`` (Parquet files of a rows artifact) by order.

    DataError where there are more or fewer lines than rows, or where a row's token is not among its position's entries.
    """
    k = top_k or easydistill.fewest_entries(path)
    spec = ShardSpec("Exact", min(k, MAX_K), vocab=vocabulary_size(tokenizer))
    skipped = itertools.count()

    def converted() -> Iterator[TeacherRow]:
        pairs = itertools.zip_longest(easydistill.lines(path, spec.k), RowsReader(rows))
        for line, row in pairs:
            if line is None or row is None:
                raise DataError(
                    f"{path}: it has {'fewer' if line is None else 'more'} lines than there are rows; "
                    "name the rows that were asked, in their order"
                )
            if not row.scored.any():
                next(skipped)
                continue
            count = int(np.count_nonzero(row.scored))
            _refuse_misaligned(line, row, count)
            key, ids = bytes.fromhex(row.key), row.input_ids.astype(np.int64)
            yield _teacher_row(key, ids, row.scored, line.top_ids[:count], line.top_lp[:count], spec, line.where)

    return _write(converted(), spec, target, {"source": "EasyDistill 1.0", "labels": OUTSIDE}, skipped)


def _refuse_misaligned(line: easydistill.Line, row: Row, count: int) -> None:
    labels = row.input_ids[row.scored].astype(np.int64)
    if len(line.top_ids) < count:
        raise DataError(f"{line.where}: it has {len(line.top_ids)} positions, row {row.key} ({row.source}) has {count}")
    absent = np.flatnonzero(~(line.top_ids[:count] == labels[:, None]).any(1))
    if len(absent):
        raise DataError(
            f"{line.where}: token {absent[0]} of the answer of row {row.key} ({row.source}) is not among its entries; "
            "the lines are of other answers, or in another order"
        )


def _teacher_row(
    key: bytes,
    ids: NDArray[np.int64],
    scored: NDArray[np.bool_],
    top_ids: NDArray[np.int64],
    top_lp: NDArray[np.float64],
    spec: ShardSpec,
    where: str,
) -> TeacherRow:
    """With the label's logprob and rank as far as the head tells them."""
    if ids.max() >= spec.vocab or top_ids.max() >= spec.vocab:
        raise DataError(
            f"{where}: it holds id {max(ids.max(), top_ids.max())}, the tokenizer ends at {spec.vocab - 1}; "
            "name the teacher's tokenizer"
        )
    lp = np.minimum(top_lp, 0)
    label = top_ids == ids[scored][:, None]
    inside = label.any(1)
    of_label = np.where(label, lp, -np.inf).max(1)
    tail = np.log(np.maximum(1 - np.exp(lp).sum(1), 2.0**-16))
    lab_lp = np.where(inside, of_label, np.minimum(tail, lp.min(1)))
    rank = np.where(inside, 1 + (lp > of_label[:, None]).sum(1), top_ids.shape[1] + 1)
    return TeacherRow(key, ids, scored, lab_lp, rank, top_ids, lp)


def _write(
    rows: Iterable[TeacherRow], spec: ShardSpec, target: Path, metadata: dict[str, str], skipped: Iterator[int]
) -> Imported:
    target.mkdir(parents=True, exist_ok=True)
    if next(target.glob("*.safetensors"), None):
        raise DataError(f"{target}: it holds shards already; import into an empty folder")
    paths: list[Path] = []
    seen: set[bytes] = set()
    positions = 0
    source = _unique(rows, seen)
    while part := list(itertools.islice(source, ROWS_A_SHARD)):
        path = target / f"{len(paths):06d}.safetensors"
        planes = build_planes(spec, part)
        write_shard(path, planes, spec, metadata)
        positions += planes.positions
        paths.append(path)
    return Imported(tuple(paths), len(seen), positions, next(skipped))


def _unique(rows: Iterable[TeacherRow], seen: set[bytes]) -> Iterator[TeacherRow]:
    """The first of equal rows; ``seen`` gathers the keys."""
    for row in rows:
        if row.key not in seen:
            seen.add(row.key)
            yield row


def _by_ids(rows: Sequence[Path]) -> dict[bytes, list[Row]]:
    """Rows by their ids, which several have where the student's template leaves out what was asked otherwise."""
    found: dict[bytes, list[Row]] = {}
    for row in RowsReader(rows):
        found.setdefault(_raw(row.input_ids), []).append(row)
    return found


def _raw(ids: NDArray[Any]) -> bytes:
    return ids.astype(np.uint32).tobytes()
