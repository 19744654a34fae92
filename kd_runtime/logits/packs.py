"""Many small shards as few large files: what export writes, and what training reads where units are many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_runtime.api.failures import DataError
from kd_runtime.logits.planes import concatenate
from kd_runtime.logits.shard import open_shard, write_shard
from kd_runtime.logits.spec import ShardSpec

LEAST, MOST = 128 << 20, 256 << 20
"""Bytes of an exported file; the last one, and any that a single larger shard fills, may be outside."""
LOCAL_LEAST, LOCAL_MOST = 32 << 20, 64 << 20
"""Bytes of a file of a local pack, which is in memory once while it is made."""
FEW = 64
"""So many shards are read as they are: all of them can be mapped at a time."""


def export(paths: Sequence[Path], folder: Path, *, least: int = LEAST, most: int = MOST) -> list[Path]:
    """Join shards of one spec into files of ``least`` to ``most`` bytes, named in order; at most one is in memory.

    Metadata that all parts of a file share is kept. Equal rows are stored once a file. DataError where a shard is
    damaged or of another spec, or ``folder`` holds shards already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.glob("*.safetensors"), None):
        raise DataError(f"{folder}: it holds shards already; export into an empty folder")
    if not paths:
        raise DataError("logits: there are no shards to export; name at least one")
    with open_shard(paths[0], verify=False) as first:
        spec = first.spec
    written = []
    for number, group in enumerate(groups([path.stat().st_size for path in paths], least, most)):
        target = folder / f"{number:06d}.safetensors"
        _join([paths[at] for at in group], spec, target)
        written.append(target)
    return written


def packed(paths: Sequence[Path], folder: Path, *, few: int = FEW) -> list[Path]:
    """The rows of ``paths`` in as few files as a reader keeps mapped; ``paths`` themselves where they are few.

    Otherwise ``folder`` is made, and holds the files. Where a row lies changes nothing that is read of it.
    """
    if len(paths) <= few:
        return list(paths)
    return export(paths, folder, least=LOCAL_LEAST, most=LOCAL_MOST)


def groups(sizes: Sequence[int], least: int, most: int) -> list[list[int]]:
    """Consecutive indices whose sizes sum to at most ``most`` (or one alone); each but the last has ``least`` if it can."""
    found: list[list[int]] = []
    filled = 0
    for index, size in enumerate(sizes):
        if not found or filled + size > most or (filled >= least and filled + size > (least + most) // 2):
            found.append([])
            filled = 0
        found[-1].append(index)
        filled += size
    return found


def _join(paths: Sequence[Path], spec: ShardSpec, target: Path) -> None:
    shards = [open_shard(path, expect=spec) for path in paths]
    shared = set.intersection(*(set(shard.metadata.items()) for shard in shards))
    write_shard(target, concatenate([shard.planes for shard in shards]), spec, dict(sorted(shared)))
