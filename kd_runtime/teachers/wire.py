"""The score route's request: rows of token ids with scored bitmaps, and what is asked of them, as safetensors bytes.

The answer is the planes of a logits shard (`kd_runtime.logits`): one format on the wire and in the store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from kd_runtime.api.failures import DataError, SettingsError
from kd_runtime.api.teacher import SCORE_PATH
from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.shard import planes_from_bytes, planes_to_bytes
from kd_runtime.logits.spec import ShardSpec

PATH = SCORE_PATH
MEDIA_TYPE = "application/vnd.kubedistill.planes"
KEY_BYTES = 16
SEED, TEACHER, TOKENIZER = "seed", "teacher", "tokenizer"
"""Entries of the request's metadata beside those of the spec."""


class BadRequest(ValueError):
    """The request cannot be answered, now or later; HTTP 400."""


@dataclass(frozen=True)
class ScoreRow:
    """One row: its key, N token ids, and which of them want the teacher's distribution (token 0 never does)."""

    key: bytes
    """16 bytes"""
    ids: npt.NDArray[np.uint32]
    """[N]"""
    scored: npt.NDArray[np.bool_]
    """[N]"""


@dataclass(frozen=True)
class ScoreRequest:
    """Rows to score, and how."""

    rows: tuple[ScoreRow, ...]
    spec: ShardSpec
    seed: int = 0
    """Of the tail's draws (profile Unbiased)."""
    teacher_key: str | None = None
    """The teacher that the client means to ask; a server that is another answers 409."""
    tokenizer: str | None = None
    """Digest of the tokenizer that made the ids; a server that has another, or does not know its own, answers 409."""


def warm_up(vocab: int) -> ScoreRequest:
    """What a server asks its own model before it says that it is ready; ``vocab`` as its model has it."""
    row = ScoreRow(bytes(KEY_BYTES), np.array([0, 1, 2], np.uint32), np.array([False, True, True]))
    return ScoreRequest((row,), ShardSpec("Exact", min(2, vocab), vocab=vocab))


def encode_request(request: ScoreRequest) -> bytes:
    """The body of ``POST /kd/v1/score``."""
    metadata = request.spec.metadata() | {SEED: str(request.seed)}
    expected = {TEACHER: request.teacher_key, TOKENIZER: request.tokenizer}
    metadata |= {name: digest for name, digest in expected.items() if digest is not None}
    lengths = [len(row.ids) for row in request.rows]
    planes = {
        "key": np.frombuffer(b"".join(row.key for row in request.rows), np.uint8).reshape(-1, KEY_BYTES),
        "row_ptr": np.cumsum([0, *lengths]).astype(np.uint32),
        "input_ids": np.concatenate([row.ids for row in request.rows]).astype(np.uint32),
        "scored": np.concatenate([np.packbits(row.scored, bitorder="little") for row in request.rows]),
    }
    return bytes(safetensors.numpy.save(planes, metadata=metadata))


def decode_request(body: bytes) -> ScoreRequest:
    """The request that ``body`` holds.

    Raises:
        BadRequest: it is malformed, or asks for what no teacher can answer.
    """
    try:
        planes = safetensors.numpy.load(body)
        metadata = _metadata(body)
        request = ScoreRequest(
            rows=_rows(planes["key"], planes["row_ptr"], planes["input_ids"], planes["scored"]),
            spec=ShardSpec.of_metadata(metadata),
            seed=int(metadata.get(SEED, "0")),
            teacher_key=metadata.get(TEACHER),
            tokenizer=metadata.get(TOKENIZER),
        )
    except SettingsError as error:
        raise BadRequest(str(error)) from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, safetensors.SafetensorError) as error:
        raise BadRequest(f"the body is no score request ({type(error).__name__}: {error})") from error
    _check(request)
    return request


def read_answer(body: bytes, request: ScoreRequest) -> Planes:
    """The planes that a teacher answered.

    Raises:
        DataError: they are malformed, hold NaN, or are about other rows than were asked.
    """
    planes = planes_from_bytes(body, expect=request.spec)
    if list(planes.keys()) != [row.key for row in request.rows]:
        raise DataError("the teacher answered other rows than were asked")
    if not np.array_equal(planes["input_ids"], np.concatenate([row.ids for row in request.rows])):
        raise DataError("the teacher scored other token ids than were asked")
    return planes


def encode_answer(rows: Sequence[TeacherRow], request: ScoreRequest) -> bytes:
    """The body of an answer."""
    return planes_to_bytes(build_planes(request.spec, rows))


def _metadata(body: bytes) -> dict[str, str]:
    size = int.from_bytes(body[:8], "little")
    return dict(json.loads(body[8 : 8 + size])["__metadata__"])


def _rows(
    keys: npt.NDArray[np.uint8],
    row_ptr: npt.NDArray[np.uint32],
    ids: npt.NDArray[np.uint32],
    packed: npt.NDArray[np.uint8],
) -> tuple[ScoreRow, ...]:
    starts = row_ptr.astype(np.int64)
    if starts[0] != 0 or starts[-1] != len(ids) or (np.diff(starts) < 1).any():
        raise ValueError("row_ptr does not cut input_ids into rows of at least one token")
    if keys.shape != (len(starts) - 1, KEY_BYTES) or keys.dtype != np.uint8:
        raise ValueError(f"key has the shape {keys.shape}, {(len(starts) - 1, KEY_BYTES)} is expected")
    rows, at = [], 0
    for key, start, stop in zip(keys, starts[:-1], starts[1:], strict=True):
        count = int(stop - start)
        end = at + (count + 7) // 8
        if end > len(packed):
            raise ValueError("scored is too short")
        bits = np.unpackbits(packed[at:end], count=count, bitorder="little").astype(np.bool_)
        rows.append(ScoreRow(key.tobytes(), ids[start:stop].astype(np.uint32), bits))
        at = end
    return tuple(rows)


def _check(request: ScoreRequest) -> None:
    if not request.rows:
        raise BadRequest("there are no rows")
    if len({row.key for row in request.rows}) != len(request.rows):
        raise BadRequest("two rows have the same key; equal rows are asked once")
    for row in request.rows:
        name = row.key.hex()
        if row.scored[0]:
            raise BadRequest(f"row {name}: token 0 has no prediction and cannot be scored")
        if not row.scored.any():
            raise BadRequest(f"row {name}: nothing is scored")
        if int(row.ids.max()) >= request.spec.vocab:
            raise BadRequest(f"row {name}: id {int(row.ids.max())} is outside the vocabulary of {request.spec.vocab}")
