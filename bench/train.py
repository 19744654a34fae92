"""Tokens per second and memory of a training rank with the teacher's logits, against a plain loop that learns labels.

python bench/train.py [--hidden 1024 --layers 28 --heads 16 --keys 8 --inner 3072 --vocab 151936] [--length 1024]
                      [--rows 32] [--steps 12] [--k 32] [--precision bf16] [--zero 1] [--checkpointing]

The model is untrained, the rows and the logits are drawn: only time and memory are looked at. A rank is what `kd run`
starts, under DeepSpeed, with its reader of shards. The plain loop is transformers' own loss on dense logits and torch's
AdamW, rows of equal length in batches, nothing else. Goal: at least 90 % of its rate.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Figure, Goal, at_least

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from training.tiny_runs import Made, TinyRun, settings

from kd_runtime.artifacts.rows import Parent, Row, RowsWriter, row_key
from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.shard import write_shard
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.planning.headers import read_header
from kd_runtime.planning.memory import train_memory
from kd_runtime.planning.sources import open_model
from kd_runtime.training.signs import Sign
from kd_runtime.training.task import MicroBatchBound

WARM = 3
"""Steps that do not count."""
CUDA = torch.cuda.is_available()


def model(folder: Path, args: argparse.Namespace) -> Path:
    """An untrained model of that shape."""
    from tiny import tiny_models_folder
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": args.hidden, "num_hidden_layers": args.layers, "intermediate_size": args.inner}
    heads = {"num_attention_heads": args.heads, "num_key_value_heads": args.keys, "head_dim": args.width}
    config = Qwen3Config(vocab_size=args.vocab, tie_word_embeddings=True, **shape, **heads, bos_token_id=None)
    with torch.device("cuda" if CUDA else "cpu"):
        made = Qwen3ForCausalLM(config)
    made.to(torch.bfloat16 if args.precision == "bf16" else torch.float32).cpu().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_models_folder() / "student").save_pretrained(folder)
    return folder


def data(folder: Path, args: argparse.Namespace) -> Made:
    """Rows of equal length, half of each a scored answer, and a teacher's head of K for each scored token."""
    random = np.random.default_rng(0)
    writer, rows, scored_rows = RowsWriter(folder / "rows"), [], []
    spec = ShardSpec("Exact", args.k, vocab=args.vocab)
    for number in range(args.rows * 2):
        ids = random.integers(0, args.vocab, args.length).astype(np.uint32)
        scored = np.arange(args.length) >= args.length // 2
        source = f"q.jsonl:{number + 1}"
        asked = [{"role": "user", "content": source}]
        count, key = int(scored.sum()), row_key("0" * 64, asked, ids, scored)
        rows.append(
            Row(
                key=key,
                split="train",
                messages=asked,
                response="",
                reasoning=None,
                references=None,
                input_ids=ids,
                scored=scored,
                prompt_tokens=args.length // 2,
                parents=(Parent(source, 0),),
                source=source,
            )
        )
        writer.append(rows[-1])
        gap = args.vocab // args.k
        top = random.integers(0, gap, (count, args.k)) + np.arange(args.k) * gap
        lp = random.normal(0, 3, (count, args.k + 1))
        lp = np.sort(lp - np.log(np.exp(lp).sum(1, keepdims=True)), 1)[:, ::-1]
        flat = np.full(count, -12.0, np.float32)
        ranks = np.full(count, args.k + 1)
        scored_rows.append(
            TeacherRow(bytes.fromhex(key), ids, scored, flat, ranks, top, lp[:, :-1].copy(), lp[:, -1].copy())
        )
    (folder / "logits").mkdir()
    shard = folder / "logits" / "0.safetensors"
    write_shard(shard, build_planes(spec, scored_rows), spec)
    return Made(rows, writer.close(), [shard], spec, args.vocab)


def ours(made: Made, student: Path, folder: Path, args: argparse.Namespace, method: str) -> dict[str, float]:
    """A rank's tokens per second once it is warm, its peak, and what `kd plan` says of it."""
    train = settings(
        method=method,
        maxSteps=args.steps,
        globalBatchSize=args.rows,
        microBatchSize=args.micro,
        maxLength=args.length,
        precision=args.precision,
        optimizer={"learningRate": 1e-5},
        gradientCheckpointing=args.checkpointing,
        deepspeed={"zeroStage": args.zero},
        checkpoint={"everySteps": 10**6, "everySeconds": 86_400},
    )
    run = TinyRun(made, student, folder, train, 1, MicroBatchBound(rows=args.micro))
    heard: list[tuple[float, Sign]] = []
    threads = max(1, len(os.sched_getaffinity(0)))
    gang = run.gang(run.task(threads=threads))
    gang.heard = lambda sign: heard.append((time.perf_counter(), sign))
    gang.run()
    steps = [(at, sign) for at, sign in heard if sign.phase == "training" and sign.step >= WARM]
    (begin, first), (end, last) = steps[0], steps[-1]
    source = open_model(f"file://{student}")
    said = train_memory(read_header(source, list(source.files())), train, ranks=1, on_gpu=CUDA)
    peak = run.accelerator_bytes or run.timing["memory"]["trained"]
    return {
        "tokens/s": (last.tokens - first.tokens) / (end - begin),
        "GiB": peak / 2**30,
        "GiB planned": (said.allocated if CUDA else said.total) / 2**30,
    }


def plain(made: Made, student: Path, args: argparse.Namespace) -> dict[str, float]:
    """The loop that anybody would write first."""
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if CUDA else "cpu")
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    learner: Any = AutoModelForCausalLM.from_pretrained(student, dtype=dtype).to(device).train()
    learner.config.use_cache = False
    if args.checkpointing:
        learner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-5, fused=True)
    ids = torch.from_numpy(np.stack([row.input_ids for row in made.rows]).astype(np.int64))
    labels = ids.masked_fill(~torch.from_numpy(np.stack([row.scored for row in made.rows])), -100)
    begin = 0.0
    for step in range(args.steps):
        if step == WARM:
            begin = settled()
        chosen = torch.randint(0, len(ids), (args.rows,))
        for some in chosen.split(args.micro):
            loss = learner(input_ids=ids[some].to(device), labels=labels[some].to(device)).loss
            (loss * len(some) / args.rows).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = settled() - begin
    peak = torch.cuda.max_memory_reserved() if CUDA else 0
    return {
        "tokens/s": (args.steps - WARM) * args.rows * args.length / seconds,
        "GiB": peak / 2**30 if CUDA else float("nan"),
        "GiB planned": float("nan"),
    }


def settled() -> float:
    """The time, once the card has done what it was told."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def figures(args: argparse.Namespace) -> Iterator[Figure | Goal]:
    """Rates, memory, and the goal."""
    where = torch.cuda.get_device_name() if CUDA else "CPU"
    table = (
        f"Training, {where}: H={args.hidden}, {args.layers} layers, V={args.vocab:,}, {args.precision}, "
        f"{args.rows} rows of {args.length} tokens a step, {args.micro} at a time, ZeRO {args.zero}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student, made = model(folder / "model", args), data(folder, args)
        kd = ours(made, student, folder / "kd", args, "KD")
        yield Figure(table, f"KD, K={args.k}", kd)
        yield Figure(table, "labels alone", ours(made, student, folder / "sft", args, "SFT"))
        loop = plain(made, student, args)
        yield Figure(table, "plain loop", loop)
        yield at_least(
            f"rate of KD over a plain loop's on labels, {where}, V={args.vocab:,}",
            kd["tokens/s"] / loop["tokens/s"],
            0.9,
        )


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = {"hidden": 1024, "layers": 28, "heads": 16, "keys": 8, "width": 128, "inner": 3072, "vocab": 151_936}
    for name, default in {**shape, "length": 1024, "rows": 32, "micro": 8, "steps": 12, "k": 32, "zero": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    for found in figures(parsed()):
        print(found, flush=True)
