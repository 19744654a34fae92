"""Where each row lies among many shards: a sorted table by key, in a mapped file so that it takes no heap."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENTRY = np.dtype([("shard", "<u4"), ("row", "<u4")])


class KeyIndex:
    """Key (16 bytes) -> (shard number, row in it); of equal keys the first counts."""

    def __init__(self, keys: NDArray[Any], entries: NDArray[Any]) -> None:
        self._keys = keys
        self._entries = entries

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[bytes]:
        """All keys, ascending."""
        return (key.tobytes() for key in self._keys.view("u1").reshape(-1, 16))

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Shard number and row of ``key``, or None."""
        wanted = np.frombuffer(key, "S16")[0]
        at = int(np.searchsorted(self._keys, wanted))
        if at == len(self._keys) or self._keys[at] != wanted:
            return None
        shard, row = self._entries[at]
        return int(shard), int(row)


def build_index(keys_of_shards: Sequence[NDArray[np.uint8]], folder: Path | None = None) -> KeyIndex:
    """Index the key planes [R, 16] of shards, in order; the table lives in an unnamed file of ``folder``."""
    keys = np.concatenate([np.ascontiguousarray(keys).view("S16")[:, 0] for keys in keys_of_shards])
    entries = np.empty(len(keys), ENTRY)
    entries["shard"] = np.repeat(np.arange(len(keys_of_shards)), [len(keys) for keys in keys_of_shards])
    entries["row"] = np.concatenate([np.arange(len(keys)) for keys in keys_of_shards])
    unique, first = np.unique(keys, return_index=True)
    return KeyIndex(_in_file(unique, folder), _in_file(entries[first], folder))


def _in_file(array: NDArray[Any], folder: Path | None) -> NDArray[Any]:
    if not len(array):
        return array
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(array.tobytes())
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, array.dtype)
