"""How a local attempt may end otherwise: after timeoutSeconds, or killed without a word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from faulty_teacher import FaultyTeacher, free_port
from local.test_local_poison import CRASHING
from local.test_local_runs import Place
from starlette.responses import Response, StreamingResponse

ONCE = {"backoffLimit": 0}


def never(_: object) -> Response:
    """An answer that does not come to its end."""

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.1)

    return StreamingResponse(body(), media_type="application/json")


def test_an_attempt_that_takes_longer_than_its_timeout_is_ended(tmp_path: Path, tiny_models: Path) -> None:
    place = Place(tmp_path, tiny_models)
    with FaultyTeacher(fault=never, port=free_port()) as teacher:
        # Asked or not by then: without an answer it could not end by itself.
        stages = [{"name": "answers", "timeoutSeconds": 8, "generate": {"keepTruncated": True}}]
        external = {"external": {"baseURL": f"{teacher.url}/v1", "model": "teacher"}}
        manifest = place.write("late", stages, teacher=external, failurePolicy=ONCE)
        said = place.kd("run", str(manifest), code=75)
    assert "stage answers: ran longer than timeoutSeconds (8 s) and was ended" in said


def test_an_attempt_that_was_killed_is_not_given_an_earlier_ones_last_words(tmp_path: Path, tiny_models: Path) -> None:
    place = Place(tmp_path, tiny_models)
    stages = [{"name": "answers", "generate": {}}]
    external = {"external": {"baseURL": f"http://127.0.0.1:{free_port()}/v1", "model": "teacher"}}

    def write() -> Path:
        return place.write("killed", stages, teacher=external, failurePolicy=ONCE)

    place.questions.write_text("no JSON\n")
    with FaultyTeacher(port=int(external["external"]["baseURL"].split(":")[2].removesuffix("/v1"))):
        assert "BadJSON" in place.kd("run", str(write()), code=65)
        place.questions.write_text(json.dumps({"instruction": "Say it."}) + "\n")
        crash = {"PYTHONPATH": str(CRASHING), "KD_TEST_CRASH": "--stage dataset|questions.jsonl|1"}
        said = place.kd("run", str(write()), code=75, **crash)
    assert "stage dataset: ended by signal 9: no output" in said and "BadJSON" not in said
