"""Prepares the next step's batches in a thread while this step runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """``make(number)`` for consecutive numbers below ``end``, one ahead.

    All calls of ``make`` come from one thread, one after the other, so it need not be thread-safe; what it raises is
    raised by the :meth:`get` of its number.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self._make, self._end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: dict[int, Future[T]] = {}

    def get(self, number: int) -> T:
        """What ``make`` gives for ``number``; that of the next number is begun."""
        mine = self._ahead.pop(number, None) or self._thread.submit(self._make, number)
        for future in self._ahead.values():  # of a number that was jumped over
            future.cancel()
        self._ahead.clear()
        result = mine.result()
        if number + 1 < self._end:
            self._ahead[number + 1] = self._thread.submit(self._make, number + 1)
        return result
