"""The comparison as a table and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEASURES = ("held-out KL(teacher ‖ student), nats a token", "perplexity of the teacher's held-out answers")


@dataclass(frozen=True)
class Result:
    """One student."""

    way: str
    seed: int
    kl: float
    perplexity: float
    seconds: float

    def value(self, measure: str) -> float:
        """One of MEASURES."""
        return self.kl if measure == MEASURES[0] else self.perplexity


def table(found: Sequence[Result]) -> str:
    """Markdown: a line a way, mean and range over the seeds; and how much of SFT's distance to the teacher is left."""
    lines = [f"| way | {MEASURES[0]} | of SFT's | {MEASURES[1]} |", "|---|---|---|---|"]
    means = {way: statistics.mean(one.kl for one in found if one.way == way) for way in _ways(found)}
    for way in _ways(found):
        cells = [_cell([one.value(measure) for one in found if one.way == way]) for measure in MEASURES]
        share = f"{means[way] / means['SFT']:.3f}" if "SFT" in means else "-"
        lines.append(f"| {way} | {cells[0]} | {share} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _ways(found: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(one.way for one in found))


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def plot(found: Sequence[Result], path: Path) -> None:
    """Both measures by way: a dot a seed, a line at the mean; the untrained student is off the scale and left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = [way for way in _ways(found) if way != "untrained"]
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for axes, measure in zip(panels, MEASURES, strict=True):
        for at, way in enumerate(ways):
            values = [one.value(measure) for one in found if one.way == way]
            axes.scatter(values, [at] * len(values), color="tab:blue", alpha=0.6, zorder=3)
            axes.vlines(statistics.mean(values), at - 0.3, at + 0.3, color="black", zorder=4)
        axes.set_yticks(range(len(ways)), ways)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(measure)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
