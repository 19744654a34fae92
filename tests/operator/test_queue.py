"""The work queue: each key once, at the earliest time asked for, never with two workers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kd_operator.queue import HEAD_START_SECONDS, LONGEST_BACKOFF_SECONDS, Turn, WorkQueue, backoff

KEYS = st.sampled_from("abcd")
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 7.0, 60.0])


class Queueing(RuleBasedStateMachine):
    """Any order of puts, takes and ends, against the plainest thing that could do it: a dict of turns."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.queue: WorkQueue[str] = WorkQueue(lambda: self.now, jitter=lambda: 0.0)
        self.due: dict[str, Turn] = {}
        self.working: set[str] = set()
        self.failures: dict[str, int] = {}

    def expect(self, key: str, after: float, head_start: float = 0.0) -> None:
        turn = Turn(self.now + after - head_start, self.now + after)
        self.due[key] = min(self.due.get(key, turn), turn, key=lambda each: each.place)

    @rule(key=KEYS, after=SECONDS)
    def put(self, key: str, after: float) -> None:
        self.queue.put(key, after)
        self.expect(key, after)

    @rule(key=KEYS)
    def put_first(self, key: str) -> None:
        self.queue.put_first(key)
        self.expect(key, 0.0, HEAD_START_SECONDS)

    @rule()
    def take(self) -> None:
        ready = {k: turn for k, turn in self.due.items() if turn.due <= self.now and k not in self.working}
        taken = self.queue.take()
        if not ready:
            assert taken is None
            return
        assert taken is not None
        key, waited = taken
        assert key in ready
        assert ready[key].place == min(ready.values()).place
        assert waited == pytest.approx(self.now - ready[key].due)
        del self.due[key]
        self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), after=st.none() | SECONDS)
    def done(self, data: st.DataObject, after: float | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key, after)
        self.working.discard(key)
        self.failures.pop(key, None)
        if after is not None:
            self.expect(key, after, HEAD_START_SECONDS if after == 0.0 else 0.0)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), at_least=SECONDS)
    def failed(self, data: st.DataObject, at_least: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.failures[key] = self.failures.get(key, 0) + 1
        pause = self.queue.failed(key, at_least)
        assert pause == max(backoff(self.failures[key], 0.0), at_least)
        self.working.discard(key)
        self.due[key] = Turn(self.now + pause, self.now + pause)

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost_and_nothing_is_kept_that_was_not_put(self) -> None:
        assert len(self.queue) == len(self.due)
        takeable = [turn.due for key, turn in self.due.items() if key not in self.working]
        upcoming = self.queue.next_due()
        assert not takeable or (upcoming is not None and upcoming <= min(takeable))


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_a_backoff_grows_to_a_minute_and_its_jitter_takes_off_at_most_half(failures: int, jitter: float) -> None:
    whole, cut = backoff(failures, 0.0), backoff(failures, jitter)
    assert whole / 2 <= cut <= whole <= LONGEST_BACKOFF_SECONDS
    assert backoff(failures + 1, 0.0) >= whole
    assert backoff(20, 0.0) == LONGEST_BACKOFF_SECONDS


def test_a_key_that_is_put_while_it_is_worked_on_comes_again_only_afterwards() -> None:
    queue: WorkQueue[str] = WorkQueue(lambda: 0.0)
    queue.put("job")
    assert queue.take() == ("job", 0.0)
    queue.put("job")
    assert queue.take() is None
    queue.done("job")
    assert queue.take() == ("job", 0.0)


def test_what_goes_on_at_once_is_taken_before_what_can_wait_but_not_before_what_has_waited_long() -> None:
    now = 0.0
    queue: WorkQueue[str] = WorkQueue(lambda: now)
    queue.put("waits longest")
    now = HEAD_START_SECONDS / 2
    queue.put("can wait")
    now = HEAD_START_SECONDS + 1.0
    queue.put_first("goes on")
    assert [queue.take() for _ in range(3)] == [
        ("waits longest", HEAD_START_SECONDS + 1.0),
        ("goes on", 0.0),
        ("can wait", HEAD_START_SECONDS / 2 + 1.0),
    ]


def test_success_makes_the_next_failure_a_first_one() -> None:
    queue: WorkQueue[str] = WorkQueue(lambda: 0.0, jitter=lambda: 0.0)
    queue.put("job")
    pauses = []
    for _ in range(3):
        pauses.append(queue.failed("job"))
    queue.done("job")
    pauses.append(queue.failed("job"))
    assert pauses == [0.5, 1.0, 2.0, 0.5]


def test_stale_times_do_not_heap_up() -> None:
    queue: WorkQueue[int] = WorkQueue(lambda: 0.0)
    for after in range(10_000, 0, -1):
        queue.put(1, float(after))
    assert len(queue) == 1
    assert len(queue._heap) < 100


def test_many_waiting_workers_share_out_what_comes_and_none_sleeps_through_it() -> None:
    async def scenario() -> dict[int, int]:
        loop = asyncio.get_running_loop()
        queue: WorkQueue[int] = WorkQueue(loop.time)
        at_once: set[int] = set()
        worked: dict[int, int] = {}

        async def work() -> None:
            while True:
                key, _ = await queue.get()
                assert key not in at_once
                at_once.add(key)
                await asyncio.sleep(0)
                worked[key] = worked.get(key, 0) + 1
                at_once.discard(key)
                queue.done(key, after=0.001 if worked[key] < 5 else None)

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(work()) for _ in range(8)]
            await asyncio.sleep(0)  # all of them wait now
            for key in range(50):
                queue.put(key, after=key % 3 * 0.001)
                queue.put(key)
            while sum(worked.values()) < 250:
                await asyncio.sleep(0.001)
            for worker in workers:
                worker.cancel()
        return worked

    worked = asyncio.run(asyncio.wait_for(scenario(), timeout=60))
    assert worked == dict.fromkeys(range(50), 5)
