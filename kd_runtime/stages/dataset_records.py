"""What a dataset's reader yields: one record with its place in a file, or the reason why there is none."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, cast

from kd_runtime.api.failures import DataError

RECORD_LIMIT_BYTES = 16 << 20
"""A longer record is rejected unread: it would exceed any model's context."""
DETAIL_CHARACTERS = 200


class Reason(StrEnum):
    """Why a row of a dataset is rejected."""

    BadJSON = "BadJSON"
    NotUTF8 = "NotUTF8"
    Empty = "Empty"
    WrongField = "WrongField"
    TooLong = "TooLong"


@dataclass(frozen=True)
class Record:
    """One record's fields. ``source`` is ``file:line`` (the row's number where a file has no lines), from 1."""

    source: str
    position: int
    """Bytes of the file that were read by then."""
    fields: dict[str, Any]


@dataclass(frozen=True)
class Malformed:
    """A place where a record should be."""

    source: str
    position: int
    reason: Reason
    detail: str


class RejectedRow(Exception):
    """One row cannot be used: its reason, and a sentence that names the field."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail[:DETAIL_CHARACTERS]


@dataclass(frozen=True)
class OpenFile:
    """A data file, unpacked where it is gzip."""

    name: str
    stream: IO[bytes]
    raw: IO[bytes]

    @property
    def position(self) -> int:
        """Bytes of the file itself that were read."""
        return self.raw.tell()


@contextmanager
def opened(path: Path, name: str) -> Iterator[OpenFile]:
    """``path`` for reading in blocks.

    Raises:
        DataError: a gzip file is cut off or damaged.
    """
    with path.open("rb") as raw:
        try:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield OpenFile(name, cast(IO[bytes], stream), raw)
            else:
                yield OpenFile(name, raw, raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{name}: is a damaged gzip file ({error}); pack it again") from error


def decoded(body: bytes) -> str:
    """``body`` as text. Raises RejectedRow (NotUTF8) with the byte's place."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedRow(Reason.NotUTF8, f"byte 0x{body[error.start]:02x} at {error.start} is not UTF-8") from error
