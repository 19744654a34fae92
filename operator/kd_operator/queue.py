"""Which job is to be looked at next: keys with due times, each at most once, and never two workers on one key."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Hashable
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Haste(Enum):
    """How soon a change is to be looked at."""

    CanWait = auto()
    """Another one follows in a moment by which there is something to be done: one look can answer both."""
    Soon = auto()
    """It may be one of several in a row."""
    AtOnce = auto()


FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 60.0
HEAD_START_SECONDS = 15.0
"""Where more is due than can be looked at, what goes on at once is taken before what has been due for up to so long."""


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait after ``failures`` in a row: doubling up to a minute; ``jitter`` in [0, 1) takes off up to half."""
    exponent = min(failures - 1, 16)  # beyond that a power of two would only grow out of bounds
    return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * float(2**exponent)) * (1.0 - jitter / 2)


class Turn(NamedTuple):
    """When a key is due, and its place among those that are."""

    place: float
    due: float


class WorkQueue(Generic[K]):
    """Keys and when they are due.

    A key is put any number of times and taken once, at the earliest place asked for; while it is worked on, it is only
    noted, and due after ``done`` or ``failed``. ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random.random) -> None:
        self._clock, self._jitter = clock, jitter
        self._due: dict[K, Turn] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def put(self, key: K, after: float = 0.0) -> None:
        """Have ``key`` looked at in ``after`` seconds; an earlier time that is set stays."""
        due = self._clock() + after
        self._put(key, Turn(due, due))

    def put_first(self, key: K) -> None:
        """Have ``key`` looked at now, and before others that are due but can wait: it has something to go on with."""
        now = self._clock()
        self._put(key, Turn(now - HEAD_START_SECONDS, now))

    def _put(self, key: K, turn: Turn) -> None:
        if key in self._due and turn.place >= self._due[key].place:
            return
        self._due[key] = turn
        if key not in self._working:
            self._push(key, turn)

    def take(self) -> tuple[K, float] | None:
        """The first key that is due, and for how long it has been, if one is; it is being worked on from now on."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            place, _, key = heapq.heappop(self._heap)
            turn = self._due.get(key)
            if turn is None or turn.place != place or key in self._working:
                continue  # an earlier place was given since, or it is taken
            del self._due[key]
            self._working.add(key)
            return key, now - turn.due
        return None

    def done(self, key: K, after: float | None = None) -> None:
        """The work on ``key`` went well; ``after``: it is to be looked at again in so many seconds, 0 as it goes on at once."""
        self._failures.pop(key, None)
        self._finish(key, after)

    def failed(self, key: K, at_least: float = 0.0) -> float:
        """The work on ``key`` failed: it is due again after its backoff, which is returned, and not before ``at_least``."""
        self._failures[key] = self._failures.get(key, 0) + 1
        pause = max(backoff(self._failures[key], self._jitter()), at_least)
        self._due.pop(key, None)  # what was put meanwhile is seen then as well
        self._finish(key, pause)
        return pause

    def _finish(self, key: K, after: float | None) -> None:
        if after == 0.0:
            self.put_first(key)
        elif after is not None:
            self.put(key, after)
        self._working.discard(key)
        if key in self._due:  # only now it can be taken
            self._push(key, self._due[key])

    def _push(self, key: K, turn: Turn) -> None:
        self._order += 1
        heapq.heappush(self._heap, (turn.place, self._order, key))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._due):
            self._heap = [
                entry for entry in self._heap if entry[2] in self._due and self._due[entry[2]].place == entry[0]
            ]
            heapq.heapify(self._heap)
        self._changed.set()

    def next_due(self) -> float | None:
        """When the next key is due, or earlier where one with a head start is."""
        return self._heap[0][0] if self._heap else None

    async def get(self) -> tuple[K, float]:
        """Wait until a key is due and take it; with it, how long it has been due."""
        while True:
            taken = self.take()
            if taken is not None:
                return taken
            self._changed.clear()
            due = self.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(due - self._clock(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                pass
