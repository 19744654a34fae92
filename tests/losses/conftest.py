"""The passes over rows of logits on which the same tests run."""

from __future__ import annotations

import pytest
from losses.passes import passes_here

from kd_runtime.losses import head


@pytest.fixture(params=["torch", "triton"])
def each_row_pass(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every loss in the test goes over its rows in this way; skipped with a reason where it cannot run."""
    name: str = request.param
    found = passes_here(name)
    monkeypatch.setattr(head, "row_pass_for", lambda device: found)
    return name
