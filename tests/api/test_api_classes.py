"""Every leaf of the API has a key class, and the classes select what goes into keys and manifests."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from kd_runtime.api.classes import KeyClass, key_class, keyed, leaves, recorded
from kd_runtime.api.job import DistillationJob, DistillationJobSpec
from kd_runtime.api.model import Model
from kd_runtime.api.parse import complete, load_documents, parse_job, parse_runtime
from kd_runtime.api.runtime import ClusterDistillationRuntime, RuntimeSpec

GOOD = sorted((Path(__file__).parent / "corpus" / "good").glob("*.yaml"))


def held_models(annotation: Any) -> Iterator[type[Model]]:
    if get_origin(annotation) is Annotated:
        yield from held_models(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, tuple):
        for member in get_args(annotation):
            yield from held_models(member)
    elif isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation


def fields_without_class(model: type[Model], path: str) -> Iterator[str]:
    for attribute, info in model.model_fields.items():
        inner = list(held_models(info.annotation))
        if not inner and key_class(info) is None:
            yield f"{path}.{attribute}"
        for held in inner if key_class(info) is None else ():
            yield from fields_without_class(held, f"{path}.{attribute}")


@pytest.mark.parametrize("model", [DistillationJobSpec, RuntimeSpec])
def test_every_leaf_has_a_class(model: type[Model]) -> None:
    assert list(fields_without_class(model, model.__name__)) == []


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_leaves_walk_every_good_manifest(path: Path) -> None:
    for document in load_documents(path):
        if document["kind"] == "DistillationJob":
            parsed: Model = parse_job(document)
        else:
            parsed = parse_runtime(document)
        found = list(leaves(parsed))
        assert len({leaf for leaf, _, _ in found}) == len(found)
        assert all(isinstance(kind, KeyClass) for _, _, kind in found)


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_job_with_its_defaults_written_out_is_the_same_job(path: Path) -> None:
    document = next(d for d in load_documents(path) if d["kind"] == "DistillationJob")
    job = parse_job(document)
    again = parse_job(complete(job))
    assert list(leaves(again)) == list(leaves(job))


def body(text: dict[str, Any]) -> Any:
    document = next(d for d in load_documents(GOOD[0].parent / "smallest.yaml"))
    document["spec"]["stages"][0]["train"] = {"method": "SFT", **text}
    return parse_job(document).spec.stages[0].body


def test_one_and_one_point_nought_give_one_key() -> None:
    assert keyed(body({"objective": {"temperature": 1}, "maxLength": 64.0})) == keyed(
        body({"objective": {"temperature": 1.0}, "maxLength": 64})
    )
    assert isinstance(keyed(body({"maxLength": 64.0}))["maxLength"], int)


def test_a_default_written_out_gives_the_same_key_as_one_left_out() -> None:
    assert keyed(body({"seed": 0, "lora": None, "optimizer": {"betas": [0.9, 0.95]}})) == keyed(body({}))


def test_settings_of_the_three_classes_go_where_they_belong() -> None:
    train = body(
        {"microBatchSize": 2, "reportTo": [], "deepspeed": {"zeroStage": 1, "config": {"wall_clock_breakdown": True}}}
    )
    assert keyed(train)["deepspeed"] == {"config": {"wall_clock_breakdown": True}}
    assert recorded(train)["deepspeed"] == {"zeroStage": 1, "offloadOptimizer": "None", "offloadParameters": "None"}
    assert "microBatchSize" in recorded(train)
    assert "microBatchSize" not in keyed(train)
    assert "checkpoint" not in {**keyed(train), **recorded(train)}


def test_no_address_is_in_a_key() -> None:
    """Contents are keyed, never where they lie (contract 1); an external teacher has nothing but its address."""
    document = next(d for d in load_documents(GOOD[0].parent / "everything.yaml") if d["kind"] == "DistillationJob")
    found = [leaf for leaf, _, kind in leaves(parse_job(document)) if kind is KeyClass.Keyed]
    assert not [leaf for leaf in found if leaf.endswith(("uri", "revision", "template", "endpoint", "secretRef.name"))]


def test_metadata_and_runtime_are_not_in_a_key_but_serving_flags_are() -> None:
    runtime = next(
        parse_runtime(d)
        for d in load_documents(GOOD[0].parent / "everything.yaml")
        if d["kind"] == "ClusterDistillationRuntime"
    )
    found = {
        leaf for leaf, _, kind in leaves(ClusterDistillationRuntime.model_validate(runtime)) if kind is KeyClass.Keyed
    }
    assert {leaf for leaf in found if not leaf.startswith("spec.defaults")} == {
        "spec.serving.extraArgs",
        "spec.serving.env[0].name",
        "spec.serving.env[0].value",
    }
    job = parse_job(load_documents(GOOD[0].parent / "smallest.yaml")[0])
    assert {kind for leaf, _, kind in leaves(job) if leaf.startswith("metadata")} == {KeyClass.Unkeyed}
    assert isinstance(job, DistillationJob)
