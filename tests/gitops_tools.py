"""What GitOps tools say of a job: Argo CD by our script, Flux by our expressions. (What kstatus says is in statuses.py.)"""

from __future__ import annotations

from typing import Any

import cel
import pytest
import yaml
from statuses import ARGO, GITOPS

SCRIPT = (ARGO / "health.lua").read_text()
NEVER_THERE = ("os", "io", "string", "math", "debug", "coroutine", "utf8", "require", "dofile", "loadfile")
"""What Argo CD's Lua lacks unless its administrator opens it."""
(CHECK,) = yaml.safe_load((GITOPS / "flux" / "health-check-exprs.yaml").read_text())
ORDER = {"inProgress": "InProgress", "failed": "Failed", "current": "Current"}
"""Flux asks in this order (its RFC 9)."""


def argo(document: dict[str, Any]) -> dict[str, str]:
    """What the script says, run as Argo CD does: the object as the global `obj`, without the standard libraries."""
    lupa = pytest.importorskip("lupa", reason="the Lua interpreter for Python is not installed: pip install lupa")
    runtime = lupa.LuaRuntime(register_eval=False, register_builtins=False)
    names = runtime.globals()
    for name in NEVER_THERE:
        names[name] = None
    names["obj"] = runtime.table_from(document, recursive=True)
    return dict(runtime.execute(SCRIPT))


def flux(document: dict[str, Any]) -> str:
    """What Flux's evaluator says: its own look at the generation, then the expressions; else InProgress.

    Raises:
        RuntimeError: an expression cannot be evaluated, on which Flux goes on waiting.
    """
    observed = (document.get("status") or {}).get("observedGeneration")
    if observed is not None and observed != document["metadata"]["generation"]:
        return "InProgress"
    for name, verdict in ORDER.items():
        if cel.evaluate(CHECK[name], document) is True:
            return verdict
    return "InProgress"
