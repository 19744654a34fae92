"""Rows read back as written, in the same bytes each time, a group at a time; equal rows are one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_runtime.artifacts.cache import Cache
from kd_runtime.artifacts.rejects import Reject, decode_rejects, encode_rejects, export_rejects, read_rejects, reasons
from kd_runtime.artifacts.rows import (
    MergingWriter,
    Parent,
    Row,
    RowsReader,
    RowsWriter,
    prompt_split,
    row_key,
    rows_of,
)
from kd_runtime.artifacts.store import Store
from kd_runtime.artifacts.writer import ArtifactWriter, new_writer_id

TOKENIZER = "ab" * 32


def row(number: int, *, length: int = 5, parent: str | None = None) -> Row:
    ids = np.arange(number, number + length, dtype=np.uint32)
    scored = np.arange(length) % 2 == 1
    asked = [{"role": "user", "content": f"What is {number}?"}]
    return Row(
        key=row_key(TOKENIZER, asked, ids, scored),
        split="heldOut" if number % 5 == 0 else "train",
        messages=asked,
        response=None if number % 3 == 0 else "A number. 日本\n",
        reasoning="hm" if number % 7 == 0 else None,
        references=["a", "b"] if number % 2 else None,
        input_ids=ids,
        scored=scored,
        prompt_tokens=2,
        truncated=number % 4 == 0,
        finish_reason="stop" if number % 3 else None,
        parents=(Parent(parent or f"d.jsonl:{number}", 0),),
        source=f"d.jsonl:{number}",
    )


def written(folder: Path, rows: list[Row]) -> list[Path]:
    writer = RowsWriter(folder)
    for entry in rows:
        writer.append(entry)
    return writer.close()


def plain(entry: Row) -> dict[str, object]:
    return {**entry.__dict__, "input_ids": entry.input_ids.tolist(), "scored": entry.scored.tolist()}


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 40)), max_size=600),
)
@settings(max_examples=15, deadline=None)
def test_rows_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]]) -> None:
    made = [row(number, length=length) for number, length in rows]
    reader = RowsReader(written(tmp_path_factory.mktemp("rows"), made))
    assert len(reader) == len(made)
    assert [plain(entry) for entry in reader] == [plain(entry) for entry in made]
    assert reader.lengths == [length for _, length in rows] and reader.keys == [entry.key for entry in made]
    assert all(entry.input_ids.dtype == np.uint32 and entry.scored.dtype == np.bool_ for entry in reader)


def test_files_have_groups_of_256_rows_and_at_most_8192_rows(tmp_path: Path) -> None:
    paths = written(tmp_path, [row(number) for number in range(8192 + 300)])
    assert [path.name for path in paths] == ["00000.parquet", "00001.parquet"]
    sizes = [
        [pq.read_metadata(p).row_group(g).num_rows for g in range(pq.read_metadata(p).num_row_groups)] for p in paths
    ]
    assert sizes == [[256] * 32, [256, 44]]
    reader = RowsReader(paths)
    assert [len(block) for block in reader.blocks()] == [256] * 33 + [44]
    assert [entry.source for entry in reader.rows(8190, 8194)] == [f"d.jsonl:{n}" for n in range(8190, 8194)]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 3, [0, 1, 2]), (254, 258, [254, 255, 256, 257]), (298, 900, [298, 299]), (5, 5, []), (-3, 1, [0])],
)
def test_any_slice_can_be_read(tmp_path: Path, start: int, stop: int, expected: list[int]) -> None:
    reader = RowsReader(written(tmp_path, [row(number) for number in range(300)]))
    assert [entry.source for entry in reader.rows(start, stop)] == [f"d.jsonl:{n}" for n in expected]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    bodies = [[p.read_bytes() for p in written(tmp_path / name, [row(n) for n in range(700)])] for name in "ab"]
    assert bodies[0] == bodies[1]


def test_no_rows_make_one_empty_file(tmp_path: Path) -> None:
    reader = RowsReader(written(tmp_path, []))
    assert len(reader) == 0 and list(reader) == [] and list(reader.blocks()) == [] and reader.keys == []


def test_a_reader_holds_two_groups_at_most(tmp_path: Path) -> None:
    reader = RowsReader(written(tmp_path, [row(number) for number in range(2000)]))
    for _ in reader:
        assert len(reader._cached) <= 2


def test_a_row_key_is_that_of_the_format() -> None:
    ids, scored = np.array([1, 2, 70_000], np.uint32), np.array([False, True, True])
    asked = [{"role": "user", "content": "日"}]
    digest = hashlib.blake2b(bytes.fromhex(TOKENIZER), digest_size=16)
    digest.update(hashlib.sha256('[["user","日"]]'.encode()).digest())
    digest.update(b"\1\0\0\0\2\0\0\0\x70\x11\1\0" + b"\x06")
    key = row_key(TOKENIZER, asked, ids, scored)
    assert key == digest.hexdigest() == row_key(TOKENIZER, asked, ids.astype(np.int64).astype(">u4"), scored)
    others = [("cd" * 32, asked, ids, scored), (TOKENIZER, [], ids, scored), (TOKENIZER, asked, ids, ~scored)]
    assert key not in {row_key(*other) for other in others}


def test_equal_rows_are_stored_where_they_came_first_with_all_parents(tmp_path: Path) -> None:
    writer = MergingWriter(tmp_path)
    kept = [writer.append(row(number % 270, parent=f"p{number}")) for number in range(280)]
    assert kept == [True] * 270 + [False] * 10 and writer.count == 270
    reader = RowsReader(writer.close())
    assert [entry.source for entry in reader] == [f"d.jsonl:{n}" for n in range(270)]
    assert [[p.row for p in entry.parents] for entry in reader.rows(8, 12)] == [
        ["p8", "p278"],
        ["p9", "p279"],
        ["p10"],
        ["p11"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.parquet"]


def test_equal_rows_keep_each_reference_of_all_once(tmp_path: Path) -> None:
    writer = MergingWriter(tmp_path)
    for references in (None, ["4"], ["four", "4"], None):
        writer.append(replace(row(0), references=references))
        writer.append(replace(row(1), references=None))
    merged, without = RowsReader(writer.close())
    assert merged.references == ["4", "four"] and len(merged.parents) == 4
    assert without.references is None and len(without.parents) == 4


def test_without_equal_rows_merging_changes_nothing(tmp_path: Path) -> None:
    rows = [row(number) for number in range(300)]
    writer = MergingWriter(tmp_path / "a")
    for entry in rows:
        writer.append(entry)
    assert [p.read_bytes() for p in writer.close()] == [p.read_bytes() for p in written(tmp_path / "b", rows)]


def test_the_split_is_decided_by_the_question_alone() -> None:
    def side(*turns: str, seed: int = 0, fraction: float = 0.5) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(turns[::2], turns[1::2], strict=True)]
        return prompt_split(messages, fraction, seed)

    questions = [f"What is {n}?" for n in range(1000)]
    plain = [side("user", q) for q in questions]
    assert plain == [side("system", "Be brief.", "user", f" {q}\n") for q in questions]
    assert plain != [side("user", q, seed=1) for q in questions]
    assert 430 < plain.count("heldOut") < 570
    assert {side("user", q, fraction=0.0) for q in questions} == {"train"}
    more = [side("user", q, fraction=0.6) for q in questions]
    assert all(b == "heldOut" for a, b in zip(plain, more, strict=True) if a == "heldOut")


def test_rows_and_rejects_of_an_artifact_come_through_the_store(store: Store, cache: Cache, tmp_path: Path) -> None:
    rejects = [Reject("d.jsonl:3", 0, "BadJSON", "Expecting ','", "d.jsonl:3"), Reject("ab", 2, "Empty", "ü", "")]
    artifact = ArtifactWriter(store, key="ab" * 32, stage_type="ingest", writer=new_writer_id())
    for path in written(tmp_path / "rows", [row(number) for number in range(3)]):
        artifact.add_file(path, f"rows/{path.name}")
    artifact.add_bytes(encode_rejects(rejects), "rejects.jsonl")
    manifest = artifact.commit()
    assert [entry.source for entry in rows_of(cache, store, manifest)] == ["d.jsonl:0", "d.jsonl:1", "d.jsonl:2"]
    assert read_rejects(store, manifest) == rejects


def test_rejects_are_counted_and_exported() -> None:
    rejects = [Reject("d:1", 0, "Empty", 'a "quoted", detail', "d:1"), Reject("d:2", 0, "BadJSON", "x", "d:2")] * 2
    rejects.append(rejects[1])
    assert list(reasons(rejects).items()) == [("BadJSON", 3), ("Empty", 2)]
    assert decode_rejects(export_rejects(rejects, "jsonl").encode()) == rejects
    assert (
        export_rejects(rejects[:1], "csv")
        == 'row,sample,reason,detail,source\nd:1,0,Empty,"a ""quoted"", detail",d:1\n'
    )
    with pytest.raises(ValueError, match="use jsonl or csv"):
        export_rejects(rejects, "xml")
