"""`kd watch` ends with the class that the job ended with."""

from __future__ import annotations

import pytest
from statuses import CASES, Case, case, failed, job, refused

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.reasons import Reason
from kd_runtime.remote.jobs import RemoteJob
from kd_runtime.remote.outcome import CLASSES, outcome

ENDED = ("succeeded", "failed", "refused", "generation_lag", "deleting_a_finished_job")


@pytest.mark.parametrize("one", [c for c in CASES if c.name not in ENDED], ids=lambda one: one.name)
def test_a_job_that_may_go_on_has_not_ended(one: Case) -> None:
    assert outcome(RemoteJob.of(one.document())) is None


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.BadSettings, 64),
        (Reason.BadData, 65),
        (Reason.GateFailed, 66),
        (Reason.TeacherUnreachable, 69),
        (Reason.Bug, 70),
        (Reason.AcceleratorOutOfMemory, 71),
        (Reason.HostOutOfMemory, 72),
        (Reason.StorageUnavailable, 74),
        (Reason.DisruptionsExhausted, 75),
        (Reason.ResultLost, 75),
        (Reason.DeadlineExceeded, 75),
        (Reason.Denied, 77),
        (Reason.NotAllowed, 77),
    ],
)
def test_the_reason_of_the_failure_is_its_class(reason: Reason, code: int) -> None:
    assert outcome(RemoteJob.of(job(failed(reason, "it failed")))) == code


@pytest.mark.parametrize(("class_", "code"), [("Storage", 74), ("TeacherUnreachable", 69), ("SomethingNewer", 75)])
def test_exhausted_retries_have_the_class_of_the_last(class_: str, code: int) -> None:
    assert outcome(RemoteJob.of(job(failed(Reason.RetriesExhausted, "three times", class_)))) == code


def test_success_is_0_and_a_refusal_is_not() -> None:
    assert outcome(RemoteJob.of(case("succeeded").document())) is ExitClass.Done
    assert outcome(RemoteJob.of(job(refused()))) is ExitClass.Denied


def test_every_reason_that_names_a_class_has_that_class() -> None:
    named = {reason for reason in Reason if reason.name in ExitClass.__members__}
    assert named
    assert all(CLASSES[reason] is ExitClass[reason.name] for reason in named)
