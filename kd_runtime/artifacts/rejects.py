"""Rows that were refused, and why: one JSON line each, beside the rows of the artifact that refused them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kd_runtime.api.failures import StorageError
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.store import Store, body_sha256

REJECTS = "rejects.jsonl"
WORK = "work/"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
COLUMNS = ("row", "sample", "reason", "detail", "source")


@dataclass(frozen=True)
class Reject:
    """One (row, sample) that is left out: its key or ``file:line``, a reason in CamelCase, a sentence, and where it came from."""

    row: str
    sample: int
    reason: str
    detail: str
    source: str = ""


def not_utf8(text: str) -> str | None:
    """What is wrong with text that UTF-8 cannot write and no tokenizer takes (it has a lone surrogate); None if nothing."""
    found = _SURROGATE.search(text)
    return f"has no text in UTF-8 at character {found.start()}" if found else None


def encode_rejects(rejects: Iterable[Reject]) -> bytes:
    """The bytes of ``rejects.jsonl``."""
    lines = (json.dumps(asdict(r), ensure_ascii=True, sort_keys=True, separators=(",", ":")) for r in rejects)
    return "".join(f"{line}\n" for line in lines).encode()


def decode_rejects(body: bytes) -> list[Reject]:
    """What ``encode_rejects`` wrote."""
    return [Reject(**json.loads(line)) for line in body.splitlines()]


def read_rejects(store: Store, manifest: Manifest) -> list[Reject]:
    """The rejects of an artifact; none where it records none.

    Raises:
        StorageError: the object is damaged.
    """
    rejects: list[Reject] = []
    for ref in manifest.select(REJECTS):
        body = store.get(ref.name)
        if body_sha256(body) != ref.sha256:
            raise StorageError(
                f"{store.uri}{ref.name}: is damaged; delete it and run again, then the artifact is made anew"
            )
        rejects += decode_rejects(body)
    return rejects


def keep_failed_rejects(store: Store, key: str, writer: str, rejects: Path) -> None:
    """Store the rejects of a stage that fails for them, so that they can be listed; an earlier attempt's go."""
    drop_failed_rejects(store, key)
    store.put(f"{WORK}{key}/{writer}/{REJECTS}", rejects)


def read_failed_rejects(store: Store, key: str) -> list[Reject]:
    """What `keep_failed_rejects` stored for the stage with ``key``; none where nothing was."""
    return [reject for name in _failed(store, key) for reject in decode_rejects(store.get(name))]


def drop_failed_rejects(store: Store, key: str) -> None:
    """Remove them: the stage's artifact is there now, with rejects of its own."""
    for name in _failed(store, key):
        store.delete(name)


def _failed(store: Store, key: str) -> list[str]:
    return [info.name for info in store.list(f"{WORK}{key}/") if info.name.endswith(f"/{REJECTS}")]


def reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many for each reason, the commonest first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def export_rejects(rejects: Sequence[Reject], form: str) -> str:
    """The rejects as text: ``jsonl`` or ``csv`` (with a header).

    Raises:
        ValueError: another form.
    """
    if form == "jsonl":
        return encode_rejects(rejects).decode()
    if form != "csv":
        raise ValueError(f"unknown form {form!r}; use jsonl or csv")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(reject) for reject in rejects)
    return text.getvalue()
