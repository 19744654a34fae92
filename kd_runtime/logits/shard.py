"""Shards as files and as bodies of the score protocol: write, open, verify.

write_shard(path, planes, spec, metadata) -> None
with open_shard(path, verify=True, expect=spec, pins={"tokenizer": digest}) as shard:
    shard.planes, shard.metadata
verify_shard(path) -> list[str]                     every problem, a sentence each
planes_to_bytes(planes, metadata) -> bytes          the wire form: the same bytes as a file
planes_from_bytes(data, expect=spec) -> Planes
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from kd_runtime.api.failures import DataError, StorageError
from kd_runtime.logits.build import refuse_problems
from kd_runtime.logits.check import problems
from kd_runtime.logits.container import Container, decode, encode
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.spec import ShardSpec, refuse_differences


class Shard:
    """An open file: memory-mapped planes, read-only; close it (or use ``with``) when its arrays are not needed."""

    def __init__(self, path: Path, container: Container) -> None:
        self.path = path
        self.container = container

    @property
    def planes(self) -> Planes:
        """The planes, as views of the file."""
        return self.container.planes

    @property
    def spec(self) -> ShardSpec:
        """Profile and sizes."""
        return self.container.spec

    @property
    def metadata(self) -> dict[str, str]:
        """What the writer noted beside the spec."""
        return self.container.metadata

    def close(self) -> None:
        """Drop the views; the mapping goes with the last array that refers to it."""
        del self.container

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_shard(path: Path, planes: Planes, spec: ShardSpec, metadata: Mapping[str, str] | None = None) -> None:
    """Write a shard, whole or not at all. DataError where the planes are unsound or not of ``spec``."""
    refuse_differences(str(path), spec.metadata(), planes.spec.metadata())
    refuse_problems(str(path), planes)
    pieces = encode(planes, metadata or {})
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path}: {error.strerror}; make room or choose another folder") from error


def open_shard(
    path: Path, *, verify: bool = True, expect: ShardSpec | None = None, pins: Mapping[str, str] | None = None
) -> Shard:
    """Map a shard. The header is always verified, the planes' checksums if ``verify``.

    DataError, naming both values, where a checksum, the spec or an entry of ``pins`` (of the metadata) is another.
    """
    container = decode(_mapped(path), str(path))
    if expect is not None:
        refuse_differences(str(path), expect.metadata(), container.spec.metadata())
    refuse_differences(str(path), pins or {}, container.metadata)
    for problem in container.damaged() if verify else ():
        raise DataError(f"{path}: {problem}")
    return Shard(path, container)


def verify_shard(path: Path) -> list[str]:
    """Everything that is wrong with a file: damage, and planes that no writer makes. Empty: it is sound."""
    try:
        container = decode(_mapped(path), str(path))
    except (DataError, StorageError) as error:
        return [str(error)]
    return [f"{path}: {problem}" for problem in container.damaged() or problems(container.planes)]


def planes_to_bytes(planes: Planes, metadata: Mapping[str, str] | None = None) -> bytes:
    """The body of a score answer: the bytes that :func:`write_shard` would write."""
    refuse_problems("logits", planes)
    return b"".join(encode(planes, metadata or {}))


def planes_from_bytes(data: bytes, *, expect: ShardSpec | None = None, where: str = "score answer") -> Planes:
    """The planes of a body, as views of it; checked like a file, and for soundness, as they come from elsewhere."""
    container = decode(data, where)
    if expect is not None:
        refuse_differences(where, expect.metadata(), container.spec.metadata())
    for problem in container.damaged() or problems(container.planes):
        raise DataError(f"{where}: {problem}")
    return container.planes


def _mapped(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DataError(f"{path}: the file is empty; fetch or capture it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; fetch it again") from error
