"""Ranks of several nodes that would begin at different steps, or of different rows, end at once and are tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training.tiny_runs import TinyRun, make, settings

from kd_runtime.api.failures import ExitClass
from kd_runtime.artifacts.manifest import InputRef
from kd_runtime.telemetry.processes import free_port
from kd_runtime.training.agreement import difference
from kd_runtime.training.gang import Gang, GangError, Placement
from kd_runtime.training.task import RankTask


def test_what_differs_is_named_with_the_first_rank_that_differs() -> None:
    alike, other = {"step": 500, "checkpoint": "w/step-500"}, {"step": 400, "checkpoint": "w/step-400"}
    assert difference([alike, alike, alike]) is None
    said = "ranks 0 and 2 begin with step 500 and 400, checkpoint w/step-500 and w/step-400"
    assert difference([alike, alike, other, other]) == said
    assert difference([alike, {**alike, "input rows": "cc"}]) == "ranks 0 and 1 begin with input rows None and cc"


@pytest.mark.runtime
@pytest.mark.parametrize("differing", ["checkpoint", "train step", "rows"])
def test_two_nodes_that_saw_different_stores_end_with_75(differing: str, tmp_path: Path, tiny_models: Path) -> None:
    made = make(tmp_path / "made", tiny_models, 8)
    nodes = [TinyRun(made, tiny_models / "student", tmp_path / f"node-{n}", settings()) for n in range(2)]
    anew = {"rows": InputRef(key="r" * 64, content_digest="d" * 64)}
    changes: dict[str, Any] = {
        "checkpoint": {"resume": tmp_path / "step-2", "resume_step": 2, "resume_from": "w/step-2"},
        "train step": {"rehearsal": True},
        "rows": {"trajectory": nodes[1].trajectory.model_copy(update={"inputs": anew})},
    }[differing]
    port = free_port()
    first, second = (
        node_of(run, task, number, port)
        for number, (run, task) in enumerate(zip(nodes, (nodes[0].task(), nodes[1].task(**changes)), strict=True))
    )
    second._start()
    try:
        with pytest.raises(GangError, match=r"ranks 0 and 1 begin with .*to be tried again") as ended:
            first.run()
        assert ended.value.exit_class is ExitClass.Transient
        assert second._ranks[1].wait(timeout=60) == ExitClass.Transient
    finally:
        second._end()


def node_of(run: TinyRun, task: RankTask, number: int, port: int) -> Gang:
    """The gang of one of two nodes, of one rank each, on this machine."""
    gang = run.gang(task)
    gang.placement = Placement(2, number, 1, "127.0.0.1", port)
    return gang
