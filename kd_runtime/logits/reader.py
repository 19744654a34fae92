"""Teacher targets by row key over many shards; memory of the process grows with a batch, never with the set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_runtime.api.failures import DataError
from kd_runtime.logits.index import build_index
from kd_runtime.logits.shard import Shard, open_shard
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.logits.targets import RowTargets

OPEN_LIMIT = 64
"""Shards that are mapped at a time."""


class LogitsReader:
    """Rows of ``paths`` by key, wherever they lie.

    Every shard is opened once at the start: its spec and ``pins`` (entries of its metadata) must be the expected ones,
    and, with ``verify``, its checksums right; DataError naming both values otherwise. ``folder`` is where the key table
    (24 bytes a row) is kept as an unnamed file; default the system's folder for temporary files.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: ShardSpec,
        *,
        pins: Mapping[str, str] | None = None,
        verify: bool = True,
        folder: Path | None = None,
        open_limit: int = OPEN_LIMIT,
    ) -> None:
        self.spec = spec
        self._paths = tuple(paths)
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._open_limit = open_limit
        keys = [np.empty((0, 16), np.uint8)]
        for path in self._paths:
            with open_shard(path, verify=verify, expect=spec, pins=pins) as shard:
                keys.append(np.array(shard.planes["key"]))
        self._index = build_index(keys[1:] or keys, folder)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._index)

    def keys(self) -> Iterator[bytes]:
        """The 16 bytes of every row's key, ascending."""
        return iter(self._index)

    def has(self, key: bytes | str) -> bool:
        """True if the row is there."""
        return self._index.find(_raw(key)) is not None

    def get(self, key: bytes | str, temperature: float = 1.0) -> RowTargets:
        """The targets of a row, by key (16 bytes, or 32 hex digits), at a temperature.

        DataError with the key where it is absent; SettingsError where its tail was not captured at the temperature.
        """
        found = self._index.find(_raw(key))
        if found is None:
            raise DataError(
                f"logits: row {_raw(key).hex()} is missing from {len(self._paths)} shards; capture it, or set "
                "objective.missingLogits: CrossEntropy"
            )
        shard, row = found
        return self._shard(shard).planes.row(row, temperature)

    def close(self) -> None:
        """Unmap everything."""
        self._open.clear()

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            while len(self._open) >= self._open_limit:
                self._open.popitem(last=False)
            self._open[number] = open_shard(self._paths[number], verify=False, expect=self.spec)
        self._open.move_to_end(number)
        return self._open[number]


def _raw(key: bytes | str) -> bytes:
    raw = bytes.fromhex(key) if isinstance(key, str) else key
    if len(raw) != 16:
        raise ValueError(f"a row key has 16 bytes, not {len(raw)}")
    return raw
