"""What is written is what is read: files, wire form, chosen and joined rows, every width of token ids."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logits.examples import planes, teacher_row
from safetensors.numpy import load_file

from kd_runtime.api.failures import DataError
from kd_runtime.logits.build import build_planes, ordered_head
from kd_runtime.logits.packing import join_ids, split_ids
from kd_runtime.logits.planes import Planes, concatenate
from kd_runtime.logits.shard import open_shard, planes_from_bytes, planes_to_bytes, write_shard
from kd_runtime.logits.spec import ShardSpec

EXACT = ShardSpec("Exact", 4, vocab=49_152)
LABEL = ShardSpec("Label", 0, vocab=49_152)
COMPACT = ShardSpec("Compact", 4, 0, (0.5, 2.0), 49_152, entropy=True)
UNBIASED = ShardSpec("Unbiased", 4, 3, vocab=49_152, entropy=True)
VOCABULARIES = {32_000: 0, 65_536: 0, 65_537: 1, 131_072: 1, 151_665: 2, 262_144: 2, 262_400: 4, 1_048_577: 8}


def assert_equal(found: Planes, expected: Planes) -> None:
    assert found.spec == expected.spec
    assert set(found.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@st.composite
def specs(draw: st.DrawFn) -> ShardSpec:
    """Any spec there is, within small sizes."""
    profile = draw(st.sampled_from(["Exact", "Compact", "Unbiased", "Label"]))
    unbiased, label = profile == "Unbiased", profile == "Label"
    among = st.sets(st.sampled_from([0.5, 1.5, 2.0, 7.0]), max_size=0 if label else 1 if unbiased else 3)
    return ShardSpec(
        profile,
        k=0 if label else draw(st.integers(1, 40)),
        m=draw(st.integers(1, 20)) if unbiased else 0,
        temperatures=tuple(sorted(draw(among))),
        vocab=draw(st.sampled_from([*VOCABULARIES])),
        entropy=unbiased or draw(st.booleans()),
    )


@given(
    spec=specs(),
    lengths=st.lists(st.integers(1, 30), max_size=6).map(tuple),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_any_shard_survives_the_wire(spec: ShardSpec, lengths: tuple[int, ...], seed: int) -> None:
    original = planes(spec, lengths, seed)
    assert_equal(planes_from_bytes(planes_to_bytes(original), expect=original.spec), original)


@given(spec=specs(), at=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_one_changed_byte_of_any_shard_is_detected(spec: ShardSpec, at: float, change: int) -> None:
    body = bytearray(planes_to_bytes(planes(spec)))
    body[int(at * len(body))] ^= change
    with pytest.raises(DataError):
        planes_from_bytes(bytes(body))


@given(vocab=st.integers(32_000, 262_400), k=st.integers(1, 40), m=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_ids_of_every_vocabulary_survive(vocab: int, k: int, m: int, seed: int) -> None:
    spec = ShardSpec("Unbiased", k, m, vocab=vocab, entropy=True)
    row = teacher_row(spec, 12, np.random.default_rng(seed))
    assert row.top_ids is not None and row.top_lp is not None and row.draws is not None
    row.top_ids[0, 0] = (
        vocab - 1 if vocab - 1 not in row.top_ids[0] and vocab - 1 not in row.draws[0] else row.top_ids[0, 0]
    )
    built = planes_from_bytes(planes_to_bytes(build_planes(spec, [row])))
    np.testing.assert_array_equal(built.top_ids(), ordered_head(row.top_ids, row.top_lp, k)[0])
    for found, counts, drawn in zip(built.draw_ids(), built["rs_cnt"], row.draws, strict=True):
        np.testing.assert_array_equal(np.repeat(found, counts), np.sort(drawn))


def test_a_file_holds_planes_and_metadata_and_is_the_wire_form(tmp_path: Path) -> None:
    original, path = planes(EXACT), tmp_path / "a.safetensors"
    write_shard(path, original, EXACT, {"tokenizer": "abc", "engine": "VLLM"})
    with open_shard(path, expect=EXACT, pins={"tokenizer": "abc"}) as shard:
        assert_equal(shard.planes, original)
        assert shard.metadata == {"tokenizer": "abc", "engine": "VLLM"}
    assert path.read_bytes() == planes_to_bytes(original, {"engine": "VLLM", "tokenizer": "abc"})
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_an_ordinary_safetensors_file_with_aligned_planes(tmp_path: Path) -> None:
    original, path = planes(ShardSpec("Exact", 5, vocab=151_665)), tmp_path / "a.safetensors"
    write_shard(path, original, original.spec, {})
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, original[name])
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    assert all((8 + length + t["data_offsets"][0]) % (int(t["dtype"][1:]) // 8) == 0 for t in header.values())


@pytest.mark.parametrize(("vocab", "bits"), VOCABULARIES.items())
@pytest.mark.parametrize("k", [1, 3, 8, 32])
def test_high_bits_of_ids_are_packed_lowest_first(vocab: int, bits: int, k: int) -> None:
    spec = ShardSpec("Exact", k, vocab=vocab)
    assert spec.high_bits == bits
    ids = np.random.default_rng(k).integers(0, vocab, (50, k))
    ids[0], ids[1] = vocab - 1, 0
    low, high = split_ids(ids, bits)
    assert high.shape == (50, -(-bits * k // 8))
    np.testing.assert_array_equal(join_ids(low, high, bits), ids)
    if bits:
        first = high[:, 0] & ((1 << bits) - 1)
        np.testing.assert_array_equal(first, ids[:, 0] >> 16)


def test_bytes_of_a_scored_position_are_those_of_the_format() -> None:
    def of_positions(spec: ShardSpec) -> int:
        made = planes(spec, (40,))
        scored = [made[plane.name].nbytes for plane in spec.planes() if plane.axis == "position"]
        return sum(scored) // made.positions

    assert of_positions(ShardSpec("Exact", 32, vocab=151_665)) == 142
    assert of_positions(ShardSpec("Exact", 32, vocab=49_152)) == 134
    assert of_positions(LABEL) == 4
    qwen = {"vocab": 151_665}
    assert of_positions(ShardSpec("Exact", 32, **qwen, entropy=True)) == 144
    assert of_positions(ShardSpec("Compact", 32, **qwen)) == 114
    assert of_positions(ShardSpec("Compact", 32, **qwen, entropy=True)) == 116
    assert of_positions(ShardSpec("Unbiased", 16, 8, **qwen, entropy=True)) == 102
    assert of_positions(ShardSpec("Label", 0, **qwen, entropy=True)) == 6
    assert of_positions(ShardSpec("Compact", 32, 0, (0.5, 2.0), **qwen)) == 118


@pytest.mark.parametrize("spec", [EXACT, LABEL, COMPACT, UNBIASED])
def test_chosen_rows_read_as_they_did_before(spec: ShardSpec) -> None:
    original = planes(spec, (5, 17, 8, 1, 9))
    chosen = original.select([3, 0, 4])
    for row, before in enumerate([3, 0, 4]):
        found, expected = chosen.row(row), original.row(before)
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_joined_shards_are_their_rows_in_order_with_pointers_rebased() -> None:
    original = planes(EXACT, (5, 17, 8, 1, 9))
    parts = [original.select([0]), original.select([]), original.select([1, 2]), original.select([3, 4])]
    assert_equal(concatenate(parts), original)


def test_rows_with_equal_keys_are_joined_once() -> None:
    original = planes(EXACT, (5, 17, 8))
    assert_equal(concatenate([original, original.select([1])]), original)


def test_shards_of_another_spec_are_not_joined() -> None:
    with pytest.raises(DataError, match="k is 4, 8 is expected"):
        concatenate([planes(ShardSpec("Exact", 8, vocab=49_152)), planes(EXACT)])


def test_equal_planes_give_equal_bytes() -> None:
    assert planes_to_bytes(planes(EXACT), {"b": "2", "a": "1"}) == planes_to_bytes(planes(EXACT), {"a": "1", "b": "2"})
