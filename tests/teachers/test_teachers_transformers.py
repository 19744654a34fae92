"""The Transformers engine: exact distributions, and answers that depend on nothing but the request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from kd_runtime.logits.shard import planes_from_bytes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers import transformers_engine, wire
from kd_runtime.teachers.guard import Identity
from kd_runtime.teachers.transformers_app import TransformersApp
from kd_runtime.teachers.transformers_engine import Ask, TransformersEngine, head_mask, sample, score_positions
from kd_runtime.teachers.wire import BadRequest, ScoreRow

KEY = {"Authorization": "Bearer sesame"}
SKY = [{"role": "user", "content": "What colour is the sky?"}]


def exact(k: int, vocab: int = 512) -> ShardSpec:
    return ShardSpec("Exact", k, vocab=vocab)


def test_of_equals_at_the_edge_of_the_head_the_lowest_ids_are_in() -> None:
    lp = torch.tensor([[0.1, 0.5, 0.3, 0.3, 0.3]])
    assert head_mask(lp, 2).nonzero()[:, 1].tolist() == [1, 2]
    assert head_mask(lp, 3).nonzero()[:, 1].tolist() == [1, 2, 3]


def test_a_rank_counts_only_what_is_strictly_greater() -> None:
    lp = torch.tensor([[1.0, 2.0, 2.0, 3.0]] * 4).log_softmax(-1)
    scores = score_positions(lp, torch.tensor([3, 2, 1, 0]), exact(1, 4), np.empty((4, 0)))
    assert scores["lab_rank"].tolist() == [1, 2, 2, 4]


def test_head_and_tail_make_a_distribution_however_small_the_tail() -> None:
    logits = torch.tensor([[50.0, 49.0, 0.0, -1.0]])
    scores = score_positions(logits.log_softmax(-1), torch.tensor([0]), exact(2, 4), np.empty((1, 0)))
    assert scores["top_ids"].tolist() == [[0, 1]]
    expected = torch.tensor([0.0, -1.0], dtype=torch.float64).logsumexp(0) - logits.double().logsumexp(-1)
    tail = scores["tail_lp"][0]
    assert tail == pytest.approx(float(expected), abs=1e-5)
    assert np.exp(scores["top_lp"]).sum() + np.exp(tail) == pytest.approx(1.0, abs=1e-6)


def test_temperature_0_takes_the_first_of_the_likeliest() -> None:
    assert sample(torch.tensor([0.0, 2.0, 2.0]), 0, 1.0, torch.Generator()) == 1


@pytest.mark.parametrize(("top_p", "allowed"), [(0.5, {0}), (0.8, {0, 1}), (1.0, {0, 1, 2})])
def test_the_nucleus_is_the_smallest_that_reaches_top_p(top_p: float, allowed: set[int]) -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    assert {sample(logits, 1.0, top_p, generator) for _ in range(200)} == allowed


def test_draws_follow_the_tempered_distribution() -> None:
    logits, generator = torch.tensor([0.0, 1.0, 2.0]), torch.Generator().manual_seed(1)
    draws = np.bincount([sample(logits, 2.0, 1.0, generator) for _ in range(4000)], minlength=3) / 4000
    assert np.abs(draws - torch.softmax(logits / 2, -1).numpy()).max() < 0.03


@pytest.fixture(scope="module")
def engine(tiny_models: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_models / "teacher", "float32", 512)


@pytest.fixture(scope="module")
def call(engine: TransformersEngine) -> Iterator[Callable[[Callable[[httpx.AsyncClient], Awaitable[Any]]], Any]]:
    app = TransformersApp(engine, "teacher", Identity("a" * 64, "c" * 64))
    app.warm_up()
    transport = httpx.ASGITransport(app.asgi("sesame"))

    def called(work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with httpx.AsyncClient(transport=transport, base_url="http://teacher", headers=KEY) as client:
                return await work(client)

        return asyncio.run(main())

    yield called


Call = Callable[[Callable[[httpx.AsyncClient], Awaitable[Any]]], Any]


def row(ids: list[int], first: int = 1, key: int = 0) -> ScoreRow:
    return ScoreRow(bytes([key]) * 16, np.array(ids, np.uint32), np.arange(len(ids)) >= first)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "teacher", "messages": SKY, "max_tokens": 24, "temperature": 0, **more}


@pytest.mark.runtime
class TestEngine:
    """The model itself."""

    def test_scores_are_those_of_one_whole_pass(
        self, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = engine.render(SKY) * 8
        lp = engine._model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1).detach()
        for chunk in (7, 512):
            monkeypatch.setattr(transformers_engine, "CHUNK_POSITIONS", chunk)
            got = engine.score(row(ids), exact(16, 512))
            assert np.abs(got.top_lp - lp.gather(1, torch.tensor(got.top_ids)).numpy()).max() < 1e-4
            assert np.abs(got.lab_lp - lp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()).max() < 1e-4

    def test_only_scored_positions_are_answered(self, engine: TransformersEngine) -> None:
        ids = engine.render(SKY)
        whole, part = engine.score(row(ids), exact(4, 512)), engine.score(row(ids, first=9), exact(4, 512))
        assert (
            np.abs(whole.top_lp[8:] - part.top_lp).max() < 1e-5
        )  # two units in the last place at a logprob of -9: other rows of the matrix, other rounding

    def test_padded_ids_are_not_part_of_the_distribution(self, engine: TransformersEngine) -> None:
        got = engine.score(row([1, 2, 3]), exact(200, 200))
        assert got.top_ids.max() < 200
        assert np.exp(got.top_lp.astype(np.float64)).sum(1) == pytest.approx(1.0, abs=1e-5)

    def test_a_row_that_leaves_no_room_is_refused(self, engine: TransformersEngine) -> None:
        engine.score(row([1] * 511), exact(1, 512))
        with pytest.raises(BadRequest, match="maximum context length is 512"):
            engine.score(row([1] * 512), exact(1, 512))

    def test_an_answer_ends_by_itself_or_is_cut(self, engine: TransformersEngine) -> None:
        ids = engine.render(SKY)
        whole = engine.complete(Ask(ids, 24, temperature=0))
        assert (whole.text, whole.finish_reason) == ("The sky is blue.", "stop")
        cut = engine.complete(Ask(ids, 2, temperature=0))
        assert cut.finish_reason == "length" and cut.completion_tokens == 2 and whole.text.startswith(cut.text)

    def test_an_answer_ends_before_a_stop_string(self, engine: TransformersEngine) -> None:
        done = engine.complete(Ask(engine.render(SKY), 24, temperature=0, stop=("blue", "sky")))
        assert (done.text, done.finish_reason) == ("The ", "stop")

    def test_a_seed_gives_the_same_answer_whatever_was_asked_before(self, engine: TransformersEngine) -> None:
        ids = engine.render(SKY)
        first = engine.complete(Ask(ids, 24, temperature=1.5, seed=4))
        others = {engine.complete(Ask(ids, 24, temperature=1.5, seed=seed)).text for seed in range(5, 15)}
        assert engine.complete(Ask(ids, 24, temperature=1.5, seed=4)) == first
        assert len(others) > 3


@pytest.mark.runtime
class TestRoutes:
    """HTTP."""

    def test_health_is_open_and_all_else_wants_the_key(self, call: Call) -> None:
        async def codes(client: httpx.AsyncClient) -> list[int]:
            paths = ("/health", "/v1/models", "/tokenize", wire.PATH)
            return [(await client.get(path, headers={"Authorization": "Bearer other"})).status_code for path in paths]

        assert call(codes) == [200, 401, 401, 401]

    def test_a_chat_has_the_form_of_openai(self, call: Call) -> None:
        body = call(lambda client: client.post("/v1/chat/completions", json=chat())).json()
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "The sky is blue."}
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]

    def test_answers_do_not_depend_on_neighbours(self, call: Call) -> None:
        async def together(client: httpx.AsyncClient) -> list[str]:
            asked = [
                client.post("/v1/chat/completions", json=chat(temperature=1.2, seed=seed)) for seed in (1, 2, 3, 1, 2)
            ]
            return [a.json()["choices"][0]["message"]["content"] for a in await asyncio.gather(*asked)]

        texts = call(together)
        assert texts[0] == texts[3] and texts[1] == texts[4]

    def test_tokens_are_those_of_the_template(self, call: Call, engine: TransformersEngine) -> None:
        body = call(lambda client: client.post("/tokenize", json={"messages": SKY})).json()
        assert body["tokens"] == engine.render(SKY) and body["count"] == len(body["tokens"])
        text = call(lambda client: client.post("/tokenize", json={"prompt": "sky"})).json()
        assert text["tokens"] == engine.tokenize("sky")

    def test_scores_come_as_the_planes_of_a_shard(self, call: Call, engine: TransformersEngine) -> None:
        ids = engine.render(SKY)
        asked = wire.ScoreRequest((row(ids, key=1), row(ids[:7], key=2)), ShardSpec("Exact", 8, vocab=512))
        answer = call(lambda client: client.post(wire.PATH, content=wire.encode_request(asked)))
        planes = planes_from_bytes(answer.content, expect=asked.spec)
        assert planes.rows == 2 and planes.positions == len(ids) - 1 + 6
        again = call(lambda client: client.post(wire.PATH, content=wire.encode_request(asked)))
        assert again.content == answer.content

    @pytest.mark.parametrize(
        ("path", "content", "code"),
        [
            ("/v1/chat/completions", b"{", 400),
            ("/v1/chat/completions", b'{"messages": []}', 400),
            ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "n": 2}', 400),
            ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 9999}', 400),
            ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "model": "gpt"}', 404),
            ("/v1/completions", b'{"prompt": []}', 400),
            ("/tokenize", b"{}", 400),
            (wire.PATH, b"junk", 400),
        ],
    )
    def test_what_is_malformed_is_refused(self, call: Call, path: str, content: bytes, code: int) -> None:
        answer = call(lambda client: client.post(path, content=content))
        assert answer.status_code == code and answer.json()["error"]["message"]

    def test_ids_of_another_tokenizer_are_refused(self, call: Call) -> None:
        spec = ShardSpec("Label", 0, vocab=512)
        for tokenizer, code in (("c" * 64, 200), (None, 200), ("d" * 64, 409)):
            asked = wire.encode_request(wire.ScoreRequest((row([1, 2, 3]),), spec, tokenizer=tokenizer))
            answer = call(lambda client, content=asked: client.post(wire.PATH, content=content))
            assert answer.status_code == code
        assert (
            answer.json()["error"]["message"]
            == "this teacher's tokenizer is cccccccccccc, and the ids are of dddddddddddd"
        )

    def test_a_plan_is_told_the_tokenizer_before_anything_is_scored(self, call: Call) -> None:
        assert call(lambda client: client.get(wire.PATH)).json() == {"tokenizer": "c" * 64}

    def test_another_teacher_than_is_meant_says_so(self, call: Call) -> None:
        asked = wire.ScoreRequest((row([1, 2, 3]),), ShardSpec("Label", 0, vocab=512), teacher_key="b" * 64)
        answer = call(lambda client: client.post(wire.PATH, content=wire.encode_request(asked)))
        assert answer.status_code == 409
