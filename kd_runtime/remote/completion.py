"""What a shell offers after TAB: names of jobs and stages, from the cluster, silently and soon or not at all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from kd_runtime.api.failures import KDError
from kd_runtime.remote.cluster import JOBS, Cluster, connect
from kd_runtime.remote.jobs import PLAN, TEACHER, RemoteJob, stage_names, teacher_names

PATIENCE_SECONDS = 2.0
"""A TAB that waits longer feels broken."""


def job_names(parameters: dict[str, Any], incomplete: str) -> list[tuple[str, str]]:
    """Names of the namespace's jobs that begin so, with their phase."""
    with _quietly(), _cluster(parameters) as cluster:
        return [
            (str(item["metadata"]["name"]), str((item.get("status") or {}).get("phase") or "Pending"))
            for item in cluster.list(cluster.url(JOBS))
            if str(item["metadata"]["name"]).startswith(incomplete)
        ]
    return []


def part_names(parameters: dict[str, Any], incomplete: str, *, logs: bool) -> list[tuple[str, str]]:
    """Names of a job's stages that begin so, with their state; for ``logs`` also the plan and its teachers."""
    name = parameters.get("job")
    with _quietly(), _cluster(parameters) as cluster:
        job = RemoteJob.of(cluster.get(cluster.url(JOBS, str(name))))
        teachers = teacher_names(job.spec)
        names = stage_names(job.spec) + ([PLAN, *([TEACHER] if teachers else []), *teachers] if logs else [])
        states = {part: run.state or "" for part, run in job.parts().items()}
        return [(part, states.get(part, "")) for part in dict.fromkeys(names) if part.startswith(incomplete)]
    return []


@contextlib.contextmanager
def _cluster(parameters: dict[str, Any]) -> Iterator[Cluster]:
    kubeconfig = parameters.get("kubeconfig")
    cluster = connect(parameters.get("namespace"), parameters.get("context"), Path(kubeconfig) if kubeconfig else None)
    with cluster.client:
        cluster.client.timeout = httpx.Timeout(PATIENCE_SECONDS)
        yield cluster


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A completion has no place to complain: what fails offers nothing."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.suppress(KDError, OSError, KeyError):
            yield
    finally:
        logging.disable(logging.NOTSET)
