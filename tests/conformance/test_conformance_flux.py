"""Flux's healthCheckExprs call a job inProgress, failed or current when it is."""

from __future__ import annotations

import cel
import pytest
from gitops_tools import CHECK, ORDER, flux
from statuses import CASES, Case, case, job

from kd_runtime.api.status import JobStatus


@pytest.mark.parametrize("one", [c for c in CASES if c.flux is not None], ids=lambda one: one.name)
def test_the_expressions_say_what_the_api_promises(one: Case) -> None:
    assert flux(one.document()) == one.flux


def test_without_a_status_flux_waits() -> None:
    with pytest.raises(RuntimeError, match="status"):
        flux(case("no_status").document())


def test_a_status_without_conditions_is_in_progress() -> None:
    document = job(JobStatus(observed_generation=1))
    del document["status"]["conditions"]
    assert flux(document) == "InProgress"


def test_it_is_about_our_kind() -> None:
    assert (CHECK["apiVersion"], CHECK["kind"]) == ("kubedistill.io/v1alpha1", "DistillationJob")


@pytest.mark.parametrize("one", [c for c in CASES if c.status and not c.metadata], ids=lambda one: one.name)
def test_just_one_expression_holds(one: Case) -> None:
    """So that their order does not matter."""
    assert sum(cel.evaluate(CHECK[name], one.document()) is True for name in ORDER) == 1
