"""The ConfigMap that pins a job and its runtime as they were at the start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kd_operator.children.context import ChildContext, Manifest
from kd_operator.names import config_name
from kd_runtime.api.runtime import ClusterDistillationRuntime

CONFIG_FOLDER = "/etc/kubedistill"
JOB_FILE = "job.json"
RUNTIME_FILE = "runtime.json"


def config_map(ctx: ChildContext, original: Mapping[str, Any]) -> Manifest:
    """The immutable ConfigMap; ``original`` is the DistillationJob as the API server holds it."""
    metadata = {name: original["metadata"][name] for name in ("name", "namespace", "uid")}
    job = {
        "apiVersion": original["apiVersion"],
        "kind": original["kind"],
        "metadata": metadata,
        "spec": original["spec"],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": ctx.metadata(config_name(ctx.name, ctx.uid), ctx.labels()),
        "immutable": True,
        "data": {JOB_FILE: _json(job), RUNTIME_FILE: _json(_runtime(ctx.runtime))},
    }


def _runtime(runtime: ClusterDistillationRuntime) -> Manifest:
    """The runtime whole, defaults written out: a later version's other defaults do not change a job that runs."""
    dumped: Manifest = runtime.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**dumped, "metadata": {"name": runtime.metadata.name}}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
