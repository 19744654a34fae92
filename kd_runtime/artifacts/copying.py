"""Copying an artifact, and all that it was made from, to another store: what is found here is found there."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kd_runtime.api.failures import SettingsError, StorageError
from kd_runtime.artifacts.manifest import Manifest, ObjectRef, decode_manifest, manifest_name, read_manifest
from kd_runtime.artifacts.store import BLOCK_BYTES, AlreadyExists, Missing, Store, body_sha256
from kd_runtime.artifacts.units import commit_name

PARALLEL = 8


@dataclass(frozen=True)
class Copied:
    """One artifact that is in the other store now; ``objects`` and ``size`` (bytes) are what had to be moved."""

    key: str
    stage_type: str
    objects: int
    size: int


def copy_artifact(source: Store, key: str, target: Store) -> list[Copied]:
    """Copy the artifact and its inputs, inputs first; manifests verbatim, every object verified on its way.

    What is there already is left as it is: typing it again goes on. An input that is gone, or was made anew since, is
    left out: the artifact is found without it.

    Raises:
        SettingsError: there is no such artifact, or the other store holds another one under one of the keys.
        StorageError: an object is damaged. TransientError: one vanished.
    """
    chosen = list(_with_inputs(source, key))
    for manifest, _ in chosen:
        _check_free(target, manifest)
    return [_copy(source, target, manifest, body) for manifest, body in chosen]


def _with_inputs(source: Store, key: str) -> Iterator[tuple[Manifest, bytes]]:
    """The artifact after all that it was made from, each once, with its manifest's bytes."""
    seen: set[str] = set()

    def visit(key: str, content: str | None) -> Iterator[tuple[Manifest, bytes]]:
        if key in seen:
            return
        seen.add(key)
        try:
            body = source.get(manifest_name(key))
        except Missing:
            return
        manifest = decode_manifest(body, source.uri + manifest_name(key))
        if content in (None, manifest.content_digest):
            for _, ref in sorted(manifest.inputs.items()):
                yield from visit(ref.key, ref.content_digest)
            yield manifest, body

    found = list(visit(key, None))
    if not found:
        raise SettingsError(f"{key}: {source.uri} holds no such artifact; `kd ls` shows all")
    yield from found


def _check_free(target: Store, manifest: Manifest) -> None:
    there = read_manifest(target, manifest.key)
    if there is not None and there.content_digest != manifest.content_digest:
        raise SettingsError(
            f"{manifest.key[:16]}: {target.uri} holds a {there.stage_type} artifact of this key with other content "
            f"({there.content_digest[:12]}, not {manifest.content_digest[:12]}); copy to another store"
        )


def _copy(source: Store, target: Store, manifest: Manifest, body: bytes) -> Copied:
    there = read_manifest(target, manifest.key)
    if there is not None and there.encoded() != body:  # equal content, made there by somebody else
        return Copied(manifest.key, manifest.stage_type, 0, 0)
    moved = _copy_objects(source, target, manifest.objects)
    with contextlib.suppress(AlreadyExists):
        target.put(manifest_name(manifest.key), body, if_absent=True)
    if there is None:  # a sweep of the other store may have taken objects that nothing named until now
        moved += _copy_objects(source, target, [ref for ref in manifest.objects if not target.exists(ref.name)])
    return Copied(manifest.key, manifest.stage_type, len(moved), sum(ref.size for ref in moved))


def _copy_objects(source: Store, target: Store, refs: Sequence[ObjectRef]) -> list[ObjectRef]:
    """Bring the objects over that are not there yet, with the commits of those that belong to units; those that were moved."""
    with tempfile.TemporaryDirectory(prefix="kd-copy-") as folder, ThreadPoolExecutor(PARALLEL) as pool:
        work = [pool.submit(_copy_object, source, target, ref, Path(folder) / str(n)) for n, ref in enumerate(refs)]
        moved = [ref for ref, done in zip(refs, work, strict=True) if done.result()]
    for name in sorted({name for ref in refs if (name := commit_name(ref.name))}):
        with contextlib.suppress(Missing, AlreadyExists):
            target.put(name, source.get(name), if_absent=True)
    return moved


def _copy_object(source: Store, target: Store, ref: ObjectRef, local: Path) -> bool:
    """True where it had to be moved."""
    if _holds(target, ref):
        return False
    source.download(ref.name, local, size=ref.size)
    if local.stat().st_size != ref.size or body_sha256(local) != ref.sha256:
        raise StorageError(
            f"{source.uri}{ref.name}: has other bytes than its manifest says; the artifact is damaged: delete it and run again"
        )
    target.put(ref.name, local, sha256=ref.sha256)
    local.unlink()
    return True


def _holds(target: Store, ref: ObjectRef) -> bool:
    there = target.stat(ref.name)
    if there is None or there.size != ref.size:
        return False
    return (there.sha256 or _read_sha256(target, ref)) == ref.sha256


def _read_sha256(store: Store, ref: ObjectRef) -> str:
    digest = hashlib.sha256()
    for start in range(0, ref.size, BLOCK_BYTES):
        digest.update(store.read_range(ref.name, start, min(BLOCK_BYTES, ref.size - start)))
    return digest.hexdigest()
