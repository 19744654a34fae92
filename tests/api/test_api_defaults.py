"""A runtime's defaults lie under the document, and the models' under both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_runtime.api.job import DistillationJobSpec, Dtype, Precision
from kd_runtime.api.parse import load_documents, parse_job, parse_runtime, with_defaults, without_nulls
from kd_runtime.api.runtime import SHIPPED, ClusterDistillationRuntime, shipped_runtime

GOOD = Path(__file__).parent / "corpus" / "good"


def runtime(**defaults: Any) -> ClusterDistillationRuntime:
    return parse_runtime(
        {
            "apiVersion": "kubedistill.io/v1alpha1",
            "kind": "ClusterDistillationRuntime",
            "metadata": {"name": "team"},
            "spec": {"defaults": defaults},
        }
    )


def spec(name: str, given: ClusterDistillationRuntime | None = None, **changes: Any) -> DistillationJobSpec:
    document = next(d for d in load_documents(GOOD / f"{name}.yaml") if d["kind"] == "DistillationJob")
    document["spec"] |= changes
    return parse_job(document, given).spec


def test_the_order_is_document_runtime_model() -> None:
    given = runtime(stages={"train": {"seed": 5, "maxLength": 99}}, preflight={"smokeRows": 3})
    student = [{"name": "student", "train": {"method": "SFT", "seed": 7}}]
    parsed = spec("smallest", given, stages=student)
    train = parsed.stages[0].train
    assert train is not None
    assert (train.seed, train.max_length, train.epochs) == (7, 99, 1)
    assert (parsed.preflight.smoke_rows, parsed.preflight.min_passed_ratio) == (3, 0.9)


def test_defaults_go_under_each_of_several_teachers_and_only_the_kind_that_it_is() -> None:
    parsed = spec(
        "two-teachers", runtime(teacher={"hosted": {"replicas": 3}, "external": {"limits": {"maxInFlight": 2}}})
    )
    writer, scorer = parsed.teachers or ()
    assert writer.external is not None and writer.hosted is None
    assert writer.external.limits.max_in_flight == 2
    assert scorer.hosted is not None and scorer.external is None
    assert scorer.hosted.replicas == 3


def test_no_default_brings_in_what_is_absent_unless_asked_for() -> None:
    given = runtime(
        stages={"train": {"lora": {"rank": 8}}, "evaluate": {"gates": []}, "prepare": {"random": {"layers": 2}}},
        teacher={"hosted": {"engine": "Transformers"}},
    )
    parsed = spec("smallest", given)
    assert parsed.teacher is None
    assert parsed.stages[0].train is not None
    assert parsed.stages[0].train.lora is None
    pruned = spec("prune-uniformly", given).stages[0].prepare
    assert pruned is not None and pruned.random is None


def test_a_default_fills_in_what_was_asked_for() -> None:
    given = runtime(stages={"train": {"lora": {"rank": 8, "alpha": 4}}})
    student = [{"name": "student", "train": {"method": "SFT", "lora": {"rank": 2}}}]
    train = spec("smallest", given, stages=student).stages[0].train
    assert train is not None and train.lora is not None
    assert (train.lora.rank, train.lora.alpha) == (2, 4)


def test_of_fields_that_exclude_each_other_the_documents_choice_stays() -> None:
    steps = [{"name": "student", "train": {"method": "SFT", "maxSteps": 9}}]
    train = spec("smallest", runtime(stages={"train": {"epochs": 4}}), stages=steps).stages[0].train
    assert train is not None
    assert train.max_steps == 9
    epochs = [{"name": "student", "train": {"method": "SFT", "epochs": 2}}]
    train = spec("smallest", runtime(stages={"train": {"maxSteps": 4}}), stages=epochs).stages[0].train
    assert train is not None
    assert (train.epochs, train.max_steps) == (2, None)


def test_lists_are_replaced_as_a_whole() -> None:
    given = runtime(stages={"train": {"optimizer": {"betas": [0.8, 0.9]}}})
    assert spec("smallest", given).stages[0].train.optimizer.betas == (0.8, 0.9)  # type: ignore[union-attr]
    own = [{"name": "student", "train": {"method": "SFT", "optimizer": {"betas": [0.1, 0.2]}}}]
    assert spec("smallest", given, stages=own).stages[0].train.optimizer.betas == (0.1, 0.2)  # type: ignore[union-attr]


def test_null_takes_the_default_as_absence_does() -> None:
    given = runtime(stages={"train": {"seed": 5}})
    stages = [{"name": "student", "train": {"method": "SFT", "seed": None}}]
    assert spec("smallest", given, stages=stages).stages[0].train.seed == 5  # type: ignore[union-attr]


def test_nulls_go_from_maps_at_every_depth_and_from_nowhere_else() -> None:
    assert without_nulls({"a": None, "b": {"c": None, "d": [{"e": None}, None]}}) == {"b": {"d": [{}, None]}}


def test_a_document_that_is_out_of_shape_passes_through_for_the_checks_to_refuse() -> None:
    for broken in ({"spec": 3}, {"spec": {"stages": [3, {"train": 1, "generate": 2}], "teachers": [4]}}):
        with_defaults(broken, shipped_runtime("cpu"))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("manifest", ["distil-with-answers", "two-teachers", "sft-external-teacher"])
def test_the_shipped_runtimes_fit_ordinary_jobs(name: str, manifest: str) -> None:
    assert shipped_runtime(name).metadata.name == name
    assert spec(manifest, shipped_runtime(name)).stages


def test_the_cpu_runtime_makes_a_laptop_work() -> None:
    parsed = spec("distil-with-answers", shipped_runtime("cpu"))
    assert parsed.teacher is not None and parsed.teacher.hosted is not None
    train = parsed.stages[2].train
    assert train is not None
    assert parsed.teacher.hosted.dtype is Dtype.float32
    assert parsed.teacher.hosted.gpus_per_replica == 0
    assert (train.precision, train.deepspeed.zero_stage, train.gradient_checkpointing) == (Precision.fp32, 0, False)
