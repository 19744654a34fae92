"""Readers of Parquet and Arrow files; a small batch of rows at a time is in memory, and only the columns that are mapped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd_runtime.api.failures import DataError
from kd_runtime.stages.dataset_records import Malformed, Reason, Record
from kd_runtime.stages.dataset_text import require_columns

BATCH_ROWS = 128


def read_parquet(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Record | Malformed]:
    """The rows of a Parquet file.

    Raises:
        DataError: it is no Parquet file, is damaged, or lacks one of ``columns``.
    """
    size = path.stat().st_size
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            require_columns(name, file.schema_arrow.names, columns)
            total, row = file.metadata.num_rows, 0
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield from _records(batch, name, row, size, total)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: is not a readable Parquet file ({error}); write it again") from error


def read_arrow(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Record | Malformed]:
    """The rows of an Arrow IPC stream or file, as `datasets` saves them.

    Raises:
        DataError: it is neither, is damaged, or lacks one of ``columns``.
    """
    size = path.stat().st_size
    try:
        with pa.memory_map(str(path)) as source:
            row = 0
            for batch, position in _batches(source, size):
                require_columns(name, batch.schema.names, columns)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    piece = batch.select(list(columns)).slice(start, BATCH_ROWS)
                    yield from _records(piece, name, row + start, position, 0)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: is not a readable Arrow file ({error}); write it again") from error


def _batches(source: Any, size: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """(batch, bytes that were read by its end) of a stream, or of a file, whose batches lie anywhere."""
    if source.read(6) == b"ARROW1":
        source.seek(0)
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield file.get_batch(number), size * (number + 1) // file.num_record_batches
    else:
        source.seek(0)
        for batch in pa.ipc.open_stream(source):
            yield batch, source.tell()


def _records(batch: pa.RecordBatch, name: str, first: int, size: int, total: int) -> Iterator[Record | Malformed]:
    """The rows of a batch; ``first`` is the number of rows before it, ``total`` of the file where it is known."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError:  # one text is not UTF-8: find out which
        rows = [_row(batch, number) for number in range(batch.num_rows)]
    for number, fields in enumerate(rows, first + 1):
        source, position = f"{name}:{number}", size * number // total if total else size
        if isinstance(fields, dict):
            yield Record(source, position, fields)
        else:
            yield Malformed(source, position, Reason.NotUTF8, str(fields))


def _row(batch: pa.RecordBatch, number: int) -> dict[str, Any] | str:
    fields = {}
    for column in batch.schema.names:
        try:
            fields[column] = batch.column(column)[number].as_py()
        except UnicodeDecodeError as error:
            return f"column {column!r}: byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8"
    return fields
