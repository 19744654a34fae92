"""A teacher for tests: a real HTTP server on loopback that answers chat and score requests, well or badly as a test says."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import httpx
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.shard import planes_to_bytes
from kd_runtime.teachers import wire


@dataclass(frozen=True)
class Asked:
    """One request, as the server saw it."""

    number: int
    """From 0, over all routes."""
    question: str
    """The last user turn; for score requests the first row's key."""
    body: dict[str, Any]
    keys: tuple[str, ...] = ()


Fault = Callable[[Asked], Response | None]
"""What to answer instead; None: answer well."""


@dataclass
class FaultyTeacher:
    """``with FaultyTeacher(fault) as teacher``: then ``teacher.url``, and what was asked.

    All share one server, but those that name a ``port``: they listen there from ``with`` on, and are gone after it.
    """

    fault: Fault = lambda asked: None
    finish_reason: str = "stop"
    port: int | None = None
    chats: list[Asked] = field(default_factory=list)
    scores: list[Asked] = field(default_factory=list)
    most_under_way: int = 0
    _under_way: int = 0

    def __enter__(self) -> Self:
        self._server = _shared() if self.port is None else Server(self.port)
        self._server.teacher = self
        self.url = self._server.url
        return self

    def __exit__(self, *_: object) -> None:
        if self.port is not None:
            self._server.stop()
            return
        # What was asked and given up may still lie at the server's door: it comes in before this, and to this teacher.
        httpx.get(f"{self.url}/health", timeout=30)

    def die(self) -> None:
        """Be gone in the midst of a request, of which nobody hears again; ``with`` again, and it is back at its port."""
        assert self.port is not None
        self._server.die()

    @property
    def pairs(self) -> Counter[tuple[str, int]]:
        """How often each (question, seed) was asked."""
        return Counter((asked.question, asked.body["seed"]) for asked in self.chats)

    @property
    def rows(self) -> Counter[str]:
        """How often each row was asked to be scored."""
        return Counter(key for asked in self.scores for key in asked.keys)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        question = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        asked = Asked(len(self.chats) + len(self.scores), question, body)
        self.chats.append(asked)
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            return self.fault(asked) or chat_answer(answer_to(question, body["seed"]), finish=self.finish_reason)
        finally:
            self._under_way -= 1

    async def score(self, request: Request) -> Response:
        body = await request.body()
        decoded = wire.decode_request(body)
        keys = tuple(row.key.hex() for row in decoded.rows)
        asked = Asked(
            len(self.chats) + len(self.scores),
            keys[0],
            {"teacher": decoded.teacher_key, "tokenizer": decoded.tokenizer},
            keys,
        )
        self.scores.append(asked)
        return self.fault(asked) or Response(planes_to_bytes(made_planes(decoded)), media_type=wire.MEDIA_TYPE)


class Server:
    """An HTTP server in a thread of this process."""

    teacher: FaultyTeacher

    def __init__(self, port: int = 0) -> None:
        async def chat(request: Request) -> Response:
            return await self.teacher.chat(request)

        async def score(request: Request) -> Response:
            return await self.teacher.score(request)

        routes = [
            Route("/health", lambda request: Response()),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route(wire.PATH, score, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def die(self) -> None:
        """Be gone soon; also from within a request."""
        self._server.should_exit = self._server.force_exit = True

    def stop(self) -> None:
        """Be gone, as a teacher that died."""
        self.die()
        self._thread.join()


@cache
def _shared() -> Server:
    return Server()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer_to(question: str, seed: int) -> str:
    """What the teacher says."""
    return f"The answer is {hashlib.sha256(f'{question}{seed}'.encode()).hexdigest()[:6]}."


def chat_answer(text: str | None, *, finish: str = "stop", **message: Any) -> Response:
    """A chat completion."""
    return JSONResponse(
        {
            "id": "x",
            "object": "chat.completion",
            "model": "teacher",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, **message},
                    "finish_reason": finish,
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    )


def made_planes(asked: wire.ScoreRequest) -> Planes:
    """Distributions that are drawn from each row's key alone."""
    return build_planes(asked.spec, [_made_row(row, asked) for row in asked.rows])


def _made_row(row: wire.ScoreRow, asked: wire.ScoreRequest) -> TeacherRow:
    draws = np.random.default_rng(list(row.key))
    logits = draws.normal(size=(int(row.scored.sum()), asked.spec.vocab)).astype(np.float32)
    lp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    label = np.take_along_axis(lp, row.ids[row.scored].astype(np.int64)[:, None], 1)
    rank = 1 + (lp > label).sum(1)
    if not asked.spec.k:
        return TeacherRow(row.key, row.ids, row.scored, label[:, 0], rank)
    ids = np.argsort(-lp, axis=1, kind="stable")[:, : asked.spec.k]
    return TeacherRow(row.key, row.ids, row.scored, label[:, 0], rank, ids, np.take_along_axis(lp, ids, 1))


def error(code: int, message: str = "no", **headers: str) -> Response:
    """An error of OpenAI's form."""
    return JSONResponse(
        {"error": {"message": message}}, code, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def cut_short() -> Response:
    """A body that ends before its declared length."""

    async def part() -> AsyncIterator[bytes]:
        yield b'{"choices": ['

    return StreamingResponse(part(), headers={"content-length": "4000"}, media_type="application/json")


def planes_with(asked: wire.ScoreRequest, **arrays: Any) -> bytes:
    """Planes of which some are replaced, unchecked, as a broken teacher would send them."""
    from kd_runtime.logits.container import encode

    planes = made_planes(asked)
    return b"".join(encode(Planes(planes.spec, {**planes.arrays, **arrays}), {}))
