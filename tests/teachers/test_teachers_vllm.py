"""A real vLLM server: ready only once it has scored, equal to the reference engine, guarded, and gone when its parent is."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from kd_runtime.api.data_stages import Sampling
from kd_runtime.api.failures import SettingsError
from kd_runtime.logits.build import build_planes
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.planning.tokenizers import tokenizer_digest
from kd_runtime.teachers import wire
from kd_runtime.teachers.answers import Refused
from kd_runtime.teachers.client import TeacherClient
from kd_runtime.teachers.transformers_engine import Ask, TransformersEngine

pytestmark = pytest.mark.runtime

SERVE = """
import json, sys
from pathlib import Path
from kd_runtime.api.teacher import Engine, Serving
from kd_runtime.teachers.serve import ServeOptions, serve
folder = Path(sys.argv[2])
options = ServeOptions(
    Path(sys.argv[1]), Engine.VLLM, port=0, api_key="sesame", dtype="float32", max_model_len=512, max_logprobs=64,
    teacher_key="a" * 64, ready_file=folder / "ready.json", serving=Serving(enforce_eager=True, max_num_seqs=16),
)
sys.exit(int(serve(options)))
"""
SKY = [{"role": "user", "content": "What colour is the sky?"}]


@dataclass
class Running:
    """A server, and how it came up."""

    process: subprocess.Popen[bytes]
    url: str
    metrics_when_ready: str

    def family(self) -> list[psutil.Process]:
        """All that it started."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("vllm")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(tiny_models / "teacher"), str(folder)], env=env, stdout=log, stderr=log
        )
    ready, deadline = folder / "ready.json", time.monotonic() + 400
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
        time.sleep(0.1)
    url = json.loads(ready.read_text())["url"]
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": "Bearer sesame"}, timeout=60).text
    yield Running(process, url, metrics)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def engine(tiny_models: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_models / "teacher", "float32", 512)


def ask(server: Running, work: Callable[[TeacherClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with TeacherClient(server.url, "sesame", model="teacher", outage_seconds=5) as client:
            return await work(client)

    return asyncio.run(main())


def rows(engine: TransformersEngine) -> tuple[wire.ScoreRow, ...]:
    texts = ("What colour is the sky?", "How many legs has a spider? Eight or six?", "a", "What is two plus two? " * 12)
    made = []
    for number, text in enumerate(texts):
        ids = np.array(engine.render([{"role": "user", "content": text}]), np.uint32)
        made.append(wire.ScoreRow(bytes([number]) * 16, ids, np.arange(len(ids)) > number))
    return tuple(made)


def test_it_is_ready_only_once_a_prompt_is_scored(server: Running) -> None:
    scored = re.search(r"^vllm:prompt_tokens_total\{.*\} (\S+)$", server.metrics_when_ready, re.MULTILINE)
    assert scored and float(scored[1]) == len(wire.warm_up(512).rows[0].ids)


def test_every_path_but_health_wants_the_key(server: Running) -> None:
    codes = {p: httpx.get(server.url + p).status_code for p in ("/health", "/metrics", "/tokenize", "/docs", wire.PATH)}
    assert codes.pop("/health") == 200 and set(codes.values()) == {401}


def test_messages_become_the_ids_of_the_reference(server: Running, engine: TransformersEngine) -> None:
    assert ask(server, lambda client: client.tokenize(SKY)) == engine.render(SKY)


def test_a_greedy_answer_is_that_of_the_reference(server: Running, engine: TransformersEngine) -> None:
    answer = ask(server, lambda client: client.chat(SKY, Sampling(temperature=0, max_tokens=24), 0))
    expected = engine.complete(Ask(engine.render(SKY), 24, temperature=0))
    assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
    assert (answer.prompt_tokens, answer.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens)


@pytest.mark.parametrize("spec", [ShardSpec("Exact", 16, vocab=512), ShardSpec("Label", 0, vocab=512)])
def test_planes_are_those_of_the_reference(server: Running, engine: TransformersEngine, spec: ShardSpec) -> None:
    asked = rows(engine)
    request = wire.ScoreRequest(asked, spec, teacher_key="a" * 64)
    got: Planes = ask(server, lambda client: client.score(request))
    expected = build_planes(spec, [engine.score(row, spec) for row in asked])
    for name in ("key", "row_ptr", "pos_ptr", "input_ids", "scored"):
        assert np.array_equal(got[name], expected[name])
    for name in ("lab_lp", "top_lp") if spec.k else ("lab_lp",):
        assert np.abs(got[name].astype(float) - expected[name].astype(float)).max() < 2e-2
    assert np.abs(got["lab_rank"].astype(int) - expected["lab_rank"].astype(int)).max() <= 1
    if spec.k:
        assert (got.top_ids() == expected.top_ids()).mean() > 0.99
        assert np.abs(np.exp(got["tail_lp"].astype(float)) - np.exp(expected["tail_lp"].astype(float))).max() < 2e-2


def test_planes_do_not_depend_on_who_else_is_asked(server: Running, engine: TransformersEngine) -> None:
    spec, asked = ShardSpec("Exact", 16, vocab=512), rows(engine)

    async def alone_and_together(client: TeacherClient) -> tuple[Planes, Planes]:
        alone = await client.score(wire.ScoreRequest(asked[3:], spec))
        return alone, (await client.score(wire.ScoreRequest(asked, spec))).select([3])

    alone, together = ask(server, alone_and_together)
    assert np.abs(alone["top_lp"].astype(float) - together["top_lp"].astype(float)).max() < 2e-2


def test_many_seeded_requests_at_once_do_not_end_the_engine(server: Running) -> None:
    """With chunked prefill, vLLM 0.32 on a CPU ends at the first prompt with a seed that is cut in two."""
    long = [{"role": "user", "content": "What is two plus two? " * 14}]

    async def many(client: TeacherClient) -> list[str]:
        sampling = Sampling(temperature=0.9, max_tokens=8)
        return [a.text for a in await asyncio.gather(*(client.chat(long, sampling, n // 2) for n in range(40)))]

    texts = ask(server, many)
    assert len(texts) == 40 and all(texts[n] == texts[n + 1] for n in range(0, 40, 2))
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_what_is_malformed_is_refused(server: Running) -> None:
    headers = {"Authorization": "Bearer sesame"}
    assert httpx.post(server.url + wire.PATH, content=b"junk", headers=headers).status_code == 400


def test_a_row_that_leaves_no_room_is_too_long(server: Running) -> None:
    ids = np.ones(512, np.uint32)
    row = wire.ScoreRow(bytes(16), ids, np.arange(512) > 0)
    with pytest.raises(Refused) as refused:
        ask(server, lambda client: client.score(wire.ScoreRequest((row,), ShardSpec("Exact", 4, vocab=512))))
    assert refused.value.reason == "TooLong"


def test_a_wider_head_than_the_server_has_is_refused(server: Running, engine: TransformersEngine) -> None:
    with pytest.raises(Refused, match="max-logprobs"):
        ask(server, lambda client: client.score(wire.ScoreRequest(rows(engine), ShardSpec("Exact", 65, vocab=512))))


def test_ids_of_another_tokenizer_are_refused(server: Running, engine: TransformersEngine, tiny_models: Path) -> None:
    own = tokenizer_digest(tiny_models / "teacher")
    headers = {"Authorization": "Bearer sesame"}
    assert httpx.get(server.url + wire.PATH, headers=headers).json() == {"tokenizer": own}
    spec = ShardSpec("Exact", 4, vocab=512)
    ask(server, lambda client: client.score(wire.ScoreRequest(rows(engine), spec, tokenizer=own)))
    with pytest.raises(
        SettingsError, match=f"409, this teacher's tokenizer is {own[:12]}, and the ids are of dddddddddddd"
    ):
        ask(server, lambda client: client.score(wire.ScoreRequest(rows(engine), spec, tokenizer="d" * 64)))


def test_another_teacher_than_is_meant_says_so(server: Running, engine: TransformersEngine) -> None:
    request = wire.ScoreRequest(rows(engine), ShardSpec("Exact", 4, vocab=512), teacher_key="b" * 64)
    with pytest.raises(SettingsError, match="409"):
        ask(server, lambda client: client.score(request))


def test_no_process_is_left_when_the_server_is_killed(server: Running) -> None:
    """The last test of the module: it ends the server."""
    family = server.family()
    assert len(family) >= 3  # the group's leader, the API server, the engine
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
