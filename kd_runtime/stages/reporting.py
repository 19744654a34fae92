"""The report of a plan, rendered from the manifests that are in the store."""

from __future__ import annotations

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.store import Store
from kd_runtime.evaluation.report import render_report
from kd_runtime.planning.lookup import look_up
from kd_runtime.planning.plan import Plan


def write_report(plan: Plan, store: Store, cache: Cache) -> str:
    """Render the plan's report and keep it at reports/<plan digest>.html; the HTML.

    Raises:
        StorageError, DeniedError: the store.
    """
    states = look_up(plan, store)
    manifests = {name: state.manifest for name, state in states.items() if state.manifest is not None}
    html = render_report(plan, manifests, store, cache)
    store.put(f"reports/{plan.digest}.html", html.encode())
    return html
