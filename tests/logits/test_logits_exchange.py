"""Export joins shards into large files; import reads what DistillKit and EasyDistill wrote, or says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from logits.examples import planes
from pyarrow import parquet
from typer.testing import CliRunner

from kd_runtime.api.failures import DataError
from kd_runtime.artifacts.rows import Parent, Row, RowsWriter, row_key
from kd_runtime.cli.logits import app
from kd_runtime.logits.distillkit import Compression, logprobs, unpacked
from kd_runtime.logits.exchange import import_distillkit, import_easydistill
from kd_runtime.logits.packs import export, groups
from kd_runtime.logits.packs import packed as pack
from kd_runtime.logits.reader import LogitsReader
from kd_runtime.logits.shard import open_shard, verify_shard, write_shard
from kd_runtime.logits.spec import ShardSpec
from kd_runtime.planning.tokenizers import tokenizer_digest, vocabulary_size

SPEC = ShardSpec("Compact", 4, 0, (2.0,), 151_665, entropy=True)


def shards(folder: Path, count: int, **metadata: str) -> list[Path]:
    folder.mkdir()
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.safetensors")
        write_shard(
            paths[-1],
            planes(SPEC, (40, 50, 60), seed=number),
            SPEC,
            {"tokenizer": "abc", **metadata, "unit": str(number)},
        )
    return paths


def test_export_joins_shards_and_keeps_every_row_and_what_they_share(tmp_path: Path) -> None:
    paths = shards(tmp_path / "units", 9)
    size = paths[0].stat().st_size
    written = export(paths, tmp_path / "out", least=2 * size, most=4 * size)
    assert 2 <= len(written) < 9
    assert all(path.stat().st_size <= 4 * size and not verify_shard(path) for path in written)
    before, after = LogitsReader(paths, SPEC), LogitsReader(written, SPEC, pins={"tokenizer": "abc"})
    assert list(before.keys()) == list(after.keys())
    for key in before.keys():  # noqa: SIM118
        for name, value in vars(before.get(key, 2.0)).items():
            np.testing.assert_array_equal(getattr(after.get(key, 2.0), name), value)
    with open_shard(written[0]) as shard:
        assert shard.metadata == {"tokenizer": "abc"}


def test_export_wants_an_empty_folder_and_sound_shards(tmp_path: Path) -> None:
    paths = shards(tmp_path / "units", 2)
    with pytest.raises(DataError, match="export into an empty folder"):
        export(paths, tmp_path / "units")
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data)
    with pytest.raises(DataError, match="CRC32C"):
        export(paths, tmp_path / "out")
    with pytest.raises(DataError, match="no shards to export"):
        export([], tmp_path / "other")


def test_few_shards_are_read_as_they_are_and_many_are_packed(tmp_path: Path) -> None:
    paths = shards(tmp_path / "units", 5)
    assert pack(paths, tmp_path / "packs", few=5) == paths
    assert not (tmp_path / "packs").exists()
    (one,) = pack(paths, tmp_path / "packs", few=4)
    assert list(LogitsReader([one], SPEC).keys()) == list(LogitsReader(paths, SPEC).keys())


@given(sizes=st.lists(st.integers(1, 300), max_size=40))
@settings(deadline=None)
def test_groups_are_consecutive_and_within_bounds(sizes: list[int]) -> None:
    found = groups(sizes, 128, 256)
    assert [index for group in found for index in group] == list(range(len(sizes)))
    for number, group in enumerate(found):
        total = sum(sizes[index] for index in group)
        assert total <= 256 or len(group) == 1
        if number + 1 < len(found) and total < 128:
            assert total + sizes[found[number + 1][0]] > 256


# ---- other tools


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    model = {"type": "BPE", "vocab": {f"t{number}": number for number in range(40)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    return folder


def row(tokenizer: Path, ids: list[int], first: int, asked: str = "x") -> Row:
    array, scored = np.array(ids, np.uint32), np.arange(len(ids)) >= first
    messages = [{"role": "user", "content": asked}]
    return Row(
        key=row_key(tokenizer_digest(tokenizer), messages, array, scored),
        split="train",
        messages=messages,
        response="y",
        reasoning=None,
        references=None,
        input_ids=array,
        scored=scored,
        prompt_tokens=first,
        parents=(Parent("q:1", 0),),
        source="q:1",
    )


def rows_file(folder: Path, rows: list[Row]) -> list[Path]:
    writer = RowsWriter(folder)
    for one in rows:
        writer.append(one)
    return writer.close()


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Most significant bit first."""
    stream = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(stream.reshape(len(values), -1).astype(np.uint8), axis=1)


CONFIG = {"d": 300, "k": 6, "exact_k": 2, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"], "term_dtype": "float32",
          "residual_bins": [{"scale_dtype": "float16", "element_bits": 4, "num_elements": 3}], "delta_encoding": False}  # fmt: skip


def test_distillkits_compression_is_undone() -> None:
    config = Compression.model_validate(CONFIG)
    exact = np.array([[-0.5, -1.25]], np.float32)
    coefficients = np.array([[-2.0, -0.25, -0.5]], np.float32)
    scale, residuals = np.array([[0.125]], np.float16), np.array([[-8, 0, 7]])
    data = np.concatenate(
        [
            (exact.view(np.uint32) >> 16).astype("<u2").view(np.uint8),
            coefficients.view(np.uint8),
            scale.view(np.uint8),
            packed(residuals + 8, 4),
        ],
        1,
    )
    t = np.arange(4)
    fit = -2 - 0.25 * t - 0.5 * np.sqrt(t) + [-1, 0, 0.875, 0]
    np.testing.assert_allclose(logprobs(data, config), [[-0.5, -1.25, *fit]], rtol=1e-6)
    steps = Compression.model_validate({**CONFIG, "delta_encoding": True})
    np.testing.assert_allclose(logprobs(data, steps), np.cumsum([[-0.5, -1.25, *fit]], 1), rtol=1e-6)
    with pytest.raises(ValueError, match="are expected"):
        logprobs(data[:, :-1], config)


@given(bits=st.integers(1, 20), count=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_packed_integers_of_any_width(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (3, count))
    np.testing.assert_array_equal(unpacked(packed(values, bits), bits, count), values)


def distillkit_folder(folder: Path, ids: list[list[int]], top_ids: list[np.ndarray], top_lp: list[np.ndarray]) -> Path:
    folder.mkdir()
    config = {"d": 300, "k": top_ids[0].shape[1], "exact_k": top_ids[0].shape[1], "exact_dtype": "float32",
              "polynomial_terms": None, "residual_bins": [], "delta_encoding": False}  # fmt: skip
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    table = {
        "input_ids": ids,
        "compressed_logprobs": [lp.astype("<f4").view(np.uint8).tolist() for lp in top_lp],
        "bytepacked_indices": [packed(each, 9).tolist() for each in top_ids],
    }
    parquet.write_table(pa.table(table), folder / "data_0.parquet")
    return folder


def captured(tokenizer: Path, ids: list[int], k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heads for every token but the first; those of even tokens hold the token itself."""
    random, vocab = np.random.default_rng(seed), vocabulary_size(tokenizer)
    top = np.stack([random.choice([i for i in range(vocab) if i != token], k, replace=False) for token in ids[1:]])
    top[::2, 1] = ids[1::2]
    return top, np.tile(np.log([0.5, 0.2, 0.1]), (len(ids) - 1, 1))


def test_distillkits_rows_become_shards_of_all_tokens(tmp_path: Path, tokenizer: Path) -> None:
    ids = [5, 6, 7, 8, 9]
    top, lp = captured(tokenizer, ids)
    source = distillkit_folder(tmp_path / "kit", [ids, ids], [top, top], [lp, lp])
    done = import_distillkit(source, tokenizer, tmp_path / "out")
    assert (done.rows, done.positions, done.skipped) == (1, 4, 0)
    with open_shard(done.shards[0]) as shard:
        assert shard.metadata["source"] == "DistillKit"
        np.testing.assert_array_equal(shard.planes.top_ids(), top)
        np.testing.assert_allclose(np.exp(shard.planes.top_lp()), np.tile([0.5, 0.2, 0.1], (4, 1)), rtol=2e-3)
        np.testing.assert_allclose(np.exp(shard.planes["tail_lp"].astype(float)), 0.2, rtol=2e-3)
        np.testing.assert_array_equal(shard.planes["lab_rank"], [2, 4, 2, 4])
        np.testing.assert_allclose(np.exp(shard.planes["lab_lp"].astype(float)), [0.2, 0.1, 0.2, 0.1], rtol=2e-3)


def test_distillkits_rows_take_key_and_mask_of_ours(tmp_path: Path, tokenizer: Path) -> None:
    ours, padded, foreign = [5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 0], [1, 2, 3, 4]
    heads = [captured(tokenizer, ids) for ids in (padded, foreign)]
    source = distillkit_folder(tmp_path / "kit", [padded, foreign], [h[0] for h in heads], [h[1] for h in heads])
    mine = row(tokenizer, ours, 3)
    done = import_distillkit(source, tokenizer, tmp_path / "out", rows_file(tmp_path / "rows", [mine]))
    assert (done.rows, done.positions, done.skipped) == (1, 2, 1)
    spec = ShardSpec("Exact", 3, vocab=vocabulary_size(tokenizer))
    targets = LogitsReader(done.shards, spec).get(mine.key)
    np.testing.assert_array_equal(targets.positions, [3, 4])
    np.testing.assert_array_equal(targets.top_ids, heads[0][0][2:4])


def test_distillkits_row_goes_to_all_of_ours_that_have_its_tokens(tmp_path: Path, tokenizer: Path) -> None:
    """The student's template may leave out what a teacher was asked otherwise."""
    ids = [5, 2, 9, 4]
    top, lp = captured(tokenizer, ids)
    source = distillkit_folder(tmp_path / "kit", [ids], [top], [lp])
    ours = [row(tokenizer, ids, 2, asked=asked) for asked in ("x", "z")]
    done = import_distillkit(source, tokenizer, tmp_path / "out", rows_file(tmp_path / "rows", ours))
    assert done.rows == 2 and done.skipped == 0


def test_what_is_not_distillkits_is_said(tmp_path: Path, tokenizer: Path) -> None:
    ids = [5, 6, 7]
    top, lp = captured(tokenizer, ids)
    source = distillkit_folder(tmp_path / "kit", [[*ids, 8]], [top], [lp])
    with pytest.raises(DataError, match=r"data_0\.parquet:0: 4 tokens with 2 entries"):
        import_distillkit(source, tokenizer, tmp_path / "out")
    (source / "compression_config.yaml").write_text("k: 3")
    with pytest.raises(DataError, match="no compression config of DistillKit"):
        import_distillkit(source, tokenizer, tmp_path / "out")
    (source / "compression_config.yaml").unlink()
    with pytest.raises(DataError, match="No such file"):
        import_distillkit(source, tokenizer, tmp_path / "out")


def json_lines(path: Path, answers: list[list[dict[str, float]]]) -> Path:
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return path


def answer_of(ids: list[int], extra: int = 1) -> list[dict[str, float]]:
    """What EasyDistill writes of an answer: the token first, with some more after its end."""
    return [{str(token): 0.6, str(token + 1): 0.25, "0": 0.0} for token in [*ids, *[4] * extra]]


def test_easydistills_lines_join_rows_by_order(tmp_path: Path, tokenizer: Path) -> None:
    rows = [row(tokenizer, [1, 2, 5, 6], 2), row(tokenizer, [3, 7, 8, 9], 1)]
    source = json_lines(tmp_path / "logits.jsonl", [answer_of([5, 6]), answer_of([7, 8, 9])])
    done = import_easydistill(source, tokenizer, tmp_path / "out", rows_file(tmp_path / "rows", rows), top_k=2)
    assert (done.rows, done.positions) == (2, 5)
    targets = LogitsReader(done.shards, ShardSpec("Exact", 2, vocab=vocabulary_size(tokenizer))).get(rows[1].key)
    np.testing.assert_array_equal(targets.top_ids, [[7, 8], [8, 9], [9, 10]])
    assert targets.top_lp is not None and targets.tail_lp is not None
    np.testing.assert_allclose(np.exp(targets.top_lp), np.tile([0.6, 0.25], (3, 1)), rtol=2e-3)
    np.testing.assert_allclose(np.exp(targets.tail_lp), 0.15, rtol=4e-3)
    assert (targets.lab_rank == 1).all()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([[5, 6]], "fewer lines than there are rows"),
        ([[5, 6], [7, 8, 9], [1]], "more lines than there are rows"),
        ([[7, 8, 9], [5, 6]], r"logits\.jsonl:1: token 0 of the answer of row .* \(q:1\) is not among its entries"),
        ([[5, 6], [7]], r"logits\.jsonl:2: it has 2 positions, row .* has 3"),
    ],
)
def test_lines_of_other_rows_are_refused(
    answers: list[list[int]], message: str, tmp_path: Path, tokenizer: Path
) -> None:
    rows = rows_file(tmp_path / "rows", [row(tokenizer, [1, 2, 5, 6], 2), row(tokenizer, [3, 7, 8, 9], 1)])
    source = json_lines(tmp_path / "logits.jsonl", [answer_of(ids) for ids in answers])
    with pytest.raises(DataError, match=message):
        import_easydistill(source, tokenizer, tmp_path / "out", rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[1, 2]", "only EasyDistill 1.0's layout"),
        ('[{"a": 0.5, "b": 0.1}, {"1": 0.5, "2": 0.1}]', "no id or probability"),
        ('[{"5": 1.5, "2": 0.1}, {"1": 0.5, "2": 0.1}]', "outside 0 to 1"),
    ],
)
def test_what_is_not_easydistills_is_said(text: str, message: str, tmp_path: Path, tokenizer: Path) -> None:
    rows = rows_file(tmp_path / "rows", [row(tokenizer, [1, 2, 5, 6], 2)])
    (tmp_path / "logits.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        import_easydistill(tmp_path / "logits.jsonl", tokenizer, tmp_path / "out", rows, top_k=2)


def test_the_commands(tmp_path: Path, tokenizer: Path) -> None:
    def call(*arguments: Any) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    ids = [5, 6, 7, 8, 9]
    top, lp = captured(tokenizer, ids)
    source = distillkit_folder(tmp_path / "kit", [ids], [top], [lp])
    said = call("import", source, "--from", "DistillKit", "--tokenizer", tokenizer, "--to", tmp_path / "a")
    assert "1 rows, 4 scored positions in 1 shards; 0 left out" in said
    rows_file(tmp_path / "rows", [row(tokenizer, [1, 2, 5, 6], 2)])
    lines = json_lines(tmp_path / "logits.jsonl", [answer_of([5, 6])])
    options = ("--tokenizer", tokenizer, "--to", tmp_path / "b", "--rows", tmp_path / "rows")
    assert "1 rows, 2 scored positions" in call("import", lines, "--from", "EasyDistill", *options)
    assert "000000.safetensors" in call("export", tmp_path / "a", "--to", tmp_path / "c")
    assert call("verify", tmp_path / "c").startswith("1 of 1")
