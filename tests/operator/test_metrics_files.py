"""The alerts and the dashboard ask for metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kd_operator import metrics
from prometheus_client.metrics import MetricWrapperBase

from kd_runtime.api.failures import ExitClass

FILES = Path(__file__).parents[2] / "charts" / "kubedistill" / "files"
ALERTS = yaml.safe_load((FILES / "alerts.yaml").read_text())
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in RULES),
    *(pytest.param(t["expr"], id=f"{p['title']} {t['refId']}") for p in PANELS for t in p["targets"]),
]
METRIC = re.compile(r"\b((?:kubedistill|process)_\w+)(?:\{([^}]*)\})?")
ADDED = {"le", "instance"}
"""Labels that Prometheus adds."""


def served() -> dict[str, set[str]]:
    """Every name that a sample may have, with its labels."""
    found = {sample.name: set(sample.labels) for family in metrics.REGISTRY.collect() for sample in family.samples}
    for collector, names in metrics.REGISTRY._collector_to_names.items():  # also those that have no sample yet
        if isinstance(collector, MetricWrapperBase):
            found |= {name: set(collector._labelnames) for name in names}
    return found


SERVED = served()


def asked(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    for name, selector in METRIC.findall(expression):
        yield name, dict(re.findall(r'(\w+)=~?"([^"]*)"', selector))


def grouped(expression: str) -> set[str]:
    return {
        label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
    } - {""}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_exists(expression: str) -> None:
    names = {name for name, _ in asked(expression)}
    assert names
    assert names <= set(SERVED)
    assert grouped(expression) <= ADDED.union(*(SERVED[name] for name in names))
    for name, selected in asked(expression):
        assert set(selected) <= SERVED[name]


VALUES = {
    "outcome": {*metrics.PostOutcome, *metrics.ReconcileOutcome, *metrics.ENDS},
    "phase": set(metrics.PHASES),
    "result": {"Complete", "Failed"},
    "class": {c.name for c in ExitClass},
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_selected_can_occur(expression: str) -> None:
    for _, selected in asked(expression):
        for label, words in selected.items():
            if label in VALUES:
                assert set(words.split("|")) <= VALUES[label]


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    text = json.dumps([e.values[0] for e in EXPRESSIONS])
    ours = [c for c in metrics.REGISTRY._collector_to_names if isinstance(c, MetricWrapperBase)]
    missing = [family.name for collector in ours for family in collector.describe() if family.name not in text]
    assert missing == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    known = grouped(rule["expr"])
    assert set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))) <= known


def test_alerts_and_panels_are_told_apart() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_panel_lies_on_another() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & mine, panel["title"]
        cells |= mine
