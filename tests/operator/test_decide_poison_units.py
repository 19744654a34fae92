"""Workers that fail at one unit three times in a row: the job ends there as poison, whoever of its Job's pods failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from kd_operator.decide.failures import Kind, poison
from kd_operator.observed import Ending, PodSeen
from operator_nodes import FOREVER, GOOD, End, Pod
from operator_world import World

from kd_runtime.api.failures import ExitClass
from kd_runtime.api.reasons import REMEDIES, Reason
from kd_runtime.api.result import StageResult

MESSAGE = "unit 2, no answer to questions.jsonl:517: teacher at http://teacher:8000: no answer for 600 s"
DOWN = End(69, position="unit 2", message=MESSAGE)


def at(position: str, code: int = 69, seconds: float = 10.0) -> End:
    """A failure there."""
    return End(code, seconds=seconds, position=position, message=f"{position} failed")


def tries(world: World, *workers: list[End], part: str = "logits") -> list[str]:
    """What the pods of each worker end as, one after another, and the last one's successors too; the pods that were made."""
    made: dict[int, list[str]] = {}
    names: list[str] = []
    script = world.nodes.end

    def end(pod: Pod) -> End:
        if pod.part != part:
            return script(pod)
        own = made.setdefault(pod.index, [])
        if pod.name not in own:
            own.append(pod.name)
            names.append(pod.name)
        ends = workers[pod.index]
        return ends[min(own.index(pod.name), len(ends) - 1)]

    world.nodes.end = end  # type: ignore[method-assign]
    return names


@pytest.mark.parametrize("limit", [2, 3, 9])
def test_the_third_failure_at_a_unit_ends_the_job_which_names_it_and_what_to_do(world: World, limit: int) -> None:
    pods = tries(world, [DOWN], [FOREVER])
    job = world.apply(failurePolicy={"backoffLimit": limit})
    assert job.finish() == "Bug"
    assert len([pod for pod in pods if "-0-" in pod]) == 3
    status, reason, message = job.condition("Failed")
    assert (status, reason) == ("True", "Bug")
    assert message.startswith("logits: poison: TeacherUnreachable at unit 2 3 times in a row; ")
    assert "correct them or take them out of the dataset and run again (what was answered is kept)" in message
    logits = job.stage("logits")
    assert message == f"{logits.message}. {REMEDIES[Reason.Bug]}"
    assert (logits.state, logits.reason) == ("Failed", "Bug")
    assert logits.message is not None
    assert logits.message.endswith(f"-0-{pods[-1].rpartition('-')[2]} (exit code 69, TeacherUnreachable): {MESSAGE}")
    assert (logits.attempt, logits.failures) == (1, 3)
    assert logits.repeated is not None
    assert (logits.repeated.class_, logits.repeated.position, logits.repeated.count) == (
        "TeacherUnreachable",
        "unit 2",
        3,
    )
    assert job.condition("Stalled")[0] == "True"
    assert job.pods() == []


def test_what_other_workers_fail_at_meanwhile_does_not_hide_it(world: World) -> None:
    others = [at("unit 1"), at("unit 3"), at("unit 5"), at("unit 7")]
    tries(world, others, [at("unit 2", seconds=11.0)])
    job = world.apply(failurePolicy={"backoffLimit": 5})
    assert job.finish() == "Bug"
    assert "poison: TeacherUnreachable at unit 2" in job.condition("Failed")[2]


@pytest.mark.parametrize(
    "ends",
    [
        [DOWN, DOWN, GOOD],
        [at("unit 2"), at("unit 4"), at("unit 2"), at("unit 2"), GOOD],
        [at("unit 2"), at("unit 2", code=74), at("unit 2"), at("unit 2"), GOOD],
        [at("unit 2"), at(""), at("unit 2"), at("unit 2"), GOOD],
        [at(""), at(""), at(""), at(""), GOOD],
        [at("unit 2", code=143), at("unit 2", code=143), at("unit 2", code=143), GOOD],
    ],
    ids=["two", "two units", "two classes", "without a place", "nowhere", "killed"],
)
def test_fewer_or_at_several_places_are_none(world: World, ends: list[End]) -> None:
    tries(world, ends, [GOOD])
    job = world.apply(failurePolicy={"backoffLimit": 5})
    assert job.finish() == "Succeeded"


def test_a_place_is_one_worker_s_three_failures_of_three_workers_elsewhere_are_none(world: World) -> None:
    tries(world, [at("unit 0"), at("unit 2"), GOOD], [at("unit 1"), at("unit 3"), GOOD])
    job = world.apply(failurePolicy={"backoffLimit": 5})
    assert job.finish() == "Succeeded"


def test_retries_are_exhausted_where_no_unit_is_to_blame(world: World) -> None:
    tries(world, [at("")], [GOOD])
    job = world.apply(failurePolicy={"backoffLimit": 3})
    assert job.finish() == "RetriesExhausted"


def test_a_retry_counts_from_zero(world: World) -> None:
    from kd_runtime.api.labels import RETRY_ANNOTATION

    tries(world, [DOWN, DOWN, DOWN, DOWN, GOOD], [GOOD])
    job = world.apply()
    assert job.finish() == "Bug"
    job.annotate(RETRY_ANNOTATION, "logits/n1")
    world.until(lambda: job.end == "Succeeded")
    assert job.stage("logits").attempt == 2


# ---- the verdict alone ----------------------------------------------------------------------------------------------------

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def failed(name: str, index: int, position: str, minute: int, code: int = 69, disrupted: bool = False) -> PodSeen:
    result = StageResult(exit_class=ExitClass(code), message="why", position=position).encoded().decode()
    ending = Ending(code, None, "Error", result, NOON + timedelta(minutes=minute))
    return PodSeen(name, name, "job", "workers", "logits", 1, "Failed", index=index, ending=ending, disrupted=disrupted)


def test_three_pods_of_three_workers_at_one_unit_are_poison() -> None:
    pods = [failed(f"pod-{n}", n, "unit 2", minute) for n, minute in ((2, 9), (0, 3), (1, 6))]
    found = poison(pods)
    assert found is not None
    assert (found.kind, found.position, found.times, found.failure.pod) == (Kind.Retry, "unit 2", 3, "pod-2")
    assert poison(pods[:2]) is None


def test_the_order_is_that_of_their_ends_and_disruptions_have_no_part_in_it() -> None:
    row = [failed(f"pod-{n}", 0, "unit 2", n) for n in range(3)]
    taken = failed("taken", 0, "unit 4", 1, disrupted=True)
    assert poison([row[2], taken, row[0], row[1]]) is not None
    between = failed("between", 0, "unit 4", 1)
    assert poison([row[2], row[0], between]) is None
