"""Token buckets: how many of something are let through, by key, in constant memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """``burst`` at once, then ``per_second``."""

    per_second: float
    burst: int


class Buckets:
    """A bucket for each key. The keys used least recently are forgotten beyond ``most``, and begin full again."""

    def __init__(self, rate: Rate, most: int = 1):
        self._rate, self._most = rate, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> float:
        """Take one: 0.0 where there was one, else the seconds until there is."""
        level, since = self._buckets.get(key, (float(self._rate.burst), now))
        level = min(float(self._rate.burst), level + (now - since) * self._rate.per_second)
        granted = level >= 1.0
        self._buckets[key] = (level - 1.0 if granted else level, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (1.0 - level) / self._rate.per_second
