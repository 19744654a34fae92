"""What a profile costs in quality: one teacher, one pruned student, equal rows and steps, several seeds, six ways to learn.

python bench/quality/compare.py [--model DIR] [--steps 24] [--rows 96] [--held-out 32] [--seeds 3] [--minutes 5]

The teacher answers the examples' instructions, sampled at temperature 1. Students learn its answers by cross-entropy
(SFT), or its distributions over them by forward KL: Exact and Compact (K=32), Unbiased (K=16, M=8), the 10 likeliest
renormalised (as EasyDistill's paper reads), and the full distribution. Each finished student is a file in ``--work``;
after ``--minutes`` it stops between two students with 75, and goes on when it is typed again. When all are there it
writes quality.md and quality.png to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from learning import WAYS, Course, judged, loss_of, train
from report import Result, plot, table
from rows import ANSWER_TOKENS, Item, Rows, made

from kd_runtime.models.loading import load_causal_lm
from kd_runtime.models.pruning import keep_layers, most_influential

torch.serialization.add_safe_globals([Item, Rows])


def students(args: argparse.Namespace) -> list[tuple[str, int]]:
    """(way, seed) of every student, in order: a seed at a time, so that a part of them is already a comparison."""
    return [("untrained", 0), *((way, seed) for seed in range(args.seeds) for way in WAYS)]


def rows(args: argparse.Namespace) -> Rows:
    """Made once, and kept in ``--work``."""
    path = args.work / "rows.pt"
    if not path.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        torch.save(made(args.model, args.data, args.rows, args.held_out), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
        print(f"rows: {time.monotonic() - began:.0f} s", flush=True)
    loaded: Rows = torch.load(path)
    return loaded


def student(args: argparse.Namespace, kept: list[int]) -> Any:
    """A fresh one."""
    model = load_causal_lm(args.model, "float32")
    keep_layers(model, kept)
    return model.train()


def measured(args: argparse.Namespace) -> Iterator[Result | None]:
    """Every student's result, kept or made; None for the first that no time is left for."""
    began, given = time.monotonic(), rows(args)
    kept = most_influential(given.influence, round(args.keep * len(given.influence)))
    teacher = load_causal_lm(args.model, "float32")
    teacher_head = teacher.get_output_embeddings().weight.detach().clone()
    del teacher
    for way, seed in students(args):
        path = args.work / f"{way.replace(' ', '-')}-{seed}.json"
        if not path.exists():
            if time.monotonic() - began > 60 * args.minutes:
                yield None
                return
            started, model = time.monotonic(), student(args, kept)
            if way != "untrained":
                course = Course(args.steps, args.batch_rows, args.rate)
                train(model, loss_of(way, model, teacher_head), given.trained, course, seed)
            kl, perplexity = judged(model.eval(), given.held_out, teacher_head)
            result = Result(way, seed, kl, perplexity, time.monotonic() - started)
            path.write_text(json.dumps(asdict(result)))
            print(f"{way:22} seed {seed}  KL {kl:.4f}  perplexity {perplexity:.4f}  {result.seconds:.0f} s", flush=True)
        yield Result(**json.loads(path.read_text()))


def write(found: list[Result], args: argparse.Namespace) -> None:
    """quality.md and quality.png."""
    given = rows(args)
    tokens = sum(len(item.positions) for item in given.trained)
    layers = len(given.influence)
    seconds = sum(one.seconds for one in found)
    text = f"""# What a profile costs in quality

Teacher: `{args.name}`; its own answers to `{args.data}` (at most {ANSWER_TOKENS} tokens, sampled at temperature 1).
Student: the teacher with {round(args.keep * layers)} of its {layers} layers, those of most influence. Every student is
trained for {args.steps} steps of {args.batch_rows} rows out of {len(given.trained)} ({tokens:,} answer tokens), with
AdamW at a rate of {args.rate:g}; the seed decides the order of rows. Held out: {len(given.held_out)} rows,
{sum(len(item.positions) for item in given.held_out):,} answer tokens. Mean over {args.seeds} seeds (least to most).

{table(found)}
![both measures by way](quality.png)

KL is of whole distributions, whatever a way has kept of them. `python bench/quality/compare.py` made this on
{torch.get_num_threads()} threads of a CPU in {seconds / 60:.0f} minutes (torch {version("torch")}, transformers
{version("transformers")}).
"""
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "quality.md").write_text(text)
    plot(found, args.out / "quality.png")


def main() -> int:
    """Make what is missing, as long as there is time; then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("examples/.models/smollm2-135m-instruct"))
    parser.add_argument("--name", default="SmolLM2-135M-Instruct", help="what the teacher is called in the report")
    parser.add_argument("--data", type=Path, default=Path("examples/data/instructions.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    for name, default in {"steps": 24, "rows": 96, "held-out": 32, "seeds": 3, "batch-rows": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no student is begun")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the layers that the student keeps")
    parser.add_argument("--rate", type=float, default=3e-4)
    args = parser.parse_args()
    found = list(measured(args))
    finished = [one for one in found if one is not None]
    if len(finished) < len(found):
        print(f"{len(finished)} of {len(students(args))} students; type it again to go on")
        return 75
    write(finished, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
