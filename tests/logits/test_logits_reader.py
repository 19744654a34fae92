"""Rows are found by key over many shards, whatever their order and size, in flat memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from logits.examples import planes

from kd_runtime.api.failures import DataError
from kd_runtime.logits.planes import Planes
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.shard import write_shard
from kd_runtime.logits.spec import ShardSpec

SPEC = ShardSpec("Exact", 4, vocab=151_665)


def written(folder: Path, parts: list[Planes]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.safetensors" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        write_shard(path, part, part.spec, {"tokenizer": "abc"})
    return paths


def test_targets_are_bit_identical_under_any_order_and_size_of_shards(tmp_path: Path) -> None:
    whole = planes(SPEC, tuple(range(1, 40)))
    order = np.random.default_rng(1).permutation(39)
    one = LogitsReader(written(tmp_path / "one", [whole]), SPEC)
    many = LogitsReader(written(tmp_path / "many", [whole.select(part) for part in np.array_split(order, 9)]), SPEC)
    assert len(one) == len(many) == 39
    assert list(one.keys()) == list(many.keys()) == sorted(whole.keys())
    for number, key in enumerate(whole.keys()):
        for name, value in vars(whole.row(number)).items():
            np.testing.assert_array_equal(getattr(one.get(key), name), value)
            np.testing.assert_array_equal(getattr(many.get(key.hex()), name), value)


def test_keys_with_zeros_at_their_end_are_told_apart(tmp_path: Path) -> None:
    whole = planes(SPEC, (5, 6, 7))
    keys = np.zeros((3, 16), np.uint8)
    keys[1, 0], keys[2, 15] = 1, 1
    reader = LogitsReader(written(tmp_path, [Planes(SPEC, dict(whole.arrays) | {"key": keys})]), SPEC)
    assert [len(reader.get(key.tobytes()).input_ids) for key in keys] == [5, 6, 7]


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    reader = LogitsReader(written(tmp_path, [planes(SPEC)]), SPEC)
    assert not reader.has(b"x" * 16)
    with pytest.raises(DataError, match="row " + (b"x" * 16).hex() + " is missing from 1 shards"):
        reader.get(b"x" * 16)


def test_more_shards_than_may_be_open_at_a_time(tmp_path: Path) -> None:
    whole = planes(SPEC, tuple(range(3, 15)))
    reader = LogitsReader(written(tmp_path, [whole.select([row]) for row in range(12)]), SPEC, open_limit=2)
    for _ in range(2):
        assert [len(reader.get(key).input_ids) for key in whole.keys()] == list(range(3, 15))  # noqa: SIM118


def test_a_set_without_shards_is_empty(tmp_path: Path) -> None:
    assert len(LogitsReader([], SPEC)) == 0
    assert not LogitsReader([], SPEC).has(b"x" * 16)


def test_foreign_and_damaged_shards_are_refused_at_the_start(tmp_path: Path) -> None:
    paths = written(tmp_path, [planes(SPEC)])
    with pytest.raises(DataError, match="k is 4, 8 is expected"):
        LogitsReader(paths, ShardSpec("Exact", 8, vocab=151_665))
    with pytest.raises(DataError, match="tokenizer is abc, xyz is expected"):
        LogitsReader(paths, SPEC, pins={"tokenizer": "xyz"})
    data = bytearray(paths[0].read_bytes())
    data[-1] ^= 1
    paths[0].write_bytes(data)
    with pytest.raises(DataError, match="CRC32C"):
        LogitsReader(paths, SPEC)


def test_profile_label_has_no_head(tmp_path: Path) -> None:
    spec = ShardSpec("Label", 0, vocab=151_665)
    whole = planes(spec)
    reader = LogitsReader(written(tmp_path, [whole]), spec)
    targets = reader.get(next(whole.keys()))
    assert targets.top_ids is None and targets.top_lp is None and targets.tail_lp is None
    assert len(targets.lab_lp) == len(targets.positions)


GROWTH = """
import sys, numpy as np
from pathlib import Path
from kd_runtime.logits.packs import packed
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.spec import ShardSpec

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

spec = ShardSpec("Compact", 32, vocab=151_665)
paths = sorted(Path(sys.argv[1]).iterdir())
def read(paths, count):
    reader = LogitsReader(paths, spec)
    keys = np.frombuffer(b"".join(reader.keys()), np.uint8).reshape(-1, 16)
    for at in np.random.default_rng(0).integers(0, len(keys), count):
        reader.get(keys[at].tobytes())
    return len(reader)
read(paths[:1], 100)
before = anonymous()
rows = read(packed(paths, Path(sys.argv[2])) if sys.argv[2] else paths, 4000)
print(rows, anonymous() - before)
"""


@pytest.mark.runtime
@pytest.mark.parametrize("packs", [False, True])
def test_memory_is_flat_while_the_set_grows_a_hundredfold(packs: bool, tmp_path: Path) -> None:
    """RssAnon of a process that reads 4,000 rows at random, of sets of 1 and of 100 units (25,600 rows)."""
    spec = ShardSpec("Compact", 32, vocab=151_665)
    unit = planes(spec, (120,) * 256)
    grown = {}
    for units in (1, 100):
        folder = tmp_path / str(units)
        folder.mkdir()
        for number in range(units):
            keys = np.random.default_rng(number).integers(0, 256, (256, 16)).astype(np.uint8)
            write_shard(folder / f"{number:03}.safetensors", Planes(spec, {**unit.arrays, "key": keys}), spec)
        target = str(tmp_path / f"packs-{units}") if packs else ""
        ran = subprocess.run(
            [sys.executable, "-c", GROWTH, str(folder), target], capture_output=True, text=True, check=True, timeout=300
        )
        rows, grown[units] = (int(n) for n in ran.stdout.split())
        assert rows == 256 * units
    print({units: f"{growth / 2**20:.1f} MiB" for units, growth in grown.items()})
    assert grown[100] - grown[1] < 8 << 20
