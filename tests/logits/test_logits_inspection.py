"""What the tools say of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from logits.examples import planes

from kd_runtime.logits.build import TeacherRow, build_planes
from kd_runtime.logits.inspection import inspect, stats, verify
from kd_runtime.logits.shard import write_shard
from kd_runtime.logits.spec import ShardSpec

SPEC = ShardSpec("Exact", 2, vocab=100)


def known(path: Path) -> Path:
    row = TeacherRow(
        key=bytes(16),
        input_ids=np.array([1, 2, 3]),
        scored=np.array([False, True, True]),
        lab_lp=np.log([0.5, 0.125]),
        lab_rank=np.array([1, 5]),
        top_ids=np.array([[2, 7], [8, 9]]),
        top_lp=np.log([[0.5, 0.25], [0.5, 0.5]]),
    )
    write_shard(path, build_planes(SPEC, [row]), SPEC, {"engine": "VLLM"})
    return path


def test_inspect_names_sizes_and_planes(tmp_path: Path) -> None:
    info = inspect(known(tmp_path / "a"))
    assert (info.rows, info.tokens, info.positions, info.spec) == (1, 3, 2, SPEC)
    assert info.metadata == {"engine": "VLLM"}
    assert info.bytes_per_position == 2 * 2 + 2 * 2 + 2 + 2 + 2
    assert info.file_bytes_per_position == info.bytes / 2
    assert [plane.name for plane in info.planes][-2:] == ["lab_lp", "lab_rank"]
    assert next(plane for plane in info.planes if plane.name == "top_lp").shape == (2, 2)


def test_stats_are_means_over_positions(tmp_path: Path) -> None:
    found = stats([known(tmp_path / "a")])
    assert (found.shards, found.rows, found.tokens, found.positions) == (1, 1, 3, 2)
    assert found.label_perplexity == pytest.approx(4, rel=1e-3)
    assert found.label_top1 == 0.5
    assert found.label_in_head == 0.5
    assert found.head_mass == pytest.approx(0.875, abs=1e-3)
    assert found.low_head_mass
    assert found.defect is not None and found.defect < 1e-3


def test_stats_of_profile_label_have_no_head(tmp_path: Path) -> None:
    spec = ShardSpec("Label", 0, vocab=100)
    write_shard(tmp_path / "a", planes(spec), spec)
    found = stats([tmp_path / "a"])
    assert found.head_mass is None and found.label_in_head is None and not found.low_head_mass


def test_verify_says_which_file_is_damaged(tmp_path: Path) -> None:
    good, bad = known(tmp_path / "good"), known(tmp_path / "bad")
    bad.write_bytes(bad.read_bytes()[:-1] + b"\xff")
    first, second = verify([good, bad])
    assert first.sound and not second.sound
    assert "plane scored has CRC32C" in second.problems[0]
