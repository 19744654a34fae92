"""The client of a teacher: chat over OpenAI's protocol and scoring over ours, with retries, outages and limits."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import httpx

from kd_runtime.api.failures import DataError, TeacherError
from kd_runtime.api.job import Sampling
from kd_runtime.logits.planes import Planes
from kd_runtime.outbound.addresses import Guard
from kd_runtime.outbound.http import guard_async_client
from kd_runtime.teachers import wire
from kd_runtime.teachers.answers import Answer, Garbled, Passing, Refused, check_status, read_chat
from kd_runtime.teachers.limits import Bucket, Clock, InFlight, Limits, Sleep

T = TypeVar("T")

BACKOFF_SECONDS = (0.5, 30.0)
CONNECT_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 2.0
"""Less than servers do (vLLM: 5): a connection that they close as it is used again would be a failed try."""
REQUEST_SECONDS = 1800.0
"""A whole request, waiting in the teacher's own queue included."""
BROKEN_TRIES = 6
GARBLED_TRIES = 4
CHARACTERS_A_TOKEN = 4
"""For the estimate that tokensPerMinute is held to before the answer says what was used."""


class TeacherClient:
    """Asks one teacher; safe for any number of tasks at once. Use as ``async with``, or call ``aclose``.

    What is passing (429, 5xx, lost connections) is tried again with jittered, growing waits. A request fails alone
    (`Refused`) where the teacher answers others meanwhile; where it answers nobody for ``outage_seconds``, all end
    with `TeacherError`. ``guard`` decides over the addresses of a URL that a user wrote.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        model: str,
        limits: Limits = Limits(),
        outage_seconds: float = 600.0,
        request_seconds: float = REQUEST_SECONDS,
        guard: Guard | None = None,
        backoff_seconds: tuple[float, float] | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        jitter: random.Random | None = None,
    ) -> None:
        self._api, self._root = addresses(url)
        self._model = model
        self._outage_seconds, self._request_seconds = outage_seconds, request_seconds
        self._backoff = backoff_seconds or BACKOFF_SECONDS
        self._clock, self._sleep = clock, sleep
        self._jitter = jitter or random.Random()
        self._requests = Bucket(limits.requests_per_minute, clock, sleep)
        self._tokens = Bucket(limits.tokens_per_minute, clock, sleep)
        self._in_flight = InFlight(limits.max_in_flight, clock, sleep)
        self._last_success = -float("inf")
        self._received = False
        """Since then a request reached the teacher that it did not answer."""
        http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(request_seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=limits.max_in_flight,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
            trust_env=not _is_local(self._root),
        )
        self._http = guard_async_client(http, guard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @property
    def in_flight_limit(self) -> int:
        """How many requests the teacher bears now."""
        return self._in_flight.limit

    async def chat(self, messages: Sequence[dict[str, str]], sampling: Sampling, seed: int) -> Answer:
        """The teacher's answer to a conversation, sampled with ``seed`` (``sampling.seed``, the stage's, is not sent).

        Raises:
            Refused: the teacher refuses this conversation, or cannot answer it while it answers others.
            TeacherError, DeniedError, SettingsError.
        """
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        estimate = sum(len(m["content"]) for m in messages) // CHARACTERS_A_TOKEN + sampling.max_tokens
        answer = await self._ask(f"{self._api}/chat/completions", read_chat, estimate, json=body)
        if answer.prompt_tokens or answer.completion_tokens:
            self._tokens.settle(answer.prompt_tokens + answer.completion_tokens - estimate)
        return answer

    async def score(self, request: wire.ScoreRequest) -> Planes:
        """The teacher's distributions at the scored positions of the rows.

        Raises:
            Refused: the teacher refuses one of the rows (ask them singly to learn which), or its answer holds NaN.
            TeacherError, DeniedError, SettingsError (another model than ``request.teacher_key`` answers).
        """
        tokens = sum(len(row.ids) for row in request.rows)
        return await self._ask(
            f"{self._root}{wire.PATH}",
            lambda response: _read_planes(response, request),
            tokens,
            content=wire.encode_request(request),
            headers={"Content-Type": wire.MEDIA_TYPE},
        )

    async def tokenize(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids that a hosted teacher makes of a conversation, with the generation prompt."""
        body = {"model": self._model, "messages": list(messages)}
        return await self._ask(f"{self._root}/tokenize", _read_tokens, 0, json=body)

    async def wait_ready(self, timeout_seconds: float, every_seconds: float = 0.25) -> None:
        """Return once /health is 200. Raises TeacherError after ``timeout_seconds``."""
        deadline = self._clock() + timeout_seconds
        said = "no answer"
        while self._clock() < deadline:
            try:
                response = await self._http.get(f"{self._root}/health", timeout=CONNECT_SECONDS)
                if response.status_code == 200:
                    return
                said = f"HTTP {response.status_code}"
            except httpx.TransportError as error:
                said = f"{type(error).__name__} {error}".strip()
            await self._sleep(every_seconds)
        raise TeacherError(
            f"teacher at {self._root}: not ready after {timeout_seconds:.0f} s ({said}); read its log, or raise "
            "startupTimeoutSeconds if its model is large"
        )

    async def _ask(self, url: str, read: Callable[[httpx.Response], T], tokens: int, **request: Any) -> T:
        """Send until ``read`` makes something of the answer, or the failure is final."""
        failures: list[Passing] = []
        first_failure = self._clock()
        while True:
            try:
                answer = await self._try(url, read, tokens, request)
            except Passing as failure:
                first_failure = first_failure if failures else self._clock()
                failures.append(failure)
                self._received = self._received or failure.fault
                self._give_up(failures, first_failure)
                await self._sleep(self._pause(len(failures), failure))
            else:
                self._last_success, self._received = self._clock(), False
                self._in_flight.succeeded()
                return answer

    async def _try(self, url: str, read: Callable[[httpx.Response], T], tokens: int, request: dict[str, Any]) -> T:
        async with self._in_flight.slot() as started:
            await self._requests.take(1)
            await self._tokens.take(tokens)
            try:
                async with asyncio.timeout(self._request_seconds):
                    response = await self._http.post(url, **request)
                check_status(response)
                return read(response)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                raise Passing(_sentence(error), answered=False) from error
            except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
                raise Passing(_sentence(error), answered=True) from error
            except Passing as failure:
                if failure.busy:
                    self._in_flight.refused(started, failure.retry_after)
                raise

    def _give_up(self, failures: list[Passing], first_failure: float) -> None:
        """Raise what the failures of one request amount to, if they are enough."""
        last = failures[-1]
        if sum(isinstance(f, Garbled) for f in failures) >= GARBLED_TRIES:
            raise Refused("BadAnswer", str(last)) from last
        others_succeed = self._last_success > first_failure
        if others_succeed and sum(f.fault for f in failures) >= BROKEN_TRIES:
            raise Refused("TeacherFailed", str(last)) from last
        silent = self._clock() - max(first_failure, self._last_success)
        if silent > self._outage_seconds + (last.retry_after or 0.0):
            error = TeacherError(
                f"teacher at {self._root}: no answer for {silent:.0f} s "
                f"(outageTimeoutSeconds {self._outage_seconds:.0f}): {last}; see whether it runs and is reachable"
            )
            error.received = self._received
            raise error from last

    def _pause(self, tries: int, failure: Passing) -> float:
        """Seconds until the next try: what the teacher asks for, and up to twice as long each time, with jitter."""
        first, longest = self._backoff
        pause = self._jitter.uniform(first / 2, min(longest, first * 2 ** min(tries - 1, 16)))
        return pause + (failure.retry_after or 0.0)


def addresses(url: str) -> tuple[str, str]:
    """The base of OpenAI's routes and the root of all others, of a server's root or of an OpenAI base URL.

    >>> addresses("http://127.0.0.1:8000")
    ('http://127.0.0.1:8000/v1', 'http://127.0.0.1:8000')
    >>> addresses("https://api.example.com/openai/v1/")
    ('https://api.example.com/openai/v1', 'https://api.example.com/openai')
    """
    base = url.rstrip("/")
    if httpx.URL(base).path in ("", "/"):
        return f"{base}/v1", base
    return base, base.removesuffix("/v1")


def _is_local(url: str) -> bool:
    """True for loopback addresses, which no proxy of the environment should be asked for."""
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_tokens(response: httpx.Response) -> list[int]:
    try:
        return [int(token) for token in response.json()["tokens"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Garbled(f"the body holds no tokens: {response.text[:200]!r}") from error


def _read_planes(response: httpx.Response, request: wire.ScoreRequest) -> Planes:
    try:
        return wire.read_answer(response.content, request)
    except DataError as error:
        raise Garbled(str(error)) from error


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()
