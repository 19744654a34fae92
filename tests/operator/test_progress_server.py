"""The endpoint takes a pod's own posts and refuses all else in a line, cheaply and within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from kd_operator import metrics, names
from kd_operator.cluster.errors import ServerError, Unreachable
from kd_operator.progress import verdicts
from kd_operator.progress.board import Board
from kd_operator.progress.limits import Rate
from kd_operator.progress.report import Report
from kd_operator.progress.server import BODY_BYTES, PATH, Limits, ProgressEndpoint
from operator_progress import OTHER_UID, POD_UID, UID, World, accepted, token

from kd_runtime.telemetry.progress import Progress

WIDE = Rate(per_second=1000, burst=1000)
ROOMY = Limits(pod=WIDE, address=WIDE, unverified=WIDE)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """The endpoint on a real socket."""

    def __init__(self, world: World, client: Any, board: Board, clock: Clock):
        self.world, self.client, self.board, self.clock = world, client, board, clock

    async def post(
        self, bearer: str | None = None, body: Any = None, path: str = "/v1/progress/team-a/tutor", **more: Any
    ) -> ClientResponse:
        data = body if isinstance(body, bytes) else json.dumps({**GOOD, **(body or {})}).encode()
        headers = {"Authorization": f"Bearer {token() if bearer is None else bearer}", **more.pop("headers", {})}
        answer: ClientResponse = await self.client.post(path, data=data, headers=headers, **more)
        text = await answer.text()
        assert (answer.status == 204) == (text == "")
        assert answer.status == 204 or (text.endswith("\n") and text.count("\n") == 1)
        return answer


GOOD = asdict(Progress("answers", 1, 30, 120, "rows", 100, 10.0, None, "2 rejected"))


@asynccontextmanager
async def opened(world: World, limits: Limits) -> AsyncIterator[Door]:
    clock = Clock()
    board = Board(clock)
    app = web.Application()
    app.router.add_post(PATH, ProgressEndpoint(world, board, limits, clock).post)
    async with TestServer(app) as server, TestClient(server) as client:
        yield Door(world, client, board, clock)


def at_the_door(test: Callable[[Door], Awaitable[None]], world: World | None = None, limits: Limits = ROOMY) -> None:
    async def main() -> None:
        async with opened(world or World(), limits) as door:
            await test(door)

    asyncio.run(main())


def test_a_pods_post_is_on_the_board() -> None:
    async def test(door: Door) -> None:
        assert (await door.post()).status == 204
        progress = door.board.stage_progress(UID)["answers"]
        assert (progress.completed, progress.total, progress.percent) == (30, 120, 25)

    at_the_door(test)


def test_the_api_server_is_asked_once_for_many_posts_of_one_pod() -> None:
    async def test(door: Door) -> None:
        for _ in range(5):
            assert (await door.post()).status == 204
        assert door.world.asked.count("create TokenReview") == 1
        door.clock.now += verdicts.ACCEPTED_SECONDS
        assert (await door.post()).status == 204
        assert door.world.asked.count("create TokenReview") == 2

    at_the_door(test)


def test_a_pod_that_is_gone_is_refused_once_its_verdict_is_old() -> None:
    async def test(door: Door) -> None:
        assert (await door.post()).status == 204
        del door.world.objects["Pod", "team-a", "p"]
        door.clock.now += verdicts.ACCEPTED_SECONDS
        assert (await door.post()).status == 403

    at_the_door(test)


def test_posts_of_one_token_at_once_are_one_question() -> None:
    async def test(door: Door) -> None:
        door.world.gate = asyncio.Event()
        posts = [asyncio.ensure_future(door.post()) for _ in range(20)]
        while not door.world.asked:
            await asyncio.sleep(0)
        door.world.gate.set()
        assert {answer.status for answer in await asyncio.gather(*posts)} == {204}
        assert door.world.asked.count("create TokenReview") == 1

    at_the_door(test)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer garbage"},
        {"Authorization": f"Basic {token()}"},
        {"Authorization": "Bearer " + "x" * 5000},
    ],
)
def test_garbage_costs_the_api_server_nothing(headers: dict[str, str]) -> None:
    async def test(door: Door) -> None:
        answer = await door.post(headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert not door.world.asked

    at_the_door(test)


def test_a_forged_token_is_refused_and_remembered_for_a_while() -> None:
    async def test(door: Door) -> None:
        for _ in range(5):
            assert (await door.post(token(salt="forged"))).status == 401
        assert door.world.asked == ["create TokenReview"]
        door.clock.now += verdicts.REFUSED_SECONDS
        assert (await door.post(token(salt="forged"))).status == 401
        assert len(door.world.asked) == 2

    at_the_door(test)


@pytest.mark.parametrize(
    "path", ["/v1/progress/team-a/other", "/v1/progress/team-b/tutor", "/v1/progress/team-a/tutor%2Fx"]
)
def test_a_pod_posts_for_its_own_job_alone(path: str) -> None:
    async def test(door: Door) -> None:
        assert (await door.post(path=path)).status in (403, 404)
        assert len(door.board) == 0

    at_the_door(test)


def test_a_pod_posts_for_its_own_stage_alone_and_its_label_says_which_worker_it_is() -> None:
    async def test(door: Door) -> None:
        assert (await door.post(body={"stage": "student"})).status == 403
        assert (await door.post(body={"index": 7})).status == 204
        assert (await door.post(body={"index": 8})).status == 204
        assert door.board.stage_progress(UID)["answers"].total == GOOD["total"]

    at_the_door(test)


def test_a_job_that_is_gone_is_not_found() -> None:
    async def test(door: Door) -> None:
        del door.world.objects["DistillationJob", "team-a", "tutor"]
        assert (await door.post()).status == 404

    at_the_door(test)


def _tokens_of_another_job() -> World:
    other = token(audience=[names.audience(OTHER_UID)])
    return World(reviews={other: accepted(audiences=[names.audience(OTHER_UID)])})


def test_a_token_for_another_jobs_uid_is_refused() -> None:
    async def test(door: Door) -> None:
        assert (await door.post(token(audience=[names.audience(OTHER_UID)]))).status == 403

    at_the_door(test, _tokens_of_another_job())


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_large_body_is_refused_before_anyone_is_asked(declared: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(BODY_BYTES + 1):
            yield b" "

    async def test(door: Door) -> None:
        headers = {"Authorization": f"Bearer {token()}"}
        data = b" " * (BODY_BYTES + 1) if declared else pieces()
        answer = await door.client.post("/v1/progress/team-a/tutor", data=data, headers=headers)
        assert answer.status == 413
        assert not door.world.asked

    at_the_door(test)


def test_a_body_that_is_announced_too_large_is_not_waited_for() -> None:
    async def test(door: Door) -> None:
        head = "POST /v1/progress/team-a/tutor HTTP/1.1\r\nHost: operator\r\n"
        head += f"Authorization: Bearer {token()}\r\nContent-Length: 1000000000\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", door.client.port)
        writer.write(head.encode())
        assert (await reader.readline()).split()[1] == b"413"
        writer.close()

    at_the_door(test, limits=Limits(pod=WIDE, address=WIDE, unverified=WIDE, body_seconds=0.05))


def test_a_body_as_large_as_allowed_is_taken() -> None:
    async def test(door: Door) -> None:
        body = json.dumps(GOOD).encode()
        assert (await door.post(body=body + b" " * (BODY_BYTES - len(body)))).status == 204

    at_the_door(test)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async def test(door: Door) -> None:
        headers = {"Authorization": f"Bearer {token()}"}
        answer = await door.client.post("/v1/progress/team-a/tutor", data=pieces(), headers=headers)
        assert answer.status == 408

    at_the_door(test, limits=Limits(pod=WIDE, address=WIDE, unverified=WIDE, body_seconds=0.05))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"\xff",
        b"[" * 4000,
        {"completed": -1},
        {"completed": 2**60},
        {"total": "many"},
        {"loss": float("nan")},
        {"tokens_per_second": float("inf")},
        {"unit": "u" * 65},
        {"stage": ""},
        {"stage": "x" * 17},
    ],
)
def test_a_body_that_says_nothing_sensible_is_refused(body: Any) -> None:
    async def test(door: Door) -> None:
        assert (await door.post(body=body)).status == 400
        assert len(door.board) == 0

    at_the_door(test)


def test_what_a_newer_runtime_adds_is_passed_over() -> None:
    async def test(door: Door) -> None:
        assert (await door.post(body={"temperature": 40})).status == 204

    at_the_door(test)


def test_every_field_that_the_runtime_posts_is_known_here() -> None:
    assert set(asdict(Progress("s", 0, 0, 0, ""))) - {"message"} == set(Report.model_fields)


def test_a_pod_that_posts_too_often_is_told_when_to_come_back() -> None:
    async def test(door: Door) -> None:
        answers = [await door.post() for _ in range(4)]
        assert [answer.status for answer in answers] == [204, 204, 429, 429]
        assert answers[-1].headers["Retry-After"] == "10"
        door.clock.now += 10
        assert (await door.post()).status == 204

    at_the_door(test, limits=Limits(pod=Rate(per_second=0.1, burst=2), address=WIDE, unverified=WIDE))


@pytest.mark.parametrize("which", ["address", "unverified"])
def test_a_flood_of_forged_tokens_is_cut_off_and_known_pods_go_on(which: str) -> None:
    narrow: dict[str, Any] = {"pod": WIDE, "address": WIDE, "unverified": WIDE, which: Rate(per_second=0.1, burst=5)}

    async def test(door: Door) -> None:
        assert (await door.post()).status == 204
        door.world.asked.clear()
        statuses = [(await door.post(token(salt=str(number)))).status for number in range(50)]
        assert statuses == [401] * 4 + [429] * 46
        assert len(door.world.asked) == 4
        assert (await door.post()).status == 204

    at_the_door(test, limits=Limits(**narrow))


def test_only_so_many_tokens_are_examined_at_once() -> None:
    async def test(door: Door) -> None:
        door.world.gate = asyncio.Event()
        held = [asyncio.ensure_future(door.post(token(salt=str(number)))) for number in range(2)]
        while len(door.world.asked) < 2:
            await asyncio.sleep(0)
        assert (await door.post()).status == 429
        door.world.gate.set()
        assert {answer.status for answer in await asyncio.gather(*held)} == {401}
        assert (await door.post()).status == 204

    at_the_door(test, limits=Limits(pod=WIDE, address=WIDE, unverified=WIDE, examined_at_once=2))


def test_only_so_many_posts_are_open_at_once() -> None:
    async def test(door: Door) -> None:
        door.world.gate = asyncio.Event()
        held = asyncio.ensure_future(door.post())
        while not door.world.asked:
            await asyncio.sleep(0)
        answer = await door.post()
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) > 0
        door.world.gate.set()
        assert (await held).status == 204
        assert (await door.post()).status == 204

    at_the_door(test, limits=Limits(pod=WIDE, address=WIDE, unverified=WIDE, open_at_once=1))


@pytest.mark.parametrize("error", [ServerError(500, "", "down"), Unreachable(0, "", "down")])
def test_an_api_server_that_is_down_is_no_verdict(error: Exception) -> None:
    async def test(door: Door) -> None:
        door.world.broken = error
        answer = await door.post()
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "10"
        door.world.broken = None
        assert (await door.post()).status == 204

    at_the_door(test)


def test_an_api_server_that_hangs_is_not_waited_for() -> None:
    async def test(door: Door) -> None:
        door.world.gate = asyncio.Event()
        assert (await door.post()).status == 503

    at_the_door(test, limits=Limits(pod=WIDE, address=WIDE, unverified=WIDE, api_seconds=0.05))


def test_posts_are_counted_by_how_they_were_answered() -> None:
    def count(outcome: str) -> float:
        return metrics.REGISTRY.get_sample_value("kubedistill_progress_posts_total", {"outcome": outcome}) or 0.0

    async def test(door: Door) -> None:
        before = {outcome: count(outcome) for outcome in metrics.PostOutcome}
        await door.post()
        await door.post("garbage")
        await door.post(body=b" " * (BODY_BYTES + 1))
        await door.post(body=b"{")
        await door.post(path="/v1/progress/team-a/other")
        added = {str(outcome): count(outcome) - was for outcome, was in before.items() if count(outcome) != was}
        assert added == dict.fromkeys(("Accepted", "Unauthenticated", "TooLarge", "Malformed", "Forbidden"), 1.0)

    at_the_door(test)


def test_a_verdict_names_the_pod_and_keeps_no_token() -> None:
    async def main() -> None:
        kept = verdicts.Verdicts(Clock(), most=3)
        for number in range(9):
            bearer = token(salt=str(number))

            async def ask() -> verdicts.Verdict:
                return verdicts.Sender("n", "j", UID, POD_UID, "workers", "s", 1, 0)

            await kept.examine(verdicts.digest(bearer), ask)
            assert bearer not in repr(vars(kept))
        assert len(kept) == 3

    asyncio.run(main())
