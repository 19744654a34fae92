"""What the benchmarks share: interleaved rounds, medians, peak memory, figures, goals that are met or missed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 4
"""Least number of interleaved rounds of a figure."""


@dataclass(frozen=True)
class Figure:
    """Some values of one thing."""

    table: str
    """What they are measured on: things of the same table are compared."""
    what: str
    values: Mapping[str, float]
    """By unit."""

    def __str__(self) -> str:
        return f"  {self.what:22}" + "  ".join(f"{shown(value):>9} {unit}" for unit, value in self.values.items())


@dataclass(frozen=True)
class Goal:
    """A figure and what it should be."""

    what: str
    found: float
    wanted: float
    at_most: bool

    @property
    def met(self) -> bool:
        """True if it is."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'} {self.what}: {shown(self.found)}, goal {self.bound}"

    @property
    def bound(self) -> str:
        """What it should be, in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.wanted:g}"


def shown(value: float) -> str:
    """A value to four places, or whole where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def at_most(what: str, found: float, wanted: float) -> Goal:
    """A goal from above."""
    return Goal(what, found, wanted, True)


def at_least(what: str, found: float, wanted: float) -> Goal:
    """A goal from below."""
    return Goal(what, found, wanted, False)


def medians(steps: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each step over interleaved rounds, after one round that does not count.

    Interleaved, so that a noisy neighbour hits every step alike.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            gc.collect()
            start = time.perf_counter()
            step()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def resident_rise(step: Callable[[], object]) -> int:
    """How far the process's resident memory rises above what it was while a step runs, bytes. Linux alone."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def extra_bytes(
    steps: Mapping[str, Callable[[], object]],
    rounds: int = ROUNDS,
    rise: Callable[[Callable[[], object]], int] = resident_rise,
) -> dict[str, float]:
    """Median of how far memory rises above what it was, while a step runs, over interleaved rounds."""
    rises: dict[str, list[int]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            rises[name].append(rise(step))
    return {name: statistics.median(values) for name, values in rises.items()}
