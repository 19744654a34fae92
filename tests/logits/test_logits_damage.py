"""Damage is found wherever it is, and what does not belong is refused with both values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logits.examples import planes

from kd_runtime.api.failures import DataError, SettingsError, StorageError
from kd_runtime.logits.shard import open_shard, planes_from_bytes, planes_to_bytes, verify_shard, write_shard
from kd_runtime.logits.spec import ShardSpec

EXACT = ShardSpec("Exact", 3, vocab=151_665)
BODY = planes_to_bytes(planes(EXACT), {"tokenizer": "abc"})


def header_length() -> int:
    return 8 + int.from_bytes(BODY[:8], "little")


@given(at=st.integers(0, len(BODY) - 1), change=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_one_changed_byte_is_detected(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.safetensors"
    path.write_bytes(BODY[:at] + bytes([BODY[at] ^ change]) + BODY[at + 1 :])
    assert verify_shard(path)
    with pytest.raises(DataError):
        open_shard(path)


def test_every_byte_of_header_and_padding_counts() -> None:
    for at in range(header_length()):
        for change in (0x01, 0x20, 0x80):
            with pytest.raises(DataError):
                planes_from_bytes(BODY[:at] + bytes([BODY[at] ^ change]) + BODY[at + 1 :])


@pytest.mark.parametrize("keep", [0, 4, 8, 100, len(BODY) - 1])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BODY[:keep])
    assert verify_shard(path)
    with pytest.raises(DataError, match=r"a\.safetensors: .*fetch or capture it again"):
        open_shard(path)


def test_a_longer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BODY + b"\0")
    assert verify_shard(path)


def test_an_absent_file_is_a_fault_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        open_shard(tmp_path / "absent")
    assert verify_shard(tmp_path / "absent")


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BODY)
    assert verify_shard(path) == []


def test_another_profile_or_size_is_refused_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BODY)
    with pytest.raises(DataError, match="k is 3, 32 is expected"):
        open_shard(path, expect=ShardSpec("Exact", 32, vocab=151_665))
    with pytest.raises(DataError, match="vocab is 151665, 49152 is expected"):
        open_shard(path, expect=ShardSpec("Exact", 3, vocab=49_152))
    with pytest.raises(DataError, match="profile is Exact, Label is expected"):
        open_shard(path, expect=ShardSpec("Label", 0, vocab=151_665))


def test_another_pin_is_refused_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(BODY)
    with pytest.raises(DataError, match="tokenizer is abc, xyz is expected"):
        open_shard(path, pins={"tokenizer": "xyz"})
    with pytest.raises(DataError, match="template is not recorded, t is expected"):
        open_shard(path, pins={"template": "t"})


def test_metadata_may_not_use_the_names_of_the_format() -> None:
    for name in ("k", "crc32c.header", "crc32c.top_lp"):
        with pytest.raises(DataError, match="is a name of the format"):
            planes_to_bytes(planes(EXACT), {name: "00000000"})


def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_shard(tmp_path / "absent" / "a.safetensors", planes(EXACT), EXACT)
    with pytest.raises(DataError, match="k is 3, 4 is expected"):
        write_shard(tmp_path / "a.safetensors", planes(EXACT), ShardSpec("Exact", 4, vocab=151_665))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "Whole", "k": 8}, r"capture\.profile: Whole"),
        ({"profile": "Exact", "k": 0}, r"capture\.topK: 0 is outside 1 to 256"),
        ({"profile": "Compact", "k": 257}, r"capture\.topK: 257"),
        ({"profile": "Label", "k": 1}, r"capture\.topK: 1 is outside 0 to 0"),
        ({"profile": "Exact", "k": 8, "m": 1}, r"capture\.tailDraws: 1 is outside 0 to 0"),
        ({"profile": "Unbiased", "k": 8, "entropy": True}, r"capture\.tailDraws: 0 is outside 1 to 255"),
        ({"profile": "Unbiased", "k": 8, "m": 2}, "keeps the entropy"),
        ({"profile": "Unbiased", "k": 8, "m": 2, "entropy": True, "temperatures": (2.0, 3.0)}, "at one temperature"),
        ({"profile": "Exact", "k": 8, "temperatures": (1.0,)}, "beside 1"),
        ({"profile": "Exact", "k": 8, "temperatures": (2.0, 0.5)}, "ascending"),
        ({"profile": "Label", "k": 0, "temperatures": (2.0,)}, "of a profile with a head"),
    ],
)
def test_what_no_shard_can_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ShardSpec(**arguments, vocab=49_152)
