"""All benchmarks; ends with 1, naming each goal that is missed.

python bench/run.py [logits] [loss] [loss-large] [loss-bf16] [capture] [--into docs/benchmarks.md]      (default: all)

Writes results.json and results.md to ``--out``; with ``--into`` also the figures into that document. ``--small`` is a
dry run of everything at sizes that show nothing but that it works.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import capture
import logits
import loss
from measuring import Figure, Goal
from results import Results, command, machine

Suite = Callable[[], Iterator[Figure | Goal]]


def suites(model: str, small: bool) -> dict[str, Suite]:
    """The benchmarks by name."""
    shape = ["--positions", "64", "--hidden", "32", "--rounds", "1"] if small else []
    one = ["--divergences", "ForwardKL"]
    bf16 = ["--dtype", "bfloat16"]
    of_logits = ["--rows", "8", "--tokens", "40", "--rounds", "1"] if small else []
    of_capture = ["--rows", "8", "--tokens", "32", "--rounds", "1"] if small else []

    def losses(*more: str) -> Suite:
        return lambda: loss.figures(loss.parsed([*more, *shape]))

    return {
        "logits": lambda: logits.figures(logits.parsed(of_logits)),
        "loss": losses("--vocabs", "49152"),
        "loss-large": losses("--vocabs", "151936", *one),
        "loss-bf16": losses("--vocabs", "49152", *bf16, *one),
        "capture": lambda: capture.figures(capture.parsed(["--model", model, *of_capture])),
    }


def measured(chosen: Mapping[str, Suite]) -> Results:
    """Run each and print what it finds as it comes."""
    print(machine())
    figures: list[Figure] = []
    goals: list[Goal] = []
    for name, suite in chosen.items():
        print(f"== {name}", flush=True)
        table = None
        for found in suite():
            if isinstance(found, Goal):
                goals.append(found)
                continue
            if found.table != table:
                table = found.table
                print(table)
            print(found, flush=True)
            figures.append(found)
    return Results(command(), machine(), figures, goals)


def concluded(results: Results) -> int:
    """Print the goals; 1 if one is missed."""
    print("== goals")
    print(*results.goals, sep="\n")
    print(f"{len(results.goals) - len(results.missed)} of {len(results.goals)} goals are met")
    return 1 if results.missed else 0


def main() -> int:
    """Run those that are named, write the results, say whether all goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--model", default="examples/.models/smollm2-135m-instruct", help="for capture")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--into", type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    known = suites(args.model, args.small)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(known)}")
    results = measured({name: known[name] for name in args.names or known})
    results.write(args.out, args.into)
    return concluded(results)


if __name__ == "__main__":
    sys.exit(main())
