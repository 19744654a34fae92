"""What is found, what is stale, and what therefore runs."""

from __future__ import annotations

import pytest
from fakes import fake_model
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import FULL, job

from kd_runtime.api.parse import parse_job
from kd_runtime.api.runtime import shipped_runtime
from kd_runtime.artifacts.manifest import InputRef, Manifest
from kd_runtime.artifacts.store import open_store
from kd_runtime.planning.lookup import Lookup, judge
from kd_runtime.planning.plan import Plan
from kd_runtime.planning.resolve import build_plan

TARGET = "file:///tmp/kd-published/"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    root = tmp_path_factory.mktemp("lookup")
    fake_model(root / "teacher", 1)
    fake_model(root / "student", 2)
    (root / "data.jsonl").write_text('{"instruction": "a"}\n')
    document = job(FULL, root, root / "data.jsonl", f"file://{root}/store/")
    return build_plan(parse_job(document), shipped_runtime("cpu"), open_store(f"file://{root}/store/"))[0]


def made(plan: Plan, **content: str) -> dict[str, Manifest | None]:
    """Manifests of all stages, each recording its inputs' content; ``content`` changes a stage's content afterwards."""
    digests = {stage.name: f"content of {stage.name}" for stage in plan.stages}
    manifests: dict[str, Manifest | None] = {}
    for stage in plan.stages:
        manifests[stage.name] = Manifest(
            key=stage.key,
            stage_type=stage.type.value,
            objects=(),
            content_digest=content.get(stage.name, digests[stage.name]),
            inputs={r: InputRef(key=plan.stage(s).key, content_digest=digests[s]) for r, s in stage.inputs.items()},
            writer="w",
            created="2026-01-01T00:00:00+00:00",
        )
    return manifests


def states(plan: Plan, manifests: dict[str, Manifest | None]) -> dict[str, str]:
    return {name: found.state.value for name, found in judge(plan, manifests).items()}


def test_nothing_made_means_everything_runs(plan: Plan) -> None:
    assert set(states(plan, {s.name: None for s in plan.stages}).values()) == {"ToDo"}


def test_everything_made_means_nothing_runs(plan: Plan) -> None:
    assert set(states(plan, made(plan)).values()) == {"Found"}


def test_an_absent_input_of_found_stages_is_not_made_again(plan: Plan) -> None:
    manifests = made(plan)
    manifests["answers"] = manifests["logits"] = None
    found = states(plan, manifests)
    assert (found["answers"], found["logits"], found["student"]) == ("NotNeeded", "NotNeeded", "Found")


def test_a_stage_whose_rejected_pairs_are_to_be_asked_again_runs_though_its_readers_are_found(plan: Plan) -> None:
    manifests = made(plan)
    manifests["answers"] = manifests["dataset"] = None
    found = {name: state.state.value for name, state in judge(plan, manifests, retried=["answers"]).items()}
    assert (found["dataset"], found["answers"], found["logits"], found["student"]) == ("ToDo", "ToDo", "Found", "Found")


def test_what_a_running_stage_reads_runs_too(plan: Plan) -> None:
    manifests = made(plan)
    manifests["answers"] = manifests["logits"] = manifests["student"] = None
    assert set(states(plan, manifests).values()) == {"Found", "NotNeeded"}
    manifests["release"] = None
    found = states(plan, manifests)
    assert {name for name, state in found.items() if state == "ToDo"} == {"answers", "logits", "student", "release"}
    assert (found["dataset"], found["exam"]) == ("Found", "Found")


def test_an_input_with_other_content_makes_what_read_it_stale(plan: Plan) -> None:
    found = judge(plan, made(plan, answers="other"))
    assert found["logits"].state is found["student"].state is Lookup.Stale
    assert found["logits"].runs
    assert "answers" in found["logits"].why
    assert found["release"].state is Lookup.Found


def test_a_target_that_was_never_published_to_is_published_to(plan: Plan) -> None:
    found = judge(plan, made(plan), {"release": TARGET})["release"]
    assert (found.state, found.why) == (Lookup.Stale, f"not published to {TARGET}")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_stage_that_runs_finds_its_inputs_there_or_running(plan: Plan, data: st.DataObject) -> None:
    manifests = made(plan)
    for name in data.draw(st.sets(st.sampled_from([s.name for s in plan.stages]))):
        manifests[name] = None
    found = judge(plan, manifests)
    for stage in plan.stages:
        if found[stage.name].runs:
            assert all(manifests[s] is not None or found[s].runs for s in stage.inputs.values())
    assert found["release"].runs == (manifests["release"] is None)
