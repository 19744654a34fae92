"""How fast a teacher may be asked: a share of the stage's limits, and in-flight requests that adapt to it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

DEFAULT_IN_FLIGHT = 32
ROUNDING = 1e-6
BURST_SECONDS = 5.0
"""A bucket holds at most what it gains in this time: limits count by the minute, and servers smooth them."""


@dataclass(frozen=True)
class Limits:
    """What one worker may ask. None: no limit of that kind."""

    max_in_flight: int = DEFAULT_IN_FLIGHT
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def share(self, workers: int) -> Limits:
        """The part of one of ``workers`` workers of a stage."""
        return Limits(
            max_in_flight=max(1, self.max_in_flight // workers),
            requests_per_minute=None if self.requests_per_minute is None else self.requests_per_minute / workers,
            tokens_per_minute=None if self.tokens_per_minute is None else self.tokens_per_minute / workers,
        )


class Bucket:
    """A token bucket that may run into debt, so that a request larger than it holds is sent, and then paid for."""

    def __init__(self, per_minute: float | None, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._rate = math.inf if per_minute is None else per_minute / 60
        self._size = self._rate * BURST_SECONDS
        self._level = self._size
        self._clock, self._sleep = clock, sleep
        self._at = clock()

    async def take(self, amount: float) -> None:
        """Wait until the bucket holds ``amount`` (or is full), then take it."""
        if math.isinf(self._rate):
            return
        self._refill()
        while (lacking := min(amount, self._size) - self._level) > ROUNDING:
            await self._sleep(lacking / self._rate)
            self._refill()
        self._level -= amount

    def settle(self, difference: float) -> None:
        """Correct an estimate: ``difference`` more (or less, negative) was used than was taken."""
        if not math.isinf(self._rate):
            self._level = min(self._size, self._level - difference)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now


class InFlight:
    """Requests under way: at most ``maximum``, halved by an answer "too many requests", growing back by one a round."""

    def __init__(self, maximum: int, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep) -> None:
        self._maximum = maximum
        self._limit = float(maximum)
        self._under_way = 0
        self._changed = asyncio.Condition()
        self._clock, self._sleep = clock, sleep
        self._cut_at = -math.inf
        self._closed_until = -math.inf

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return max(1, int(self._limit))

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """A place for one request; yields the time at which it was given."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._under_way < self.limit)
            self._under_way += 1
        try:
            while (wait := self._closed_until - self._clock()) > 0:
                await self._sleep(wait)
            yield self._clock()
        finally:
            self._under_way -= 1
            async with self._changed:
                self._changed.notify(max(0, self.limit - self._under_way))

    def succeeded(self) -> None:
        """A request was answered."""
        self._limit = min(self._maximum, self._limit + 1 / self._limit)

    def refused(self, started: float, retry_after: float | None) -> None:
        """The request that got its place at ``started`` was one too many; send nothing for ``retry_after`` seconds."""
        now = self._clock()
        if started > self._cut_at:  # requests sent before the last cut tell nothing new
            self._limit = max(1.0, self._limit / 2)
            self._cut_at = now
        if retry_after is not None:
            self._closed_until = max(self._closed_until, now + retry_after)
