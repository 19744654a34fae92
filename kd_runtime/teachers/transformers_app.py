"""The HTTP face of the Transformers engine: OpenAI's routes that the client uses, /tokenize and the score route."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kd_runtime.logits.build import TeacherRow
from kd_runtime.teachers import wire
from kd_runtime.teachers.guard import Guard, Identity, error_body
from kd_runtime.teachers.transformers_engine import Ask, Completion, Gone, TransformersEngine

T = TypeVar("T")
Wanted = Callable[[], bool]
CLIENT_CLOSED = 499


class SamplingRequest(BaseModel):
    """What both completion routes take. What is not honoured is refused, unless it is at its neutral value."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Literal[1] = 1
    stream: Literal[False] | None = False
    logprobs: Literal[False, 0] | None = None
    frequency_penalty: Literal[0] | None = 0
    presence_penalty: Literal[0] | None = 0

    def ask(self, ids: list[int], room: int) -> Ask:
        """The engine's form."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        most = self.max_completion_tokens or self.max_tokens or max(room, 1)
        seed = self.seed if self.seed is not None else uuid.uuid4().int & (2**63 - 1)
        return Ask(ids, most, self.temperature, self.top_p, tuple(s for s in stops if s), seed)


class ChatRequest(SamplingRequest):
    """``POST /v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1)


class CompletionRequest(SamplingRequest):
    """``POST /v1/completions``: one text, or one list of ids."""

    prompt: str | list[int]


class TokenizeRequest(BaseModel):
    """``POST /tokenize``, as vLLM has it: a text, or messages."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class TransformersApp:
    """The routes over one engine, whose work is done by one thread, a request at a time."""

    def __init__(self, engine: TransformersEngine, served_name: str, identity: Identity) -> None:
        self._engine, self._name, self._identity = engine, served_name, identity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._created = int(time.time())

    def asgi(self, api_key: str | None) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route(wire.PATH, self.score, methods=["POST"]),
            Route(wire.PATH, self.who, methods=["GET"]),
        ]
        middleware = [Middleware(Guard, key=api_key)] if api_key else []
        handlers: dict[Any, Any] = {
            wire.BadRequest: _bad_request,
            ValidationError: _bad_request,
            UnknownModel: _unknown_model,
            Gone: _gone,
        }
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    async def health(self, request: Request) -> Response:
        """200: the process serves only after the model has scored a prompt."""
        return Response()

    async def models(self, request: Request) -> Response:
        """The one model, as vLLM lists it."""
        model = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "kubedistill",
            "max_model_len": self._engine.max_model_len,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        asked = await self._parse(request, ChatRequest)
        ids = self._engine.render(asked.messages)
        done = await self._complete(request, asked, ids)
        message = {"role": "assistant", "content": done.text}
        choice = {"index": 0, "message": message, "finish_reason": done.finish_reason}
        return self._completion("chat.completion", "chatcmpl", choice, done)

    async def completions(self, request: Request) -> Response:
        """A text completion."""
        asked = await self._parse(request, CompletionRequest)
        ids = self._engine.tokenize(asked.prompt) if isinstance(asked.prompt, str) else asked.prompt
        done = await self._complete(request, asked, ids)
        choice = {"index": 0, "text": done.text, "finish_reason": done.finish_reason}
        return self._completion("text_completion", "cmpl", choice, done)

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text or of messages."""
        asked = await self._parse(request, TokenizeRequest)
        if asked.messages is not None:
            ids = self._engine.render(asked.messages, asked.add_generation_prompt)
        elif asked.prompt is not None:
            ids = self._engine.tokenize(asked.prompt, asked.add_special_tokens)
        else:
            raise wire.BadRequest("neither messages nor prompt is given")
        return JSONResponse({"count": len(ids), "max_model_len": self._engine.max_model_len, "tokens": ids})

    async def score(self, request: Request) -> Response:
        """The distributions at the scored positions of some rows, as planes."""
        asked = wire.decode_request(await request.body())
        if (refusal := self._identity.refusal(asked.teacher_key, asked.tokenizer)) is not None:
            return refusal
        rows = await self._alone(request, lambda wanted: self._score(asked, wanted))
        return Response(await asyncio.to_thread(wire.encode_answer, rows, asked), media_type=wire.MEDIA_TYPE)

    async def who(self, request: Request) -> Response:
        """Which tokenizer this teacher has: what a plan asks before anything is scored."""
        return JSONResponse(self._identity.said())

    def warm_up(self) -> None:
        """Score a prompt: what must have worked before /health may say so."""
        asked = wire.warm_up(self._engine.vocab)
        wire.encode_answer(self._score(asked, lambda: True), asked)

    def _score(self, asked: wire.ScoreRequest, wanted: Wanted) -> list[TeacherRow]:
        return [self._engine.score(row, asked.spec, asked.seed, wanted) for row in asked.rows]

    async def _complete(self, request: Request, asked: SamplingRequest, ids: list[int]) -> Completion:
        ask = asked.ask(ids, self._engine.max_model_len - len(ids))
        return await self._alone(request, lambda wanted: self._engine.complete(ask, wanted))

    async def _alone(self, request: Request, work: Callable[[Wanted], T]) -> T:
        """Do ``work`` when its turn comes, unless the client goes away (Gone)."""
        gone = threading.Event()

        def turn() -> T:
            if gone.is_set():
                raise Gone
            return work(lambda: not gone.is_set())

        working = asyncio.get_running_loop().run_in_executor(self._thread, turn)
        watching = asyncio.ensure_future(_disconnected(request))
        both: set[asyncio.Future[Any]] = {working, watching}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                gone.set()
            return await working
        finally:
            gone.set()
            watching.cancel()

    async def _parse(self, request: Request, kind: type[Parsed]) -> Parsed:
        parsed = kind.model_validate_json(await request.body())
        if parsed.model is not None and parsed.model != self._name:
            raise UnknownModel(f"the model {parsed.model!r} is not served here; {self._name!r} is")
        return parsed

    def _completion(self, kind: str, prefix: str, choice: dict[str, Any], done: Completion) -> Response:
        usage = {
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "total_tokens": done.prompt_tokens + done.completion_tokens,
        }
        return JSONResponse(
            {
                "id": f"{prefix}-{uuid.uuid4().hex}",
                "object": kind,
                "created": int(time.time()),
                "model": self._name,
                "choices": [choice],
                "usage": usage,
            }
        )


Parsed = TypeVar("Parsed", ChatRequest, CompletionRequest, TokenizeRequest)


class UnknownModel(Exception):
    """Another model is asked for than is served; HTTP 404."""


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _bad_request(request: Request, error: Exception) -> Response:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        message = str(error)
    return JSONResponse(error_body(message, "BadRequestError", 400), 400)


def _unknown_model(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), "NotFoundError", 404), 404)


def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)
