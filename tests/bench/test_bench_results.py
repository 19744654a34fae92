"""A run of the benchmarks: figures and goals on paper, and an exit code that says whether a goal was missed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


NAMES = ("capture", "logits", "loss", "measuring", "results", "run")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts as modules, for a test: folders of tests have some of their names."""
    monkeypatch.syspath_prepend(str(BENCH))
    others = {name: sys.modules.pop(name, None) for name in NAMES}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name, other in others.items():
        sys.modules.pop(name, None)
        if other is not None:
            sys.modules[name] = other


def results(bench: SimpleNamespace, slow: float) -> Any:
    figure, at_most = bench.measuring.Figure, bench.measuring.at_most
    found = [figure("Loss", "fast", {"s": 0.5}), figure("Loss", "dense", {"s": 2.0}), at_most("time", slow, 1)]
    return bench.run.measured({"loss": lambda: iter(found)})


@pytest.mark.parametrize(
    ("slow", "code", "said"), [(0.5, 0, "met    time: 0.5"), (1.5, 1, "MISSED time: 1.5, goal at most 1")]
)
def test_a_missed_goal_is_named_and_ends_with_1(
    bench: SimpleNamespace, slow: float, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run.concluded(results(bench, slow)) == code
    assert said in capsys.readouterr().out


def test_results_are_written_with_machine_versions_and_command(bench: SimpleNamespace, tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    results(bench, 1.5).write(tmp_path, document)
    found = json.loads((tmp_path / "results.json").read_text())
    assert "cores" in found["machine"] and "torch 2" in found["machine"] and found["command"].startswith("python ")
    assert found["goals"][0]["met"] is False
    assert found["figures"][1] == {"table": "Loss", "what": "dense", "values": {"s": 2.0}}
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| time | 1.5 | at most 1 | **no** |" in text and "| dense | 2 |" in text


def test_a_document_without_marks_is_refused(bench: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("nothing")
    with pytest.raises(ValueError, match="marks"):
        results(bench, 0.5).write(tmp_path, tmp_path / "a.md")


def test_medians_are_of_interleaved_rounds_after_one_that_does_not_count(bench: SimpleNamespace) -> None:
    called: list[str] = []
    bench.measuring.medians({name: lambda name=name: called.append(name) for name in "ab"}, 4)
    assert "".join(called) == "ab" * 5
    assert bench.measuring.ROUNDS >= 4


@pytest.mark.runtime
def test_a_dry_run_prints_every_figure_and_ends_as_its_goals_say(tmp_path: Path) -> None:
    """All but capture, which needs a model; sizes that show nothing but that it works."""
    names = ["logits", "loss", "loss-large", "loss-bf16"]
    command = [sys.executable, str(BENCH / "run.py"), *names, "--small", "--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    found = json.loads((tmp_path / "results.json").read_text())
    assert ran.returncode == int(any(not goal["met"] for goal in found["goals"])), ran.stderr[-2000:]
    assert len(found["goals"]) == 9
    whats = {figure["what"] for figure in found["figures"]}
    assert {"planes of scored positions", "whole file", "JSON lines", "read shard", "read JSON lines"} <= whats
    assert {"cross-entropy", "dense KD", "ForwardKL T=1", "TVD T=1", "ForwardKL T=2"} <= whats
