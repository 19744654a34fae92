"""Bytes and read rate of a shard against JSON lines of {token id: probability} (EasyDistill 1.0's layout), at equal K.

python bench/logits.py [--rows 256] [--tokens 400] [--k 32] [--vocab 151665] [--rounds 4]

Both sides end in the same tensors: ids and log-probabilities of each position of a row. Medians over interleaved
rounds. Goals: at most 116 bytes a scored position at K=32 Compact, and 50 times the rows a second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import ROUNDS, Figure, Goal, at_least, at_most, medians

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.inspection import inspect
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.shard import planes_from_bytes, planes_to_bytes, write_shard
from kd_runtime.logits.spec import ShardSpec


def teacher_rows(spec: ShardSpec, rows: int, tokens: int) -> list[TeacherRow]:
    """Rows whose last three quarters are scored, with Zipf-like heads."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(rows):
        scored = np.arange(tokens) >= tokens // 4
        positions = int(scored.sum())
        lp = np.log(random.dirichlet(1 / np.arange(1, spec.k + 2), positions) + 1e-9)[:, :-1]
        ids = (np.cumsum(random.integers(1, spec.vocab // spec.k, lp.shape), 1)).astype(np.int64)
        labels = {"lab_lp": lp[:, 0], "lab_rank": np.ones(positions), "entropy": np.ones(positions)}
        ids_of_row = random.integers(0, spec.vocab, tokens)
        made.append(
            TeacherRow(random.bytes(16), ids_of_row, scored, **labels, top_ids=ids, top_lp=np.sort(lp)[:, ::-1])
        )
    return made


def write_json_lines(path: Path, planes: Planes) -> None:
    """A line a row: a list over positions of {token id: probability}."""
    with path.open("w") as file:
        for start, stop in zip(planes["pos_ptr"], planes["pos_ptr"][1:], strict=False):
            part = slice(int(start), int(stop))
            ids, p = planes.top_ids(part), np.exp(planes.top_lp(part).astype(np.float64))
            line = [dict(zip(map(str, i.tolist()), q.tolist(), strict=True)) for i, q in zip(ids, p, strict=True)]
            file.write(json.dumps(line) + "\n")


def read_json_lines(path: Path) -> int:
    """Every row as arrays; how many positions there were."""
    positions = 0
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            ids = torch.tensor([[int(i) for i in position] for position in row], dtype=torch.int32)
            torch.tensor([list(position.values()) for position in row]).log_()
            positions += len(ids)
    return positions


def read_shard(path: Path, spec: ShardSpec, keys: list[bytes]) -> int:
    """Every row by key, in random order, from a file that is opened and verified anew; how many positions there were."""
    reader = LogitsReader([path], spec)
    positions = 0
    for key in keys:
        targets = reader.get(key)
        tensors = [torch.from_numpy(array) for array in (targets.top_ids, targets.top_lp, targets.tail_lp)]
        positions += len(tensors[0])
    return positions


def figures(args: argparse.Namespace) -> Iterator[Figure | Goal]:
    """Sizes and rates, and the goals."""
    for spec in (
        ShardSpec("Compact", args.k, vocab=args.vocab, entropy=True),
        ShardSpec("Exact", args.k, vocab=args.vocab),
    ):
        rows = teacher_rows(spec, args.rows, args.tokens)
        planes = build_planes(spec, rows)
        with tempfile.TemporaryDirectory() as folder:
            shard, lines = Path(folder) / "shard.safetensors", Path(folder) / "lines.jsonl"
            write_shard(shard, planes, spec)
            write_json_lines(lines, planes)
            yield from _figures(args, spec, rows, planes, shard, lines)


def _figures(
    args: argparse.Namespace, spec: ShardSpec, rows: list[TeacherRow], planes: Planes, shard: Path, lines: Path
) -> Iterator[Figure | Goal]:
    keys = [bytes(key) for key in np.random.default_rng(1).permutation(planes["key"])]
    info, body = inspect(shard), planes_to_bytes(planes)
    table = f"Logits, {spec.profile}, K={spec.k}, V={spec.vocab:,}{', entropy' if spec.entropy else ''}"
    sizes = {
        "planes of scored positions": info.bytes_per_position,
        "whole file": info.file_bytes_per_position,
        "JSON lines": lines.stat().st_size / planes.positions,
    }
    for what, size in sizes.items():
        yield Figure(f"{table}: size", what, {"bytes a scored position": size})
    steps: dict[str, Callable[[], object]] = {
        "read shard": lambda: read_shard(shard, spec, keys),
        "read JSON lines": lambda: read_json_lines(lines),
        "build planes": lambda: build_planes(spec, rows),
        "encode answer": lambda: planes_to_bytes(planes),
        "decode answer": lambda: planes_from_bytes(body),
    }
    found = medians(steps, args.rounds)
    for name, seconds in found.items():
        values = {"rows/s": args.rows / seconds, "us a position": 1e6 * seconds / planes.positions}
        yield Figure(f"{table}: {args.rows} rows of {args.tokens} tokens", name, values)
    ratio = found["read JSON lines"] / found["read shard"]
    yield at_least(f"rows a second over JSON lines', {spec.profile} K={spec.k}", ratio, 50)
    if spec.profile == "Compact" and spec.k == 32:
        yield at_most(
            f"bytes a scored position, Compact K=32 V={spec.vocab:,} with entropy", info.bytes_per_position, 116
        )


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options; those of `make bench` by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"rows": 256, "tokens": 400, "k": 32, "vocab": 151_665, "rounds": ROUNDS}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(*figures(parsed()), sep="\n")
