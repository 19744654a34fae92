"""What a report or a model card is made of: a plan, the manifests that exist, and the small files of their artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.store import Store
from kd_runtime.planning.plan import External, Plan, PlannedStage, StageType


@dataclass(frozen=True)
class Sources:
    """Read access to all that one plan has made so far; ``manifests`` holds the stages that are there."""

    plan: Plan
    manifests: Mapping[str, Manifest]
    store: Store
    cache: Cache

    def done(self, *types: StageType) -> list[tuple[PlannedStage, Manifest]]:
        """Stages of these types that have an artifact, in the plan's order (all types where none is given)."""
        return [
            (stage, self.manifests[stage.name])
            for stage in self.plan.stages
            if (not types or stage.type in types) and stage.name in self.manifests
        ]

    def why_absent(self, *types: StageType) -> str:
        """Why no stage of these types has an artifact: the plan has none, or it has not run yet."""
        planned = [stage.name for stage in self.plan.stages if stage.type in types]
        kinds = " or ".join(types)
        if not planned:
            return f"this plan has no {kinds} stage"
        return f"the {kinds} stage {planned[-1]!r} has no artifact in the store yet"

    def has(self, manifest: Manifest, path: str) -> bool:
        """True where the artifact holds a file at ``path``."""
        return any(ref.path == path for ref in manifest.objects)

    def text(self, manifest: Manifest, path: str) -> str:
        """The text of one file of an artifact, verified."""
        return self.cache.file(self.store, manifest.object(path)).read_text(encoding="utf-8")

    def document(self, manifest: Manifest, path: str) -> Any:
        """One JSON file of an artifact."""
        return json.loads(self.text(manifest, path))

    def records(self, manifest: Manifest, path: str) -> list[Any]:
        """The records of one file of JSON lines of an artifact; none where it does not hold that file.

        Lines end at a line feed alone: text in JSON may hold what `str.splitlines` takes for an end (U+2028, U+0085).
        """
        if not self.has(manifest, path):
            return []
        return [json.loads(line) for line in self.text(manifest, path).split("\n") if line.strip()]

    def externals(self) -> Iterator[tuple[str, External]]:
        """Every external of the plan once, with all roles that it plays: (``model, tokenizer``, external)."""
        roles: dict[str, dict[str, None]] = {}
        first: dict[str, External] = {}
        for stage in self.plan.stages:
            for role, external in stage.externals.items():
                place = external_place(external)
                roles.setdefault(place, {})[role] = None
                kept = first.get(place)
                if kept is None or external.size > kept.size:
                    first[place] = external
        for place, external in first.items():
            yield ", ".join(roles[place]), external


def external_place(external: External) -> str:
    """An external's address with its revision: one address is one box in a lineage, whatever is read of it."""
    return f"{external.uri.rstrip('/')}@{external.revision}" if external.revision else external.uri.rstrip("/")


def short_digest(digest: str, digits: int = 12) -> str:
    """The first digits of a hex digest."""
    return digest[:digits]


def short_uri(uri: str) -> str:
    """The last part of a URI, which people recognise: ``hf://org/name`` gives ``org/name``, paths their last folder or file."""
    scheme, _, path = uri.rstrip("/").partition("://")
    if scheme == "hf":
        return path.removeprefix("datasets/")
    if scheme in ("http", "https"):
        return path.partition("/")[0]
    return path.rpartition("/")[2] or path
