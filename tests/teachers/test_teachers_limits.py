"""Limits by the minute, and requests under way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from kd_runtime.teachers.limits import Bucket, InFlight, Limits


@dataclass
class Clock:
    """Time that passes only while somebody sleeps."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_each_worker_takes_its_share() -> None:
    share = Limits(max_in_flight=10, requests_per_minute=600, tokens_per_minute=None).share(4)
    assert share == Limits(max_in_flight=2, requests_per_minute=150, tokens_per_minute=None)


def test_at_least_one_request_is_under_way() -> None:
    assert Limits(max_in_flight=2).share(8).max_in_flight == 1


@pytest.mark.parametrize("per_minute", [60, 600])
def test_requests_keep_to_the_minute(per_minute: int) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock, clock.sleep)

    async def minutes(count: int) -> None:
        for _ in range(count * per_minute):
            await bucket.take(1)

    asyncio.run(minutes(3))
    assert 170 <= clock.now <= 180


def test_without_a_limit_nothing_waits() -> None:
    clock = Clock()
    asyncio.run(Bucket(None, clock, clock.sleep).take(1e9))
    assert clock.now == 0


def test_more_than_the_bucket_holds_is_paid_for_afterwards() -> None:
    clock = Clock()
    bucket = Bucket(60, clock, clock.sleep)  # holds 5

    async def takes() -> None:
        await bucket.take(35)
        assert clock.now == 0
        await bucket.take(1)

    asyncio.run(takes())
    assert clock.now == pytest.approx(31)


def test_an_estimate_is_settled() -> None:
    clock = Clock()
    bucket = Bucket(60, clock, clock.sleep)

    async def takes() -> None:
        await bucket.take(5)
        bucket.settle(-4)
        await bucket.take(4)

    asyncio.run(takes())
    assert clock.now == 0


def test_requests_that_were_sent_together_halve_the_limit_once() -> None:
    clock = Clock()
    under_way = InFlight(16, clock, clock.sleep)
    clock.now = 5.0
    for _ in range(16):
        under_way.refused(1.0, None)
    assert under_way.limit == 8
    clock.now = 7.0
    under_way.refused(6.0, None)
    assert under_way.limit == 4


def test_nothing_is_sent_while_the_teacher_wants_peace() -> None:
    clock = Clock()
    under_way = InFlight(4, clock, clock.sleep)
    under_way.refused(1.0, 30.0)

    async def send() -> float:
        async with under_way.slot() as started:
            return started

    assert asyncio.run(send()) == 30.0
