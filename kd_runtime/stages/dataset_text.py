"""Readers of JSONL, JSON and CSV files; one record at a time is in memory."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_runtime.api.failures import DataError
from kd_runtime.stages.dataset_records import (
    RECORD_LIMIT_BYTES,
    Malformed,
    OpenFile,
    Reason,
    Record,
    RejectedRow,
    decoded,
    opened,
)

CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
"""A whole string, or what gives JSON its structure; a lone quote opens a string whose end is not read yet."""
_OPENERS = {b"]": b"[", b"}": b"{"}


def read_jsonl(path: Path, name: str) -> Iterator[Record | Malformed]:
    """One JSON object a line; blank lines are no records."""
    with opened(path, name) as file:
        number = 0
        while line := file.stream.readline(RECORD_LIMIT_BYTES):
            number += 1
            source = f"{name}:{number}"
            if len(line) == RECORD_LIMIT_BYTES and not line.endswith(b"\n"):
                while rest := file.stream.readline(CHUNK_BYTES):
                    if rest.endswith(b"\n"):
                        break
                yield Malformed(source, file.position, Reason.TooLong, f"the line exceeds {RECORD_LIMIT_BYTES} bytes")
                continue
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield _object(line, source, file.position)


def read_json(path: Path, name: str) -> Iterator[Record | Malformed]:
    """One array of objects. A malformed element is one malformed record.

    Raises:
        DataError: the file holds no array, or ends within it.
    """
    with opened(path, name) as file:
        for element, line in _Elements(file).each():
            yield _object(element, f"{name}:{line}", file.position)


def read_csv(path: Path, name: str, columns: tuple[str, ...]) -> Iterator[Record | Malformed]:
    """Comma-separated values with a header line.

    Raises:
        DataError: one of ``columns`` is not in the header, or a quote is never closed.
    """
    csv.field_size_limit(RECORD_LIMIT_BYTES)
    with opened(path, name) as file:
        # bytes that are not UTF-8 pass as lone surrogates, so that one of them spoils one row alone
        text = io.TextIOWrapper(file.stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, strict=True)
        header = next(rows, [])
        require_columns(name, header, columns)
        while True:
            source = f"{name}:{rows.line_num + 1}"
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise DataError(f"{source}: a quote that opens here is never closed; close it") from error
                yield Malformed(source, file.position, Reason.WrongField, f"the line is not CSV: {error}")
                continue
            if values:
                yield _csv_record(header, values, source, file.position)


def require_columns(name: str, there: list[str], wanted: tuple[str, ...]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        DataError: naming the column, and those that are there.
    """
    for column in wanted:
        if column not in there:
            raise DataError(
                f"spec.dataset.fields: {name} has no column {column!r}; it has {', '.join(there[:20]) or 'none'}"
            )


def _object(body: bytes, source: str, position: int) -> Record | Malformed:
    try:
        return Record(source, position, _parsed(decoded(body)))
    except RejectedRow as error:
        return Malformed(source, position, error.reason, error.detail)


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise RejectedRow(Reason.BadJSON, "is nested too deep") from None
    except ValueError as error:
        raise RejectedRow(Reason.BadJSON, str(error)) from None
    if not isinstance(value, dict):
        raise RejectedRow(Reason.BadJSON, f"is a {type(value).__name__}, not an object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _csv_record(header: list[str], values: list[str], source: str, position: int) -> Record | Malformed:
    if len(values) != len(header):
        return Malformed(source, position, Reason.WrongField, f"has {len(values)} values for {len(header)} columns")
    return Record(source, position, dict(zip(header, values, strict=True)))


def _newlines_before(element: bytes) -> int:
    """Line ends in the white space that ``element`` begins with."""
    return element[: len(element) - len(element.lstrip())].count(b"\n")


@dataclass
class _Elements:
    """Cuts the elements out of a JSON array of any size. Where brackets do not match, the damage stays in one element."""

    file: OpenFile
    _buffer: bytes = b""
    _scanned: int = 0
    _line: int = 1
    _open: list[bytes] = field(default_factory=list)

    def each(self) -> Iterator[tuple[bytes, int]]:
        """(element, line where it begins)."""
        self._enter()
        while True:
            token = self._next_token()
            if token is None:
                line = self._line + _newlines_before(self._buffer)
                raise DataError(f"{self.file.name}:{line}: the array is not closed; the file was cut off")
            start, end, mark = token
            if mark in (b",", b"]") and len(self._open) == 1:
                yield from self._cut(start, end)
                if mark == b"]":
                    self._leave()
                    return
            else:
                self._nest(mark)
                self._scanned = end

    def _enter(self) -> None:
        self._fill()
        body = self._buffer.removeprefix(BYTE_ORDER_MARK).lstrip()
        if not body.startswith(b"["):
            raise DataError(
                f"{self.file.name}: does not begin with '['; format JSON reads one array of objects, format JSONL one a line"
            )
        self._line += self._buffer[: len(self._buffer) - len(body)].count(b"\n")
        self._buffer, self._open = body[1:], [b"["]

    def _leave(self) -> None:
        while self._buffer or self._fill():
            if self._buffer.strip():
                raise DataError(
                    f"{self.file.name}:{self._line}: more follows after the array; format JSON reads one array"
                )
            self._buffer = b""

    def _next_token(self) -> tuple[int, int, bytes] | None:
        while True:
            found = _TOKEN.search(self._buffer, self._scanned)
            if found and found.group() != b'"':
                return found.start(), found.end(), found.group()
            self._scanned = found.start() if found else len(self._buffer)
            if not self._fill():
                return None

    def _fill(self) -> bool:
        """Read more: as much again as is held, so that a long element is scanned a few times, not many."""
        more = self.file.stream.read(max(CHUNK_BYTES, len(self._buffer)))
        self._buffer += more
        return bool(more)

    def _cut(self, start: int, end: int) -> Iterator[tuple[bytes, int]]:
        element, gone = self._buffer[:start], self._buffer[:end]
        line = self._line + _newlines_before(element)
        self._line += gone.count(b"\n")
        self._buffer, self._scanned = self._buffer[end:], 0
        if element.strip():
            yield element, line

    def _nest(self, mark: bytes) -> None:
        if mark in (b"[", b"{"):
            self._open.append(mark)
        elif mark in _OPENERS and _OPENERS[mark] in self._open[1:]:
            while self._open.pop() != _OPENERS[mark]:
                pass
