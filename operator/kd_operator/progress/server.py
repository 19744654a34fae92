"""``POST /v1/progress/{namespace}/{job}``: how far a pod is, from that pod alone; every answer but 204 is one line that says why.

Whoever may connect may send anything. What is cheap to refuse is refused first, nothing is read beyond 4 KiB or waited
for beyond 5 s, and of the API server only a bounded number of questions is asked, so that a flood costs those who send it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from pydantic import ValidationError

from kd_operator import metrics
from kd_operator.cluster.errors import ApiError
from kd_operator.metrics import PostOutcome
from kd_operator.progress.board import Board
from kd_operator.progress.identity import UNAUTHENTICATED, Cluster, Refusal, Sender, claimed_job, identify
from kd_operator.progress.limits import Buckets, Rate
from kd_operator.progress.report import Report
from kd_operator.progress.verdicts import Verdicts, digest

PATH = "/v1/progress/{namespace}/{job}"
BODY_BYTES = 4096
_OUTCOMES = {401: PostOutcome.Unauthenticated, 403: PostOutcome.Forbidden, 404: PostOutcome.JobGone}


A_POD = Rate(per_second=0.5, burst=10)
AN_ADDRESS = Rate(per_second=2, burst=40)
ALL_UNKNOWN = Rate(per_second=40, burst=200)


@dataclass(frozen=True)
class Limits:
    """How much is let through."""

    pod: Rate = A_POD
    """Posts of one pod, which sends one in 10 s."""
    address: Rate = AN_ADDRESS
    """Tokens that were not seen before, of one address: one that floods leaves the others their share."""
    unverified: Rate = ALL_UNKNOWN
    """Tokens that were not seen before, of all together: each costs the API server up to four requests."""
    examined_at_once: int = 16
    open_at_once: int = 256
    """Posts that are being read or answered."""
    body_seconds: float = 5.0
    """For a body to arrive."""
    api_seconds: float = 5.0
    """For the API server's answers about one token."""


class _Refused(Exception):
    """The post is not taken."""

    def __init__(self, status: int, outcome: PostOutcome, line: str, retry_after: float = 0.0):
        super().__init__(line)
        self.status, self.outcome, self.line, self.retry_after = status, outcome, line, retry_after

    @classmethod
    def by(cls, verdict: Refusal) -> _Refused:
        return cls(verdict.status, _OUTCOMES[verdict.status], verdict.reason)


class ProgressEndpoint:
    """Takes posts and puts them on a board."""

    def __init__(
        self,
        cluster: Cluster,
        board: Board,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._cluster, self._board, self._clock = cluster, board, clock
        self._limits = limits or Limits()
        self._verdicts = Verdicts(clock)
        self._pods = Buckets(self._limits.pod, most=8192)
        self._addresses = Buckets(self._limits.address, most=4096)
        self._unverified = Buckets(self._limits.unverified)
        self._open = 0

    async def post(self, request: web.Request) -> web.Response:
        """The handler. Connections are closed: a pod comes back only in 10 s, and open ones cost memory."""
        self._open += 1
        try:
            await self._take(request)
            outcome, response = PostOutcome.Accepted, web.Response(status=204)
        except _Refused as refused:
            outcome, response = refused.outcome, web.Response(status=refused.status, text=f"{refused.line}\n")
            if refused.retry_after:
                response.headers["Retry-After"] = str(math.ceil(refused.retry_after))
            if refused.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
        finally:
            self._open -= 1
        metrics.progress_post(outcome)
        response.force_close()
        return response

    async def _take(self, request: web.Request) -> None:
        if self._open > self._limits.open_at_once:
            raise _Refused(429, PostOutcome.Throttled, "too many posts are being answered; come back later", 10.0)
        token = _bearer(request)
        if request.content_length is not None and request.content_length > BODY_BYTES:
            raise _too_large()
        key = digest(token)
        known = self._verdicts.known(key)
        if isinstance(known, Refusal):
            raise _Refused.by(known)
        if known is not None:
            self._throttle(known)
        elif not self._verdicts.examined(key):
            self._let_in(request.remote or "")
        body = await self._body(request)
        sender = known
        if sender is None:
            sender = await self._sender(key, token)
            self._throttle(sender)
        self._board.post(sender, _report(body, sender, request.match_info))

    def _throttle(self, sender: Sender) -> None:
        wait = self._pods.take(sender.pod_uid, self._clock())
        if wait:
            raise _Refused(429, PostOutcome.Throttled, "the pod posts too often; one post in 10 s is enough", wait)

    def _let_in(self, address: str) -> None:
        """Room for one more token that is not known; its sender's own share is looked at first."""
        now = self._clock()
        wait = self._addresses.take(address, now) or self._unverified.take("", now)
        if wait or self._verdicts.examinations >= self._limits.examined_at_once:
            raise _Refused(
                429, PostOutcome.Throttled, "too many unknown tokens are being examined; come back later", wait or 1.0
            )

    async def _body(self, request: web.Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > BODY_BYTES:
                        raise _too_large()
        except TimeoutError:
            line = f"the body did not arrive within {self._limits.body_seconds:g} s"
            raise _Refused(408, PostOutcome.Malformed, line) from None
        return bytes(body)

    async def _sender(self, key: str, token: str) -> Sender:
        async def ask() -> Sender | Refusal:
            async with asyncio.timeout(self._limits.api_seconds):
                return await identify(self._cluster, token)

        try:
            verdict = await self._verdicts.examine(key, ask)
        except (TimeoutError, ApiError):
            line = "the API server cannot be asked now, so that nobody is recognised; come back later"
            raise _Refused(503, PostOutcome.Unavailable, line, 10.0) from None
        if isinstance(verdict, Refusal):
            raise _Refused.by(verdict)
        return verdict


def add_routes(app: web.Application, cluster: Cluster, board: Board, limits: Limits | None = None) -> None:
    """Serve the endpoint on ``app``."""
    app.router.add_post(PATH, ProgressEndpoint(cluster, board, limits).post)


def _bearer(request: web.Request) -> str:
    """The token, if it could be one of ours: all else ends here, before anyone is asked."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or claimed_job(token) is None:
        raise _Refused.by(UNAUTHENTICATED)
    return token


def _too_large() -> _Refused:
    return _Refused(413, PostOutcome.TooLarge, f"a post has at most {BODY_BYTES} bytes")


def _report(body: bytes, sender: Sender, path: object) -> Report:
    """The post, if it is about what the pod belongs to."""
    if path != {"namespace": sender.namespace, "job": sender.job}:
        line = f"the pod belongs to job {sender.namespace}/{sender.job}, not to the one that the URL names"
        raise _Refused(403, PostOutcome.Forbidden, line)
    try:
        report = Report.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        raise _Refused(400, PostOutcome.Malformed, f"{field}: {first['msg']}") from None
    if report.stage != sender.stage:
        line = f"stage: the pod belongs to stage {sender.stage}, not to the one that it reports"
        raise _Refused(403, PostOutcome.Forbidden, line)
    return report
