"""All benchmarks; ends with 1, naming each goal that is missed.

python bench/run.py [logits] [loss] [loss-large] [loss-bf16] [capture]      (default: all)
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import capture
import logits
import loss


def main() -> int:
    """Run those that are named, print the goals, say whether all are met."""
    suites = {
        "logits": lambda: logits.figures(logits.parsed([])),
        "loss": lambda: loss.figures(loss.parsed(["--vocabs", "49152"])),
        "loss-large": lambda: loss.figures(loss.parsed(["--vocabs", "151936", "--divergences", "ForwardKL"])),
        "loss-bf16": lambda: loss.figures(
            loss.parsed(["--dtype", "bfloat16", "--vocabs", "49152", "--divergences", "ForwardKL"])
        ),
        "capture": lambda: capture.figures(capture.parsed([])),
    }
    print(machine())
    goals = []
    for name in sys.argv[1:] or suites:
        print(f"== {name}", flush=True)
        goals += list(suites[name]())
    print("== goals")
    print(*goals, sep="\n")
    missed = [goal for goal in goals if not goal.met]
    print(f"{len(goals) - len(missed)} of {len(goals)} goals are met")
    return 1 if missed else 0


def machine() -> str:
    """Processor, cores, memory, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "transformers", "vllm"))
    processor = f"{names[0] if names else platform.processor()}, {len(names)} cores, {int(memory) >> 20} GiB"
    return f"{processor}; Python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    sys.exit(main())
