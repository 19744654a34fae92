"""Each profile over the score route: what the engine sees whole it gives, the same again; vLLM's engine refuses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fastapi import HTTPException

from kd_runtime.api.data_stages import Capture
from kd_runtime.logits.shard import planes_from_bytes
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.stages.capture import spec_of
from kd_runtime.teachers import wire
from kd_runtime.teachers.guard import Identity
from kd_runtime.teachers.transformers_app import TransformersApp
from kd_runtime.teachers.transformers_engine import TransformersEngine
from kd_runtime.teachers.vllm_plugin import score_rows

WHOLE = [
    ShardSpec("Compact", 8, 0, (0.5, 2.0), 512, entropy=True),
    ShardSpec("Unbiased", 8, 4, (), 512, entropy=True),
    ShardSpec("Unbiased", 8, 4, (2.0,), 512, entropy=True),
    ShardSpec("Label", 0, vocab=512, entropy=True),
]


def asked(spec: ShardSpec, keys: tuple[int, ...] = (1, 2)) -> wire.ScoreRequest:
    ids = np.random.default_rng(0).integers(0, 512, 90).astype(np.uint32)
    return wire.ScoreRequest(tuple(wire.ScoreRow(bytes([key]) * 16, ids, np.arange(90) > 5) for key in keys), spec)


@pytest.fixture(scope="module")
def engine(tiny_models: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_models / "teacher", "float32", 512)


@pytest.mark.runtime
@pytest.mark.parametrize("spec", WHOLE, ids=str)
def test_every_profile_comes_as_sound_planes_and_the_same_again(spec: ShardSpec, engine: TransformersEngine) -> None:
    async def post(request: wire.ScoreRequest) -> bytes:
        transport = httpx.ASGITransport(TransformersApp(engine, "teacher", Identity()).asgi(None))
        async with httpx.AsyncClient(transport=transport, base_url="http://teacher") as client:
            return (await client.post(wire.PATH, content=wire.encode_request(request))).content

    first = asyncio.run(post(asked(spec)))
    assert asyncio.run(post(asked(spec))) == first
    planes = planes_from_bytes(first, expect=spec)
    alone = planes_from_bytes(asyncio.run(post(asked(spec, (2,)))), expect=spec)
    for name, array in planes.select([1]).arrays.items():
        np.testing.assert_array_equal(array, alone[name])
    lp = engine._model(torch.from_numpy(asked(spec).rows[0].ids.astype(np.int64))[None]).logits[0, 5:-1].detach()
    tempered = torch.log_softmax(lp.double() / spec.own_temperature, 1)
    entropy = -(tempered.exp() * tempered).sum(1)
    np.testing.assert_allclose(planes["ent"][:84].astype(float), entropy, rtol=2e-3)
    if spec.m:
        assert not np.array_equal(planes["rs_cnt"][:84], planes["rs_cnt"][84:])  # by the row's key


@pytest.mark.parametrize("spec", WHOLE, ids=str)
def test_vllm_refuses_what_it_does_not_see(spec: ShardSpec) -> None:
    with pytest.raises(HTTPException, match="sees no whole distribution") as refused:
        asyncio.run(score_rows(asked(spec), None))
    assert refused.value.status_code == 400


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        ({"topK": 256}, ShardSpec("Exact", 256, vocab=512)),
        ({"profile": "Compact", "topK": 8, "temperatures": [2.0, 1.0, 0.5, 2.0], "entropy": True}, WHOLE[0]),
        ({"profile": "Unbiased", "topK": 8, "tailDraws": 4}, WHOLE[1]),
        ({"profile": "Unbiased", "topK": 8, "tailDraws": 4, "temperatures": [2.0]}, WHOLE[2]),
        ({"profile": "Label", "topK": 8, "entropy": True}, WHOLE[3]),
    ],
)
def test_a_stages_settings_become_a_spec(capture: dict[str, object], expected: ShardSpec) -> None:
    body = Capture.model_validate(capture)
    assert spec_of(body, 512) == expected
