"""A manifest on a laptop: the job and perhaps its runtime in one file, paths relative to it (CONTRACTS, On a laptop)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.failures import SettingsError
from kd_runtime.api.job import DistillationJob
from kd_runtime.api.lint import runtime_name
from kd_runtime.api.parse import JOB, RUNTIME, load_documents, load_runtime, parse_job, parse_runtime
from kd_runtime.api.runtime import SHIPPED, ClusterDistillationRuntime, shipped_runtime

ADDRESS_FIELDS = ("uri", "template")
_RELATIVE = re.compile(r"^file://(?!/)")


@dataclass(frozen=True)
class LocalJob:
    """A parsed manifest: the job with absolute paths, its runtime, and where it lies."""

    job: DistillationJob
    runtime: ClusterDistillationRuntime
    path: Path

    @property
    def folder(self) -> Path:
        """`.kd` beside the manifest."""
        return self.path.parent / ".kd"

    @property
    def run_folder(self) -> Path:
        """`.kd/runs/<job name>` beside the manifest."""
        return self.folder / "runs" / self.job.metadata.name


def load_job(path: Path, runtime: Path | None = None) -> LocalJob:
    """Read a manifest. The runtime is ``runtime`` (a file), else a document of the same file, else the shipped `cpu`.

    Raises:
        SettingsError: no such file, no job in it or several, or what parse_job finds (all of it at once).
    """
    path = path.resolve()
    documents = load_documents(path)
    jobs = [document for document in documents if document.get("kind") == JOB]
    if len(jobs) != 1:
        raise SettingsError(f"{path}: holds {len(jobs)} documents of kind DistillationJob; one is needed")
    chosen = _runtime(path, documents, jobs[0], runtime)
    document = absolute_paths(jobs[0], path.parent)
    return LocalJob(parse_job(document, chosen, source=str(path)), chosen, path)


def _runtime(
    path: Path, documents: list[dict[str, Any]], job: dict[str, Any], given: Path | None
) -> ClusterDistillationRuntime:
    if given is not None:
        return load_runtime(given)
    name = runtime_name(job)
    for document in documents:
        if document.get("kind") == RUNTIME:
            runtime = parse_runtime(document, source=str(path))
            if name in (None, runtime.metadata.name):
                return runtime
    if name is not None and name not in SHIPPED:
        unknown = f"is neither in this file nor one of the shipped: {', '.join(SHIPPED)}"
        raise ManifestErrors(
            [FieldError("spec.runtimeRef.name", name, unknown, "name its file with --runtime")], str(path)
        )
    return shipped_runtime(name or "cpu")


def absolute_paths(value: Any, folder: Path, key: str = "") -> Any:
    """A document with every relative path of a `uri` or `template` made an absolute file:// URI against ``folder``.

    A trailing slash is kept: it says that the URI is a prefix.
    """
    if isinstance(value, dict):
        return {k: absolute_paths(v, folder, k) for k, v in value.items()}
    if isinstance(value, list):
        return [absolute_paths(v, folder, key) for v in value]
    if isinstance(value, str) and key in ADDRESS_FIELDS and (_RELATIVE.match(value) or "://" not in value):
        rest = value.removeprefix("file://")
        return f"file://{(folder / rest).resolve()}{'/' if rest.endswith('/') else ''}"
    return value
