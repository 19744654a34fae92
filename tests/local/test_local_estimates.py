"""What a plan expects of each stage from the manifests before it, against the stage's own manifest, in a real run."""

from __future__ import annotations

from pathlib import Path

import pytest
from local.test_local_runs import Place
from manifests import FULL

from kd_runtime.artifacts.manifest import Manifest, read_manifest
from kd_runtime.local.run import open_run
from kd_runtime.planning.estimates import estimate, sample_dataset
from kd_runtime.planning.headers import read_header
from kd_runtime.planning.sources import open_model

pytestmark = pytest.mark.runtime
TOLERANCE = 0.2


def test_each_stage_costs_what_was_expected_from_those_before_it(tmp_path: Path, tiny_models: Path) -> None:
    place = Place(tmp_path, tiny_models)
    stages = [dict(stage) for stage in FULL]
    stages[-1] = {
        "name": "release",
        "publish": {"targets": [{"uri": f"file://{tmp_path}/out/"}], "requireGates": False},
    }
    manifest = place.write("whole", stages)
    place.run(manifest)
    plan, store, _ = open_run(manifest)
    headers = {}
    for name in ("student", "teacher"):
        source = open_model(f"file://{tiny_models / name}")
        headers[source.uri] = read_header(source, list(source.files()))
    made = {stage.name: read_manifest(store, stage.key) for stage in plan.stages}
    sample = sample_dataset(plan)

    def expected(name: str):  # type: ignore[no-untyped-def]
        names = list(made)
        before: dict[str, Manifest | None] = {each: made[each] for each in names[: names.index(name)]}
        return estimate(plan, headers, before, sample)[name]

    def held(name: str) -> tuple[dict[str, int], int]:
        found = made[name]
        assert found is not None
        return found.counts, sum(ref.size for ref in found.objects)

    counts, _ = held("dataset")
    assert expected("dataset").rows == counts["out"]
    counts, _ = held("answers")
    assert expected("answers").rows == counts["done"]
    counts, size = held("logits")
    assert expected("logits").tokens == counts["tokens"]
    assert expected("logits").bytes == pytest.approx(size, rel=TOLERANCE)
    counts, size = held("student")
    assert expected("student").tokens == pytest.approx(counts["tokens"], rel=TOLERANCE)
    assert expected("student").bytes == pytest.approx(size, rel=TOLERANCE)
