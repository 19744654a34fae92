"""One real node, with the operator installed by Helm, for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.tiny_jobs import SECONDS, student_digest, tiny_job, upload_inputs
from real_node import Node, real_node


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The node; started once."""
    with real_node() as ready:
        yield ready


@pytest.fixture(scope="session")
def undisturbed(node: Node, tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> dict[str, Any]:
    """The job that nothing happens to: its keys and its student."""
    upload_inputs(node, tiny_models, tmp_path_factory.mktemp("questions"))
    node.apply(tiny_job(node, "calm"))
    seen = node.succeeded("calm", SECONDS)
    keys = {stage["name"]: stage["key"] for stage in seen["status"]["stages"]}
    return {"keys": keys, "student": student_digest(node, "calm", keys["student"])}
