"""The schema refuses wrong values before anything is installed, and says which; the README names every value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "kubedistill"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("images.tga=1", "at '/images': additional properties 'tga' not allowed"),
        ("nonsense=1", "additional properties 'nonsense' not allowed"),
        (
            "images.pullPolicy=Sometimes",
            "at '/images/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        ("images.operator.digest=abc", "at '/images/operator/digest'"),
        ("watch.namespaces={Team_A}", "at '/watch/namespaces/0': 'Team_A' does not match pattern"),
        ("watch.namespaces={a,a}", "at '/watch/namespaces'"),
        ("operator.workers=0", "at '/operator/workers': minimum: got 0, want 1"),
        ("operator.port=80", "at '/operator/port': minimum: got 80, want 1,024"),
        ("operator.logLevel=TRACE", "at '/operator/logLevel'"),
        (r"operator.podLabels.app\.kubernetes\.io/name=x", "at '/operator/podLabels/app.kubernetes.io~1name'"),
        ("runtimes.default=gpu", "at '/runtimes/default': value must be one of '', 'cpu', 'cuda', 'cuda-multinode'"),
        ("runtimes.network.egress[0].cidr=everywhere", "at '/runtimes/network/egress/0/cidr'"),
        ("networkPolicy.apiServer.ports=null", "at '/networkPolicy/apiServer': missing property 'ports'"),
        ("networkPolicy.apiServer.ports={0}", "at '/networkPolicy/apiServer/ports/0'"),
        ("gc.enabled=true", "at '/gc/store'"),
        ("gc.store=file:///data", "at '/gc/store': 'file:///data' does not match pattern"),
        ("monitoring.podMonitor.interval=often", "at '/monitoring/podMonitor/interval'"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(helm: Any, value: str, said: str) -> None:
    refused = helm("template", "kubedistill", str(CHART), "--set", value)
    assert refused.returncode != 0
    assert said in refused.stderr


def test_the_chart_lints(helm: Any) -> None:
    linted = helm("lint", "--strict", str(CHART))
    assert linted.returncode == 0, linted.stdout


def test_every_value_has_a_line_in_the_readme() -> None:
    told = set(re.findall(r"^\| `([^`]+)` \|", (CHART / "README.md").read_text(), re.MULTILINE))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert told == set(_leaves(values))


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        here = f"{path}{key}"
        if isinstance(value, dict) and value and not here.endswith(("resources", ".labels")):
            yield from _leaves(value, f"{here}.")
        else:
            yield here
