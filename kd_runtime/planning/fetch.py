"""Bring an external's files onto this machine, each verified against the digest that the plan pinned."""

from __future__ import annotations

import os
from pathlib import Path

from kd_runtime.api.failures import DataError
from kd_runtime.api.secret_variables import secret_variable
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.store import body_sha256
from kd_runtime.planning.digests import DigestMemory
from kd_runtime.planning.plan import External, ExternalFile
from kd_runtime.planning.sources import SourceFile, StoreSource, model_files, open_model, open_source, tokenizer_files


def secret_token(secret: str | None) -> str | None:
    """The token that ``name/key`` stands for (`secret_variable`); None where there is none."""
    if not secret:
        return None
    return os.environ.get(secret_variable(secret))


def fetch_external(
    external: External, cache: Cache, memory: DigestMemory, *, endpoint: str | None = None, region: str | None = None
) -> Path:
    """A local folder that holds the external's files: its own folder for file://, else a verified copy in the cache.

    Raises:
        DataError: a file is gone or its content is not what the plan pinned.
        StorageError, DeniedError: it cannot be read.
    """
    opener = open_model if external.kind in ("model", "tokenizer", "teacher") else open_source
    source = opener(
        external.uri, revision=external.revision, token=secret_token(external.secret), endpoint=endpoint, region=region
    )
    if isinstance(source, StoreSource) and source.local("") is not None:
        return _checked_in_place(external, source, memory)
    return _copied(external, source, cache)


def _checked_in_place(external: External, source: StoreSource, memory: DigestMemory) -> Path:
    there = {f.path: f for f in source.files()}
    for wanted in external.files:
        file = there.get(wanted.path)
        if file is None or memory.sha256(source, file) != wanted.sha256:
            raise _changed(external, wanted)
    known = {file.path for file in external.files}
    added = [file.path for file in _read(external.kind, list(there.values())) if file.path not in known]
    if added:
        raise DataError(
            f"{external.uri.rstrip('/')}/{added[0]}: was added since the plan was made, and loading would read it; "
            "plan again to take what is there now"
        )
    folder = source.local("")
    assert folder is not None
    return folder


def _read(kind: str, files: list[SourceFile]) -> list[SourceFile]:
    """Those that loading reads whatever the plan listed; a dataset's and a template's are opened by the plan's names."""
    if kind == "tokenizer":
        return tokenizer_files(files)
    return model_files(files) if kind in ("model", "teacher") else []


def _copied(external: External, source: object, cache: Cache) -> Path:
    folder = cache.folder(external.digest)
    named = all((folder / wanted.path).exists() for wanted in external.files)  # one file's name is not in its digest
    if named and cache.is_complete(external.digest):
        return folder
    for wanted in external.files:
        path = folder / wanted.path
        if path.exists() and path.stat().st_size == wanted.size and body_sha256(path) == wanted.sha256:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + f".{os.getpid()}.part")
        source.fetch(wanted.path, part)  # type: ignore[attr-defined]
        if body_sha256(part) != wanted.sha256:
            part.unlink()
            raise _changed(external, wanted)
        part.replace(path)
    cache.complete(external.digest)
    return folder


def _changed(external: External, wanted: ExternalFile) -> DataError:
    return DataError(
        f"{external.uri.rstrip('/')}/{wanted.path}: is gone or changed since the plan was made (sha256 {wanted.sha256[:12]} expected); "
        "plan again to take what is there now"
    )
