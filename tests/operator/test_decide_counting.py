"""What an attempt's end costs, where several things happened to its pods: one behaviour a test."""

from __future__ import annotations

from datetime import timedelta

import pytest
from kd_operator.status.states import moment
from operator_nodes import NODE, End, Pod
from operator_world import World

# ---- workers -----------------------------------------------------------------------------------------------------------


def evicts_the_first_worker(world: World, then: End) -> None:
    """Of the stage `dataset` the first pod of each attempt is evicted and stays as Failed; all others end as ``then``."""
    first: dict[int, str] = {}
    script = world.nodes.end

    def end(pod: Pod) -> End:
        if pod.part != "dataset":
            return script(pod)
        evicted = first.setdefault(pod.attempt, pod.name) == pod.name
        return End(137, disrupted=True, result=False, reason="Evicted") if evicted else then

    world.nodes.end = end  # type: ignore[method-assign]


@pytest.mark.parametrize("code", [69, 74, 75])
def test_a_failed_job_of_workers_is_final_though_one_of_them_was_evicted(world: World, code: int) -> None:
    evicts_the_first_worker(world, End(code))
    job = world.apply(failurePolicy={"backoffLimit": 1})
    assert job.finish() == "RetriesExhausted"
    dataset = job.stage("dataset")
    assert (dataset.attempt, dataset.failures, dataset.disruptions) == (1, 2, 1)
    assert dataset.last_failure is not None
    assert dataset.last_failure.exit_code == code


def test_an_evicted_worker_is_replaced_by_its_own_job(world: World) -> None:
    evicts_the_first_worker(world, End())
    job = world.apply(failurePolicy={"backoffLimit": 0})
    assert job.finish() == "Succeeded"
    dataset = job.stage("dataset")
    assert (dataset.attempt, dataset.failures, dataset.disruptions) == (1, 0, 1)


def test_a_gang_that_lost_a_pod_costs_no_attempt_whatever_the_others_end_with(world: World) -> None:
    def student(attempt: int, index: int) -> End:
        if attempt > 1:
            return End()
        return End(75, seconds=20.0) if index else End(137, disrupted=True, result=False)

    world.nodes.scripts["student"] = student
    job = world.apply(failurePolicy={"backoffLimit": 0})
    assert job.finish() == "Succeeded"
    assert (job.stage("student").failures, job.stage("student").disruptions) == (0, 1)


# ---- sick nodes --------------------------------------------------------------------------------------------------------

NO_GPU = (
    "UnexpectedAdmissionError",
    "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. Requested: 1, Available: 0",
)
"""A kubelet whose GPU plug-in is not there yet refuses each pod within a second."""


def pauses(world: World, part: str = "student") -> list[float]:
    """Seconds from the end of each attempt of a stage to when the next may begin, as the statuses said."""
    said: dict[int, float] = {}
    for status in world.statuses:
        stage = next((stage for stage in status.stages if stage.name == part), None)
        if stage is not None and stage.state == "Backoff" and stage.attempt not in said:
            begins, ended = stage.next_attempt_time, status.usage.accounted_time if status.usage else None
            said[stage.attempt] = (moment(begins) - moment(ended)).total_seconds() if begins and ended else 0.0
    return [said[attempt] for attempt in sorted(said)]


@pytest.mark.parametrize("others", [End(refused=NO_GPU), End(143), End(78, seconds=20.0)])
def test_a_node_that_lets_no_pod_start_is_named_and_takes_hours_to_use_up_the_limit(world: World, others: End) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(refused=NO_GPU) if index == 0 else others
    job = world.apply(failurePolicy={"backoffLimit": 0})
    begun = world.server.now
    assert job.finish() == "DisruptionsExhausted"
    student = job.stage("student")
    assert (student.attempt, student.failures, student.disruptions) == (21, 0, 21)
    _, _, message = job.condition("Failed")
    assert f"was not let start on node {NODE} (UnexpectedAdmissionError: Allocate failed" in message
    assert student.last_failure is not None
    assert (student.last_failure.node, student.last_failure.reason) == (NODE, NO_GPU[0])
    assert world.server.now - begun > timedelta(hours=5)


def test_the_first_of_them_costs_no_time_and_each_further_one_in_a_row_more(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(refused=NO_GPU) if attempt < 5 else End()
    job = world.apply(failurePolicy={"backoff": {"baseSeconds": 100, "maxSeconds": 300}})
    assert job.finish() == "Succeeded"
    first, *further = pauses(world)
    assert first == 0
    assert [75 <= further[0] <= 125, 150 <= further[1] <= 250, 225 <= further[2] <= 375] == [True] * 3


def test_while_it_pauses_the_job_says_which_node_and_why(world: World) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: End(refused=NO_GPU)
    job = world.apply()
    world.until(lambda: job.stage("student").next_attempt_time)
    status, reason, message = job.condition("Degraded")
    assert (status, reason) == ("True", "Disrupted")
    assert NODE in message
    assert NO_GPU[1] in message


@pytest.mark.parametrize("end", [End(80), End(137, disrupted=True, result=False)])
def test_what_drained_or_was_evicted_on_purpose_is_tried_again_at_once_each_time(world: World, end: End) -> None:
    world.nodes.scripts["student"] = lambda attempt, index: end if attempt < 6 else End()
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert pauses(world) == [0.0] * 5
    assert job.stage("student").disruptions == 5


def test_after_a_counted_failure_a_disruption_is_the_first_in_a_row_again(world: World) -> None:
    ends = [End(refused=NO_GPU), End(75), End(refused=NO_GPU), End()]
    world.nodes.scripts["student"] = lambda attempt, index: ends[attempt - 1]
    job = world.apply()
    assert job.finish() == "Succeeded"
    assert [pause > 0 for pause in pauses(world)] == [False, True, False]


def test_an_evicted_pod_says_what_its_node_said(world: World) -> None:
    said = ("Evicted", "The node was low on resource: memory.")
    world.nodes.scripts["student"] = lambda attempt, index: End(refused=said) if attempt == 1 else End()
    job = world.apply()
    job.reach("student", "Backoff")
    assert f"was taken from node {NODE} (Evicted: The node was low on resource: memory.)" in (
        job.stage("student").message or ""
    )
