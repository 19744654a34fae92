"""Whether a store still has the objects that a manifest, or a unit's commit, names: a hand may have deleted one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kd_runtime.artifacts.manifest import ObjectRef
from kd_runtime.artifacts.store import Store


def lost_object(store: Store, refs: Iterable[ObjectRef]) -> str | None:
    """The name of the first of ``refs`` that is gone, or has another size; None where all are there.

    One listing for each artifact (or asking key) that they lie below; their bytes are not read.
    """
    wanted = list(refs)
    listed: dict[str, int] = {}
    for folder in sorted({_folder(ref.name) for ref in wanted}):
        listed |= {info.name: info.size for info in store.list(folder)}
    return next((ref.name for ref in wanted if not is_there(store, ref, listed)), None)


def is_there(store: Store, ref: ObjectRef, listed: Mapping[str, int]) -> bool:
    """Whether the object is there in its size; ``listed`` (name -> bytes) may be of before it was written, so is not trusted
    to lack it."""
    if listed.get(ref.name) == ref.size:
        return True
    info = store.stat(ref.name)
    return info is not None and info.size == ref.size


def _folder(name: str) -> str:
    """``artifacts/<key>/`` or ``answers/<asking key>/``."""
    return "/".join(name.split("/")[:2]) + "/"
