"""Axes of a chart: from data to ticks and pixels, and numbers to short text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps ``low``..``high`` onto ``start``..``end`` (SVG units), linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of ``value``, clipped to the scale's ends."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover ``low``..``high``: first <= low, last >= high."""
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-12:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float, base: int = 2) -> list[float]:
    """Powers of ``base`` that cover ``low``..``high``; every other one, or every fourth, where there are more than nine."""
    first = math.floor(math.log(max(low, 1e-12), base) + 1e-9)
    last = max(math.ceil(math.log(max(high, 1e-12), base) - 1e-9), first + 1)
    stride = max(1, -(-(last - first) // 8))
    return [float(base) ** i for i in range(first, last + stride, stride)]


def extent(values: Iterable[float]) -> tuple[float, float]:
    """Smallest and largest finite value; (0, 1) where there is none."""
    finite = [v for v in values if math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def short(value: float) -> str:
    """A number in at most about six characters: 0.0123, 4.57, 128, 12.5k, 3.4M, 2.0e-05."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / divisor:.3g}{suffix}"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}" if size < 100 else f"{value:.0f}"


def percent(value: float) -> str:
    """A share as per cent with a narrow space that does not break: 72 %, 3.9 %."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.0f}\u202f%" if abs(value) >= 0.0995 or value == 0 else f"{100 * value:.1f}\u202f%"


def byte_size(value: float) -> str:
    """Bytes in binary units: 812 B, 4.2 KiB, 98 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds as 0.4 s, 48 s, 6 min 10 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3570:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
