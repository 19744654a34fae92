"""The score request: what is encoded is decoded, and what is malformed is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_runtime.logits.spec import ShardSpec
from kd_runtime.teachers.wire import BadRequest, ScoreRequest, ScoreRow, decode_request, encode_request

SPEC = ShardSpec("Exact", 8, vocab=100)


@st.composite
def score_rows(draw: st.DrawFn) -> tuple[ScoreRow, ...]:
    made = []
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(2, 40))
        ids = np.array(draw(st.lists(st.integers(0, 99), min_size=count, max_size=count)), np.uint32)
        scored = np.array([False, *draw(st.lists(st.booleans(), min_size=count - 1, max_size=count - 1))])
        scored[-1] = True
        made.append(ScoreRow(number.to_bytes(16, "big"), ids, scored))
    return tuple(made)


@given(score_rows(), st.sampled_from([SPEC, ShardSpec("Label", 0, vocab=100)]), st.none() | st.just("a" * 64))
def test_a_request_survives_the_wire(rows: tuple[ScoreRow, ...], spec: ShardSpec, teacher: str | None) -> None:
    request = ScoreRequest(rows, spec, seed=5, teacher_key=teacher, tokenizer=teacher and "c" * 64)
    read = decode_request(encode_request(request))
    assert (read.spec, read.seed, read.teacher_key, read.tokenizer) == (spec, 5, teacher, request.tokenizer)
    for ours, theirs in zip(rows, read.rows, strict=True):
        assert ours.key == theirs.key
        assert np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.scored, theirs.scored)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_request(body)


@given(score_rows(), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(rows: tuple[ScoreRow, ...], at: int, value: int) -> None:
    body = bytearray(encode_request(ScoreRequest(rows, SPEC)))
    body[at % len(body)] = value
    try:
        decode_request(bytes(body))
    except BadRequest:
        return


def row(ids: list[int], scored: list[int], key: int = 0) -> ScoreRow:
    mask = np.zeros(len(ids), np.bool_)
    mask[scored] = True
    return ScoreRow(bytes([key]) * 16, np.array(ids, np.uint32), mask)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row([1, 2], [0, 1])], "token 0"),
        ([row([1, 2], [])], "nothing is scored"),
        ([row([1, 100], [1])], "id 100 is outside the vocabulary of 100"),
        ([row([1, 2], [1]), row([1, 2], [1])], "same key"),
    ],
)
def test_what_no_teacher_can_answer_is_refused(rows: list[ScoreRow], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        decode_request(encode_request(ScoreRequest(tuple(rows), SPEC)))


def test_a_profile_that_is_not_served_is_refused() -> None:
    body = encode_request(ScoreRequest((row([1, 2], [1]),), SPEC)).replace(
        b'"profile":"Exact"', b'"profile":"Exotic"'[:17]
    )
    with pytest.raises(BadRequest):
        decode_request(body)
