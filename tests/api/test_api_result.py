"""Results fit into a termination message, and are read back from one."""

from __future__ import annotations

import hashlib

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.result import LIMIT_BYTES, PlannedState, PlanResult, StageResult

NAMES = ("dataset", *(f"abcdefghijklmn{number:02d}" for number in range(16)))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def widest(**changes: object) -> PlanResult:
    """What the largest plan says: 16 stages with the longest names, all found."""
    stages = tuple(
        PlannedState(name=name, key=digest(name), state="NotNeeded", manifest=digest(f"m{name}")) for name in NAMES
    )
    fields = {
        "exit_class": ExitClass.Done,
        "message": "é" * 400,
        "digest": digest("plan"),
        "estimate": "x" * 200,
        "stages": stages,
        **changes,
    }
    return PlanResult(**fields)


def test_the_result_of_the_largest_plan_fits_and_comes_back_whole() -> None:
    result = widest()
    body = result.encoded()
    assert len(body) <= LIMIT_BYTES
    read = PlanResult.parse(body.decode())
    assert read is not None
    assert (read.digest, read.stages, read.estimate) == (result.digest, result.stages, result.estimate)


def test_sentences_about_gates_are_cut_to_what_fits() -> None:
    result = widest(unmet=dict.fromkeys(NAMES[:8], "g" * 1000))
    read = PlanResult.parse(result.encoded().decode())
    assert read is not None
    assert set(read.unmet) == set(result.unmet)
    assert read.stages == result.stages


def test_a_message_is_cut_at_a_character_not_within_one() -> None:
    read = StageResult.parse(StageResult(exit_class=ExitClass.BadData, message="é" * 400).encoded().decode())
    assert read is not None
    assert read.message == "é" * 200


def test_what_was_cut_off_is_no_result() -> None:
    body = widest().encoded().decode()
    assert PlanResult.parse(body[:-10]) is None
    assert PlanResult.parse("") is None
    assert StageResult.parse("Killed") is None


def test_a_stage_s_result_is_not_taken_for_a_plan_s() -> None:
    assert PlanResult.parse(StageResult(exit_class=ExitClass.Done).encoded().decode()) is None
