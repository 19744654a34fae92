"""kstatus calls a job InProgress, Current or Failed when it is."""

from __future__ import annotations

import pytest
from statuses import CASES, Case, case, job, kstatus, succeeded

from kd_runtime.api.status import JobStatus


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_kstatus_says_what_the_api_promises(one: Case) -> None:
    assert kstatus(one.document()) == one.kstatus


@pytest.mark.parametrize("one", [c for c in CASES if c.status is not None], ids=lambda one: one.name)
def test_a_status_never_says_that_a_job_is_both_on_its_way_and_stuck(one: Case) -> None:
    """kstatus takes the first in the list: with both, the order would decide."""
    assert one.status is not None
    true = {found.type for found in one.status.conditions if found.status == "True"}
    assert not {"Reconciling", "Stalled"} <= true
    assert not {"Ready", "Stalled"} <= true
    assert not {"Ready", "Reconciling"} <= true
    assert {"Complete"} & true == {"Complete"} if "Ready" in true else "Complete" not in true


@pytest.mark.parametrize("one", [c for c in CASES if c.status is not None], ids=lambda one: one.name)
def test_every_status_names_its_generation_and_whether_it_is_ready(one: Case) -> None:
    assert one.status is not None
    assert one.status.observed_generation is not None
    assert "Ready" in {found.type for found in one.status.conditions}


def test_without_a_first_status_kstatus_would_call_a_job_done() -> None:
    """Why the first write sets observedGeneration and Ready=False, and why Flux's expressions are shipped."""
    assert kstatus(job(None)) == "Current"
    assert kstatus(case("first_write").document()) == "InProgress"


def test_ready_alone_is_enough_to_be_current() -> None:
    status = succeeded()
    ready = JobStatus(observed_generation=1, conditions=tuple(c for c in status.conditions if c.type == "Ready"))
    assert kstatus(job(ready)) == "Current"
