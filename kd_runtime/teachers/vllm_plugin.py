"""The score route inside vLLM's own server: entry point group ``vllm.endpoint_plugins``, if VLLM_PLUGINS names it.

vLLM is not patched but for one override, pinned to the version: requests that carry a mark keep the tensors of their
prompt logprobs, where vLLM would build a Python object for each entry of each token (measured: 229 us of the API
process a token, against 5).
"""

from __future__ import annotations

import asyncio
import os
import uuid
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from kd_runtime.logits.build import TeacherRow
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers import wire
from kd_runtime.teachers.guard import Guard, Identity
from kd_runtime.teachers.vllm_command import API_KEY_VARIABLE, IDENTITY_VARIABLE, TOKENIZER_VARIABLE

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

VERSION = "0.32."
MARK = "kd_planes"
"""In SamplingParams.extra_args of requests that keep their tensors; all others are as stock."""
SPARE_ENTRIES = 8
"""Asked beyond K where the model's output layer is padded beyond the vocabulary: padded ids leave the head."""


class Score:
    """vLLM's endpoint plugin."""

    name, required_tasks = "kd_score", ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and the guard of all routes but /health."""
        from vllm.entrypoints.serve.utils.api_utils import with_cancellation

        cancellable = with_cancellation(score)  # a client that goes away takes its rows out of the engine

        identity = Identity(os.environ.get(IDENTITY_VARIABLE), os.environ.get(TOKENIZER_VARIABLE))

        @app.get(wire.PATH)
        async def who() -> Response:
            return JSONResponse(identity.said())

        @app.post(wire.PATH)
        async def route(raw_request: Request) -> Response:
            body = await raw_request.body()  # read first: the wrapper eats what comes later
            try:
                asked = wire.decode_request(body)
            except wire.BadRequest as error:
                raise HTTPException(400, str(error)) from error
            refusal = identity.refusal(asked.teacher_key, asked.tokenizer)
            return refusal or await cancellable(asked, raw_request)

        if key := os.environ.get(API_KEY_VARIABLE):
            app.add_middleware(Guard, key=key)

    async def init_state(self, engine_client: EngineClient, state: Any, args: Namespace) -> None:
        """Score a prompt before the server listens: /health then means that the model answers.

        The first scored prompt may compile a kernel for many seconds, or fail where no compiler is.
        """
        keep_tensors()
        await score_rows(wire.warm_up(engine_client.model_config.get_vocab_size()), engine_client)


def keep_tensors() -> None:
    """The override: RequestOutput.prompt_logprobs of marked requests becomes [None, LogprobsTensors]."""
    import vllm
    from vllm.v1.engine.logprobs import LogprobsProcessor

    if not vllm.__version__.startswith(VERSION):  # a private seam: read it again before another version is let in
        raise RuntimeError(
            f"the score route is written for vLLM {VERSION}*, not {vllm.__version__}; install that version"
        )
    stock = LogprobsProcessor.from_new_request

    def from_new_request(tokenizer: Any, request: Any) -> Any:
        processor = stock(tokenizer=tokenizer, request=request)
        if request.sampling_params and (request.sampling_params.extra_args or {}).get(MARK):
            # called once a row: the worker joins the chunks of its prefill
            processor._update_prompt_logprobs = processor.prompt_logprobs.append
        return processor

    LogprobsProcessor.from_new_request = from_new_request


async def score(asked: wire.ScoreRequest, raw_request: Request) -> Response:
    """Answer one request."""
    rows = await score_rows(asked, raw_request.app.state.engine_client)
    body = await asyncio.to_thread(wire.encode_answer, rows, asked)
    return Response(body, media_type=wire.MEDIA_TYPE)


async def score_rows(asked: wire.ScoreRequest, engine: EngineClient) -> list[TeacherRow]:
    """Ask the engine for all rows at once. A row that it refuses takes its neighbours out of the engine."""
    if asked.spec.m or asked.spec.temperatures or asked.spec.entropy:
        raise HTTPException(400, "engine VLLM sees no whole distribution: ask for no draws, temperatures or entropy")
    padded = engine.model_config.get_vocab_size() > asked.spec.vocab
    entries = min(asked.spec.k + SPARE_ENTRIES * padded, engine.model_config.max_logprobs) if asked.spec.k else 0
    if entries < asked.spec.k:
        raise HTTPException(400, f"k is {asked.spec.k}; this server was started with --max-logprobs {entries}")
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_score_row(row, entries, engine)) for row in asked.rows]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return await asyncio.to_thread(
        lambda: [teacher_row(row, task.result(), asked.spec) for row, task in zip(asked.rows, tasks, strict=True)]
    )


async def _score_row(row: wire.ScoreRow, entries: int, engine: EngineClient) -> list[Any]:
    """The LogprobsTensors of one row (none where it has but one token)."""
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling = SamplingParams(
        max_tokens=1,  # 0 is refused; one greedy token is made and thrown away
        temperature=0,
        prompt_logprobs=entries,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={MARK: True},
    )
    outputs = [o async for o in engine.generate(tokens_input(row.ids.tolist()), sampling, f"kd-{uuid.uuid4().hex}")]
    return list(outputs[-1].prompt_logprobs[1:])


def teacher_row(row: wire.ScoreRow, tensors: list[Any], spec: ShardSpec) -> TeacherRow:
    """From vLLM's tensors of a row. Entry j of them is about token j+1; column 0 is the label, the others its top."""
    wanted = row.scored[1:]
    ids, lp, rank = (np.concatenate([part[i].numpy() for part in tensors])[wanted] for i in range(3))
    label = lp[:, 0]
    if not spec.k:
        return TeacherRow(row.key, row.ids, row.scored, label, rank)
    top_ids, top_lp = without_padding(ids[:, 1:], lp[:, 1:], spec)
    return TeacherRow(row.key, row.ids, row.scored, label, exact_rank(rank, label, top_lp), top_ids, top_lp)


def without_padding(
    ids: npt.NDArray[np.int32], lp: npt.NDArray[np.float32], spec: ShardSpec
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The first K entries of each position [P, at least K] that are ids of the vocabulary."""
    real = ids < spec.vocab
    if real[:, : spec.k].all():
        return ids[:, : spec.k], lp[:, : spec.k]
    if (real.sum(1) < spec.k).any():
        raise HTTPException(400, f"the model gives padded ids among its {ids.shape[1]} likeliest; ask for a smaller k")
    first = np.argsort(~real, axis=1, kind="stable")[:, : spec.k]
    return np.take_along_axis(ids, first, 1), np.take_along_axis(lp, first, 1)


def exact_rank(
    rank: npt.NDArray[np.int64], label: npt.NDArray[np.float32], top_lp: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """vLLM's rank counts the label's equals too; inside the head, those that are greater are all in sight."""
    inside = label >= top_lp.min(1)
    return np.where(inside, 1 + (top_lp > label[:, None]).sum(1), rank)
