"""Ingest as a plan runs it, on files that a test writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests import FULL, job

from kd_runtime.api.parse import parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.api.wiring import DATASET
from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.manifest import Manifest
from kd_runtime.artifacts.rejects import Reject, read_rejects
from kd_runtime.artifacts.rows import Row, rows_of
from kd_runtime.artifacts.store import Store, open_store
from kd_runtime.artifacts.writer import new_writer_id
from kd_runtime.planning.resolve import build_plan
from kd_runtime.stages.context import StageContext
from kd_runtime.stages.ingest import run
from kd_runtime.telemetry.progress import Reporter


@dataclass(frozen=True)
class Ingested:
    """What a run of ingest made."""

    manifest: Manifest
    rows: list[Row]
    rejects: list[Reject]
    said: list[tuple[int, int, str]]
    """(completed, total, unit) of each report."""
    store: Store

    @property
    def counts(self) -> dict[str, int]:
        """The manifest's counts."""
        return self.manifest.counts

    @property
    def reasons(self) -> dict[str, str]:
        """Source -> reason."""
        return {reject.source: reject.reason for reject in self.rejects}


class Listener(Reporter):
    """Keeps every report."""

    def __init__(self) -> None:
        super().__init__(DATASET, url="")
        self.said: list[tuple[int, int, str]] = []

    def update(self, completed: int, total: int, unit: str, **more: Any) -> None:
        """Note it."""
        self.said.append((completed, total, unit))
        super().update(completed, total, unit, **more)


def ingest(
    folder: Path,
    models: Path,
    files: dict[str, bytes],
    *,
    at: str = "",
    store: str = "",
    evaluates: bool = False,
    **dataset: Any,
) -> Ingested:
    """Run ingest over ``files``, written below ``folder/data``; ``at`` is the part of it that the URI names."""
    folder.mkdir(parents=True, exist_ok=True)
    uri = store or f"file://{folder / 'store'}/"
    for name, body in files.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    document = job(FULL if evaluates else FULL[:3], models, folder / "data" / at, uri)
    document["spec"]["dataset"] = {
        **document["spec"]["dataset"],
        "fields": {"prompt": "question", "response": "answer"},
        "maxRejectedRatio": 0.99,
        **dataset,
    }
    opened = open_store(uri)
    runtime = shipped_runtime("cpu")
    plan, _ = build_plan(parse_job(document, runtime), runtime, opened)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    cache, reporter = Cache(folder / "cache"), Listener()
    context = StageContext(plan, plan.stage(DATASET), opened, cache, new_writer_id(), reporter, work)
    manifest = run(context).manifest
    assert manifest is not None
    rows = list(rows_of(cache, opened, manifest))
    return Ingested(manifest, rows, read_rejects(opened, manifest), reporter.said, opened)
