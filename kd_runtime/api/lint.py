"""`kd lint`: everything that is wrong with a manifest, what has no effect in it, and what each stage reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kd_runtime.api.errors import FieldError, ManifestErrors
from kd_runtime.api.parse import JOB, RUNTIME, load_documents, load_runtime, parse_job, parse_runtime, warnings
from kd_runtime.api.runtime import SHIPPED, ClusterDistillationRuntime, shipped_runtime
from kd_runtime.api.wiring import wire


@dataclass
class LintReport:
    """What was found in one file."""

    errors: list[FieldError] = field(default_factory=list)
    warnings: list[FieldError] = field(default_factory=list)
    wiring: list[str] = field(default_factory=list)
    """One line a stage: what it reads."""


def lint(path: Path | str, runtime: Path | None = None) -> LintReport:
    """Check every document of the file ``path``.

    The runtime of its jobs is ``runtime`` (a file), else a document of the same file, else one of the shipped ones.
    """
    report = LintReport()
    try:
        documents = load_documents(path)
        given = load_runtime(runtime) if runtime else None
    except ManifestErrors as wrong:
        of_runtime = wrong.source != str(path)
        report.errors += [replace(e, path=f"{wrong.source}: {e.path}") if of_runtime else e for e in wrong.errors]
        return report
    if not documents:
        report.errors.append(FieldError("file", None, "holds no document", "start with apiVersion and kind"))
    beside = _runtimes(documents, report)
    for document in documents:
        if document.get("kind") == RUNTIME:
            continue
        if document.get("kind", JOB) != JOB:
            wrong_kind = f"is not one of {JOB}, {RUNTIME}"
            report.errors.append(FieldError("kind", document["kind"], wrong_kind, "keep other objects in other files"))
            continue
        _lint_job(document, given or _runtime_of(document, beside, report), report)
    return report


def _runtimes(documents: list[dict[str, Any]], report: LintReport) -> list[ClusterDistillationRuntime]:
    parsed = []
    for document in documents:
        if document.get("kind") == RUNTIME:
            try:
                parsed.append(parse_runtime(document))
            except ManifestErrors as wrong:
                report.errors += wrong.errors
    return parsed


def runtime_name(document: dict[str, Any]) -> str | None:
    """The runtime that a job's document names."""
    value: Any = document
    for word in ("spec", "runtimeRef", "name"):
        value = value.get(word) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _runtime_of(
    document: dict[str, Any], beside: list[ClusterDistillationRuntime], report: LintReport
) -> ClusterDistillationRuntime | None:
    name = runtime_name(document)
    for runtime in beside:
        if name in (None, runtime.metadata.name):
            return runtime
    if name is None or name in SHIPPED:
        return shipped_runtime(name or "cpu")
    missing = "is neither in this file nor one of the shipped, so its defaults and limits were not looked at"
    report.warnings.append(FieldError("spec.runtimeRef.name", name, missing, "name its file with --runtime"))
    return None


def _lint_job(document: dict[str, Any], runtime: ClusterDistillationRuntime | None, report: LintReport) -> None:
    try:
        job = parse_job(document, runtime)
    except ManifestErrors as wrong:
        report.errors += wrong.errors
        return
    report.warnings += warnings(job)
    report.wiring += [wiring.text(name) for name, wiring in wire(job.spec.stages).wirings.items()]
