"""A client bridges what is passing, rejects a row that the teacher refuses, and names what is wrong for good."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from faulty_teacher import (
    Fault,
    FaultyTeacher,
    answer_to,
    chat_answer,
    cut_short,
    error,
    free_port,
    made_planes,
    planes_with,
)
from starlette.responses import Response, StreamingResponse

from kd_runtime.api.data_stages import Sampling
from kd_runtime.api.failures import DeniedError, SettingsError, TeacherError
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers.answers import Answer, Refused
from kd_runtime.teachers.client import TeacherClient, addresses
from kd_runtime.teachers.limits import Limits
from kd_runtime.teachers.wire import ScoreRequest, ScoreRow

SAMPLING = Sampling(max_tokens=8)
SPEC = ShardSpec("Exact", 4, vocab=32)


def said_as_json(text: str, reasoning: str = "") -> Response:
    """A chat completion whose text is written as it is into the JSON, with its escapes."""
    body = json.dumps({"choices": [{"message": {"content": "TEXT", "reasoning_content": "REASONING"}}]})
    return Response(body.replace("TEXT", text).replace("REASONING", reasoning), media_type="application/json")


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def run(teacher: FaultyTeacher, work: Callable[[TeacherClient], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        settings: dict[str, Any] = {"backoff_seconds": (0.001, 0.004), "jitter": random.Random(0), **options}
        async with TeacherClient(teacher.url, "key", model="teacher", **settings) as client:
            return await work(client)

    return asyncio.run(main())


def first(count: int, answer: Callable[[], Response]) -> Fault:
    """``answer`` to the first ``count`` requests."""
    return lambda asked: answer() if asked.number < count else None


async def one(client: TeacherClient) -> Answer:
    return await client.chat(ask("Why?"), SAMPLING, 3)


def rows(count: int) -> tuple[ScoreRow, ...]:
    return tuple(
        ScoreRow(bytes([n]) * 16, np.arange(n, n + 6, dtype=np.uint32), np.arange(6) > 1) for n in range(count)
    )


def test_an_answer_has_text_reason_and_usage() -> None:
    with FaultyTeacher() as teacher:
        assert run(teacher, one) == Answer(answer_to("Why?", 3), None, "stop", 10, 5)


def test_the_request_says_how_to_sample_and_its_own_seed() -> None:
    sampling = Sampling(temperature=0.5, top_p=0.8, max_tokens=9, stop=("END",), seed=1)
    with FaultyTeacher() as teacher:
        run(teacher, lambda client: client.chat(ask("Why?"), sampling, 77))
    sent = {
        name: teacher.chats[0].body[name] for name in ("temperature", "top_p", "max_tokens", "stop", "seed", "model")
    }
    assert sent == {"temperature": 0.5, "top_p": 0.8, "max_tokens": 9, "stop": ["END"], "seed": 77, "model": "teacher"}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_apart(name: str) -> None:
    with FaultyTeacher(lambda asked: chat_answer("Blue.", **{name: "Rayleigh."})) as teacher:
        answer = run(teacher, one)
    assert (answer.text, answer.reasoning) == ("Blue.", "Rayleigh.")


@pytest.mark.parametrize(
    "passing",
    [
        lambda: error(429),
        lambda: error(429, retry_after="0"),
        lambda: error(500),
        lambda: error(503),
        lambda: Response(b"<html>", media_type="text/html"),
        lambda: Response(b'{"choices": []}', media_type="application/json"),
        cut_short,
    ],
    ids=["429", "429 with Retry-After", "500", "503", "garbage", "no choice", "cut short"],
)
def test_what_is_passing_is_asked_again(passing: Callable[[], Response]) -> None:
    with FaultyTeacher(first(2, passing)) as teacher:
        assert run(teacher, one).text == answer_to("Why?", 3)
    assert len(teacher.chats) == 3


def test_retry_after_is_waited_for() -> None:
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    with FaultyTeacher(first(1, lambda: error(429, retry_after="17"))) as teacher:
        run(teacher, one, sleep=sleep, clock=lambda: now[0])
    assert 1017 <= now[0] < 1018


def test_requests_under_way_are_halved_by_429_and_grow_back() -> None:
    async def many(client: TeacherClient) -> list[int]:
        limits = [client.in_flight_limit]
        await asyncio.gather(*(client.chat(ask(f"{n}?"), SAMPLING, n) for n in range(8)))
        limits.append(client.in_flight_limit)
        for n in range(60):
            await client.chat(ask(f"again {n}?"), SAMPLING, n)
        return [*limits, client.in_flight_limit]

    with FaultyTeacher(first(8, lambda: error(429))) as teacher:
        before, after, later = run(teacher, many, limits=Limits(max_in_flight=8))
    assert before == 8 and after < 8 and later == 8


def test_no_more_requests_are_under_way_than_allowed() -> None:
    async def many(client: TeacherClient) -> None:
        await asyncio.gather(*(client.chat(ask(f"{n}?"), SAMPLING, n) for n in range(20)))

    with FaultyTeacher() as teacher:
        run(teacher, many, limits=Limits(max_in_flight=3))
    assert teacher.most_under_way <= 3 and len(teacher.chats) == 20


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: error(400, "This model's maximum context length is 512 tokens"), "TooLong"),
        (lambda: error(413), "TooLong"),
        (lambda: error(422, "messages are odd"), "Refused"),
        (lambda: chat_answer(None, finish="content_filter"), "Filtered"),
        (lambda: chat_answer(None, refusal="I will not."), "Filtered"),
        (lambda: chat_answer("  "), "Empty"),
        (lambda: said_as_json("ok \\ud83d"), "NotUTF8"),
        (lambda: said_as_json("ok", "hm \\udc00"), "NotUTF8"),
        (lambda: chat_answer(None, finish="tool_calls"), "NoAnswer"),
    ],
)
def test_a_row_that_the_teacher_refuses_is_asked_once(answer: Callable[[], Response], reason: str) -> None:
    with FaultyTeacher(lambda asked: answer()) as teacher, pytest.raises(Refused) as refused:
        run(teacher, one)
    assert refused.value.reason == reason and len(teacher.chats) == 1


@pytest.mark.parametrize(
    "body", [b'{"error": {"message": "no \\ud83d"}}', b'{"choices": [{"message": {"refusal": "no \\ud83d"}}]}']
)
def test_what_a_teacher_says_can_be_written_down(body: bytes) -> None:
    answer = Response(body, 400 if b"error" in body else 200, media_type="application/json")
    with FaultyTeacher(lambda asked: answer) as teacher, pytest.raises(Refused) as refused:
        run(teacher, one)
    assert refused.value.detail == "no ?"


def test_garbage_each_time_rejects_the_row() -> None:
    with (
        FaultyTeacher(lambda asked: Response(b"[]", media_type="application/json")) as teacher,
        pytest.raises(Refused) as refused,
    ):
        run(teacher, one)
    assert refused.value.reason == "BadAnswer" and len(teacher.chats) == 4


def test_a_row_that_fails_while_others_succeed_is_rejected() -> None:
    async def both(client: TeacherClient) -> tuple[Any, list[Answer]]:
        bad = asyncio.ensure_future(client.chat(ask("bad"), SAMPLING, 0))
        good = []
        while not bad.done():
            good.append(await client.chat(ask("good"), SAMPLING, 1))
        return bad.exception(), good

    with FaultyTeacher(lambda asked: error(500) if asked.question == "bad" else None) as teacher:
        failure, good = run(teacher, both)
    assert isinstance(failure, Refused) and failure.reason == "TeacherFailed" and good


@pytest.mark.parametrize("answer", [lambda: error(500), lambda: error(429)], ids=["500", "429"])
def test_a_teacher_that_answers_nobody_is_an_outage(answer: Callable[[], Response]) -> None:
    with FaultyTeacher(lambda asked: answer()) as teacher, pytest.raises(TeacherError, match="outageTimeoutSeconds 0"):
        run(teacher, one, outage_seconds=0.05)


def test_a_teacher_that_is_gone_is_waited_for_until_it_is_back() -> None:
    teacher = FaultyTeacher(port=free_port())
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            teacher.__enter__()

    async def main() -> Answer:
        url = f"http://127.0.0.1:{teacher.port}"
        async with TeacherClient(url, None, model="teacher", outage_seconds=60, sleep=sleep) as client:
            return await one(client)

    assert asyncio.run(main()).text == answer_to("Why?", 3)
    teacher.__exit__()
    assert len(waits) == 3


def test_a_teacher_that_stays_away_ends_the_stage_after_its_outage_time() -> None:
    async def main() -> None:
        url = f"http://127.0.0.1:{free_port()}"
        async with TeacherClient(
            url, None, model="teacher", outage_seconds=0.05, backoff_seconds=(0.01, 0.02)
        ) as client:
            await one(client)

    with pytest.raises(TeacherError, match="ConnectError"):
        asyncio.run(main())


def test_a_slow_drip_is_cut_off_and_asked_again() -> None:
    def drip() -> Response:
        async def drops() -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await asyncio.sleep(0.01)

        return StreamingResponse(drops(), media_type="application/json")

    with FaultyTeacher(first(1, drip)) as teacher:
        assert run(teacher, one, request_seconds=0.2).text == answer_to("Why?", 3)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *[(code, DeniedError) for code in (401, 402, 403)],
        *[(code, SettingsError) for code in (307, 404, 409, 501)],
    ],
)
def test_what_is_wrong_for_good_ends_at_once(code: int, kind: type[Exception]) -> None:
    with FaultyTeacher(lambda asked: error(code, location="http://elsewhere/")) as teacher, pytest.raises(kind):
        run(teacher, one)
    assert len(teacher.chats) == 1


def test_a_quota_that_is_used_up_is_not_waited_for() -> None:
    with FaultyTeacher(lambda asked: error(429, "insufficient_quota")) as teacher, pytest.raises(DeniedError):
        run(teacher, one)


def test_planes_arrive_as_they_were_made() -> None:
    request = ScoreRequest(rows(3), SPEC, teacher_key="a" * 64, tokenizer="c" * 64)
    with FaultyTeacher() as teacher:
        planes = run(teacher, lambda client: client.score(request))
    made = made_planes(request)
    assert all(np.array_equal(planes[name], made[name]) for name in made.arrays)
    assert teacher.scores[0].body == {"teacher": "a" * 64, "tokenizer": "c" * 64}


@pytest.mark.parametrize(
    "wrong",
    [{"lab_lp": np.full(12, np.nan, np.float16)}, {"input_ids": np.arange(18, dtype=np.uint32)}],
    ids=["NaN", "other ids"],
)
def test_planes_that_cannot_be_reject_the_row(wrong: dict[str, Any]) -> None:
    request = ScoreRequest(rows(3), SPEC)
    body = planes_with(request, **wrong)
    with FaultyTeacher(lambda asked: Response(body)) as teacher, pytest.raises(Refused) as refused:
        run(teacher, lambda client: client.score(request))
    assert refused.value.reason == "BadAnswer"


def test_answers_about_other_rows_are_not_taken() -> None:
    body = planes_with(ScoreRequest(rows(2), SPEC))
    with FaultyTeacher(lambda asked: Response(body)) as teacher, pytest.raises(Refused, match="other rows"):
        run(teacher, lambda client: client.score(ScoreRequest(rows(3), SPEC)))


@pytest.mark.parametrize(
    ("url", "api", "root"),
    [
        ("http://t:8000", "http://t:8000/v1", "http://t:8000"),
        ("http://t:8000/v1/", "http://t:8000/v1", "http://t:8000"),
        ("https://api.example.com/openai/v2", "https://api.example.com/openai/v2", "https://api.example.com/openai/v2"),
    ],
)
def test_a_server_is_named_by_its_root_or_its_base_url(url: str, api: str, root: str) -> None:
    assert addresses(url) == (api, root)
