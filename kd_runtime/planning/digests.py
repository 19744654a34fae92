"""Content digests of external files, each computed by one streaming pass and remembered by (uri, etag, size)."""

from __future__ import annotations

import hashlib
import json

from kd_runtime.artifacts.store import BLOCK_BYTES, Missing, Store, body_sha256
from kd_runtime.planning.sources import Source, SourceFile, StoreSource


class DigestMemory:
    """Remembers sha256 of external files under ``digests/`` of a store (and for this process)."""

    def __init__(self, store: Store):
        self._store = store
        self._known: dict[str, str] = {}

    def sha256(self, source: Source, file: SourceFile) -> str:
        """The file's sha256 hex: from the source itself, from memory, else by reading it once."""
        if file.sha256:
            return file.sha256
        name = self._name(source, file)
        if name not in self._known:
            self._known[name] = self._recall(name) or self._learn(name, source, file)
        return self._known[name]

    def _name(self, source: Source, file: SourceFile) -> str:
        identity = f"{source.uri}\0{file.path}\0{file.etag}\0{file.size}"
        return f"digests/{hashlib.sha256(identity.encode()).hexdigest()}.json"

    def _recall(self, name: str) -> str | None:
        try:
            return str(json.loads(self._store.get(name))["sha256"])
        except Missing:
            return None

    def _learn(self, name: str, source: Source, file: SourceFile) -> str:
        digest = stream_sha256(source, file)
        body = json.dumps({"uri": source.uri, "path": file.path, "size": file.size, "sha256": digest}).encode()
        self._store.put(name, body)
        return digest


def stream_sha256(source: Source, file: SourceFile) -> str:
    """sha256 hex of one file, read in blocks of 4 MiB."""
    local = source.local(file.path) if isinstance(source, StoreSource) else None
    if local is not None:
        return body_sha256(local)
    digest = hashlib.sha256()
    for start in range(0, file.size, BLOCK_BYTES):
        digest.update(source.read(file.path, start, min(BLOCK_BYTES, file.size - start)))
    return digest.hexdigest()
