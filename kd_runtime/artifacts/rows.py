"""Rows: conversations with the token ids that every later stage uses, as Parquet in row groups of 256 (contract 3)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rejects import Reject as Reject
from kd_runtime.artifacts.rejects import read_rejects as read_rejects
from kd_runtime.artifacts.store import Store

BLOCK_ROWS = 256
"""Rows of a row group: the block that training shuffles by."""
FILE_ROWS = 32 * BLOCK_ROWS
Split = Literal["train", "heldOut"]

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
        pa.field("response", pa.string()),
        pa.field("reasoning", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("input_ids", pa.list_(pa.uint32()), nullable=False),
        pa.field("scored", pa.binary(), nullable=False),
        pa.field("tokens", pa.uint32(), nullable=False),
        pa.field("prompt_tokens", pa.uint32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("parents", pa.list_(pa.struct([("row", pa.string()), ("sample", pa.int32())])), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
"""``scored`` is a bitmap in little bit order; ``tokens`` is the length of ``input_ids``, to be read without them."""


@dataclass(frozen=True, order=True)
class Parent:
    """What a row came from: a row of the rows artifact that was read (or ``file:line``), and the sample's number."""

    row: str
    sample: int


@dataclass(frozen=True)
class Row:
    """One conversation, rendered and tokenised once. Equal rows are one, with the parents and references of all."""

    key: str
    """32 hex digits (``row_key``)."""
    split: Split
    messages: list[dict[str, str]]
    """What is asked: every turn before the response; ``role`` and ``content``."""
    response: str | None
    reasoning: str | None
    """The reasoning that came with the response, where it is kept apart."""
    references: list[str] | None
    """The dataset's own answers."""
    input_ids: NDArray[np.uint32]
    """[N]"""
    scored: NDArray[np.bool_]
    """[N] True where the token has a target; never at 0."""
    prompt_tokens: int
    truncated: bool = False
    finish_reason: str | None = None
    parents: tuple[Parent, ...] = ()
    source: str = ""
    """``file:line`` of the first that had this content."""


def prompt_digest(messages: Sequence[Mapping[str, str]]) -> str:
    """sha256 hex of what is asked: role and content of every turn before the response."""
    body = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()


def row_key(
    tokenizer_digest: str,
    messages: Sequence[Mapping[str, str]],
    ids: NDArray[np.uint32],
    scored: NDArray[np.bool_],
) -> str:
    """BLAKE2b-128, as hex, of (tokenizer digest, digest of what is asked, ids as u32 LE, scored bitmap in little bit order).

    The ids alone would not do: a teacher is asked ``messages``, of which the student's template may leave a turn out.
    """
    digest = hashlib.blake2b(bytes.fromhex(tokenizer_digest), digest_size=16)
    digest.update(bytes.fromhex(prompt_digest(messages)))
    digest.update(np.ascontiguousarray(ids, dtype="<u4").tobytes())
    digest.update(np.packbits(np.asarray(scored, dtype=bool), bitorder="little").tobytes())
    return digest.hexdigest()


def prompt_split(messages: Sequence[Mapping[str, str]], fraction: float, seed: int) -> Split:
    """The side that a prompt is on, by a hash of its turns without system messages: every row with it is there too."""
    turns = [[m["role"], m["content"].strip()] for m in messages if m["role"] != "system"]
    body = json.dumps([seed, turns], ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    share = int.from_bytes(hashlib.sha256(body).digest()[:8], "big") / 2**64
    return "heldOut" if share < fraction else "train"


class RowsWriter:
    """Writes rows in order to ``folder/00000.parquet``, …: groups of 256 rows, 8,192 rows a file, the same bytes each time."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._pending: list[Row] = []
        self._paths: list[Path] = []
        self._file: pq.ParquetWriter | None = None
        self.count = 0

    def append(self, row: Row) -> None:
        """Add one row; at most 256 are held in memory."""
        self._pending.append(row)
        self.count += 1
        if len(self._pending) == BLOCK_ROWS:
            self._flush()

    def close(self) -> list[Path]:
        """Write what is left; the files, in order. Without any row there is one file with none."""
        if self._pending or not self._paths:
            self._flush()
        self._end_file()
        return list(self._paths)

    def _flush(self) -> None:
        if self._file is None:
            path = self._folder / f"{len(self._paths):05d}.parquet"
            self._file = pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=False, store_schema=False)
            self._paths.append(path)
        if self._pending:
            self._file.write_table(_table(self._pending), row_group_size=BLOCK_ROWS)
        self._pending = []
        if self.count % FILE_ROWS == 0:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass
class _More:
    """What rows had that came after an equal one."""

    parents: list[Parent] = field(default_factory=list)
    references: dict[str, None] = field(default_factory=dict)
    """Each once, in order."""

    def added_to(self, row: Row) -> Row:
        references = list(dict.fromkeys([*(row.references or ()), *self.references]))
        parents = (*row.parents, *self.parents)
        return replace(row, parents=parents, references=references or row.references)


class MergingWriter:
    """A RowsWriter for rows that may be equal: each is stored where it came first, with the parents and references of all.

    Memory: one group of rows, and some 100 bytes a distinct row.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer = RowsWriter(folder)
        self._seen: set[bytes] = set()
        self._more: dict[str, _More] = {}

    @property
    def count(self) -> int:
        """Distinct rows so far."""
        return self._writer.count

    def append(self, row: Row) -> bool:
        """Add one row; False where an equal one is there already and only got its parents and references."""
        key = bytes.fromhex(row.key)
        if key in self._seen:
            more = self._more.setdefault(row.key, _More())
            more.parents.extend(row.parents)
            more.references.update(dict.fromkeys(row.references or ()))
            return False
        self._seen.add(key)
        self._writer.append(row)
        return True

    def close(self) -> list[Path]:
        """Write what is left, a second time where a row got more parents; the files, in order."""
        paths = self._writer.close()
        if not self._more:
            return paths
        merged = RowsWriter(self._folder / "merged")
        for row in RowsReader(paths):
            more = self._more.get(row.key)
            merged.append(row if more is None else more.added_to(row))
        moved = [path.replace(self._folder / path.name) for path in merged.close()]
        (self._folder / "merged").rmdir()
        return moved


@dataclass
class RowsReader:
    """Rows of Parquet files, in order; holds at most two groups in memory."""

    paths: Sequence[Path]
    _starts: list[int] = field(default_factory=list, repr=False)
    """The first row of each group, and at the end the number of rows."""
    _groups: list[tuple[int, int]] = field(default_factory=list, repr=False)
    """(file, group within it)."""
    _cached: dict[int, list[Row]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        start = 0
        for number, path in enumerate(self.paths):
            footer = pq.read_metadata(path)
            for group in range(footer.num_row_groups):
                if footer.row_group(group).num_rows:
                    self._starts.append(start)
                    self._groups.append((number, group))
                    start += footer.row_group(group).num_rows
        self._starts.append(start)

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Row]:
        for group in range(len(self._groups)):
            yield from self._group(group)

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows ``start`` to ``stop`` (cut to what is there)."""
        start, stop = max(start, 0), min(stop, len(self))
        if start >= stop:
            return []
        found: list[Row] = []
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        while group < len(self._groups) and self._starts[group] < stop:
            first = self._starts[group]
            found += self._group(group)[max(start - first, 0) : stop - first]
            group += 1
        return found

    def blocks(self) -> Iterator[list[Row]]:
        """256 consecutive rows at a time; the last may be shorter."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self.rows(start, start + BLOCK_ROWS)

    def column(self, name: str) -> list[Any]:
        """One column of every row, without reading the others: ``key``, ``tokens``, ``split``, ``parents``, …"""
        values: list[Any] = []
        for path in self.paths:
            values += pq.read_table(path, columns=[name], memory_map=True).column(0).to_pylist()
        return values

    @property
    def keys(self) -> list[str]:
        """The key of every row."""
        return self.column("key")

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of every row."""
        return self.column("tokens")

    def _group(self, group: int) -> list[Row]:
        if group not in self._cached:
            number, within = self._groups[group]
            with pq.ParquetFile(self.paths[number], memory_map=True) as file:
                rows = _decoded(file.read_row_group(within))
            if len(self._cached) > 1:
                del self._cached[next(iter(self._cached))]
            self._cached[group] = rows
        return self._cached[group]


def rows_of(cache: Cache, store: Store, manifest: Manifest) -> RowsReader:
    """The rows of an artifact, through the cache."""
    return RowsReader([cache.file(store, ref) for ref in manifest.select("rows/")])


def _table(rows: Sequence[Row]) -> pa.Table:
    ids = np.concatenate([row.input_ids for row in rows]) if rows else np.empty(0, np.uint32)
    offsets = np.cumsum([0, *(len(row.input_ids) for row in rows)], dtype=np.int32)
    columns: dict[str, Any] = {
        "key": [row.key for row in rows],
        "split": [row.split for row in rows],
        "messages": [[{"role": m["role"], "content": m["content"]} for m in row.messages] for row in rows],
        "response": [row.response for row in rows],
        "reasoning": [row.reasoning for row in rows],
        "references": [row.references for row in rows],
        "scored": [np.packbits(np.asarray(row.scored, dtype=bool), bitorder="little").tobytes() for row in rows],
        "tokens": [len(row.input_ids) for row in rows],
        "prompt_tokens": [row.prompt_tokens for row in rows],
        "truncated": [row.truncated for row in rows],
        "finish_reason": [row.finish_reason for row in rows],
        "parents": [[{"row": p.row, "sample": p.sample} for p in row.parents] for row in rows],
        "source": [row.source for row in rows],
    }
    arrays = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids.astype(np.uint32, copy=False)))
        if name == "input_ids"
        else pa.array(columns[name], SCHEMA.field(name).type)
        for name in SCHEMA.names
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _decoded(table: pa.Table) -> list[Row]:
    table = table.combine_chunks()
    plain = table.drop_columns(["input_ids", "tokens"]).to_pylist()
    lists = table.column("input_ids").chunk(0) if table.num_rows else None
    rows: list[Row] = []
    for number, fields in enumerate(plain):
        assert lists is not None
        ids = np.array(lists[number].values, dtype=np.uint32)
        bits = np.frombuffer(fields.pop("scored"), dtype=np.uint8)
        scored = np.unpackbits(bits, count=len(ids), bitorder="little").astype(bool)
        parents = tuple(Parent(p["row"], p["sample"]) for p in fields.pop("parents"))
        rows.append(Row(**fields, input_ids=ids, scored=scored, parents=parents))
    return rows
