"""Reads EasyDistill 1.0's logits: a JSON line for each answer, a list over its tokens of {token id: probability}.

There is nothing else in a line: neither prompt nor answer nor a key. Lines are in the order of the prompts that were
asked, and go on past the end of an answer. So they are joined with rows by order, and each token of a row must be
among its position's entries: rows in another order, or of another answer, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd_runtime.api.failures import DataError

LEAST = 1e-12
"""A probability of 0 (rounded away by float32) counts as this."""


@dataclass(frozen=True)
class Line:
    """One answer: for each generated token, K ids and their logprobs, by descending probability."""

    where: str
    top_ids: NDArray[np.int64]
    """[T, K]"""
    top_lp: NDArray[np.float64]
    """[T, K]"""


def lines(path: Path, k: int) -> Iterator[Line]:
    """The lines of a file, one in memory at a time, each position cut to its ``k`` likeliest. DataError, by line."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield _line(f"{path}:{number}", text, k)


def fewest_entries(path: Path) -> int:
    """The smallest number of entries of any position: the K that all have. 0 for a file without any."""
    fewest: int | None = None
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                for position in _parsed(f"{path}:{number}", text):
                    fewest = len(position) if fewest is None else min(fewest, len(position))
    return fewest or 0


def _parsed(where: str, text: bytes) -> list[dict[str, float]]:
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: no JSON ({error}); fetch the file again") from error
    if not isinstance(found, list) or not all(isinstance(position, dict) for position in found):
        raise DataError(f"{where}: no list of {{token id: probability}}; only EasyDistill 1.0's layout is read")
    return found


def _line(where: str, text: bytes, k: int) -> Line:
    positions = _parsed(where, text)
    ids, lp = np.empty((len(positions), k), np.int64), np.empty((len(positions), k))
    for at, position in enumerate(positions):
        if len(position) < k:
            raise DataError(f"{where}: position {at} has {len(position)} entries, {k} are expected; lower --top-k")
        try:
            its_ids = np.array([int(name) for name in position], np.int64)
            p = np.array(list(position.values()), np.float64)
        except (ValueError, TypeError) as error:
            raise DataError(f"{where}: position {at} holds what is no id or probability ({error})") from error
        if not ((p >= 0) & (p <= 1.001)).all():
            raise DataError(f"{where}: position {at} has a probability outside 0 to 1")
        first = np.lexsort((its_ids, -p))[:k]
        ids[at], lp[at] = its_ids[first], np.log(np.maximum(p[first], LEAST))
    return Line(where, ids, lp)
