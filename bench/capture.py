"""Rate of capture over HTTP against the same engine's own prompt_logprobs rate, in process, on the same ids (vLLM).

python bench/capture.py [--model examples/.models/smollm2-135m-instruct] [--rows 32] [--tokens 256] [--k 32] [--rounds 4]

Two processes hold the model with equal settings and take turns. In process: `LLM.generate` with `prompt_logprobs` and
`flat_logprobs`, its fastest form. Over HTTP: the score route, 4 rows a request, up to planes that are read and checked.
Plain prefill is no fair bound: scoring runs the output head on every position. Goal: at least 95 % of the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from measuring import ROUNDS, Figure, Goal, at_least, medians

from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers.client import TeacherClient
from kd_runtime.teachers.wire import ScoreRequest, ScoreRow

ROWS_A_REQUEST = 4
LENGTH, SEQUENCES, LOGPROBS = 512, 16, 64
KEY = "sesame"

SERVER = """
import sys
from pathlib import Path
from kd_runtime.api.teacher import Engine, Serving
from kd_runtime.teachers.serve import ServeOptions, serve
sys.exit(int(serve(ServeOptions(
    Path(sys.argv[1]), Engine.VLLM, port=0, api_key=sys.argv[3], dtype="float32", max_model_len=int(sys.argv[4]),
    max_logprobs=int(sys.argv[6]), ready_file=Path(sys.argv[2]),
    serving=Serving(enforce_eager=True, max_num_seqs=int(sys.argv[5]), max_num_batched_tokens=2048),
))))
"""
IN_PROCESS = """
import json, sys, time
from vllm import LLM, SamplingParams
engine = LLM(
    sys.argv[1], dtype="float32", max_model_len=int(sys.argv[2]), max_num_seqs=int(sys.argv[3]), seed=0,
    max_logprobs=int(sys.argv[4]), max_num_batched_tokens=2048, enforce_eager=True, enable_prefix_caching=False,
    enable_chunked_prefill=False, distributed_executor_backend="uni",
)
sampling = SamplingParams(
    max_tokens=1, temperature=0, prompt_logprobs=int(sys.argv[5]), detokenize=False, flat_logprobs=True
)
print("ready", flush=True)
for line in sys.stdin:
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
    engine.generate(prompts, sampling, use_tqdm=False)
    print("done", flush=True)
"""


@contextmanager
def server(model: Path, folder: Path) -> Iterator[str]:
    """The URL of a teacher."""
    ready = folder / "ready.json"
    arguments = [sys.executable, "-c", SERVER, str(model), str(ready), KEY, *map(str, (LENGTH, SEQUENCES, LOGPROBS))]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield json.loads(ready.read_text())["url"]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def in_process(model: Path, folder: Path, k: int) -> Iterator[subprocess.Popen[str]]:
    """A process that scores each line of prompts that it is given."""
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    env |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "", "HOME": str(folder)}
    arguments = [sys.executable, "-c", IN_PROCESS, str(model), *map(str, (LENGTH, SEQUENCES, LOGPROBS, k))]
    with (folder / "engine.log").open("wb") as log:
        process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
    try:
        said = next((line for line in process.stdout or () if line.strip() == "ready"), None)
        if said is None:
            raise RuntimeError((folder / "engine.log").read_text()[-2000:])
        yield process
    finally:
        process.kill()
        process.wait()


def figures(args: argparse.Namespace) -> Iterator[Figure | Goal]:
    """Both rates, and the goal."""
    vocab = int(json.loads((args.model / "config.json").read_text())["vocab_size"])
    random = np.random.default_rng(0)
    rows = [
        ScoreRow(random.bytes(16), random.integers(0, vocab, args.tokens).astype(np.uint32), np.arange(args.tokens) > 0)
        for _ in range(args.rows)
    ]
    spec = ShardSpec("Compact", args.k, vocab=vocab)
    prompts = json.dumps([row.ids.tolist() for row in rows])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(args.model, folder) as url, in_process(args.model, folder, args.k) as engine:
            assert engine.stdin is not None and engine.stdout is not None
            told, heard = engine.stdin, engine.stdout

            def inside() -> None:
                told.write(prompts + "\n")
                told.flush()
                if not any(line.strip() == "done" for line in heard):
                    raise RuntimeError((folder / "engine.log").read_text()[-2000:])

            found = medians({"in process": inside, "over HTTP": lambda: asyncio.run(ask(url, rows, spec))}, args.rounds)
    tokens = args.rows * args.tokens
    table = f"Capture, {args.model.name}, {args.rows} rows of {args.tokens} tokens, K={args.k}, {ROWS_A_REQUEST} rows a request"
    for which, seconds in found.items():
        yield Figure(table, which, {"tokens/s": tokens / seconds})
    ratio = found["in process"] / found["over HTTP"]
    yield at_least("rate of capture over HTTP over the in-process rate, 4 rows a request", ratio, 0.95)


async def ask(url: str, rows: list[ScoreRow], spec: ShardSpec) -> None:
    """Have all rows scored, some in a request, all requests at once."""
    async with TeacherClient(url, KEY, model="teacher", outage_seconds=5) as client:
        parts = [tuple(rows[at : at + ROWS_A_REQUEST]) for at in range(0, len(rows), ROWS_A_REQUEST)]
        await asyncio.gather(*(client.score(ScoreRequest(part, spec)) for part in parts))


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options; those of `make bench` by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("examples/.models/smollm2-135m-instruct"))
    for name, default in {"rows": 32, "tokens": 256, "k": 32, "rounds": ROUNDS}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(*figures(parsed()), sep="\n")
