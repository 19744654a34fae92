"""What a run of the benchmarks found, as JSON and as Markdown."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measuring import Figure, Goal, shown

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Results:
    """Everything of one run."""

    command: str
    machine: str
    figures: Sequence[Figure]
    goals: Sequence[Goal]

    @property
    def missed(self) -> list[Goal]:
        """Goals that are not met."""
        return [goal for goal in self.goals if not goal.met]

    def json(self) -> str:
        """All of it."""
        goals = [asdict(goal) | {"met": goal.met} for goal in self.goals]
        content: dict[str, Any] = {"command": self.command, "machine": self.machine}
        content |= {"goals": goals, "figures": [asdict(figure) for figure in self.figures]}
        return json.dumps(content, indent=1) + "\n"

    def markdown(self) -> str:
        """Machine and command, the goals, then a table for each table of figures."""
        parts = [f"Machine: {self.machine}. Command: `{self.command}`. {len(self.goals) - len(self.missed)} of "]
        parts[0] += f"{len(self.goals)} goals are met.\n"
        goals = [[goal.what, shown(goal.found), goal.bound, "yes" if goal.met else "**no**"] for goal in self.goals]
        parts.append(_table(["goal", "found", "wanted", "met"], goals))
        for name in dict.fromkeys(figure.table for figure in self.figures):
            of_table = [figure for figure in self.figures if figure.table == name]
            units = list(of_table[0].values)
            rows = [[figure.what, *(shown(figure.values[unit]) for unit in units)] for figure in of_table]
            parts.append(f"**{name}**\n\n" + _table(["", *units], rows))
        return "\n".join(parts)

    def write(self, folder: Path, document: Path | None) -> None:
        """results.json and results.md in ``folder``, and the Markdown between the marks of ``document``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(self.json())
        (folder / "results.md").write_text(self.markdown())
        if document is not None:
            text = document.read_text()
            before, _, rest = text.partition(BEGIN)
            _, end, after = rest.partition(END)
            if not end:
                raise ValueError(
                    f"{document}: the marks {BEGIN} and {END} are missing; write them where figures belong"
                )
            document.write_text(f"{before}{BEGIN}\n{self.markdown()}{END}{after}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def machine() -> str:
    """Processor, cores, memory, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    found = ", ".join(f"{name} {_version(name)}" for name in ("torch", "numpy", "transformers", "vllm"))
    processor = (
        f"{names[0] if names else platform.processor()}, {len(names)} cores, {int(memory) >> 20} GiB, no GPU used"
    )
    return f"{processor}; Python {platform.python_version()}, {found}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def command() -> str:
    """As it was typed."""
    return " ".join(["python", *sys.argv])
